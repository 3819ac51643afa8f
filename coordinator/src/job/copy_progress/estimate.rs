//! How much there is to copy in all, while only a part of it was counted.

use steep_protocol::ByteCount;

use super::{CopyProgress, TableCopy};

/// Bounds on the ratio of copied bytes to estimated heap bytes; outside of them it is not credible.
const RATIO_BOUNDS: (f64, f64) = (0.02, 50.0);

/// Estimated bytes that must be done before the ratio is applied to tables that have not begun.
const RATIO_SAMPLE: u64 = 1024 * 1024;

impl CopyProgress {
    /// The COPY bytes in all are known: everything is stored. Idempotent.
    pub fn know_total(&mut self, total: Option<ByteCount>) {
        if self.total != total {
            let planned: ByteCount = self.tables.iter().map(|t| t.summary.bytes_estimate).sum();
            self.exact = total == Some(planned);
            self.total = total;
        }
    }

    /// COPY bytes of the whole job. If they were not counted, estimated: the projection of tables that have begun,
    /// and for the rest the catalog's estimate, corrected by its error so far. Never less than what has been copied.
    #[must_use]
    pub fn expected(&self) -> ByteCount {
        if let Some(total) = self.total {
            return total.max(self.bytes());
        }
        // Exact to 2^52 bytes, far beyond the accuracy of an estimate.
        let rest = self.untouched as f64 * self.ratio();
        let total = self.projected.saturating_add(rest as u64);
        ByteCount(total).max(self.bytes())
    }

    /// Estimated COPY bytes of this table.
    #[must_use]
    pub fn expected_of(&self, table: &TableCopy) -> ByteCount {
        if self.exact {
            return table.summary.bytes_estimate;
        }
        let estimate = table.summary.bytes_estimate.0 as f64 * self.ratio();
        ByteCount(table.projected().unwrap_or(estimate as u64))
    }

    /// COPY bytes per estimated byte, over finished parts.
    fn ratio(&self) -> f64 {
        if self.estimated_done < RATIO_SAMPLE {
            return 1.0;
        }
        let ratio = self.done.bytes.0 as f64 / self.estimated_done as f64;
        ratio.clamp(RATIO_BOUNDS.0, RATIO_BOUNDS.1)
    }
}
