//! Which waiting statements may run now. Pure.
//!
//! Two `CREATE INDEX` can share a table, a constraint cannot. A worker with the wrong statement would wait
//! in the server, so the choice is made here.

use std::collections::BTreeMap;

use steep_protocol::TableName;

use super::objects::{Kind, Waiting};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Shared(u32),
    Alone,
}

/// Statements of one stage, heaviest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: Vec<Waiting>,
    held: BTreeMap<TableName, Held>,
}

impl Queue {
    /// Statements of equal weight stay in order.
    pub(super) fn new(mut pending: Vec<Waiting>) -> Self {
        pending.sort_by_key(|w| (std::cmp::Reverse(w.weight), w.ord));
        // Taken from the end.
        pending.reverse();
        Self {
            pending,
            held: BTreeMap::new(),
        }
    }

    /// The next statement that need not wait for another of ours; return it with [`done`](Self::done).
    pub(super) fn next(&mut self) -> Option<Waiting> {
        let free = |w: &Waiting| match w.table.as_ref().and_then(|t| self.held.get(t)) {
            None => true,
            Some(Held::Shared(_)) => w.kind == Kind::Index,
            Some(Held::Alone) => false,
        };
        let at = self.pending.iter().rposition(free)?;
        let waiting = self.pending.remove(at);
        if let Some(table) = &waiting.table {
            let held = match (waiting.kind, self.held.get(table)) {
                (Kind::Index, Some(Held::Shared(count))) => Held::Shared(count + 1),
                (Kind::Index, _) => Held::Shared(1),
                _ => Held::Alone,
            };
            self.held.insert(table.clone(), held);
        }
        Some(waiting)
    }

    pub(super) fn done(&mut self, waiting: &Waiting) {
        let Some(table) = &waiting.table else { return };
        match self.held.get(table) {
            Some(Held::Shared(count)) if *count > 1 => {
                self.held.insert(table.clone(), Held::Shared(count - 1));
            }
            _ => {
                self.held.remove(table);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(ord: i32, kind: Kind, table: &str, weight: u64) -> Waiting {
        Waiting {
            ord,
            kind,
            table: Some(TableName::new("s", table).unwrap()),
            name: None,
            sql: String::new(),
            added: false,
            weight,
        }
    }

    #[test]
    fn the_heaviest_goes_first_and_nobody_waits_for_our_own_lock() {
        let mut queue = Queue::new(vec![
            waiting(0, Kind::Key, "small", 1),
            waiting(1, Kind::Key, "big", 100),
            waiting(2, Kind::Index, "big", 100),
            waiting(3, Kind::Index, "big", 100),
        ]);
        let take = |queue: &mut Queue| queue.next().map(|w| w.ord);
        assert_eq!(take(&mut queue), Some(1), "the heaviest, in its order");
        assert_eq!(take(&mut queue), Some(0), "the big table is taken");
        assert_eq!(take(&mut queue), None);
        queue.done(&waiting(1, Kind::Key, "big", 100));
        assert_eq!(take(&mut queue), Some(2));
        assert_eq!(take(&mut queue), Some(3), "two indexes share a table");
        assert_eq!(take(&mut queue), None);
    }

    #[test]
    fn a_constraint_waits_until_every_index_on_its_table_is_built() {
        let index = |ord| waiting(ord, Kind::Index, "t", 9);
        let mut queue = Queue::new(vec![index(0), index(1), waiting(2, Kind::Key, "t", 1)]);
        assert!(queue.next().is_some() && queue.next().is_some());
        queue.done(&index(0));
        assert!(queue.next().is_none());
        queue.done(&index(1));
        assert_eq!(queue.next().map(|w| w.ord), Some(2));
    }
}
