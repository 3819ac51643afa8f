//! Indexes as the trees they form: that of a partitioned table with those of its partitions attached to
//! it, or one by itself. Pure.
//!
//! A tree goes as a whole, by dropping its root, and comes back from its leaves: only they hold entries.
//! What would come back other than it was stays.

use std::collections::BTreeMap;

use steep_protocol::TableName;

use crate::deferred::objects::{Deferred, Kind};
use crate::schema::statement::Stage;

/// An index, or the constraint that it is.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) oid: u32,
    /// The index it is attached to.
    pub(super) parent: Option<u32>,
    pub(super) table: TableName,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) holds: Holds,
    /// An index of a partitioned table is valid once each partition has a valid one attached to it.
    pub(super) valid: bool,
    /// Whether it can be made again as it is.
    pub(super) repeatable: bool,
    pub(super) drop: String,
    pub(super) create: String,
    /// Statistics of its columns, which would go down to what is attached already.
    pub(super) statistics: Vec<String>,
    pub(super) attach: Option<String>,
    /// What else is said about it.
    pub(super) details: Vec<String>,
}

/// What an index has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Entries.
    Entries,
    /// Attached ones, for so many partitions.
    Partitions(usize),
}

/// An index that is attached to none, and everything below it: those above others come first.
#[derive(Debug)]
pub(super) struct Tree(Vec<Index>);

/// The trees, in the order of their roots. What is attached to an index that is not among `indexes` is in
/// none of them.
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
    /// Whether it would come back as it is, and is worth it.
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

    /// Dropping the root drops all of it.
    pub(super) fn root(&self) -> &Index {
        &self.0[0]
    }

    /// Whether anything is attached to anything.
    pub(super) fn is_single(&self) -> bool {
        self.0.len() == 1
    }

    /// Every oid, in order.
    pub(super) fn oids(&self) -> Vec<u32> {
        let mut oids: Vec<u32> = self.0.iter().map(|member| member.oid).collect();
        oids.sort_unstable();
        oids
    }

    /// What makes it again. Attached from below, then what is said: an index that identifies rows must be
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
