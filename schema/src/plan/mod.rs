//! Statements that make a target's schema like its source's, in an order in which they can run.
//!
//! Stages in order: schemas; constraints and indexes that have to go; types, sequences and tables,
//! those before that others are made of; columns; what belongs to what; keys, checks, indexes, replica
//! identity; foreign keys. Each statement says what of the target's rows it would lose; a table that
//! holds none loses nothing.
//!
//! Not everything has a statement. An order of columns and an index that only the target has are left
//! as they are, since neither can stop replication; what cannot be altered without making it anew is
//! told, and stops the job.

mod column;
mod object;
mod table;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use steep_protocol::message::schema::{
    Change, ObjectKind, PlannedStatement, SchemaDifference, SchemaReview, Subject,
};
use steep_protocol::{Identifier, TableName};

use crate::diff::{Comparison, gates};
use crate::model::Schema;

/// Differences and statements kept in a review; of more only the number.
const REVIEW_MAX: usize = 500;

/// The longest text of a definition or statement in a review, in characters.
const TEXT_MAX: usize = 2_000;

/// Which of the target's tables hold rows.
pub type Contents<'a> = &'a dyn Fn(&TableName) -> bool;

/// What would be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order.
    pub statements: Vec<PlannedStatement>,
    /// Differences that stay and cannot stop replication.
    pub tolerated: Vec<SchemaDifference>,
    /// Differences for which there is no statement.
    pub unplanned: Vec<SchemaDifference>,
}

/// When a statement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Schemas,
    Drops,
    Make,
    Columns,
    Belonging,
    Keys,
    Indexes,
    ReplicaIdentity,
    ForeignKeys,
}

/// A plan being made.
pub(crate) struct Planner<'a> {
    source: &'a Schema,
    target: &'a Schema,
    comparison: &'a Comparison,
    holds_rows: Contents<'a>,
    staged: Vec<(Stage, PlannedStatement)>,
    plan: Plan,
}

/// Plans what makes `target` (remote in `comparison`) like `source` (local).
#[must_use]
pub fn plan(
    source: &Schema,
    target: &Schema,
    comparison: &Comparison,
    holds_rows: Contents<'_>,
) -> Plan {
    let mut planner = Planner {
        source,
        target,
        comparison,
        holds_rows,
        staged: Vec::new(),
        plan: Plan::default(),
    };
    planner.schemas();
    planner.make();
    for difference in comparison.differences().filter(|d| gates(d)) {
        planner.alter(difference);
    }
    planner.plan.statements = {
        // Stable: within a stage the order above is kept.
        planner.staged.sort_by_key(|(stage, _)| *stage);
        planner.staged.into_iter().map(|(_, s)| s).collect()
    };
    planner.plan
}

/// A comparison and its plan as they are told: differences that matter, shortened and cut off.
#[must_use]
pub fn review(comparison: &Comparison, plan: &Plan) -> SchemaReview {
    let gating: Vec<&SchemaDifference> = comparison.differences().filter(|d| gates(d)).collect();
    let told = |differences: &[&SchemaDifference]| {
        differences
            .iter()
            .take(REVIEW_MAX)
            .map(|d| shortened(d))
            .collect()
    };
    let unplanned: Vec<_> = plan.unplanned.iter().collect();
    let statements = plan.statements.iter().take(REVIEW_MAX);
    SchemaReview {
        differences: told(&gating),
        differences_total: gating.len() as u64,
        plan: statements
            .map(|s| PlannedStatement {
                sql: short(&s.sql),
                loses: s.loses.clone(),
            })
            .collect(),
        plan_total: plan.statements.len() as u64,
        unplanned: told(&unplanned),
        unplanned_total: unplanned.len() as u64,
    }
}

fn shortened(difference: &SchemaDifference) -> SchemaDifference {
    SchemaDifference {
        local: short(&difference.local),
        remote: short(&difference.remote),
        ..difference.clone()
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

impl Planner<'_> {
    fn add(&mut self, stage: Stage, sql: String) {
        self.staged
            .push((stage, PlannedStatement { sql, loses: None }));
    }

    /// A statement that costs rows or values where the table holds any.
    fn add_losing(&mut self, stage: Stage, table: &TableName, sql: String, what: String) {
        let loses = (self.holds_rows)(table).then_some(what);
        self.staged.push((stage, PlannedStatement { sql, loses }));
    }

    fn tolerate(&mut self, difference: &SchemaDifference) {
        self.plan.tolerated.push(difference.clone());
    }

    fn give_up(&mut self, difference: &SchemaDifference) {
        self.plan.unplanned.push(difference.clone());
    }

    /// Every schema that something new goes to and that is not there.
    fn schemas(&mut self) {
        let there: BTreeSet<&str> = self
            .target
            .objects_alone()
            .filter(|o| o.kind == ObjectKind::Schema)
            .map(|o| o.name.as_str())
            .collect();
        let missing = self
            .source
            .objects_alone()
            .filter(|o| o.kind == ObjectKind::Schema && !there.contains(o.name.as_str()));
        let quoted: Vec<String> = missing
            .filter_map(|o| Identifier::parse(o.name.as_str()).ok())
            .map(|name| name.quoted())
            .collect();
        for schema in quoted {
            self.add(Stage::Schemas, format!("CREATE SCHEMA {schema}"));
        }
    }

    fn alter(&mut self, difference: &SchemaDifference) {
        match (difference.subject, difference.change) {
            // Made already, with all that stands alone.
            (Subject::Table | Subject::Object(ObjectKind::Schema), _) => {}
            (Subject::Column, _) => self.alter_column(difference),
            (Subject::Object(kind), _) if difference.table.is_some() => {
                self.alter_object(kind, difference);
            }
            (Subject::Object(_), Change::Missing) => {}
            (Subject::Object(kind), _) => self.alter_alone(kind, difference),
        }
    }

    /// Whether a table above that one has the same difference, which then comes down by itself.
    fn comes_from_above(&self, table: &TableName, difference: &SchemaDifference) -> bool {
        let above = table::parents(self.target, table);
        let same = |d: &SchemaDifference| {
            d.subject == difference.subject
                && d.name == difference.name
                && d.change == difference.change
        };
        let tables = &self.comparison.tables;
        above.iter().any(|parent| {
            let at = tables.binary_search_by(|t| t.name.cmp(parent));
            at.is_ok_and(|at| tables[at].differences.iter().any(same))
        })
    }
}
