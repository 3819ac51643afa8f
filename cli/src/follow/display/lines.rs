//! Decides when to print a line: at each change of state or phase, and every ten seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use steep_protocol::message::api::ProgressView;
use steep_protocol::{NodeId, NodeState, Phase};

use crate::render::progress;

/// The interval of lines without a change of state or phase.
const EVERY: Duration = Duration::from_secs(10);

/// What was printed last for each node, and when.
#[derive(Debug, Default)]
pub(super) struct Lines {
    printed: BTreeMap<NodeId, (NodeState, Option<Phase>, Duration)>,
}

impl Lines {
    /// The line to print, if one is due `now` after following began.
    pub(super) fn line(
        &mut self,
        view: &ProgressView,
        elapsed: f64,
        now: Duration,
    ) -> Option<String> {
        let due = match self.printed.get(&view.node_id) {
            Some((state, phase, at)) => {
                *state != view.state || *phase != view.phase || now.saturating_sub(*at) >= EVERY
            }
            None => true,
        };
        due.then(|| {
            self.printed
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
        let mut lines = Lines::default();
        let mut view = samples::progress();
        let mut prints = |view: &ProgressView, second| {
            lines.line(view, 0.0, Duration::from_secs(second)).is_some()
        };
        assert!(prints(&view, 0));
        assert!(!prints(&view, 1));
        assert!(!prints(&view, 9));
        assert!(prints(&view, 10));
        view.phase = Some(Phase::Indexes);
        assert!(prints(&view, 11));
        assert!(!prints(&view, 12));
        view.state = NodeState::CatchingUp;
        assert!(prints(&view, 12));
        view.node_id = samples::id("node_c");
        assert!(prints(&view, 12));
    }
}
