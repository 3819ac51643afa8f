//! Bars on a terminal: for each job a title, a bar by bytes, a line of rates, and a bar for each
//! table being copied.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use steep_protocol::NodeId;
use steep_protocol::message::api::ProgressView;

use crate::render::{Paint, progress};

/// Lines for tables of all jobs together, so that everything fits on a small terminal.
const TABLE_LINES: usize = 8;

/// All bars of a command.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    groups: BTreeMap<NodeId, Group>,
    tables_each: usize,
    paint: Paint,
}

/// The bars of one job, from top to bottom.
#[derive(Debug)]
struct Group {
    title: ProgressBar,
    overall: ProgressBar,
    rates: ProgressBar,
    tables: Vec<ProgressBar>,
}

impl Bars {
    /// Bars for that many jobs.
    pub(super) fn new(jobs: usize, paint: Paint) -> Self {
        Self {
            all: MultiProgress::new(),
            groups: BTreeMap::new(),
            tables_each: (TABLE_LINES / jobs.max(1)).max(1),
            paint,
        }
    }

    /// Shows how far a job is.
    pub(super) fn show(&mut self, view: &ProgressView, elapsed: f64) {
        let frame = progress::frame(view, elapsed, self.tables_each, self.paint);
        let all = &self.all;
        let group = self
            .groups
            .entry(view.node_id.clone())
            .or_insert_with(|| Group {
                title: all.add(text("{wide_msg}")),
                overall: all.add(bar(28)),
                rates: all.add(text("  {wide_msg}")),
                tables: Vec::new(),
            });
        group.title.set_message(frame.title);
        group.overall.set_position(frame.overall.permille);
        group.overall.set_message(frame.overall.text);
        group.rates.set_message(frame.rates);
        while group.tables.len() > frame.tables.len() {
            if let Some(gone) = group.tables.pop() {
                gone.finish_and_clear();
                all.remove(&gone);
            }
        }
        while group.tables.len() < frame.tables.len() {
            let after = group.tables.last().unwrap_or(&group.rates);
            let new = all.insert_after(after, bar(16));
            group.tables.push(new);
        }
        for (line, table) in group.tables.iter().zip(frame.tables) {
            line.set_position(table.permille);
            line.set_message(table.text);
        }
    }

    /// Removes the bars of a job.
    pub(super) fn remove(&mut self, node: &NodeId) {
        if let Some(group) = self.groups.remove(node) {
            let lines = [group.title, group.overall, group.rates];
            for line in group
                .tables
                .into_iter()
                .rev()
                .chain(lines.into_iter().rev())
            {
                line.finish_and_clear();
                self.all.remove(&line);
            }
        }
    }

    /// Prints above the bars.
    pub(super) fn above(&self, text: &str) {
        // If the terminal is gone, nobody reads this.
        let _ = self.all.println(text.trim_end());
    }

    /// Runs `work` with the bars hidden.
    pub(super) fn suspended(&self, work: impl FnOnce()) {
        self.all.suspend(work);
    }

    /// Hides the bars until [`Bars::unhide`].
    pub(super) fn hide(&self) {
        let _ = self.all.clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Shows the bars again.
    pub(super) fn unhide(&self) {
        self.all.set_draw_target(ProgressDrawTarget::stderr());
    }

    /// Removes all bars.
    pub(super) fn clear(&mut self) {
        for node in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.remove(&node);
        }
        let _ = self.all.clear();
    }
}

fn text(template: &str) -> ProgressBar {
    ProgressBar::no_length().with_style(style(template))
}

fn bar(width: usize) -> ProgressBar {
    let style = style(&format!("  {{bar:{width}}} {{wide_msg}}")).progress_chars("━╸─");
    ProgressBar::new(1_000).with_style(style)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our own templates are well-formed")
}
