//! Lists every difference between two schemas.

pub(crate) mod renamed;

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::TableName;
use steep_protocol::message::schema::{
    Change, ColumnModel, ColumnValue, ObjectKind, ObjectModel, SchemaDifference, Subject,
    TableModel,
};

use renamed::Renamed;

use crate::columns::{definition, line};
use crate::model::{Key, Schema};
use crate::order::moved;

/// The comparison of two schemas.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Every table of either side, by name.
    pub tables: Vec<TableComparison>,
    /// Differences outside of tables.
    pub objects: Vec<SchemaDifference>,
}

/// The comparison of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableComparison {
    /// Its name.
    pub name: TableName,
    /// Its fingerprint on the local side, if it exists there.
    pub local_fingerprint: Option<String>,
    /// Its fingerprint on the remote side, if it exists there.
    pub remote_fingerprint: Option<String>,
    /// The result.
    pub status: Status,
    /// Its differences, columns first.
    pub differences: Vec<SchemaDifference>,
}

/// The result of comparing a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing differs.
    Match,
    /// Something differs.
    Mismatch,
    /// The remote lacks it.
    LocalOnly,
    /// Only the remote has it.
    RemoteOnly,
}

impl Status {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::LocalOnly => "local_only",
            Self::RemoteOnly => "remote_only",
        }
    }
}

impl Comparison {
    /// Every difference: those of tables by name, then the others.
    pub fn differences(&self) -> impl Iterator<Item = &SchemaDifference> {
        let tables = self.tables.iter().flat_map(|table| &table.differences);
        tables.chain(&self.objects)
    }

    /// The number of tables with that status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.tables.iter().filter(|t| t.status == status).count()
    }
}

/// Compares two schemas.
#[must_use]
pub fn compare(local: &Schema, remote: &Schema) -> Comparison {
    let names: BTreeSet<&TableName> = local.tables.keys().chain(remote.tables.keys()).collect();
    let renamed = Renamed::between(local, remote);
    let tables = names.into_iter().map(|name| {
        let (here, there) = (local.tables.get(name), remote.tables.get(name));
        let (status, differences) = match (here, there) {
            (Some(here), Some(there)) => {
                let mut found = columns(here, there, &renamed);
                let (local, remote) = (local.objects_of(name), remote.objects_of(name));
                found.extend(objects(local, remote, &renamed));
                let status = if found.is_empty() {
                    Status::Match
                } else {
                    Status::Mismatch
                };
                (status, found)
            }
            (Some(here), None) => (Status::LocalOnly, vec![whole(here, Change::Missing)]),
            (None, Some(there)) => (Status::RemoteOnly, vec![whole(there, Change::Extra)]),
            (None, None) => (Status::Match, Vec::new()),
        };
        TableComparison {
            name: name.clone(),
            local_fingerprint: here.map(|table| table.fingerprint.clone()),
            remote_fingerprint: there.map(|table| table.fingerprint.clone()),
            status,
            differences,
        }
    });
    Comparison {
        tables: tables.collect(),
        objects: objects(local.objects_alone(), remote.objects_alone(), &renamed),
    }
}

/// Whether a difference between a source (local) and a target (remote) can matter to replication.
///
/// Tables and types that only the target has do not, and neither do publications and extension
/// versions, which belong to a server rather than to its tables.
#[must_use]
pub fn gates(difference: &SchemaDifference) -> bool {
    match difference.subject {
        Subject::Table => difference.change == Change::Missing,
        Subject::Object(ObjectKind::Publication | ObjectKind::Extension) => false,
        Subject::Object(_) => difference.table.is_some() || difference.change != Change::Extra,
        Subject::Column => true,
    }
}

/// Whether a difference ends with the creation of something that the target lacks: a whole table, or a type or sequence
/// that it may need.
#[must_use]
pub fn creates(difference: &SchemaDifference) -> bool {
    let whole = match difference.subject {
        Subject::Table => true,
        Subject::Object(_) => difference.table.is_none(),
        Subject::Column => false,
    };
    whole && difference.change == Change::Missing
}

/// The subject of a difference, for a sentence: `column a of app.t`, `enum app.mood`.
#[must_use]
pub fn place(difference: &SchemaDifference) -> String {
    let subject = difference.subject.as_str().replace('_', " ");
    match (&difference.table, &difference.name) {
        (Some(table), Some(name)) => format!("{subject} {name} of {table}"),
        (Some(table), None) if difference.subject == Subject::Table => format!("table {table}"),
        (Some(table), None) => format!("{subject} of {table}"),
        (None, Some(name)) => format!("{subject} {name}"),
        (None, None) => subject,
    }
}

/// A difference as a sentence without a full stop, with these names for the two sides.
#[must_use]
pub fn named(difference: &SchemaDifference, local: &str, remote: &str) -> String {
    let place = place(difference);
    let (kind, here, there) = (
        difference.change.as_str(),
        &difference.local,
        &difference.remote,
    );
    match difference.change {
        Change::Missing => format!("{place} is missing on {remote} ({kind}): {here}"),
        Change::Extra => format!("{place} is on {remote} only ({kind}): {there}"),
        _ => format!("{place} differs ({kind}): {here} on {local}, {there} on {remote}"),
    }
}

fn whole(table: &TableModel, change: Change) -> SchemaDifference {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|c| format!("{} {}", c.name, definition(c)))
        .collect();
    let text = format!("({})", columns.join(", "));
    let (local, remote) = match change {
        Change::Extra => (String::new(), text),
        _ => (text, String::new()),
    };
    SchemaDifference {
        table: Some(table.name.clone()),
        subject: Subject::Table,
        name: None,
        change,
        local,
        remote,
    }
}

/// Columns by name. A missing and an extra column in the same place, equal but for the name, count
/// as renamed.
fn columns(here: &TableModel, there: &TableModel, renamed: &Renamed) -> Vec<SchemaDifference> {
    let counterpart = |column: &ColumnModel| {
        let wanted = renamed.in_remote(&here.name, column.name.as_str());
        there.columns.iter().position(|c| c.name.as_str() == wanted)
    };
    let differ = |column: &ColumnModel, change, local: String, remote: String| SchemaDifference {
        table: Some(here.name.clone()),
        subject: Subject::Column,
        name: Some(column.name.to_string()),
        change,
        local,
        remote,
    };
    let mut found = Vec::new();
    let mut common = Vec::new();
    let mut places = Vec::new();
    for column in &here.columns {
        let Some(place) = counterpart(column) else {
            found.push(differ(
                column,
                Change::Missing,
                definition(column),
                String::new(),
            ));
            continue;
        };
        common.push(column);
        places.push(place);
        let other = &there.columns[place];
        if other.name != column.name {
            found.push(differ(column, Change::Renamed, line(column), line(other)));
        }
        let same = |one: &str, other: &str| renamed.same(&here.name, one, other);
        for change in aspects(column, other, same) {
            found.push(differ(
                column,
                change,
                definition(column),
                definition(other),
            ));
        }
    }
    for (at, column) in there.columns.iter().enumerate() {
        if !places.contains(&at) {
            found.push(differ(
                column,
                Change::Extra,
                String::new(),
                definition(column),
            ));
        }
    }
    for at in moved(&places) {
        let place_of = |columns: &[ColumnModel], name: &str| {
            let before = columns.iter().position(|c| c.name.as_str() == name);
            format!(
                "column {} of {}",
                before.map_or(0, |at| at + 1),
                columns.len()
            )
        };
        let name = common[at].name.as_str();
        let local = place_of(&here.columns, name);
        let remote = place_of(&there.columns, there.columns[places[at]].name.as_str());
        found.push(differ(common[at], Change::Order, local, remote));
    }
    found
}

/// The differences between two columns except the name; `same` compares expressions and types.
pub(crate) fn aspects(
    one: &ColumnModel,
    other: &ColumnModel,
    same: impl Fn(&str, &str) -> bool,
) -> Vec<Change> {
    let value = if is_generated(one) || is_generated(other) {
        Change::Generation
    } else {
        Change::Default
    };
    let values = match (&one.value, &other.value) {
        (ColumnValue::Nothing, ColumnValue::Nothing) => true,
        (ColumnValue::Default(one), ColumnValue::Default(other))
        | (ColumnValue::Stored(one), ColumnValue::Stored(other))
        | (ColumnValue::Virtual(one), ColumnValue::Virtual(other)) => same(one, other),
        _ => false,
    };
    [
        (Change::Type, !same(&one.type_name, &other.type_name)),
        (Change::Collation, one.collation != other.collation),
        (Change::Nullability, one.not_null != other.not_null),
        (Change::Identity, one.identity != other.identity),
        (value, !values),
    ]
    .into_iter()
    .filter_map(|(change, differs)| differs.then_some(change))
    .collect()
}

pub(crate) fn is_generated(column: &ColumnModel) -> bool {
    matches!(
        column.value,
        ColumnValue::Stored(_) | ColumnValue::Virtual(_)
    )
}

/// Objects of one table, or of none, by kind and name. A missing and an extra one with the same
/// definition count as renamed.
fn objects<'a>(
    here: impl Iterator<Item = &'a ObjectModel>,
    there: impl Iterator<Item = &'a ObjectModel>,
    renamed: &Renamed,
) -> Vec<SchemaDifference> {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    let mut rest: BTreeMap<Key, &ObjectModel> = there.map(|o| (Key::of(o), o)).collect();
    for object in here {
        let Some(other) = rest.remove(&Key::of(object)) else {
            missing.push(object);
            continue;
        };
        if !renamed.same_object(object, other) {
            let (local, remote) = (object.definition.clone(), other.definition.clone());
            found.push(about(object, Change::Definition, local, remote));
        }
    }
    for object in missing {
        let twin = rest
            .iter()
            .find(|(_, other)| {
                may_be_renamed(object.kind)
                    && object.kind == other.kind
                    && renamed.same_object(object, other)
            })
            .map(|(key, _)| key.clone());
        match twin.and_then(|key| rest.remove(&key)) {
            Some(other) => {
                let said = |o: &ObjectModel| format!("{} {}", o.name, o.definition);
                found.push(about(object, Change::Renamed, said(object), said(other)));
            }
            None => {
                let text = object.definition.clone();
                found.push(about(object, Change::Missing, text, String::new()));
            }
        }
    }
    for object in rest.into_values() {
        let text = object.definition.clone();
        found.push(about(object, Change::Extra, String::new(), text));
    }
    found.sort_by(|a, b| (a.subject, &a.name).cmp(&(b.subject, &b.name)));
    found
}

/// Types, sequences and the like are identified by name, so they are never renamed.
fn may_be_renamed(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::PrimaryKey
            | ObjectKind::Unique
            | ObjectKind::Check
            | ObjectKind::Exclusion
            | ObjectKind::ForeignKey
            | ObjectKind::Index
    )
}

fn about(object: &ObjectModel, change: Change, local: String, remote: String) -> SchemaDifference {
    let name = called(object);
    SchemaDifference {
        table: object.table.clone(),
        subject: Subject::Object(object.kind),
        name: (!name.is_empty()).then_some(name),
        change,
        local,
        remote,
    }
}

/// An object's name in differences: qualified if it has a schema, with a part quoted if it would be
/// ambiguous otherwise. So no two objects of a kind share one.
pub(crate) fn called(object: &ObjectModel) -> String {
    let part = |name: &str| {
        if name.contains(['.', '"']) {
            format!("\"{}\"", name.replace('"', "\"\""))
        } else {
            name.to_owned()
        }
    };
    match &object.schema {
        Some(schema) => format!("{}.{}", part(schema.as_str()), part(&object.name)),
        None => object.name.clone(),
    }
}

#[cfg(test)]
mod tests;
