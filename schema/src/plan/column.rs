//! Columns of common tables: each is changed by one transition. Changes of a parent table propagate
//! to its children, so only the rest is planned there.

use std::collections::BTreeSet;

use steep_protocol::TableName;
use steep_protocol::message::schema::{
    Change, ColumnModel, ColumnValue, Identity, SchemaDifference, Subject, TableModel,
};

use super::table::{column_sql, parents};
use super::transition::{Transition, alike, retypes, transition};
use super::{Planner, Stage};
use crate::diff::is_generated;
use crate::text::{names, owner};

/// Changes of a table's columns that affect dependent objects.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// Dropped and added again.
    pub(super) anew: BTreeSet<String>,
    /// Getting another type or collation.
    pub(super) retyped: BTreeSet<String>,
    /// The target's columns as returned by [`aligned`].
    columns: Vec<ColumnModel>,
}

impl<'a> Planner<'a> {
    /// Plans every column of every common table, parents before children.
    pub(super) fn columns(&mut self) {
        let (source, target) = (self.source, self.target);
        let both = source.tables().filter_map(|wanted| {
            let found = target.table(&wanted.name)?;
            Some((self.depth(&wanted.name), wanted, found))
        });
        let mut both: Vec<_> = both.collect();
        both.sort_by_key(|(depth, ..)| *depth);
        for (_, wanted, found) in &both {
            let differences = self.differences_of(&wanted.name);
            if !differences.is_empty() {
                let fate = fate(wanted, found, differences);
                self.fates.insert(wanted.name.clone(), fate);
            }
        }
        for (_, wanted, found) in both {
            self.columns_of(wanted, found);
        }
        self.cause = None;
    }

    fn differences_of(&self, table: &TableName) -> &'a [SchemaDifference] {
        let tables = &self.comparison.tables;
        let at = tables.binary_search_by(|t| t.name.cmp(table));
        at.map_or(&[], |at| &tables[at].differences)
    }

    /// A table of the target, with its columns in the source's words where they mean the same.
    fn found<'s>(&'s self, table: &'s TableModel) -> &'s [ColumnModel] {
        let fate = self.fates.get(&table.name);
        fate.map_or(&table.columns, |fate| &fate.columns)
    }

    fn is_anew(&self, table: &TableName, column: &ColumnModel) -> bool {
        let fate = self.fates.get(table);
        fate.is_some_and(|fate| fate.anew.contains(column.name.as_str()))
    }

    fn depth(&self, table: &TableName) -> usize {
        let mut depth = 0;
        let mut above = parents(self.target, table);
        // The catalog cannot contain a cycle, but its data may be inconsistent.
        while !above.is_empty() && depth < 64 {
            depth += 1;
            above = above.iter().flat_map(|t| parents(self.target, t)).collect();
        }
        depth
    }

    fn columns_of(&mut self, wanted: &TableModel, found: &TableModel) {
        let table = &wanted.name;
        let all = self.differences_of(table);
        let is = |column: &ColumnModel, change| about(all, column).any(|d| d.change == change);
        let target = self.target;
        let above = parents(target, table);
        let above: Vec<&TableModel> = above.iter().filter_map(|a| target.table(a)).collect();
        if all.is_empty() && above.is_empty() {
            return;
        }
        let found = self.found(found).to_vec();
        for extra in found.iter().filter(|c| is(c, Change::Extra)) {
            self.cause = about(all, extra).next();
            // A column dropped in the parent is dropped here too.
            if !above.iter().any(|above| has(above, extra)) {
                self.drop_column(table, extra);
            }
        }
        for column in &wanted.columns {
            self.cause = about(all, column).find(|d| d.change != Change::Order);
            let there = found.iter().find(|c| c.name == column.name);
            if is(column, Change::Renamed) {
                self.rename(table, &found, column, &above);
            } else if let Some(there) = there {
                self.alter_in_place(table, column, there, &above);
            } else if let Some(from) = self.comes_down(column, None, &above) {
                self.own(table, &from, column);
            } else {
                self.add_column(table, column);
            }
        }
        for moved in all.iter().filter(|d| d.change == Change::Order) {
            self.tolerate(moved);
        }
    }

    /// A column after all changes of its parents; `None` if it is not inherited.
    fn comes_down(
        &self,
        wanted: &ColumnModel,
        found: Option<&ColumnModel>,
        above: &[&TableModel],
    ) -> Option<ColumnModel> {
        let mut result = found.cloned();
        let mut any = false;
        for parent in above {
            let find = |columns: &[ColumnModel]| {
                let same = columns.iter().find(|c| c.name == wanted.name);
                same.cloned()
            };
            let to = self.source.table(&parent.name);
            let Some(to) = to.and_then(|to| find(&to.columns)) else {
                continue;
            };
            any = true;
            let to = ColumnModel {
                // Each table has its own identity.
                identity: Identity::No,
                ..to
            };
            let anew = self.is_anew(&parent.name, wanted);
            match (find(self.found(parent)), &mut result) {
                (Some(from), Some(result)) if !anew => descend(&from, &to, result),
                // Added in the parent and merged with the one here.
                (None, Some(_)) => {}
                (_, result) => *result = Some(to),
            }
        }
        result.filter(|_| any)
    }

    fn alter_in_place(
        &mut self,
        table: &TableName,
        wanted: &ColumnModel,
        found: &ColumnModel,
        above: &[&TableModel],
    ) {
        if let Some(from) = self.comes_down(wanted, Some(found), above) {
            return self.own(table, &from, wanted);
        }
        if self.is_anew(table, wanted) {
            self.drop_column(table, found);
            return self.add_column(table, wanted);
        }
        let Transition::Steps(steps) = transition(found, wanted) else {
            return;
        };
        if found.identity == Identity::No && wanted.identity != Identity::No {
            self.free_sequences(table, wanted);
        }
        let (on, column) = (table.quoted(), wanted.name.quoted());
        for step in steps {
            let sql = format!("ALTER TABLE {on} ALTER COLUMN {column} {}", step.what);
            if step.narrows {
                let what = format!(
                    "values of column {} of {table} that do not fit {} (now {})",
                    wanted.name, wanted.type_name, found.type_name
                );
                self.add_losing(step.stage, table, sql, what);
            } else {
                self.add(step.stage, sql);
            }
        }
    }

    /// The properties that a child table has of its own: NOT NULL and default.
    pub(super) fn own(&mut self, table: &TableName, from: &ColumnModel, wanted: &ColumnModel) {
        if alike(from, wanted) {
            return;
        }
        let steps = match transition(from, wanted) {
            Transition::Steps(steps) if !retypes(from, wanted) => steps,
            _ => return self.give_up_cause(),
        };
        let (on, column) = (table.quoted(), wanted.name.quoted());
        for step in steps {
            // A default concerns this table only; NOT NULL also applies to its children.
            let only = if step.what.ends_with(" NOT NULL") {
                ""
            } else {
                "ONLY "
            };
            let stage = match step.stage {
                Stage::DropIdentities => step.stage,
                _ => Stage::OwnColumns,
            };
            let sql = format!("ALTER TABLE {only}{on} ALTER COLUMN {column} {}", step.what);
            self.add(stage, sql);
        }
    }

    /// A sequence that the column would own in addition to its identity's.
    fn free_sequences(&mut self, table: &TableName, column: &ColumnModel) {
        let owned = |definition: &str| {
            let (_, owner) = owner(definition);
            owner.is_some_and(|(t, c)| t == *table && c == column.name)
        };
        let sequences: Vec<String> = self
            .target
            .objects_alone()
            .filter(|o| owned(&o.definition) && !self.source.has(o))
            .filter_map(super::table::quoted)
            .collect();
        for sequence in sequences {
            self.add(
                Stage::Columns,
                format!("ALTER SEQUENCE {sequence} OWNED BY NONE"),
            );
        }
    }

    fn add_column(&mut self, table: &TableName, column: &ColumnModel) {
        let stage = if is_generated(column) {
            Stage::AddGenerated
        } else {
            Stage::AddColumns
        };
        let sql = format!(
            "ALTER TABLE {} ADD COLUMN {}",
            table.quoted(),
            column_sql(column)
        );
        self.add(stage, sql);
    }

    fn drop_column(&mut self, table: &TableName, column: &ColumnModel) {
        let sql = format!(
            "ALTER TABLE {} DROP COLUMN {}",
            table.quoted(),
            column.name.quoted()
        );
        if is_generated(column) {
            self.add(Stage::DropGenerated, sql);
        } else {
            let what = format!("the values of column {} of {table}", column.name);
            self.add_losing(Stage::DropColumns, table, sql, what);
        }
    }

    /// The remote definition begins with the column's name there.
    fn rename(
        &mut self,
        table: &TableName,
        found: &[ColumnModel],
        wanted: &ColumnModel,
        above: &[&TableModel],
    ) {
        let Some(difference) = self.cause else { return };
        let called = |c: &&ColumnModel| crate::columns::line(c) == difference.remote;
        match found.iter().find(called) {
            Some(old) if above.iter().any(|above| has(above, old)) => {}
            Some(old) if self.is_anew(table, old) => {
                self.drop_column(table, old);
                self.add_column(table, wanted);
            }
            Some(old) => {
                let (on, old, new) = (table.quoted(), old.name.quoted(), wanted.name.quoted());
                let sql = format!("ALTER TABLE {on} RENAME COLUMN {old} TO {new}");
                self.add(Stage::RenameColumns, sql);
            }
            None => self.give_up(difference),
        }
    }
}

/// The differences of that column.
fn about<'d>(
    differences: &'d [SchemaDifference],
    column: &ColumnModel,
) -> impl Iterator<Item = &'d SchemaDifference> {
    let name = column.name.clone();
    differences
        .iter()
        .filter(move |d| d.subject == Subject::Column && d.name.as_deref() == Some(name.as_str()))
}

fn has(table: &TableModel, column: &ColumnModel) -> bool {
    table.columns.iter().any(|c| c.name == column.name)
}

/// Applies to `column` what a child inherits when its parent's column goes from `from` to `to`.
fn descend(from: &ColumnModel, to: &ColumnModel, column: &mut ColumnModel) {
    let retyped = retypes(from, to);
    if retyped {
        column.type_name.clone_from(&to.type_name);
        column.collation.clone_from(&to.collation);
    }
    if from.not_null != to.not_null {
        column.not_null = to.not_null;
    }
    // A default that is dropped and set again is the same on both.
    let reset = retyped && matches!(from.value, ColumnValue::Default(_));
    if reset || !alike(&with_value(from, to), from) {
        column.value.clone_from(&to.value);
    }
}

fn with_value(column: &ColumnModel, of: &ColumnModel) -> ColumnModel {
    ColumnModel {
        value: of.value.clone(),
        ..column.clone()
    }
}

/// The column with all equal aspects spelled as in `wanted`: equal texts may be written differently
/// after a rename or by another version.
fn aligned(column: &ColumnModel, wanted: &ColumnModel, changes: &[Change]) -> ColumnModel {
    let differs = |change| changes.contains(&change);
    let mut column = column.clone();
    if !differs(Change::Type) {
        column.type_name.clone_from(&wanted.type_name);
    }
    if !differs(Change::Default) && !differs(Change::Generation) {
        column.value.clone_from(&wanted.value);
    }
    column
}

/// The changes of a table's columns. A generated column cannot stay while its base column is
/// altered or dropped.
fn fate(wanted: &TableModel, found: &TableModel, differences: &[SchemaDifference]) -> Fate {
    let changes =
        |column| -> Vec<Change> { about(differences, column).map(|d| d.change).collect() };
    let mut fate = Fate::default();
    let mut touched = BTreeSet::new();
    for column in &found.columns {
        let name = column.name.to_string();
        let changes = changes(column);
        let counterpart = wanted.columns.iter().find(|c| c.name == column.name);
        let Some(to) = counterpart.filter(|_| !changes.contains(&Change::Missing)) else {
            // A renamed column keeps its dependent objects.
            if changes.contains(&Change::Extra) {
                touched.insert(name);
            }
            fate.columns.push(column.clone());
            continue;
        };
        let column = aligned(column, to, &changes);
        if transition(&column, to) == Transition::Anew {
            touched.insert(name.clone());
            fate.anew.insert(name);
        } else if retypes(&column, to) {
            touched.insert(name.clone());
            fate.retyped.insert(name);
        }
        fate.columns.push(column);
    }
    for (column, before) in fate.columns.iter().zip(&found.columns) {
        let (ColumnValue::Stored(text) | ColumnValue::Virtual(text)) = &before.value else {
            continue;
        };
        let extra = about(differences, column).any(|d| d.change == Change::Extra);
        let alters = wanted.columns.iter().find(|c| c.name == column.name);
        // A renamed column stays the same.
        let stays = !extra && alters.is_none_or(is_generated);
        if stays && !names(text).is_disjoint(&touched) {
            fate.anew.insert(column.name.to_string());
        }
    }
    fate
}
