//! The states of a node and the events that change them.
//!
//! Owns the transition relation and nothing else: no job, no command, no clock. Every change of a
//! node's state goes through [`transition`]; a pair outside the relation is a bug and an error, never a
//! silent overwrite.

use steep_protocol::NodeState;

/// An event of a node as a replica.
///
/// ```text
///                    Begin                Opened               Copied               Proved
///  UNINITIALIZED ───────────▶ PREPARING ─────────▶ COPYING ─────────▶ CATCHING_UP ─────────▶ SYNCHRONIZED
///     ▲   │                    ▲  │                │  ▲                   │                   │      │
///     │   │ Failed             │  │ Failed         │  │ Opened            │ Failed    Drifted │      │ Redo
///     │   │              Begin │  │                │  │                   │                   ▼      │
///     │   └───────────▶ FAILED ┘ ◀┴────────────────┘──┼───────────────────┘  ◀──────────── DIVERGED  │
///     │                  │  │ Redo                    │                           Failed      │ Redo │
///     │ Cancelled        │  └──────────────▶ REINITIALIZING ◀─────────────────────────────────┴──────┘
///     └──────────────────┘                     │ Proved, Returned ▶ SYNCHRONIZED, Failed ▶ FAILED
///       (and from every active state)              DIVERGED ─ Recovered ▶ SYNCHRONIZED
///                                                  REINITIALIZING ─ ReturnedDiverged ▶ DIVERGED
///                                                  COPYING ─ Loaded ▶ UNINITIALIZED
///                                              UNINITIALIZED ─ Adopted ▶ DIVERGED
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeEvent {
    /// A job was accepted.
    Begin,
    /// The target is prepared: copying starts.
    Opened,
    /// Rows, indexes and constraints are complete: the subscription starts.
    Copied,
    /// The copy is proved complete up to a fence.
    Proved,
    /// The rows of a stored snapshot are proved complete, and the node is not to follow.
    Loaded,
    /// The subscription or its slot broke, or the columns differ from the source's.
    Drifted,
    /// What had broken was repaired, and the node follows again.
    Recovered,
    /// Some or all tables must be copied again.
    Redo,
    /// The job on some of its tables has ended, and it follows as before.
    Returned,
    /// The same of a node that had diverged: it has not been looked at since.
    ReturnedDiverged,
    /// The job failed, or its cleanup cannot finish yet.
    Failed,
    /// An operator cancelled, and everything the job made was removed.
    Cancelled,
    /// The node is a replica made by a job that this coordinator does not know.
    Adopted,
    /// An operator ended its replication for good; its rows are its own.
    Detached,
}

impl NodeEvent {
    /// Every event.
    pub const ALL: [Self; 14] = [
        Self::Begin,
        Self::Opened,
        Self::Copied,
        Self::Proved,
        Self::Loaded,
        Self::Drifted,
        Self::Recovered,
        Self::Redo,
        Self::Returned,
        Self::ReturnedDiverged,
        Self::Failed,
        Self::Cancelled,
        Self::Adopted,
        Self::Detached,
    ];
}

/// A pair outside the relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node that is {from} cannot take {event:?}")]
pub struct Illegal {
    /// The state.
    pub from: NodeState,
    /// The event it cannot take.
    pub event: NodeEvent,
}

/// The state after `event`.
///
/// # Errors
/// [`Illegal`] if the relation has no such pair.
pub fn transition(from: NodeState, event: NodeEvent) -> Result<NodeState, Illegal> {
    use NodeState as S;
    let illegal = Err(Illegal { from, event });
    match (from, event) {
        (S::Uninitialized | S::Failed, NodeEvent::Begin) => Ok(S::Preparing),
        (S::Preparing | S::Reinitializing, NodeEvent::Opened) => Ok(S::Copying),
        (S::Copying, NodeEvent::Copied) => Ok(S::CatchingUp),
        (S::CatchingUp | S::Reinitializing, NodeEvent::Proved)
        | (S::Reinitializing, NodeEvent::Returned) => Ok(S::Synchronized),
        (S::Synchronized, NodeEvent::Drifted)
        | (S::Uninitialized, NodeEvent::Adopted)
        | (S::Reinitializing, NodeEvent::ReturnedDiverged) => Ok(S::Diverged),
        (S::Diverged, NodeEvent::Recovered) => Ok(S::Synchronized),
        (S::Synchronized | S::Diverged | S::Failed, NodeEvent::Redo) => Ok(S::Reinitializing),
        (
            S::Uninitialized
            | S::Preparing
            | S::Copying
            | S::CatchingUp
            // A detach that cannot finish.
            | S::Synchronized
            | S::Diverged
            | S::Reinitializing,
            NodeEvent::Failed,
        ) => Ok(S::Failed),
        (
            S::Preparing | S::Copying | S::CatchingUp | S::Reinitializing | S::Failed,
            NodeEvent::Cancelled,
        )
        | (S::Copying, NodeEvent::Loaded)
        | (S::Synchronized | S::Diverged | S::Failed, NodeEvent::Detached) => Ok(S::Uninitialized),
        (
            S::Uninitialized
            | S::Preparing
            | S::Copying
            | S::CatchingUp
            | S::Synchronized
            | S::Diverged
            | S::Failed
            | S::Reinitializing,
            _,
        ) => illegal,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use NodeState as S;

    use super::*;

    /// The relation once more, written independently of [`transition`].
    const RELATION: &[(S, S)] = &[
        (S::Uninitialized, S::Preparing),
        (S::Uninitialized, S::Failed),
        (S::Uninitialized, S::Diverged),
        (S::Preparing, S::Copying),
        (S::Preparing, S::Failed),
        (S::Preparing, S::Uninitialized),
        (S::Copying, S::CatchingUp),
        (S::Copying, S::Failed),
        (S::Copying, S::Uninitialized),
        (S::CatchingUp, S::Synchronized),
        (S::CatchingUp, S::Failed),
        (S::CatchingUp, S::Uninitialized),
        (S::Synchronized, S::Diverged),
        (S::Synchronized, S::Reinitializing),
        (S::Synchronized, S::Failed),
        (S::Synchronized, S::Uninitialized),
        (S::Diverged, S::Synchronized),
        (S::Diverged, S::Reinitializing),
        (S::Diverged, S::Failed),
        (S::Diverged, S::Uninitialized),
        (S::Failed, S::Uninitialized),
        (S::Failed, S::Reinitializing),
        (S::Failed, S::Preparing),
        (S::Reinitializing, S::Copying),
        (S::Reinitializing, S::Failed),
        (S::Reinitializing, S::Synchronized),
        (S::Reinitializing, S::Diverged),
        (S::Reinitializing, S::Uninitialized),
    ];

    #[test]
    fn every_pair_of_state_and_event_is_in_the_relation_or_refused() {
        let mut seen = BTreeSet::new();
        for from in S::ALL {
            for event in NodeEvent::ALL {
                match transition(from, event) {
                    Ok(to) => {
                        assert!(RELATION.contains(&(from, to)), "{from} -{event:?}-> {to}");
                        assert_ne!(from, to);
                        seen.insert((from, to));
                    }
                    Err(illegal) => assert_eq!(illegal, Illegal { from, event }),
                }
            }
        }
        let wanted: BTreeSet<_> = RELATION.iter().copied().collect();
        assert_eq!(
            seen, wanted,
            "a pair of the relation cannot be reached by any event"
        );
    }

    #[test]
    fn no_state_is_a_dead_end() {
        for start in S::ALL {
            let mut reached = BTreeSet::from([start]);
            let mut todo = vec![start];
            while let Some(state) = todo.pop() {
                for event in NodeEvent::ALL {
                    if let Ok(next) = transition(state, event)
                        && reached.insert(next)
                    {
                        todo.push(next);
                    }
                }
            }
            assert!(
                reached.contains(&S::Synchronized),
                "{start} never gets synchronized"
            );
            assert!(
                reached.contains(&S::Uninitialized),
                "{start} never gets uninitialized"
            );
        }
    }

    #[test]
    fn every_active_state_can_be_cancelled_and_can_fail() {
        for state in S::ALL.into_iter().filter(|s| s.is_active()) {
            assert_eq!(
                transition(state, NodeEvent::Cancelled),
                Ok(S::Uninitialized)
            );
            assert_eq!(transition(state, NodeEvent::Failed), Ok(S::Failed));
        }
    }
}
