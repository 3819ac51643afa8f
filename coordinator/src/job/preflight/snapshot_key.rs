//! Whether the agent that reads a stored snapshot has the key for it.

use steep_protocol::encryption::Recipient;
use steep_protocol::message::facts::Finding;

use super::super::handover::{Reader, StoredRows};
use super::{Pair, Text, error};

pub(super) fn judge(pair: &Pair<'_>, stored: &StoredRows) -> Option<Finding> {
    let encryption = stored.encryption.as_ref()?;
    let node = stored.reader.node(pair.spec);
    let key = match stored.reader {
        Reader::Source => &pair.source.snapshot_key,
        Reader::Target(_) => &pair.target.snapshot_key,
    };
    if key.as_ref().is_some_and(|key| key.can_read(encryption)) {
        return None;
    }
    let own = match key {
        None => "its agent has no key for snapshots".to_owned(),
        Some(key) if key.reads.is_empty() => {
            "its agent's key file has only recipients, which encrypt and cannot read".to_owned()
        }
        Some(key) => {
            let own: Vec<&str> = key.reads.iter().map(Recipient::as_str).collect();
            format!("its agent has only the key of {}", own.join(", "))
        }
    };
    Some(error(
        "snapshot_key",
        node,
        Text {
            what: format!(
                "snapshot {} is encrypted to {}, and {own}",
                stored.snapshot, encryption.recipients
            ),
            why: "without the key of one of these recipients its rows cannot be read".to_owned(),
            fix: format!(
                "start the agent of {node} with --snapshot-key FILE, a file with that key, or apply the snapshot where \
                 another agent reads it"
            ),
        },
    ))
}
