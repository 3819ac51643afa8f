//! The parts of a copy that are not loaded yet. Workers take from the front.
//!
//! A worker that may choose takes a [`Slice`], so that no two choose the same part, and returns what it did
//! not choose to its place.

use std::collections::VecDeque;
use std::sync::Mutex;

use steep_protocol::PartNo;
use tokio::sync::Notify;

use crate::mutex::lock;

#[derive(Debug)]
pub(super) struct PartQueue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    parts: VecDeque<PartNo>,
    /// Slices whose owners have not chosen.
    open: usize,
}

/// Parts that one worker chooses from. Dropped before that, all are returned.
#[derive(Debug)]
pub(super) struct Slice<'a> {
    queue: &'a PartQueue,
    parts: Vec<PartNo>,
    open: bool,
}

impl PartQueue {
    pub(super) fn new(parts: VecDeque<PartNo>) -> Self {
        Self {
            state: Mutex::new(State { parts, open: 0 }),
            changed: Notify::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.state).parts.len()
    }

    /// The next part.
    pub(super) fn take(&self) -> Option<PartNo> {
        lock(&self.state).parts.pop_front()
    }

    /// At most `most` of the next parts, and no more than the share of one of so many workers. Waits while others may return
    /// some; `None` once all are chosen. Cancel-safe.
    pub(super) async fn slice(&self, most: usize, workers: usize) -> Option<Slice<'_>> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no return is missed.
            changed.as_mut().enable();
            {
                let mut state = lock(&self.state);
                let share = state.parts.len().div_ceil(workers.max(1)).min(most);
                if share > 0 {
                    state.open += 1;
                    return Some(Slice {
                        queue: self,
                        parts: state.parts.drain(..share).collect(),
                        open: true,
                    });
                }
                if state.open == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// One part that was chosen before.
    pub(super) fn chosen(&self, part: PartNo) -> Slice<'_> {
        Slice {
            queue: self,
            parts: vec![part],
            open: false,
        }
    }
}

impl Slice<'_> {
    /// In the order of the queue, at least one.
    pub(super) fn parts(&self) -> &[PartNo] {
        &self.parts
    }

    /// Returns the others. Whether it was among them.
    pub(super) fn choose(&mut self, part: PartNo) -> bool {
        let found = self.parts.contains(&part);
        if found {
            let rest = std::mem::replace(&mut self.parts, vec![part]);
            self.close(|parts| {
                for other in rest.into_iter().rev().filter(|other| *other != part) {
                    parts.push_front(other);
                }
            });
        }
        found
    }

    /// Puts all to the end of the queue.
    pub(super) fn put_back(mut self) {
        let all = std::mem::take(&mut self.parts);
        self.close(|parts| parts.extend(all));
    }

    fn close(&mut self, give_back: impl FnOnce(&mut VecDeque<PartNo>)) {
        if std::mem::take(&mut self.open) {
            let mut state = lock(&self.queue.state);
            give_back(&mut state.parts);
            state.open -= 1;
            self.queue.changed.notify_waiters();
        }
    }
}

impl Drop for Slice<'_> {
    fn drop(&mut self) {
        let all = std::mem::take(&mut self.parts);
        self.close(|parts| {
            for part in all.into_iter().rev() {
                parts.push_front(part);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn queue(parts: u32) -> PartQueue {
        PartQueue::new((0..parts).map(PartNo).collect())
    }

    fn slice(queue: &PartQueue) -> Option<Slice<'_>> {
        queue.slice(4, 1).now_or_never().flatten()
    }

    fn left(queue: PartQueue) -> Vec<u32> {
        let state = queue.state.into_inner().unwrap();
        state.parts.into_iter().map(|part| part.0).collect()
    }

    #[test]
    fn what_is_not_chosen_returns_to_its_place() {
        let queue = queue(16);
        let mut first = slice(&queue).unwrap();
        let second = slice(&queue).unwrap();
        assert_eq!(first.parts(), [0, 1, 2, 3].map(PartNo));
        assert_eq!(second.parts(), [4, 5, 6, 7].map(PartNo));
        drop(second);
        assert!(!first.choose(PartNo(9)));
        assert!(first.choose(PartNo(2)));
        drop(first);
        let expected: Vec<u32> = (0..16).filter(|part| *part != 2).collect();
        assert_eq!(left(queue), expected);
    }

    #[test]
    fn what_cannot_be_had_yet_goes_to_the_end() {
        let queue = queue(6);
        slice(&queue).unwrap().put_back();
        assert_eq!(left(queue), [4, 5, 0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_worker_waits_while_another_may_return_parts() {
        let queue = queue(1);
        let mut first = slice(&queue).unwrap();
        let mut second = Box::pin(queue.slice(4, 2));
        assert!((&mut second).now_or_never().is_none());
        first.choose(PartNo(0));
        assert!(second.await.is_none());
        let again = queue.chosen(PartNo(0));
        assert_eq!(again.parts(), [PartNo(0)]);
        drop((first, again));
        assert_eq!(left(queue), [0u32; 0]);
    }

    #[tokio::test]
    async fn a_dropped_slice_wakes_who_waits() {
        let queue = queue(1);
        let first = slice(&queue).unwrap();
        let second = queue.slice(4, 2);
        let (second, ()) = tokio::join!(second, async { drop(first) });
        assert_eq!(second.unwrap().parts(), [PartNo(0)]);
    }
}
