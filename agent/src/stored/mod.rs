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

use steep_archive::{Archive, Error, Location};
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::{Fault, FaultKind, NodeId, Retry};

use crate::snapshot::stored::StoredSnapshot;

pub(crate) use store::store;

/// Reads a location that an operator named.
pub(crate) fn locate(text: &str, node: &NodeId) -> Result<Location, Fault> {
    Location::parse(text)
        .map_err(|error| Fault::new(FaultKind::BadRequest, error.to_string()).on(node))
}

/// Opens a stored snapshot to read so many of its parts at once, if it has that manifest.
pub(crate) async fn open(
    node: &NodeId,
    stored: &StoredPlace,
    parallel: u8,
) -> Result<StoredSnapshot, Fault> {
    let place = locate(&stored.location, node)?;
    let archive = Archive::open(&place).await;
    let archive = archive.map_err(|error| fault(&error, node))?;
    StoredSnapshot::open(archive, stored, parallel, node)
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
        _ => "",
    };
    let kind = match error.is_damage() {
        true => FaultKind::StoreDamaged,
        false => FaultKind::Failed,
    };
    let fault = Fault::new(kind, error.to_string()).on(node).hint(hint);
    // Of a full store, parts that are whole stay: somebody may make room while the snapshot lives.
    if error.is_full() || error.may_pass() {
        fault.retry(Retry::Backoff)
    } else {
        fault
    }
}
