//! Limits how often an agent may cause an event in the history by starting a session or reporting an
//! expired slot, so that a faulty one cannot fill it. Restarts and network failures stay below the
//! limit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use steep_protocol::NodeId;

/// Allowed in each [`WINDOW`]: an agent that cannot keep a session dials about every second at first,
/// then less often.
const TIMES: usize = 20;

/// The period of the limit.
const WINDOW: Duration = Duration::from_secs(60);

/// The times within the last [`WINDOW`], by agent.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    done: Mutex<BTreeMap<NodeId, VecDeque<Instant>>>,
}

impl Admission {
    /// Whether an agent may do it now. Refusals do not count towards the limit.
    pub(crate) fn admit(&self, node: &NodeId, now: Instant) -> bool {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        done.retain(|_, times| times.back().is_some_and(recent));
        let own = done.entry(node.clone()).or_default();
        own.retain(recent);
        let room = own.len() < TIMES;
        if room {
            own.push_back(now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_registers_without_end_is_held_up_and_no_other() {
        let admission = Admission::default();
        let node = |name| NodeId::parse(name).unwrap();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..TIMES {
            assert!(admission.admit(&node("a"), start));
        }
        assert!(!admission.admit(&node("a"), after(59)));
        assert!(admission.admit(&node("b"), after(59)));
        assert!(admission.admit(&node("a"), after(60)));
        // Old entries are dropped.
        admission.admit(&node("b"), after(200));
        assert_eq!(admission.done.lock().unwrap().len(), 1);
    }
}
