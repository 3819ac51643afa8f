//! Whether a node can follow its replica after a switchover, judged while it is still the other way round.

use steep_protocol::message::facts::{Finding, Severity};

/// What holds only while the replica follows, and what a switchover judges by itself.
const LEFT_OUT: [&str; 7] = [
    "changes_would_be_missed",
    "changes_would_circle",
    "forgotten_job",
    "forgotten_slot",
    "origin_privilege",
    "source_follows_unknown",
    "subscription_privilege",
];

/// Of all findings about such a job, those that keep it from beginning.
#[must_use]
pub fn of_way_back(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.retain(|finding| {
        finding.severity == Severity::Error && !LEFT_OUT.contains(&finding.code.as_str())
    });
    findings
}
