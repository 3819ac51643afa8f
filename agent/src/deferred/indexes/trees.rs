//! Indexes as trees: that of a partitioned table with those of its partitions attached, or a single one.
//! Pure.
//!
//! A tree is dropped by its root and rebuilt from its leaves, which alone hold entries. What would not come
//! back unchanged stays.

use std::collections::BTreeMap;

use steep_protocol::TableName;

use crate::deferred::objects::{Deferred, Kind};
use crate::schema::statement::Stage;

/// An index, or the constraint that it is.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) oid: u32,
    pub(super) parent: Option<u32>,
    pub(super) table: TableName,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) holds: Holds,
    /// On a partitioned table: every partition has a valid index attached.
    pub(super) valid: bool,
    pub(super) repeatable: bool,
    pub(super) drop: String,
    pub(super) create: String,
    /// Column statistics, whose setting would reach attached indexes too.
    pub(super) statistics: Vec<String>,
    pub(super) attach: Option<String>,
    pub(super) details: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Entries,
    /// Attached indexes, for this many partitions.
    Partitions(usize),
}

/// An unattached index and everything below it, parents first.
#[derive(Debug)]
pub(super) struct Tree(Vec<Index>);

/// In the order of their roots. Indexes below one that is not in `indexes` are omitted.
pub(super) fn trees(indexes: Vec<Index>) -> Vec<Tree> {
    let mut roots = Vec::new();
    let mut below = BTreeMap::<u32, Vec<Index>>::new();
    for index in indexes {
        match index.parent {
            None => roots.push(index),
            Some(parent) => below.entry(parent).or_default().push(index),
        }
    }
    let grown = roots.into_iter().map(|root| {
        let mut members = vec![root];
        let mut at = 0;
        while let Some(member) = members.get(at) {
            let attached = below.remove(&member.oid).unwrap_or_default();
            members.extend(attached);
            at += 1;
        }
        Tree(members)
    });
    grown.collect()
}

impl Tree {
    /// Whether it would come back unchanged, and is worth dropping.
    pub(super) fn may_go(&self) -> bool {
        let mut attached = BTreeMap::<u32, usize>::new();
        for parent in self.0.iter().filter(|m| m.valid).filter_map(|m| m.parent) {
            *attached.entry(parent).or_default() += 1;
        }
        let comes_back = |member: &Index| {
            let valid = match member.holds {
                Holds::Entries => true,
                Holds::Partitions(all) => attached.get(&member.oid).copied().unwrap_or(0) == all,
            };
            member.repeatable && member.valid == valid
        };
        self.0.iter().all(comes_back) && self.0.iter().any(|m| m.holds == Holds::Entries)
    }

    /// Dropping the root drops the tree.
    pub(super) fn root(&self) -> &Index {
        &self.0[0]
    }

    pub(super) fn is_single(&self) -> bool {
        self.0.len() == 1
    }

    pub(super) fn oids(&self) -> Vec<u32> {
        let mut oids: Vec<u32> = self.0.iter().map(|member| member.oid).collect();
        oids.sort_unstable();
        oids
    }

    /// The statements that rebuild it: attached from below, details last, since an identity index must be
    /// valid by then.
    pub(super) fn deferred(&self) -> Vec<Deferred> {
        let made = self.0.iter().map(|member| Deferred {
            stage: match member.holds {
                Holds::Entries => Stage::Indexes,
                Holds::Partitions(_) => Stage::Parents,
            },
            kind: member.kind,
            table: Some(member.table.clone()),
            name: Some(member.name.clone()),
            sql: member.create.clone(),
        });
        let statistics = self.0.iter().flat_map(|m| &m.statistics);
        let attached = self.0.iter().rev().filter_map(|m| m.attach.as_ref());
        let details = self.0.iter().flat_map(|m| &m.details);
        let said = statistics
            .chain(attached)
            .chain(details)
            .map(|sql| Deferred {
                stage: Stage::IndexDetails,
                kind: Kind::Other,
                table: None,
                name: None,
                sql: sql.clone(),
            });
        made.chain(said).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(oid: u32, parent: Option<u32>, holds: Holds) -> Index {
        Index {
            oid,
            parent,
            table: TableName::new("s", format!("t{oid}")).unwrap(),
            name: format!("i{oid}"),
            kind: Kind::Index,
            holds,
            valid: true,
            repeatable: true,
            drop: format!("drop {oid}"),
            create: format!("create {oid}"),
            statistics: vec![format!("count {oid}")],
            attach: parent.map(|parent| format!("attach {oid} to {parent}")),
            details: vec![format!("say {oid}")],
        }
    }

    fn entries(oid: u32, parent: u32) -> Index {
        index(oid, Some(parent), Holds::Entries)
    }

    /// 1 over 2 and 5; 2 over 3 and 4.
    fn two_levels() -> Vec<Index> {
        vec![
            index(1, None, Holds::Partitions(2)),
            entries(3, 2),
            entries(4, 2),
            entries(5, 1),
            index(2, Some(1), Holds::Partitions(2)),
        ]
    }

    fn goes(indexes: Vec<Index>) -> Vec<(u32, bool)> {
        let all = trees(indexes);
        all.iter().map(|t| (t.root().oid, t.may_go())).collect()
    }

    #[test]
    fn leaves_are_made_first_and_attached_from_below() {
        let all = trees(two_levels());
        assert_eq!(all.len(), 1);
        let tree = &all[0];
        assert_eq!(tree.oids(), [1, 2, 3, 4, 5]);
        assert!(tree.may_go() && !tree.is_single());
        assert_eq!(tree.root().drop, "drop 1");
        let mut deferred = tree.deferred();
        deferred.sort_by_key(|d| d.stage);
        let sql: Vec<&str> = deferred.iter().map(|d| d.sql.as_str()).collect();
        assert_eq!(
            sql,
            [
                "create 5",
                "create 3",
                "create 4",
                "create 1",
                "create 2",
                "count 1",
                "count 5",
                "count 2",
                "count 3",
                "count 4",
                "attach 4 to 2",
                "attach 3 to 2",
                "attach 2 to 1",
                "attach 5 to 1",
                "say 1",
                "say 5",
                "say 2",
                "say 3",
                "say 4",
            ]
        );
    }

    #[test]
    fn an_index_of_a_partition_that_is_attached_to_none_goes_by_itself() {
        let mut all = two_levels();
        all.push(index(6, None, Holds::Entries));
        // Its parent's table holds more than is planned.
        all.push(entries(7, 99));
        assert_eq!(goes(all), [(1, true), (6, true)]);
    }

    #[test]
    fn what_would_come_back_otherwise_stays() {
        let with = |change: &dyn Fn(&mut Index), oid: u32| {
            let mut all = two_levels();
            for index in all.iter_mut().filter(|i| i.oid == oid) {
                change(index);
            }
            goes(all)[0].1
        };
        assert!(!with(&|i| i.valid = false, 3), "nobody can make it invalid");
        assert!(!with(&|i| i.valid = false, 1), "it would become valid");
        assert!(
            !with(&|i| i.holds = Holds::Partitions(3), 1),
            "it would become invalid"
        );
        assert!(!with(&|i| i.repeatable = false, 4));
        let mut incomplete = two_levels();
        incomplete.retain(|i| i.oid != 4);
        for index in incomplete.iter_mut().filter(|i| i.oid < 3) {
            index.valid = false;
        }
        assert_eq!(goes(incomplete), [(1, true)], "as invalid as it was");
        let empty = vec![index(1, None, Holds::Partitions(0))];
        assert_eq!(goes(empty), [(1, false)], "there is nothing to gain");
    }
}
