//! Constraints, indexes and other objects of tables, and types and sequences.

use steep_protocol::message::schema::{Change, ObjectKind, ObjectModel, SchemaDifference};
use steep_protocol::{Identifier, TableName};

use super::table::{attach, quoted, type_name};
use super::{Planner, Stage};
use crate::diff::called;
use crate::model::Key;

impl<'a> Planner<'a> {
    /// Adds an object to a table.
    pub(super) fn add_object(&mut self, object: &ObjectModel) {
        let Some(table) = &object.table else { return };
        let on = table.quoted();
        let name = Identifier::parse(object.name.as_str()).map(|name| name.quoted());
        let definition = &object.definition;
        match (object.kind, name) {
            (
                ObjectKind::PrimaryKey
                | ObjectKind::Unique
                | ObjectKind::Check
                | ObjectKind::Exclusion
                | ObjectKind::ForeignKey,
                Ok(name),
            ) => {
                let stage = match object.kind {
                    ObjectKind::ForeignKey => Stage::ForeignKeys,
                    _ => Stage::Keys,
                };
                self.add(
                    stage,
                    format!("ALTER TABLE {on} ADD CONSTRAINT {name} {definition}"),
                );
            }
            (ObjectKind::Index, Ok(name)) => {
                let (unique, rest) = match definition.strip_prefix("UNIQUE ") {
                    Some(rest) => ("UNIQUE ", rest),
                    None => ("", definition.as_str()),
                };
                self.add(
                    Stage::Indexes,
                    format!("CREATE {unique}INDEX {name} ON {on} {rest}"),
                );
            }
            (ObjectKind::ReplicaIdentity, _) if definition != "DEFAULT" => {
                self.identify_by(table, definition);
            }
            (ObjectKind::Parent, _) => {
                for sql in attach(object) {
                    self.add(Stage::Belonging, sql);
                }
            }
            // Part of CREATE TABLE, or not an object of a table.
            _ => {}
        }
    }

    fn identify_by(&mut self, table: &TableName, how: &str) {
        let sql = format!("ALTER TABLE {} REPLICA IDENTITY {how}", table.quoted());
        self.add(Stage::ReplicaIdentity, sql);
    }

    /// Changes an object of a common table.
    pub(super) fn alter_object(&mut self, kind: ObjectKind, difference: &'a SchemaDifference) {
        let Some(table) = &difference.table else {
            return;
        };
        let key = Key {
            kind,
            table: Some(table.clone()),
            schema: None,
            name: difference.name.clone().unwrap_or_default(),
        };
        let wanted = self.source.objects.get(&key);
        match (kind, difference.change, wanted) {
            (ObjectKind::ReplicaIdentity, _, Some(wanted)) => {
                if difference.remote.starts_with("USING INDEX") {
                    // Otherwise its columns could not become nullable.
                    let sql = format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT", table.quoted());
                    self.add(Stage::DropObjects, sql);
                }
                if wanted.definition != "DEFAULT" || !difference.remote.starts_with("USING INDEX") {
                    self.identify_by(table, &wanted.definition);
                }
            }
            (ObjectKind::Persistence, change, _) => {
                let verb = if change == Change::Missing {
                    "UNLOGGED"
                } else {
                    "LOGGED"
                };
                let sql = format!("ALTER TABLE {} SET {verb}", table.quoted());
                self.add(Stage::Columns, sql);
            }
            (ObjectKind::PartitionKey, ..) => self.give_up(difference),
            (ObjectKind::Parent, Change::Missing, Some(wanted)) => self.add_object(wanted),
            (ObjectKind::Parent, ..) => self.give_up(difference),
            (_, Change::Missing, Some(wanted)) => self.add_object(wanted),
            (_, Change::Definition, Some(wanted)) => {
                self.drop_object(kind, table, &wanted.name);
                self.add_object(wanted);
            }
            (_, Change::Renamed, Some(wanted)) => {
                let called = |o: &&ObjectModel| {
                    o.kind == kind && format!("{} {}", o.name, o.definition) == difference.remote
                };
                match self.target.objects_of(table).find(called) {
                    Some(found) => self.renames.push(Rename {
                        found,
                        wanted,
                        difference,
                    }),
                    None => self.give_up(difference),
                }
            }
            (ObjectKind::Index, Change::Extra, _) if !difference.remote.starts_with("UNIQUE ") => {
                self.tolerate(difference);
            }
            (_, Change::Extra, _) => self.drop_object(kind, table, &key.name),
            _ => self.give_up(difference),
        }
    }

    pub(super) fn drop_object(&mut self, kind: ObjectKind, table: &TableName, name: &str) {
        self.dropped.insert(Key {
            kind,
            table: Some(table.clone()),
            schema: None,
            name: name.to_owned(),
        });
        let Ok(name) = Identifier::parse(name) else {
            return;
        };
        let name = name.quoted();
        let stage = match kind {
            ObjectKind::ForeignKey => Stage::DropForeignKeys,
            _ => Stage::DropObjects,
        };
        self.add(
            stage,
            match kind {
                ObjectKind::Index => format!("DROP INDEX {}.{name}", table.schema.quoted()),
                _ => format!("ALTER TABLE {} DROP CONSTRAINT {name}", table.quoted()),
            },
        );
    }

    /// Renames an object, or recreates it under the new name if `goes` says that it cannot stay.
    pub(super) fn rename_object(
        &mut self,
        rename: Rename<'a>,
        goes: fn(&Self, &ObjectModel) -> bool,
    ) {
        let Rename {
            found,
            wanted,
            difference,
        } = rename;
        self.cause = Some(difference);
        let names = (
            Identifier::parse(found.name.as_str()),
            Identifier::parse(wanted.name.as_str()),
        );
        let (Some(table), (Ok(old), Ok(new))) = (&found.table, names) else {
            return self.give_up(difference);
        };
        if goes(self, found) {
            self.drop_object(found.kind, table, &found.name);
            return self.add_object(wanted);
        }
        let (old, new) = (old.quoted(), new.quoted());
        let (schema, on) = (table.schema.quoted(), table.quoted());
        self.add(
            Stage::RenameObjects,
            match wanted.kind {
                ObjectKind::Index => format!("ALTER INDEX {schema}.{old} RENAME TO {new}"),
                _ => format!("ALTER TABLE {on} RENAME CONSTRAINT {old} TO {new}"),
            },
        );
    }

    /// Changes a type or sequence that both sides have.
    pub(super) fn alter_alone(&mut self, kind: ObjectKind, difference: &'a SchemaDifference) {
        let same = |o: &&ObjectModel| o.kind == kind && Some(called(o)) == difference.name;
        let Some((object, name)) = self
            .source
            .objects_alone()
            .find(same)
            .and_then(|object| Some((object, quoted(object)?)))
        else {
            return self.give_up(difference);
        };
        match kind {
            ObjectKind::Sequence => {
                let (parameters, owner) = match object.definition.split_once(" OWNED BY ") {
                    Some((parameters, owner)) => (parameters, owner),
                    None => (object.definition.as_str(), "NONE"),
                };
                let sql = format!("ALTER SEQUENCE {name} {parameters} OWNED BY {owner}");
                self.add(Stage::Belonging, sql);
            }
            ObjectKind::Enum => match more_labels(&difference.local, &difference.remote) {
                Some(more) => {
                    for (_, clause) in &more {
                        self.add(Stage::Make, format!("ALTER TYPE {name} ADD VALUE {clause}"));
                    }
                    if let Some(name) = type_name(object) {
                        let labels = more.into_iter().map(|(label, _)| label).collect();
                        self.labels.push(Labels {
                            difference,
                            name,
                            labels,
                        });
                    }
                }
                None => self.give_up(difference),
            },
            _ => self.give_up(difference),
        }
    }
}

/// An object with another name on the target.
pub(super) struct Rename<'a> {
    pub(super) found: &'a ObjectModel,
    pub(super) wanted: &'a ObjectModel,
    pub(super) difference: &'a SchemaDifference,
}

/// New labels of an enum.
pub(super) struct Labels<'a> {
    pub(super) difference: &'a SchemaDifference,
    pub(super) name: TableName,
    /// Without quotes.
    pub(super) labels: Vec<String>,
}

/// The enum labels that are missing, as literals without quotes, and how each is added; `None` if
/// the target has other labels or another order.
pub(super) fn more_labels(wanted: &str, found: &str) -> Option<Vec<(String, String)>> {
    let (wanted, found) = (literals(wanted)?, literals(found)?);
    let mut clauses = Vec::new();
    let mut there = found.iter().peekable();
    let mut before: Option<&String> = None;
    for label in &wanted {
        if there.peek() == Some(&label) {
            there.next();
        } else if found.contains(label) {
            return None;
        } else {
            let clause = match (before, there.peek()) {
                (Some(before), _) => format!("{label} AFTER {before}"),
                (None, Some(next)) => format!("{label} BEFORE {next}"),
                (None, None) => label.clone(),
            };
            clauses.push((label.trim_matches('\'').to_owned(), clause));
        }
        before = Some(label);
    }
    there.peek().is_none().then_some(clauses)
}

/// Splits `'a', 'it''s'` into literals with quotes. A backslash makes a literal `E'…'`; enums with
/// such labels are left to the operator.
fn literals(list: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let inner = rest.strip_prefix('\'')?;
        let mut end = 0;
        loop {
            end += inner[end..].find('\'')? + 1;
            match inner[end..].strip_prefix('\'') {
                Some(_) => end += 1,
                None => break,
            }
        }
        found.push(rest[..=end].to_owned());
        rest = &rest[end + 1..];
        rest = rest.strip_prefix(", ").unwrap_or(rest);
    }
    (!list.contains('\\')).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_added_where_they_belong() {
        let more = |wanted: &str, found: &str| {
            let clauses = more_labels(wanted, found)?.into_iter();
            Some(clauses.map(|(_, clause)| clause).collect::<Vec<_>>())
        };
        assert_eq!(
            more("'a', 'it''s', 'c'", "'a', 'c'"),
            Some(vec!["'it''s' AFTER 'a'".to_owned()])
        );
        assert_eq!(
            more("'x', 'a'", "'a'"),
            Some(vec!["'x' BEFORE 'a'".to_owned()])
        );
        assert_eq!(more("'a'", ""), Some(vec!["'a'".to_owned()]));
        assert_eq!(more("'a'", "'a', 'b'"), None);
        assert_eq!(more("'b', 'a'", "'a', 'b'"), None);
        assert_eq!(literals("'a"), None);
    }
}
