//! What is said of how a job ended.

use steep_protocol::message::job::{CancelledData, Method};

use super::Live;
use super::log::Note;

/// Most tables named in an event.
const NAMED: usize = 5;

/// A node has the rows of a stored snapshot.
pub(super) fn loaded(live: &Live, seconds: f64) -> Note {
    let job = &live.job;
    let snapshot = job
        .stored
        .as_ref()
        .map(|stored| stored.snapshot.to_string());
    let text = format!(
        "{0} has the {1} rows of snapshot {2} of {3} after {seconds:.1} s, and does not follow {3}",
        job.spec.target,
        live.copied.counted().done.rows.0,
        snapshot.unwrap_or_default(),
        job.spec.source
    );
    Note::info("init.completed", text)
}

/// The tables of a node have changed.
pub(super) fn changed(live: &Live, seconds: f64) -> Note {
    let job = &live.job;
    let (target, source) = (&job.spec.target, &job.spec.source);
    let tables = job.change.iter().flat_map(|change| &change.tables);
    let named: Vec<String> = tables
        .clone()
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    let more = match tables.count().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = match named.is_empty() {
        true => "all its tables".to_owned(),
        false => named.join(", "),
    };
    if job.spec.method == Method::Drop {
        let text = format!("{target} no longer follows {source} in {named}{more}; its rows stay");
        return Note::info("tables.dropped", text);
    }
    let rows = live.copied.counted().done.rows.0;
    if job.spec.method == Method::Reinit {
        let text =
            format!("{target} has {named}{more} anew from {source}: {rows} rows in {seconds:.1} s");
        return Note::info("reinit.completed", text);
    }
    let text =
        format!("{target} follows {source} in {named}{more} too: {rows} rows in {seconds:.1} s");
    Note::info("tables.added", text)
}

/// What a cancel has done.
pub(super) fn cancelled(data: CancelledData, completed: bool, given_up: bool) -> &'static str {
    match (given_up, completed, data) {
        (true, _, _) => {
            "what could be reached is removed; what stays is in the events init.given_up"
        }
        (false, true, _) => {
            "slot, publication and subscription are removed; tables, rows and settings stay"
        }
        (false, false, CancelledData::Keep | CancelledData::Detach) => {
            "slot, publication and subscription are removed; tables and rows are kept"
        }
        (false, false, CancelledData::Remove) => "everything that the job created is removed",
    }
}
