//! Preflight: judges whether two servers meet a job's needs.
//!
//! Pure: turns the facts that agents have gathered into findings. A finding names its node, the problem,
//! why it matters, and what to do; its code is stable, for scripts. Errors stop the job before it changes
//! anything; warnings are shown and recorded.
//!
//! Invariants: a healthy pair of servers yields no error and no warning; each defect yields its own code
//! and no other (`tests` walks all of them); the number of findings is bounded whatever the number of
//! tables.
//!
//! In the order a person would look: [`servers`] (versions, recovery, encodings, clocks), [`lineage`]
//! (whose changes they apply), [`links`] (whether they reach each other), [`privileges`], [`owner_code`]
//! (functions that would run with the agent's rights), [`capacity`] (slots, workers, sessions, locks),
//! [`limits`] (settings that could end the job midway), [`content`] (objects on the source), [`identity`]
//! (whether changes to its tables succeed and arrive), [`features`] (what its schema uses and the target
//! may lack), [`event_triggers`], [`receiver`] (rows and tables on the target), [`loading`] (what loading
//! rows depends on), [`altered`] (altered functions of extensions), [`spool`] (room for rows that wait beside the
//! source), [`snapshot_key`] (the key of an encrypted snapshot), [`stored_files`] (its files), [`prepared`] (the prepared slot of a backup), [`schema`] (differences). [`adding`] is about the words for tables that are added, [`unfollowed`] leaves out what does not matter to a target that will not follow, [`way_back`] what does not matter after a switchover.

mod adding;
mod altered;
mod capacity;
mod content;
mod event_triggers;
mod features;
mod identity;
mod limits;
mod lineage;
mod links;
mod loading;
mod owner_code;
mod prepared;
mod privileges;
mod receiver;
mod replicability;
mod resumed;
mod schema;
mod servers;
mod snapshot_key;
mod spool;
mod stored_files;
pub(crate) mod text;
mod unfollowed;
mod way_back;

#[cfg(test)]
pub(crate) mod tests;

use std::cmp::Reverse;

pub use identity::risks;
pub use prepared::standing;
pub use resumed::resumed;
pub use spool::NO_ROOM;
pub use stored_files::{not_loadable, read_by_source};
pub use way_back::of_way_back;

use steep_protocol::NodeId;
use steep_protocol::message::facts::{Finding, ServerFacts, Severity, SourceFacts, TargetFacts};
use steep_protocol::message::handover::{SchemaCheck, SlotFacts};
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::lineage::ChangeOrigin;

use super::Spooling;
use super::handover::{Handover, StoredRows};
use super::lineage::Around;

/// The job and the facts to judge.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The requested job.
    pub spec: &'a JobSpec,
    /// Facts about the source.
    pub source: &'a SourceFacts,
    /// Facts about the target.
    pub target: &'a TargetFacts,
    /// The prepared slot, if the rows come from a backup.
    pub handover: Option<(&'a Handover, &'a SlotFacts)>,
    /// The stored snapshot that the job loads, if it does.
    pub stored: Option<&'a StoredRows>,
    /// Facts about all other nodes.
    pub around: &'a Around,
}

/// Which of the source's changes the target's subscription receives.
#[must_use]
pub fn origin(case: &Case<'_>) -> ChangeOrigin {
    lineage::origin(&Pair::of(case), case.around)
}

/// Whether the rows go through a spool beside the source.
#[must_use]
pub fn spooling(case: &Case<'_>) -> Spooling {
    spool::choose(case.spec, case.source)
}

/// All findings about starting the job on these servers, gravest first.
#[must_use]
pub fn judge(case: &Case<'_>) -> Vec<Finding> {
    let pair = Pair::of(case);
    let handover = case.handover;
    let mut findings = servers::unusable(&pair);
    if !findings.is_empty() {
        // No other facts were gathered from such a server.
        return findings;
    }
    servers::judge(&pair, &mut findings);
    lineage::judge(&pair, case.around, &mut findings);
    links::judge(&pair, &mut findings);
    privileges::judge(&pair, &mut findings);
    owner_code::judge(&pair, &mut findings);
    capacity::judge(&pair, &mut findings);
    limits::judge(&pair, &mut findings);
    content::judge(&pair, &mut findings);
    event_triggers::judge(&pair, &mut findings);
    receiver::judge(&pair, &mut findings);
    loading::judge(&pair, &mut findings);
    altered::judge(&pair, &mut findings);
    findings.extend(spool::judge(&pair));
    findings.extend(
        case.stored
            .and_then(|stored| snapshot_key::judge(&pair, stored)),
    );
    findings.extend(
        case.stored
            .and_then(|stored| stored_files::judge(&pair, stored)),
    );
    if let Some((handover, slot)) = handover {
        prepared::judge(&pair, handover, slot, &mut findings);
    }
    let compared = handover.map_or(SchemaCheck::Compared, |(handover, _)| handover.schema);
    identity::judge_keys(&pair, compared, &mut findings);
    if compared == SchemaCheck::Compared {
        schema::judge(&pair, &mut findings);
    }
    findings.retain(|finding| unfollowed::matters(&pair, finding));
    if case.spec.method == Method::Add {
        adding::reword(&mut findings);
    }
    // Stable sort: findings of one severity keep the order above.
    findings.sort_by_key(|finding| Reverse(finding.severity));
    findings
}

/// How much the job would copy, for a check before it starts.
#[must_use]
pub fn copy_size(case: &Case<'_>) -> Option<Finding> {
    content::size(&Pair::of(case))
}

/// All findings about preparing a source for a backup, gravest first.
#[must_use]
pub fn judge_source(spec: &JobSpec, source: &SourceFacts) -> Vec<Finding> {
    let pair = Pair {
        spec,
        source,
        target: &TargetFacts::default(),
    };
    let mut findings = servers::unusable_source(&pair);
    if !findings.is_empty() {
        return findings;
    }
    servers::judge_source(&pair, &mut findings);
    privileges::judge_source(&pair, &mut findings);
    capacity::judge_source(&pair, &mut findings);
    limits::judge_source(&pair, &mut findings);
    content::judge_source(&pair, &mut findings);
    findings.sort_by_key(|finding| Reverse(finding.severity));
    findings
}

/// The input of every check.
struct Pair<'a> {
    spec: &'a JobSpec,
    source: &'a SourceFacts,
    target: &'a TargetFacts,
}

/// One of the two ends, for checks that apply to either.
struct End<'a> {
    node: &'a NodeId,
    server: &'a ServerFacts,
}

impl<'a> Pair<'a> {
    fn of(case: &Case<'a>) -> Self {
        Self {
            spec: case.spec,
            source: case.source,
            target: case.target,
        }
    }

    fn source_end(&self) -> End<'a> {
        End {
            node: &self.spec.source,
            server: &self.source.server,
        }
    }

    fn target_end(&self) -> End<'a> {
        End {
            node: &self.spec.target,
            server: &self.target.server,
        }
    }

    fn ends(&self) -> [End<'a>; 2] {
        [self.source_end(), self.target_end()]
    }

    /// Whether the job creates the schema on the target.
    fn schema_is_created(&self) -> bool {
        self.target.user_tables == 0 && !self.is_restored()
    }

    /// Whether the job makes its slot.
    fn makes_slot(&self) -> bool {
        self.spec.method != Method::Backup
    }

    /// Whether the rows are there before the job: from a backup, or to be merged.
    fn is_restored(&self) -> bool {
        matches!(self.spec.method, Method::Backup | Method::Merge)
    }
}

/// What, why and what to do, in sentences without a full stop at the end.
struct Text {
    what: String,
    why: String,
    fix: String,
}

impl Text {
    fn new(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
        }
    }
}

fn finding(severity: Severity, code: &str, node: &NodeId, text: Text) -> Finding {
    Finding {
        severity,
        code: code.to_owned(),
        node: Some(node.clone()),
        what: text.what,
        why: text.why,
        fix: text.fix,
    }
}

fn error(code: &str, node: &NodeId, text: Text) -> Finding {
    finding(Severity::Error, code, node, text)
}

fn warning(code: &str, node: &NodeId, text: Text) -> Finding {
    finding(Severity::Warning, code, node, text)
}

fn info(code: &str, node: &NodeId, text: Text) -> Finding {
    finding(Severity::Info, code, node, text)
}
