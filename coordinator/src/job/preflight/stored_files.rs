//! The files of a stored snapshot: whether its reader finds all of them, and whether they are those that somebody
//! expects at their place.

use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::JobSpec;
use steep_protocol::{Fault, FaultKind, Retry};

use super::super::handover::{Replaced, StoredRows};
use super::{Pair, Text, finding, info, warning};

/// The snapshot at a place is another one than was recorded for it.
pub(super) fn judge(pair: &Pair<'_>, stored: &StoredRows) -> Option<Finding> {
    let replaced = stored.instead_of.as_ref()?;
    let (found, location) = (stored.snapshot, &stored.location);
    let made = |at: Option<jiff::Timestamp>| {
        at.map_or_else(String::new, |at| format!(", made at {at:.0}"))
    };
    let recorded = match replaced {
        Replaced::Stored { .. } => "the one that was stored there is",
        Replaced::Applied { .. } => "the one that this node was last made from there is",
    };
    let (other, other_made) = match replaced {
        Replaced::Stored { snapshot, made } => (snapshot, Some(*made)),
        Replaced::Applied { snapshot, made } => (snapshot, *made),
    };
    let text = Text {
        what: format!(
            "{location} holds snapshot {found}{}, and {recorded} {other}{}",
            made(stored.made),
            made(other_made)
        ),
        why: "files that were carried there may be older than you think, or another snapshot's"
            .to_owned(),
        fix: format!(
            "name the snapshot that you mean by its id, or go on if it is {found}; steep-repl snapshot list shows both"
        ),
    };
    Some(warning("snapshot_replaced", &pair.spec.target, text))
}

/// Why a job's snapshot cannot be loaded: files are missing, or the key for them.
#[must_use]
pub fn not_loadable(spec: &JobSpec, fault: &Fault) -> Finding {
    let code = match fault.kind {
        FaultKind::KeyMissing => "snapshot_key",
        _ => "snapshot_files",
    };
    let text = Text::new(
        fault.message.clone(),
        "its rows cannot be loaded from there",
        fault.hint.clone(),
    );
    // What may pass is waited for.
    let severity = match fault.retry {
        Retry::Never => Severity::Error,
        _ => Severity::Warning,
    };
    let node = fault.node.as_ref().unwrap_or(&spec.target);
    finding(severity, code, node, text)
}

/// The source's agent reads what the target's cannot.
#[must_use]
pub fn read_by_source(spec: &JobSpec, fault: &Fault) -> Finding {
    let text = Text::new(
        format!("the agent of {} will read the snapshot", spec.source),
        format!("that of {} cannot: {}", spec.target, fault.message),
        "",
    );
    info("snapshot_reader", &spec.target, text)
}
