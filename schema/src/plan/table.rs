//! Creates what is missing: types, sequences, tables, and all objects of new tables.

use std::collections::HashMap;

use steep_protocol::message::schema::{
    ColumnModel, Identity, ObjectKind, ObjectModel, SchemaDifference, Subject, TableModel,
};
use steep_protocol::{Identifier, TableName};

use super::{Planner, Stage};
use crate::columns::definition;
use crate::diff::called;
use crate::model::Schema;
use crate::text::qualified;

/// Something to create.
enum New<'a> {
    Type(&'a ObjectModel),
    Table(&'a TableModel),
}

impl New<'_> {
    fn rank(&self) -> u32 {
        match self {
            Self::Type(object) => object.rank,
            Self::Table(table) => table.rank,
        }
    }

    fn name(&self) -> Option<TableName> {
        match self {
            Self::Type(object) => type_name(object),
            Self::Table(table) => Some(table.name.clone()),
        }
    }
}

impl<'a> Planner<'a> {
    /// Creates everything outside of existing tables that the target lacks.
    pub(super) fn make(&mut self) {
        let (source, target) = (self.source, self.target);
        let alone = source.objects_alone().filter(|o| !target.has(o));
        let alone: Vec<&ObjectModel> = alone.collect();
        for object in &alone {
            if object.kind == ObjectKind::Sequence {
                self.cause = self.missing(object);
                self.make_sequence(object);
            }
        }
        let types = alone.into_iter().filter(|o| {
            matches!(
                o.kind,
                ObjectKind::Enum | ObjectKind::Domain | ObjectKind::Composite | ObjectKind::Range
            )
        });
        let tables = source.tables().filter(|t| target.table(&t.name).is_none());
        let mut new: Vec<New<'_>> = types.map(New::Type).collect();
        new.extend(tables.map(New::Table));
        new.sort_by_key(New::rank);
        let order = Order::of(source, &new);
        // Children of an existing table wait for that table's columns.
        let mut waits = vec![false; new.len()];
        for at in order.places {
            let below = match new[at] {
                New::Type(_) => false,
                New::Table(table) => {
                    let above = parents(source, &table.name);
                    above.iter().any(|above| target.table(above).is_some())
                }
            };
            waits[at] = below || order.needs[at].iter().any(|needed| waits[*needed]);
            let stage = if waits[at] {
                Stage::MakeBelow
            } else {
                Stage::Make
            };
            match new[at] {
                New::Type(object) => {
                    self.cause = self.missing(object);
                    self.make_type(stage, object);
                }
                New::Table(table) => {
                    let compared = &self.comparison.tables;
                    let place = compared.binary_search_by(|t| t.name.cmp(&table.name));
                    self.cause = place.ok().and_then(|at| compared[at].differences.first());
                    self.make_table(stage, table);
                }
            }
        }
    }

    /// The difference that reports the object as missing.
    fn missing(&self, object: &ObjectModel) -> Option<&'a SchemaDifference> {
        let name = called(object);
        let is = |d: &&SchemaDifference| {
            d.subject == Subject::Object(object.kind) && d.name.as_deref() == Some(name.as_str())
        };
        self.comparison.objects.iter().find(is)
    }

    fn make_sequence(&mut self, object: &ObjectModel) {
        let Some(name) = quoted(object) else { return };
        let (parameters, owner) = match object.definition.split_once(" OWNED BY ") {
            Some((parameters, owner)) => (parameters, Some(owner)),
            None => (object.definition.as_str(), None),
        };
        self.add(Stage::Make, format!("CREATE SEQUENCE {name} {parameters}"));
        if let Some(owner) = owner {
            let sql = format!("ALTER SEQUENCE {name} OWNED BY {owner}");
            self.add(Stage::Belonging, sql);
        }
    }

    fn make_type(&mut self, stage: Stage, object: &ObjectModel) {
        let Some(name) = quoted(object) else { return };
        let definition = &object.definition;
        let sql = match object.kind {
            ObjectKind::Domain => format!("CREATE DOMAIN {name} AS {definition}"),
            ObjectKind::Enum => format!("CREATE TYPE {name} AS ENUM ({definition})"),
            // Its function needs the type, which does not exist yet.
            ObjectKind::Range if definition.contains(CANONICAL) => return self.give_up_cause(),
            ObjectKind::Range => format!("CREATE TYPE {name} AS RANGE ({definition})"),
            _ => format!("CREATE TYPE {name} AS ({definition})"),
        };
        self.add(stage, sql);
    }

    fn make_table(&mut self, stage: Stage, table: &TableModel) {
        let objects: Vec<&ObjectModel> = self.source.objects_of(&table.name).collect();
        let is = |kind| objects.iter().find(|o| o.kind == kind);
        let clause = |kind| {
            let object = is(kind);
            object.map_or_else(String::new, |o| format!(" {}", o.definition))
        };
        let name = table.name.quoted();
        let unlogged = match is(ObjectKind::Persistence) {
            Some(_) => "UNLOGGED ",
            None => "",
        };
        let parent = is(ObjectKind::Parent).map_or("", |o| o.definition.as_str());
        let by = clause(ObjectKind::PartitionKey);
        let sql = if parent.starts_with(PARTITION_OF) {
            format!("CREATE {unlogged}TABLE {name} {parent}{by}")
        } else {
            let columns: Vec<String> = table.columns.iter().map(column_sql).collect();
            let above: Vec<String> = names_in(parent).iter().map(TableName::quoted).collect();
            let inherits = if above.is_empty() {
                String::new()
            } else {
                format!(" INHERITS ({})", above.join(", "))
            };
            let columns = columns.join(", ");
            format!("CREATE {unlogged}TABLE {name} ({columns}){inherits}{by}")
        };
        self.add(stage, sql);
        if parent.starts_with(PARTITION_OF) {
            self.own_traits(table);
        }
        for object in objects.into_iter().filter(|o| o.kind != ObjectKind::Parent) {
            self.add_object(object);
        }
    }

    /// A partition takes its columns from its parent; its own properties follow.
    fn own_traits(&mut self, table: &TableModel) {
        let above = parents(self.source, &table.name);
        let Some(parent) = above.first().and_then(|name| self.source.table(name)) else {
            return;
        };
        for column in &table.columns {
            if let Some(inherited) = parent.columns.iter().find(|c| c.name == column.name) {
                let inherited = ColumnModel {
                    identity: Identity::No,
                    ..inherited.clone()
                };
                self.own(&table.name, &inherited, column);
            }
        }
    }
}

/// Marks a range with a canonical function.
const CANONICAL: &str = "CANONICAL = ";

/// The beginning of a partition's definition.
const PARTITION_OF: &str = "PARTITION OF ";

/// The beginning of an inheriting table's definition.
const INHERITS: &str = "INHERITS ";

/// The statements that attach a table to its parents.
pub(super) fn attach(object: &ObjectModel) -> Vec<String> {
    let Some(child) = object.table.as_ref().map(TableName::quoted) else {
        return Vec::new();
    };
    if let Some((parent, bounds)) = object
        .definition
        .strip_prefix(PARTITION_OF)
        .and_then(leading_name)
    {
        let parent = parent.quoted();
        return vec![format!(
            "ALTER TABLE {parent} ATTACH PARTITION {child}{bounds}"
        )];
    }
    let inherit = |parent: &TableName| format!("ALTER TABLE {child} INHERIT {}", parent.quoted());
    names_in(&object.definition).iter().map(inherit).collect()
}

/// The parents of that table.
pub(super) fn parents(schema: &Schema, table: &TableName) -> Vec<TableName> {
    let parent = schema
        .objects_of(table)
        .find(|o| o.kind == ObjectKind::Parent);
    parent.map_or_else(Vec::new, |object| names_in(&object.definition))
}

/// `PARTITION OF "s"."p" FOR VALUES …` or `INHERITS "s"."p", "s"."q"`.
fn names_in(definition: &str) -> Vec<TableName> {
    if let Some(rest) = definition.strip_prefix(PARTITION_OF) {
        return leading_name(rest)
            .map(|(name, _)| name)
            .into_iter()
            .collect();
    }
    let mut names = Vec::new();
    let mut rest = definition.strip_prefix(INHERITS).unwrap_or_default();
    while let Some((name, after)) = leading_name(rest) {
        names.push(name);
        rest = after.strip_prefix(", ").unwrap_or_default();
    }
    names
}

/// A leading quoted name, and the rest.
fn leading_name(text: &str) -> Option<(TableName, &str)> {
    let mut inside = false;
    let end = text
        .char_indices()
        .find(|(_, c)| {
            inside ^= *c == '"';
            !inside && *c != '"' && *c != '.'
        })
        .map_or(text.len(), |(at, _)| at);
    let name = TableName::parse_typed(&text[..end]).ok()?;
    Some((name, &text[end..]))
}

/// A column in CREATE TABLE and ADD COLUMN.
pub(super) fn column_sql(column: &ColumnModel) -> String {
    format!("{} {}", column.name.quoted(), definition(column))
}

/// The name of an object outside of tables, quoted for SQL.
pub(super) fn quoted(object: &ObjectModel) -> Option<String> {
    let name = Identifier::parse(object.name.as_str()).ok()?;
    let schema = object.schema.as_ref()?;
    Some(format!("{}.{}", schema.quoted(), name.quoted()))
}

/// The name of a type or sequence.
pub(super) fn type_name(object: &ObjectModel) -> Option<TableName> {
    Some(TableName {
        schema: object.schema.clone()?,
        table: Identifier::parse(object.name.as_str()).ok()?,
    })
}

/// The order in which new things can be created.
struct Order {
    /// Dependencies first, otherwise in the given order.
    places: Vec<usize>,
    /// The dependencies of each.
    needs: Vec<Vec<usize>>,
}

impl Order {
    fn of(source: &Schema, new: &[New<'_>]) -> Self {
        let named = new
            .iter()
            .enumerate()
            .filter_map(|(at, new)| Some((new.name()?, at)));
        let named: HashMap<TableName, usize> = named.collect();
        let needs: Vec<Vec<usize>> = new.iter().map(|new| needs(source, new, &named)).collect();
        let mut places = Vec::with_capacity(new.len());
        let mut seen = vec![false; new.len()];
        for at in 0..new.len() {
            place(at, &needs, &mut seen, &mut places);
        }
        Self { places, needs }
    }
}

/// The dependencies of a definition: the types it names.
fn needs(source: &Schema, new: &New<'_>, places: &HashMap<TableName, usize>) -> Vec<usize> {
    let in_text = |text: &str| {
        let names = qualified(text).into_iter();
        let found = names.filter_map(|name| places.get(&name).copied());
        found.collect::<Vec<_>>()
    };
    match new {
        New::Table(table) => {
            let types = table.columns.iter().flat_map(|c| in_text(&definition(c)));
            let above = parents(source, &table.name);
            let above = above.iter().filter_map(|name| places.get(name).copied());
            types.chain(above).collect()
        }
        New::Type(object) => in_text(&object.definition),
    }
}

/// Places the dependencies of `at`, then `at`. A cycle, which no catalog has, is cut.
fn place(at: usize, needs: &[Vec<usize>], seen: &mut [bool], placed: &mut Vec<usize>) {
    let mut stack = vec![(at, 0)];
    while let Some((current, next)) = stack.pop() {
        if next == 0 && std::mem::replace(&mut seen[current], true) {
            continue;
        }
        match needs[current].get(next) {
            Some(other) => {
                stack.push((current, next + 1));
                stack.push((*other, 0));
            }
            None => placed.push(current),
        }
    }
}
