//! Who waits for a job and for whom it waits, as sentences.

use steep_protocol::message::agent::LockRole;
use steep_protocol::message::api::LockView;

use super::clean;
use crate::units;

/// A word and a sentence for each: `blocks`, `waits for`, `gave way`.
pub(crate) fn lines(locks: &[LockView]) -> Vec<(&'static str, String)> {
    locks.iter().map(line).collect()
}

fn line(lock: &LockView) -> (&'static str, String) {
    let (who, waited) = (lock.who(), units::eta(lock.waited_seconds.into()));
    let LockView {
        node_id,
        ours,
        table,
        ..
    } = lock;
    let queued = match lock.queued {
        0 => String::new(),
        1 => ", 1 more behind it".to_owned(),
        more => format!(", {} more behind it", units::count(more.into())),
    };
    let (label, text) = match lock.role {
        LockRole::BlockedByUs => (
            "blocks",
            format!("{who} on {node_id}, for {waited}: {table} is being used by {ours}{queued}"),
        ),
        LockRole::BlocksUs => (
            "waits for",
            format!("{who} on {node_id}, for {waited}: it holds {table}, wanted by {ours}{queued}"),
        ),
        LockRole::GaveWay => (
            "gave way",
            format!("to {who} on {node_id}, after {waited}: {ours} of {table} goes on later"),
        ),
    };
    (label, clean(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn each_side_of_a_conflict_has_its_sentence() {
        let mut lock = samples::lock(LockRole::BlockedByUs);
        let said = |lock: &LockView| {
            let (label, text) = line(lock);
            format!("{label} {text}")
        };
        assert_eq!(
            said(&lock),
            "blocks process 4711 (psql: ALTER TABLE public.orders ADD note text) on node_a, for 7s: \
             public.orders is being used by copy, 3 more behind it"
        );
        lock.role = LockRole::GaveWay;
        assert!(
            said(&lock).starts_with("gave way to process 4711"),
            "{}",
            said(&lock)
        );
        lock.role = LockRole::BlocksUs;
        lock.pid = 0;
        lock.statement = "a\u{1b}[31m".to_owned();
        assert!(said(&lock).contains("waits for a prepared transaction"));
        assert!(!said(&lock).contains('\u{1b}'));
    }
}
