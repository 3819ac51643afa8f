//! The file `snapshot.json`, written first: whose pieces these are.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steep_protocol::encryption::Encryption;
use steep_protocol::stored::StoredCodec;
use steep_protocol::{Lsn, NodeId, SnapshotId};

use crate::error::{Error, Problem};
use crate::manifest::{format_version, text};
use crate::name::FileName;
use crate::place::{Existing, Place};

/// The longest claim, in bytes.
const CLAIM_MAX: u64 = 4096;

/// What must be equal for pieces to belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The snapshot.
    #[serde(with = "text")]
    pub snapshot_id: SnapshotId,
    /// Its source.
    pub node_id: NodeId,
    /// Its consistent point.
    #[serde(with = "text")]
    pub lsn: Lsn,
    /// How its parts are compressed.
    pub codec: StoredCodec,
    /// How its files are encrypted, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    format_version: u32,
    #[serde(rename = "snapshot")]
    identity: Identity,
}

/// Claims a place for a snapshot, unless it is claimed for another.
pub(super) async fn take(place: &Place, identity: &Identity) -> Result<(), Error> {
    if let Some(found) = read(place).await? {
        return compare(place, &found, identity);
    }
    check_no_files(place).await?;
    let claim = Claim {
        format_version: format_version(identity.encryption.as_ref()),
        identity: identity.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&claim).map_err(|e| Error::Misuse {
        place: place.location().clone(),
        why: e.to_string(),
    })?;
    let written = place
        .write(FileName::Claim, Bytes::from(bytes), Existing::Refuse)
        .await;
    match written {
        Ok(()) => Ok(()),
        // Perhaps somebody was faster.
        Err(error) => match read(place).await? {
            Some(found) => compare(place, &found, identity),
            None => Err(error),
        },
    }
}

/// Refuses a place with files of any snapshot.
pub(super) async fn check_vacant(place: &Place) -> Result<(), Error> {
    match read(place).await? {
        Some(found) => Err(Error::Occupied {
            place: place.location().clone(),
            found: Some(found.snapshot_id),
            why: String::new(),
        }),
        None => check_no_files(place).await,
    }
}

async fn check_no_files(place: &Place) -> Result<(), Error> {
    let listing = place.list().await?;
    if !listing.files.is_empty() {
        return Err(Error::Occupied {
            place: place.location().clone(),
            found: None,
            why: "; whose they are is unknown".to_owned(),
        });
    }
    Ok(())
}

fn compare(place: &Place, found: &Identity, wanted: &Identity) -> Result<(), Error> {
    if found == wanted {
        return Ok(());
    }
    let why = if found.snapshot_id != wanted.snapshot_id {
        String::new()
    } else if found.codec != wanted.codec {
        format!(", begun with the compression {}", found.codec)
    } else if found.encryption != wanted.encryption {
        match &found.encryption {
            Some(encryption) => format!(", begun encrypted to {}", encryption.recipients),
            None => ", begun without encryption".to_owned(),
        }
    } else {
        format!(", of node {} at {}", found.node_id, found.lsn)
    };
    Err(Error::Occupied {
        place: place.location().clone(),
        found: Some(found.snapshot_id),
        why,
    })
}

/// The claim of a place, if there is one.
///
/// # Errors
/// A problem if it is damaged, or the place's own error.
pub(crate) async fn read(place: &Place) -> Result<Option<Identity>, Error> {
    let Some(bytes) = place.read(FileName::Claim, CLAIM_MAX).await? else {
        return Ok(None);
    };
    let bad = |why: String| Problem::damaged(FileName::Claim, why).at(place.location());
    let claim: Claim = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if claim.format_version != format_version(claim.identity.encryption.as_ref()) {
        return Err(bad(format!(
            "its format version is {}",
            claim.format_version
        )));
    }
    Ok(Some(claim.identity))
}
