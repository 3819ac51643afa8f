//! Renamed columns, and definitions that differ only in their names.

use std::collections::BTreeMap;

use steep_protocol::TableName;
use steep_protocol::message::schema::{ColumnModel, ObjectKind, ObjectModel, TableModel};

use super::aspects;
use crate::model::Schema;
use crate::text::{numbered, owner, plain, references};

/// Pairs of names, local and remote, of renamed columns, by table.
#[derive(Debug, Default)]
pub(crate) struct Renamed {
    tables: BTreeMap<TableName, Vec<(String, String)>>,
}

impl Renamed {
    /// Renamed columns of all common tables.
    pub(crate) fn between(local: &Schema, remote: &Schema) -> Self {
        let pairs = local.tables.values().filter_map(|here| {
            let there = remote.tables.get(&here.name)?;
            let pairs = pairs(here, there);
            (!pairs.is_empty()).then(|| (here.name.clone(), pairs))
        });
        Self {
            tables: pairs.collect(),
        }
    }

    fn of(&self, table: &TableName) -> &[(String, String)] {
        self.tables.get(table).map_or(&[], Vec::as_slice)
    }

    /// The column's name on the remote side, if it exists there.
    pub(super) fn in_remote<'a>(&'a self, table: &TableName, column: &'a str) -> &'a str {
        let renamed = self.of(table).iter().find(|(local, _)| local == column);
        renamed.map_or(column, |(_, remote)| remote)
    }

    /// Whether two texts about columns of that table are equivalent.
    pub(super) fn same(&self, table: &TableName, local: &str, remote: &str) -> bool {
        if local == remote {
            // The texts may contain exchanged names, but then one of the sides would be invalid.
            return true;
        }
        let pairs = self.of(table);
        if pairs.is_empty() {
            return plain(local) == plain(remote);
        }
        numbered(local, pairs.iter().map(|(local, _)| local.as_str()))
            == numbered(remote, pairs.iter().map(|(_, remote)| remote.as_str()))
    }

    /// Whether two definitions of a kind are equivalent.
    pub(crate) fn same_object(&self, local: &ObjectModel, remote: &ObjectModel) -> bool {
        if local.definition == remote.definition {
            return true;
        }
        match (local.kind, &local.table) {
            (ObjectKind::ForeignKey, Some(table)) => {
                let parts = (
                    references(&local.definition),
                    references(&remote.definition),
                );
                let (Some((own, to, theirs)), Some((own_there, to_there, theirs_there))) = parts
                else {
                    return false;
                };
                to == to_there
                    && self.same(table, own, own_there)
                    && self.same(&to, theirs, theirs_there)
            }
            (ObjectKind::Sequence, _) => {
                match (owner(&local.definition), owner(&remote.definition)) {
                    ((here, Some((table, column))), (there, Some((table_there, column_there)))) => {
                        here == there
                            && table == table_there
                            && self.in_remote(&table, column.as_str()) == column_there.as_str()
                    }
                    _ => false,
                }
            }
            (_, Some(table)) => self.same(table, &local.definition, &remote.definition),
            (_, None) => plain(&local.definition) == plain(&remote.definition),
        }
    }
}

/// Pairs columns that only one side has, in the same gap between common columns.
fn pairs(here: &TableModel, there: &TableModel) -> Vec<(String, String)> {
    let mut candidates = lone(there, here);
    let mut pairs = Vec::new();
    for (after, column) in lone(here, there) {
        let alike = candidates.iter().position(|(gap, c)| {
            *gap == after && aspects(column, c, |one, other| plain(one) == plain(other)).is_empty()
        });
        if let Some(at) = alike {
            let (_, to) = candidates.remove(at);
            pairs.push((column.name.to_string(), to.name.to_string()));
        }
    }
    pairs
}

/// Columns that the other side lacks, each with the last common column before it.
fn lone<'a>(one: &'a TableModel, other: &TableModel) -> Vec<(Option<&'a str>, &'a ColumnModel)> {
    let mut after = None;
    let mut found = Vec::new();
    for column in &one.columns {
        if other.columns.iter().any(|c| c.name == column.name) {
            after = Some(column.name.as_str());
        } else {
            found.push((after, column));
        }
    }
    found
}
