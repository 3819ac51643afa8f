//! Objects that must be dropped while another is altered, and are recreated as they were.

use std::collections::BTreeSet;

use steep_protocol::TableName;
use steep_protocol::message::schema::{ObjectKind, ObjectModel};

use super::Planner;
use super::object::Rename;
use crate::model::Key;
use crate::text::{names, references};

impl<'a> Planner<'a> {
    /// Drops and recreates unchanged objects: those that a dropped column would take along, foreign
    /// keys over retyped columns, and those that need a dropped key.
    pub(super) fn rebuild(&mut self) {
        let renames = std::mem::take(&mut self.renames);
        let is_foreign = |rename: &Rename<'_>| rename.found.kind == ObjectKind::ForeignKey;
        let (foreign, own): (Vec<_>, Vec<_>) = renames.into_iter().partition(is_foreign);
        let renamed: BTreeSet<Key> = own
            .iter()
            .chain(&foreign)
            .map(|r| Key::of(r.found))
            .collect();
        for rename in own {
            self.rename_object(rename, Self::goes_along);
        }
        let unchanged: Vec<&ObjectModel> = self
            .target
            .objects
            .values()
            .filter(|o| self.stays(o) && !renamed.contains(&Key::of(o)))
            .collect();
        let (foreign_kept, own_kept): (Vec<_>, Vec<_>) = unchanged
            .into_iter()
            .partition(|o| o.kind == ObjectKind::ForeignKey);
        for object in own_kept {
            if self.goes_along(object) {
                self.make_again(object);
            }
        }
        for rename in foreign {
            self.rename_object(rename, Self::cannot_stay);
        }
        for object in foreign_kept {
            if self.cannot_stay(object) {
                self.make_again(object);
            }
        }
        self.identify_again();
    }

    /// Whether both sides have it, or it is an index of the target that is kept.
    fn stays(&self, object: &ObjectModel) -> bool {
        let kept = match object.kind {
            ObjectKind::PrimaryKey
            | ObjectKind::Unique
            | ObjectKind::Check
            | ObjectKind::Exclusion
            | ObjectKind::ForeignKey
            | ObjectKind::Index => object.table.is_some(),
            ObjectKind::ReplicaIdentity
            | ObjectKind::PartitionKey
            | ObjectKind::Parent
            | ObjectKind::Persistence
            | ObjectKind::Publication
            | ObjectKind::Schema
            | ObjectKind::Extension
            | ObjectKind::Enum
            | ObjectKind::Domain
            | ObjectKind::Composite
            | ObjectKind::Sequence
            | ObjectKind::Range
            | ObjectKind::ExtensionMember => false,
        };
        kept && !self.dropped.contains(&Key::of(object))
    }

    /// Whether it is dropped with a column.
    fn goes_along(&self, object: &ObjectModel) -> bool {
        let fate = object
            .table
            .as_ref()
            .and_then(|table| self.fates.get(table));
        fate.is_some_and(|fate| {
            !fate.anew.is_empty() && !names(&object.definition).is_disjoint(&fate.anew)
        })
    }

    fn cannot_stay(&self, foreign: &ObjectModel) -> bool {
        let (Some(table), Some((own, to, theirs))) =
            (&foreign.table, references(&foreign.definition))
        else {
            return false;
        };
        let touches = |table: &TableName, columns: &str| {
            self.fates.get(table).is_some_and(|fate| {
                let names = names(columns);
                !names.is_disjoint(&fate.anew) || !names.is_disjoint(&fate.retyped)
            })
        };
        let columns = names(
            theirs
                .split_once(')')
                .map_or(theirs, |(columns, _)| columns),
        );
        let keyless =
            self.dropped.iter().any(|key| {
                key.table.as_ref() == Some(&to)
                    && self.target.objects.get(key).is_some_and(|key| {
                        is_key(key) && columns.is_subset(&names(&key.definition))
                    })
            });
        keyless || touches(table, own) || touches(&to, theirs)
    }

    /// Recreates it as on the source, or as it was if only the target has it.
    fn make_again(&mut self, object: &'a ObjectModel) {
        let Some(table) = &object.table else { return };
        self.drop_object(object.kind, table, &object.name);
        let wanted = self.source.like(object).unwrap_or(object);
        self.add_object(wanted);
    }

    /// Restores a replica identity whose index was recreated.
    fn identify_again(&mut self) {
        let (source, target) = (self.source, self.target);
        let tables: BTreeSet<&TableName> = self
            .dropped
            .iter()
            .filter_map(|k| k.table.as_ref())
            .collect();
        let identities: Vec<&ObjectModel> = tables
            .into_iter()
            .flat_map(|table| source.objects_of(table))
            .filter(|o| o.kind == ObjectKind::ReplicaIdentity)
            .filter(|o| {
                target
                    .like(o)
                    .is_some_and(|there| there.definition == o.definition)
            })
            .filter(|o| o.definition.starts_with("USING INDEX"))
            .collect();
        for object in identities {
            self.add_object(object);
        }
    }
}

/// Whether a foreign key may depend on it.
fn is_key(object: &ObjectModel) -> bool {
    match object.kind {
        ObjectKind::PrimaryKey | ObjectKind::Unique => true,
        ObjectKind::Index => object.definition.starts_with("UNIQUE "),
        _ => false,
    }
}
