//! When a log gets a line: at every change of state or phase, and every ten seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use steep_protocol::message::api::ProgressView;
use steep_protocol::{NodeId, NodeState, Phase};

use crate::render::progress;

/// Between two lines that say the same but for the numbers.
const EVERY: Duration = Duration::from_secs(10);

/// What was said last, and when, of each node.
#[derive(Debug, Default)]
pub(super) struct Calm {
    said: BTreeMap<NodeId, (NodeState, Option<Phase>, Duration)>,
}

impl Calm {
    /// The line that is due, if one is, `now` after watching began.
    pub(super) fn line(
        &mut self,
        view: &ProgressView,
        elapsed: f64,
        now: Duration,
    ) -> Option<String> {
        let due = match self.said.get(&view.node_id) {
            Some((state, phase, at)) => {
                *state != view.state || *phase != view.phase || now.saturating_sub(*at) >= EVERY
            }
            None => true,
        };
        due.then(|| {
            self.said
                .insert(view.node_id.clone(), (view.state, view.phase, now));
            progress::line(view, elapsed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_line_comes_with_each_change_and_every_ten_seconds() {
        let mut calm = Calm::default();
        let mut view = samples::progress();
        let mut said = |view: &ProgressView, second| {
            calm.line(view, 0.0, Duration::from_secs(second)).is_some()
        };
        assert!(said(&view, 0));
        assert!(!said(&view, 1));
        assert!(!said(&view, 9));
        assert!(said(&view, 10));
        view.phase = Some(Phase::Indexes);
        assert!(said(&view, 11));
        assert!(!said(&view, 12));
        view.state = NodeState::CatchingUp;
        assert!(said(&view, 12));
        view.node_id = samples::id("node_c");
        assert!(said(&view, 12));
    }
}
