//! Statements that make a target's schema like its source's, in an order in which they can run.
//!
//! [`Stage`] is the order. Each statement says what of the target's rows it would lose; a table that
//! holds none loses nothing. What has to go only because something else is altered (a foreign key while
//! its key is exchanged, an index while its column is) is made again as it was.
//!
//! Not everything has a statement. An order of columns and an index that only the target has are left
//! as they are, since neither can stop replication; what cannot be altered without making it anew, and
//! what cannot be done in one transaction, is told and stops the job ([`blocker`] says why).

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
    DropForeignKeys,
    /// Keys, checks, indexes: after the foreign keys that need them.
    DropObjects,
    RenameObjects,
    RenameColumns,
    /// Before sequences are made, which may have the names of theirs.
    DropIdentities,
    /// Sequences, types and tables, those first that others are made of.
    Make,
    /// Before the columns that they are computed from are altered or dropped.
    DropGenerated,
    DropColumns,
    Columns,
    AddColumns,
    AddGenerated,
    /// Tables below others that were there: these have got their columns by now.
    MakeBelow,
    /// What tables below others have of their own.
    OwnColumns,
    Belonging,
    Keys,
    Indexes,
    ReplicaIdentity,
    ForeignKeys,
}

/// A statement, and the difference for which it is.
struct Staged<'a> {
    stage: Stage,
    statement: PlannedStatement,
    cause: Option<&'a SchemaDifference>,
}

/// A plan being made.
pub(crate) struct Planner<'a> {
    source: &'a Schema,
    target: &'a Schema,
    comparison: &'a Comparison,
    holds_rows: Contents<'a>,
    /// What becomes of columns, by table.
    fates: BTreeMap<TableName, Fate>,
    /// What statements drop of the target's objects.
    dropped: BTreeSet<Key>,
    /// What has another name on the target.
    renames: Vec<Rename<'a>>,
    /// The difference that is being planned.
    cause: Option<&'a SchemaDifference>,
    /// Labels that enums get.
    labels: Vec<Labels<'a>>,
    staged: Vec<Staged<'a>>,
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
        // Stable: within a stage the order above is kept.
        planner.staged.sort_by_key(|staged| staged.stage);
        let statements = planner.staged.into_iter();
        statements.map(|staged| staged.statement).collect()
    };
    planner.plan
}

/// Tables of the target whose rows a plan could lose: which of them hold any decides what it says.
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

impl<'a> Planner<'a> {
    fn add(&mut self, stage: Stage, sql: String) {
        self.stage(stage, PlannedStatement { sql, loses: None });
    }

    /// A statement that costs rows or values where the table holds any.
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

    /// Once, whatever asks for it.
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

    fn alter(&mut self, difference: &'a SchemaDifference) {
        match (difference.subject, difference.change) {
            // Made already, with all that stands alone; columns are planned together.
            (Subject::Table | Subject::Column | Subject::Object(ObjectKind::Schema), _) => {}
            (Subject::Object(kind), _) if difference.table.is_some() => {
                self.alter_object(kind, difference);
            }
            (Subject::Object(_), Change::Missing) => {}
            (Subject::Object(kind), _) => self.alter_alone(kind, difference),
        }
    }
}
