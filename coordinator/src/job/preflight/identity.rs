//! Whether changes to the published tables succeed on the source and arrive on the target. Turns the rules
//! of [`super::replicability`] into findings, one per fault, remedy and severity.
//!
//! A change that would fail in the source's applications is an error that no option allows: another
//! identity or `--exclude-table` always helps. The exception are tables without an identity whose rows have
//! never been updated or deleted, such as logs. A change that only the target cannot apply is an error if
//! rows are known to change.

use std::collections::BTreeMap;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{Finding, Listed, Severity};
use steep_protocol::message::handover::SchemaCheck;
use steep_protocol::message::identity::MissingIdentity;
use steep_protocol::message::job::SchemaMode;

use super::replicability::{
    ApplyObstacle, Fate, Remedy, SourceObstacle, Statement, Versions, fate, remedy,
};
use super::text::{counted, names, version};
use super::{Pair, Text, finding, warning};

/// What the tables of one finding have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    changed: bool,
    fate: Fate,
    remedy: Remedy,
}

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let source = pair.source.server.version;
    let versions = Versions {
        source,
        // Without a known target, assume the source's version.
        target: match pair.target.server.version {
            0 => source,
            known => known,
        },
    };
    let mut faults: BTreeMap<Fault, Listed> = BTreeMap::new();
    for group in &pair.source.identities {
        let fates = [Statement::Insert, Statement::Update, Statement::Delete]
            .map(|statement| fate(statement, group.traits, versions));
        let gravest = fates.into_iter().max().unwrap_or(Fate::Fine);
        if gravest == Fate::Fine {
            continue;
        }
        let fault = Fault {
            changed: group.changed,
            fate: gravest,
            remedy: remedy(group.traits, versions),
        };
        merge(faults.entry(fault).or_default(), &group.tables);
    }
    let node = &pair.spec.source;
    for (fault, tables) in &faults {
        let (severity, code) = grade(fault);
        let text = Text::new(
            format!(
                "{}{}: {}",
                what(fault.fate, tables.count),
                match (fault.changed, tables.count) {
                    (true, 1) => ", and its rows are updated or deleted",
                    (true, _) => ", and their rows are updated or deleted",
                    (false, _) => "",
                },
                names(tables)
            ),
            why(fault, versions),
            fix(fault.remedy),
        );
        findings.push(finding(severity, code, node, text));
    }
}

/// Codes of findings about tables whose changes may stop the subscription.
const RISKS: [&str; 5] = [
    "replica_identity_not_sent",
    "replica_identity_equality",
    "target_key",
    "firing_triggers",
    "owner_privileges",
];

/// The findings of a job that may explain why its subscription fails later.
#[must_use]
pub fn risks(findings: &[Finding]) -> Vec<String> {
    let risky = findings.iter().filter(|f| RISKS.contains(&f.code.as_str()));
    risky.map(|finding| finding.what.clone()).collect()
}

/// Different keys on a target whose schema is used as it is: in mode `manual`, or if it was not compared.
/// In the other modes each difference is a finding of its own, or is fixed.
pub(super) fn judge_keys(pair: &Pair<'_>, compared: SchemaCheck, findings: &mut Vec<Finding>) {
    let tables = &pair.target.unfindable;
    let as_it_is = compared == SchemaCheck::Skipped || pair.spec.schema_mode == SchemaMode::Manual;
    if tables.is_empty() || !as_it_is {
        return;
    }
    findings.push(warning(
        "target_key",
        &pair.spec.target,
        Text::new(
            format!(
                "{} a key by which no row of the source is found: {}",
                counted(tables.count, "table has", "tables have"),
                names(tables)
            ),
            "rows are looked up by the target's own replica identity or primary key, whose columns the source must send: the first UPDATE or DELETE on these tables stops the subscription",
            "give these tables the source's primary key or replica identity on the target, or let the source send whole rows by REPLICA IDENTITY FULL",
        ),
    ));
}

fn merge(into: &mut Listed, more: &Listed) {
    let room = LISTED_MAX.saturating_sub(into.names.len());
    into.names.extend(more.names.iter().take(room).cloned());
    into.count += more.count;
}

fn grade(fault: &Fault) -> (Severity, &'static str) {
    let by_evidence = match fault.changed {
        true => Severity::Error,
        false => Severity::Warning,
    };
    match fault.fate {
        Fate::BreaksSource(SourceObstacle::NoIdentity(_)) if fault.changed => {
            (Severity::Error, "replica_identity_needed")
        }
        Fate::BreaksSource(SourceObstacle::NoIdentity(_)) => {
            (Severity::Warning, "no_replica_identity")
        }
        Fate::BreaksSource(SourceObstacle::GeneratedInFull | SourceObstacle::GeneratedInKey) => {
            (Severity::Error, "replica_identity_generated")
        }
        Fate::StopsApply(ApplyObstacle::KeyNotSent) => (by_evidence, "replica_identity_not_sent"),
        Fate::StopsApply(ApplyObstacle::NoEquality) | Fate::Fine => {
            (by_evidence, "replica_identity_equality")
        }
    }
}

fn what(fate: Fate, count: u64) -> String {
    let tables = counted(count, "table", "tables");
    let have = if count == 1 { "has" } else { "have" };
    match fate {
        Fate::BreaksSource(SourceObstacle::NoIdentity(why)) => match why {
            MissingIdentity::NoPrimaryKey => {
                format!("{tables} {have} neither a primary key nor another replica identity")
            }
            MissingIdentity::Deferrable => {
                format!(
                    "{tables} {have} a primary key that is DEFERRABLE, which is no replica identity"
                )
            }
            MissingIdentity::Nothing => format!("{tables} {have} REPLICA IDENTITY NOTHING"),
            MissingIdentity::IndexLost => {
                format!(
                    "{tables} {have} REPLICA IDENTITY USING INDEX, and the index is gone or not valid"
                )
            }
        },
        Fate::BreaksSource(SourceObstacle::GeneratedInFull) => {
            format!("{tables} {have} REPLICA IDENTITY FULL and generated columns")
        }
        Fate::BreaksSource(SourceObstacle::GeneratedInKey)
        | Fate::StopsApply(ApplyObstacle::KeyNotSent) => {
            format!("{tables} {have} a generated column in the primary key or the replica identity")
        }
        Fate::StopsApply(ApplyObstacle::NoEquality) | Fate::Fine => format!(
            "{tables} with REPLICA IDENTITY FULL {have} a column that cannot be compared, of a type without equality or one that holds such a type (json, xml, point and the like)"
        ),
    }
}

fn why(fault: &Fault, versions: Versions) -> String {
    let fails = "from the moment these tables are published, every UPDATE and DELETE on them FAILS ON THE SOURCE, in the applications that use it, until the publication is gone";
    match fault.fate {
        Fate::BreaksSource(SourceObstacle::NoIdentity(_)) => {
            format!("{fails}; INSERT goes on working")
        }
        Fate::BreaksSource(SourceObstacle::GeneratedInFull | SourceObstacle::GeneratedInKey) => {
            format!(
                "{fails}: PostgreSQL {} refuses a replica identity with a generated column that is not published, and a target that computes the column itself cannot be sent it",
                version(versions.source)
            )
        }
        Fate::StopsApply(ApplyObstacle::KeyNotSent) => "the source does not send generated columns: the first UPDATE or DELETE on these tables stops the subscription, which cannot find the row to change".to_owned(),
        Fate::StopsApply(ApplyObstacle::NoEquality) | Fate::Fine => "the first UPDATE or DELETE on these tables stops the subscription, which cannot find the row to change".to_owned(),
    }
}

/// Only identities that work are recommended.
fn fix(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Default => {
            "ALTER TABLE … REPLICA IDENTITY DEFAULT: the primary key serves; or leave them out with --exclude-table"
        }
        Remedy::Full => {
            "add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL (or USING INDEX a unique index of NOT NULL columns), or leave them out with --exclude-table"
        }
        Remedy::NewKey => {
            "add a primary key of columns that are not generated and ALTER TABLE … REPLICA IDENTITY DEFAULT, or name a unique index of such NOT NULL columns with REPLICA IDENTITY USING INDEX, or leave them out with --exclude-table; REPLICA IDENTITY FULL does not help here"
        }
    }
}
