//! Two nodes that are merged: the job of either waits until the driver says what became of both.

use super::{MergeNews, Step, Turn};

impl Turn {
    /// Takes what becomes of a merge.
    pub(super) fn merged(&mut self, step: Step, news: MergeNews) {
        match (news, step) {
            (MergeNews::Apart, Step::Apart) | (MergeNews::Proved, Step::Merge) => self.leave(step),
            (MergeNews::Written(rows), _) => {
                if let Some(merge) = &mut self.job.merge {
                    merge.rows_written += rows;
                }
            }
            (MergeNews::Apart | MergeNews::Proved, _) => {}
        }
    }
}
