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

/// Statements of one transaction, at most.
const BATCH: usize = 16;

/// A batch holds no more than this share of what each worker has before it: the last statements are spread
/// over all workers, and where there are few, each is a transaction of its own.
const SHARE: usize = 32;

/// Bytes of a table whose indexes may share a transaction: each is built in some milliseconds, of which
/// most go into the transaction.
const SMALL: u64 = 1024 * 1024;

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

    /// The next one that need not wait for another of ours, and others on small tables to share its
    /// transaction, for one of so many workers. Empty where all have to wait. Each is to be given back by
    /// [`done`](Self::done).
    pub(super) fn take(&mut self, workers: usize) -> Vec<Waiting> {
        let most = (self.pending.len() / (workers.max(1) * SHARE)).clamp(1, BATCH);
        let mut batch: Vec<Waiting> = self.next().into_iter().collect();
        while batch.len() < most
            && batch.last().is_some_and(is_small)
            && let Some(next) = self.next_where(is_small)
        {
            batch.push(next);
        }
        batch
    }

    fn next(&mut self) -> Option<Waiting> {
        self.next_where(|_| true)
    }

    fn next_where(&mut self, fits: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let free = |w: &Waiting| match w.table.as_ref().and_then(|t| self.held.get(t)) {
            None => true,
            Some(Held::Shared(_)) => w.kind == Kind::Index,
            Some(Held::Alone) => false,
        };
        let at = self.pending.iter().rposition(free)?;
        if !fits(&self.pending[at]) {
            return None;
        }
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

/// Whether others may share its transaction, which a setting of its own would reach too.
fn is_small(waiting: &Waiting) -> bool {
    matches!(waiting.kind, Kind::Index | Kind::Key)
        && waiting.weight <= SMALL
        && !waiting.sql.starts_with("SET ")
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
    fn many_small_ones_share_transactions_and_the_last_are_spread() {
        let one = |ord, weight| waiting(ord, Kind::Key, &format!("t{ord}"), weight);
        let mut all: Vec<Waiting> = (0..2_000).map(|ord| one(ord, 1)).collect();
        all.push(one(2_000, SMALL + 1));
        all[7].sql = "SET LOCAL default_tablespace = x;\nALTER TABLE …".to_owned();
        let mut queue = Queue::new(all);
        let ords = |batch: &[Waiting]| batch.iter().map(|w| w.ord).collect::<Vec<_>>();
        assert_eq!(ords(&queue.take(4)), [2_000], "a large one goes alone");
        assert_eq!(ords(&queue.take(4)), (0..7).collect::<Vec<_>>());
        assert_eq!(ords(&queue.take(4)), [7], "so does one with a setting");
        let mut sizes = Vec::new();
        loop {
            match queue.take(4).len() {
                0 => break,
                size => sizes.push(size),
            }
        }
        assert_eq!(sizes.iter().sum::<usize>(), 1_992);
        assert!(sizes.is_sorted_by(|a, b| a >= b));
        assert_eq!((sizes[0], sizes.last()), (15, Some(&1)));
        let few = (0..100).map(|ord| one(ord, 1));
        assert_eq!(Queue::new(few.collect()).take(4).len(), 1);
    }

    #[test]
    fn a_batch_takes_no_table_that_another_holds() {
        let all = (0..4_000).map(|ord| waiting(ord, Kind::Key, &format!("t{}", ord / 2), 1));
        let mut queue = Queue::new(all.collect());
        let batch = queue.take(1);
        assert_eq!(batch.len(), BATCH);
        assert!(batch.iter().all(|w| w.ord % 2 == 0));
        batch.iter().for_each(|w| queue.done(w));
        assert_eq!(queue.take(1)[0].ord, 1);
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
