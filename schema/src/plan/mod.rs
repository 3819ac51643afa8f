//! Plans statements that make a target's schema match its source's, in a valid order.
//!
//! [`Stage`] is the order. Each statement names what it would lose of the target's rows; an empty
//! table loses nothing. An object that must go only because another is altered (a foreign key while
//! its key is replaced, an index while its column is) is recreated as it was.
//!
//! Some differences have no statement. The order of columns and indexes that only the target has
//! cannot stop replication and are left alone. What would have to be recreated, or cannot be done
//! in one transaction, stops the job ([`blocker`] says why).

mod blocker;
mod column;
mod object;
mod rebuild;
mod table;
mod transition;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::message::schema::{
    Change, ObjectKind, PlannedStatement, SchemaDifference, SchemaReview, Subject,
};
use steep_protocol::{Identifier, TableName};

pub use blocker::blocker;

use column::Fate;
use object::{Labels, Rename};

use crate::diff::{Comparison, gates};
use crate::model::{Key, Schema};
use crate::text::runnable;

/// Differences and statements listed in a review; more are only counted.
const REVIEW_MAX: usize = 500;

/// The longest text of a definition or statement in a review, in characters.
const TEXT_MAX: usize = 2_000;

/// Tells which of the target's tables contain rows.
pub type Contents<'a> = &'a dyn Fn(&TableName) -> bool;

/// Tables with a parent that the schema does not have, and that parent.
#[must_use]
pub fn parents_elsewhere(schema: &Schema) -> Vec<(TableName, TableName)> {
    let pairs = schema.tables().flat_map(|table| {
        let parents = table::parents(schema, &table.name).into_iter();
        parents.map(|parent| (table.name.clone(), parent))
    });
    pairs
        .filter(|(_, parent)| schema.table(parent).is_none())
        .collect()
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order.
    pub statements: Vec<PlannedStatement>,
    /// Differences that remain and cannot stop replication.
    pub tolerated: Vec<SchemaDifference>,
    /// Differences without a statement.
    pub unplanned: Vec<SchemaDifference>,
}

/// When a statement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Schemas,
    DropForeignKeys,
    /// Keys, checks, indexes: after the foreign keys that need them.
    DropObjects,
    RenameObjects,
    RenameColumns,
    /// Before new sequences, which may have the names of theirs.
    DropIdentities,
    /// Sequences, types and tables, ordered by dependency.
    Make,
    /// Before their base columns are altered or dropped.
    DropGenerated,
    DropColumns,
    Columns,
    AddColumns,
    AddGenerated,
    /// Children of existing tables, whose columns are final by now.
    MakeBelow,
    /// Child tables' own properties.
    OwnColumns,
    Belonging,
    Keys,
    Indexes,
    ReplicaIdentity,
    ForeignKeys,
}

/// A statement, and the difference it resolves.
struct Staged<'a> {
    stage: Stage,
    statement: PlannedStatement,
    cause: Option<&'a SchemaDifference>,
}

pub(crate) struct Planner<'a> {
    source: &'a Schema,
    target: &'a Schema,
    comparison: &'a Comparison,
    holds_rows: Contents<'a>,
    /// Changes of columns, by table.
    fates: BTreeMap<TableName, Fate>,
    /// The target's objects that statements drop.
    dropped: BTreeSet<Key>,
    /// Renames of objects.
    renames: Vec<Rename<'a>>,
    /// The difference being planned.
    cause: Option<&'a SchemaDifference>,
    /// New enum labels.
    labels: Vec<Labels<'a>>,
    staged: Vec<Staged<'a>>,
    plan: Plan,
}

/// Plans how to make `target` (remote in `comparison`) match `source` (local).
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
        fates: BTreeMap::new(),
        dropped: BTreeSet::new(),
        renames: Vec::new(),
        cause: None,
        labels: Vec::new(),
        staged: Vec::new(),
        plan: Plan::default(),
    };
    planner.schemas();
    planner.columns();
    planner.make();
    for difference in comparison.differences().filter(|d| gates(d)) {
        planner.cause = Some(difference);
        planner.alter(difference);
    }
    planner.rebuild();
    planner.withdraw();
    planner.plan.statements = {
        // The sort is stable: it keeps the order within a stage.
        planner.staged.sort_by_key(|staged| staged.stage);
        let statements = planner.staged.into_iter();
        statements.map(|staged| staged.statement).collect()
    };
    planner.plan
}

/// Tables of the target whose rows a plan could lose: the caller checks which of them contain any.
#[must_use]
pub fn at_stake(source: &Schema, target: &Schema, comparison: &Comparison) -> BTreeSet<TableName> {
    let asked = RefCell::new(BTreeSet::new());
    let holds_rows = |table: &TableName| {
        asked.borrow_mut().insert(table.clone());
        false
    };
    let _ = plan(source, target, comparison, &holds_rows);
    asked.into_inner()
}

/// A comparison and its plan as reported: relevant differences, with long texts and lists
/// truncated.
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

impl<'a> Planner<'a> {
    fn add(&mut self, stage: Stage, sql: String) {
        self.stage(stage, PlannedStatement { sql, loses: None });
    }

    /// Adds a statement that loses rows or values if the table contains any.
    fn add_losing(&mut self, stage: Stage, table: &TableName, sql: String, what: String) {
        let loses = (self.holds_rows)(table).then_some(what);
        self.stage(stage, PlannedStatement { sql, loses });
    }

    fn stage(&mut self, stage: Stage, mut statement: PlannedStatement) {
        statement.sql = runnable(statement.sql);
        self.staged.push(Staged {
            stage,
            statement,
            cause: self.cause,
        });
    }

    fn tolerate(&mut self, difference: &SchemaDifference) {
        self.plan.tolerated.push(difference.clone());
    }

    /// Reports a difference as unplanned, at most once.
    fn give_up(&mut self, difference: &SchemaDifference) {
        if !self.plan.unplanned.contains(difference) {
            self.plan.unplanned.push(difference.clone());
        }
    }

    fn give_up_cause(&mut self) {
        if let Some(cause) = self.cause {
            self.give_up(cause);
        }
    }

    /// Creates every schema that new objects need and that is missing.
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

    fn alter(&mut self, difference: &'a SchemaDifference) {
        match (difference.subject, difference.change) {
            // Already created with the objects outside of tables; columns are planned together.
            (Subject::Table | Subject::Column | Subject::Object(ObjectKind::Schema), _) => {}
            (Subject::Object(kind), _) if difference.table.is_some() => {
                self.alter_object(kind, difference);
            }
            (Subject::Object(_), Change::Missing) => {}
            (Subject::Object(kind), _) => self.alter_alone(kind, difference),
        }
    }
}
