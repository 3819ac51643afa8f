//! Output while following jobs: bars on a terminal, lines in a log, JSON for programs. The text comes
//! from [`crate::render`].

mod bars;
mod lines;

use std::collections::BTreeMap;
use std::time::Instant;

use steep_protocol::message::api::{EndView, EventView, ProgressView};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::{JobId, NodeId, NodeState};

use self::bars::Bars;
use self::lines::Lines;
use crate::failure::{self, Failure};
use crate::render::{Paint, events, findings, json, report};
use crate::terminal::{Terminal, folded, print_folded, print_json, print_line, tell};

/// The output of a follower.
#[derive(Debug)]
pub(super) struct Display {
    output: Output,
    paint: Paint,
    errors: Paint,
    started: Instant,
}

#[derive(Debug)]
enum Output {
    Bars(Bars),
    Lines(Lines),
    Json,
}

impl Display {
    /// Chooses the output that suits the terminal.
    pub(super) fn new(terminal: Terminal, jobs: usize) -> Self {
        let output = if terminal.json {
            Output::Json
        } else if terminal.live {
            Output::Bars(Bars::new(jobs, terminal.err))
        } else {
            Output::Lines(Lines::default())
        };
        Self {
            output,
            paint: terminal.out,
            errors: terminal.err,
            started: Instant::now(),
        }
    }

    /// Prints text above the bars, or to the stream for text.
    fn say(&self, text: &str) {
        match &self.output {
            Output::Bars(bars) => bars.above(&folded(text)),
            Output::Lines(_) => print_line(text.trim_end()),
            Output::Json => tell(text.trim_end()),
        }
    }

    /// Prints a note about the command itself, never as JSON.
    pub(super) fn note(&self, text: &str) {
        self.say(text);
    }

    pub(super) fn accepted(&self, jobs: &[(NodeId, JobId)]) {
        if let Output::Lines(_) = self.output {
            for (node, job) in jobs {
                self.say(&format!("{node}: job {job} accepted"));
            }
        }
    }

    pub(super) fn progress(&mut self, view: &ProgressView) {
        let elapsed = elapsed(view, self.started);
        match &mut self.output {
            Output::Bars(bars) => bars.show(view, elapsed),
            Output::Lines(lines) => {
                if let Some(line) = lines.line(view, elapsed, self.started.elapsed()) {
                    print_line(&line);
                }
            }
            Output::Json => print_json(&json::progress(view)),
        }
    }

    pub(super) fn event(&self, event: &EventView) {
        match &self.output {
            // `Display::end` prints the end, with more in it.
            Output::Json if is_end(&event.event) => {}
            Output::Json => print_json(&json::event(event)),
            Output::Bars(_) if is_warning(event) => self.say(&events::brief(event, self.paint)),
            Output::Lines(_) if is_warning(event) => self.say(&events::event(event, self.paint)),
            Output::Bars(_) | Output::Lines(_) => {}
        }
    }

    pub(super) fn findings(&self, target: &NodeId, found: &[Finding]) {
        match &self.output {
            Output::Json => print_json(&json::preflight(target, found)),
            Output::Bars(_) | Output::Lines(_) => {
                if found
                    .iter()
                    .any(|finding| finding.severity > Severity::Info)
                {
                    self.say(&findings::report(target, found, self.paint));
                }
            }
        }
    }

    pub(super) fn end(&mut self, view: &EndView) {
        match &mut self.output {
            Output::Json => print_json(&json::end(view)),
            Output::Lines(_) => print_folded(&report::end(view, self.paint)),
            Output::Bars(bars) => {
                bars.remove(&view.node_id);
                let text = report::end(view, self.paint);
                bars.suspended(|| print_folded(&text));
            }
        }
        if let (Output::Json, Some(fault)) = (&self.output, &view.fault) {
            tell(&failure::render(fault, self.errors));
        }
    }

    pub(super) fn cancelled(&self, node: &NodeId, state: NodeState) {
        match &self.output {
            Output::Json => print_json(&json::cancelled(node, state)),
            Output::Bars(_) | Output::Lines(_) => {
                self.say(&format!(
                    "{node}: cancelled, and what the job made is removed"
                ));
            }
        }
    }

    pub(super) fn detached(&self, node: &NodeId, job: Option<JobId>) {
        let how = format!(
            "{node}: the job goes on; follow it with `steep-repl init progress --node {node} --follow`"
        );
        match (&self.output, job) {
            (Output::Json, Some(job)) => print_json(&json::detached(node, job)),
            (Output::Json, None) => tell(&how),
            (Output::Bars(_) | Output::Lines(_), _) => self.say(&how),
        }
    }

    /// Reports a failure for the target it names, or for all targets. What is known of their jobs has begun.
    pub(super) fn failed(
        &self,
        targets: &[NodeId],
        jobs: &BTreeMap<NodeId, JobId>,
        failure: &Failure,
    ) {
        if let Output::Json = self.output {
            for node in failure.concerns(targets) {
                print_json(&json::unfollowed(&failure.0, node, jobs.get(node).copied()));
            }
        }
        tell(&failure::render(&failure.0, self.errors));
    }

    /// Hides the bars for a question.
    pub(super) fn pause(&self) {
        if let Output::Bars(bars) = &self.output {
            bars.hide();
        }
    }

    /// Shows the bars again.
    pub(super) fn resume(&self) {
        if let Output::Bars(bars) = &self.output {
            bars.unhide();
        }
    }

    /// Removes the bars at the end.
    pub(super) fn finish(&mut self) {
        if let Output::Bars(bars) = &mut self.output {
            bars.clear();
        }
    }
}

fn is_warning(event: &EventView) -> bool {
    event.level == "warn" && !is_end(&event.event)
}

fn is_end(event: &str) -> bool {
    matches!(
        event,
        "init.completed" | "tables.added" | "tables.dropped" | "init.failed" | "init.cancelled"
    )
}

/// Seconds since the job started or, if that is unknown or the clocks disagree, since following began.
fn elapsed(view: &ProgressView, watched: Instant) -> f64 {
    let since = view
        .started_at
        .map(|at| jiff::Timestamp::now().duration_since(at).as_secs_f64());
    since
        .filter(|seconds| *seconds >= 0.0)
        .unwrap_or_else(|| watched.elapsed().as_secs_f64())
}
