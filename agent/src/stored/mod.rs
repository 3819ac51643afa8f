//! Stored snapshots on the source: what is read under an open snapshot goes into an archive.
//!
//! [`store()`] writes one, [`check`] reads it again and removes it, [`record`] is what this database knows
//! of it: the template slot with its expiry, so that it is dropped though nobody asks, and a row in
//! `steep_repl.snapshots`. [`room`] is what a spool may use of its disk, [`carried`] is a target's way to read one itself.

pub(crate) mod carried;
pub(crate) mod check;
pub(crate) mod record;
pub(crate) mod room;
pub(crate) mod spool;

mod store;

use steep_archive::{Archive, Error, Keys, Location};
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::{Fault, FaultKind, NodeId, Retry};

use crate::snapshot::stored::StoredSnapshot;

pub(crate) use store::store;

/// Reads a location that an operator named.
pub(crate) fn locate(text: &str, node: &NodeId) -> Result<Location, Fault> {
    Location::parse(text)
        .map_err(|error| Fault::new(FaultKind::BadRequest, error.to_string()).on(node))
}

/// Who reads stored snapshots, and with which keys.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub(crate) node: NodeId,
    pub(crate) keys: Keys,
}

/// Opens a stored snapshot to read so many of its parts at once, if it has that manifest and can be read.
pub(crate) async fn open(
    reader: &Reader,
    stored: &StoredPlace,
    parallel: u8,
) -> Result<StoredSnapshot, Fault> {
    let Reader { node, keys } = reader;
    let place = locate(&stored.location, node)?;
    let archive = Archive::open(&place, keys).await;
    let archive = archive.map_err(|error| fault(&error, node))?;
    let snapshot = StoredSnapshot::open(archive, stored, parallel, node)?;
    snapshot.check_keys(node)?;
    Ok(snapshot)
}

/// Whether a job could load a stored snapshot from there: what it checks before it changes anything.
pub(crate) async fn check_loadable(reader: &Reader, stored: &StoredPlace) -> Result<(), Fault> {
    let snapshot = open(reader, stored, 1).await?;
    if stored.verify {
        snapshot.check(&reader.node).await?;
    }
    Ok(())
}

/// Whether a snapshot could be stored there. What may pass is waited for once it is being made.
pub(crate) async fn check_place(location: &str, node: &NodeId) -> Result<(), Fault> {
    let place = locate(location, node)?;
    match Archive::check_vacant(&place).await {
        Err(error) if !error.may_pass() && !error.is_full() => Err(fault(&error, node)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The fault of an archive's error, also of a file that turns out to be wrong while it is read.
pub(crate) fn fault(error: &Error, node: &NodeId) -> Fault {
    let hint = match error {
        Error::Store { .. } | Error::Setup { .. } => {
            "the environment of that node's agent needs the store's address and credentials \
             (docs/snapshots.md names the variables)"
        }
        Error::Problem { .. } => {
            "put the file back from a copy; steep-repl snapshot verify names everything that is wrong. \
             Rows that a job has committed stay, and it can be resumed"
        }
        Error::Key { .. } => {
            "give that node's agent the key of one of these recipients (--snapshot-key FILE) and start it again; \
             steep-repl snapshot show names them"
        }
        _ => "",
    };
    let kind = match error {
        Error::Key { .. } => FaultKind::KeyMissing,
        error if error.is_damage() => FaultKind::StoreDamaged,
        _ => FaultKind::Failed,
    };
    let fault = Fault::new(kind, error.to_string()).on(node).hint(hint);
    // Of a full store, parts that are whole stay: somebody may make room while the snapshot lives.
    if error.is_full() || error.may_pass() {
        fault.retry(Retry::Backoff)
    } else {
        fault
    }
}
