//! Tables that are created on a source while a node follows it: told to people, and, where the node's policy is so,
//! followed without being asked.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::job::{Confirmation, ExistingRows, NewTables, SchemaMode};
use steep_protocol::message::tables::{Adding, CHANGED_MAX, Change, ChangeSpec};
use steep_protocol::{Fault, NodeId, NodeState, TableName};

use super::log::Note;
use super::{Answer, Driver, Ticket};
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::{NodeRecord, Store, Write};

/// How long the tables must be the same before they are added: a migration creates several, and alters them.
const SETTLED: Duration = Duration::from_secs(10);

/// When tables that could not be added are tried again.
const AGAIN: Duration = Duration::from_secs(600);

/// Who is said to have begun such a job.
const BY: &str = "--new-tables add";

/// Tables named in a warning.
const NAMED: usize = 5;

/// Tables that a node is to follow. They are added together; if that fails, each by itself, so that one of them does not
/// keep the others out.
#[derive(Debug)]
pub(super) struct Pending {
    tables: Vec<TableName>,
    tried: Tried,
    due: Timestamp,
}

/// What was tried since the tables are these.
#[derive(Debug)]
enum Tried {
    Nothing,
    Together,
    Alone(BTreeSet<TableName>),
}

impl Pending {
    fn new(tables: Vec<TableName>, now: Timestamp) -> Self {
        let (tried, due) = (Tried::Nothing, after(now, SETTLED));
        Self { tables, tried, due }
    }

    /// Takes up what there is now: tables that have left the list were added, and others begin anew.
    fn now(&mut self, tables: Vec<TableName>, now: Timestamp) {
        if tables.iter().all(|table| self.tables.contains(table)) {
            self.tables = tables;
        } else {
            *self = Self::new(tables, now);
        }
    }

    /// What to try now.
    fn next(&mut self, now: Timestamp) -> Vec<TableName> {
        self.due = after(now, SETTLED);
        if let Tried::Nothing = self.tried {
            self.tried = Tried::Together;
            let mut tables = self.tables.clone();
            tables.truncate(CHANGED_MAX);
            return tables;
        }
        let mut tried = match std::mem::replace(&mut self.tried, Tried::Together) {
            Tried::Alone(tried) => tried,
            Tried::Nothing | Tried::Together => BTreeSet::new(),
        };
        let mut left = self.tables.iter().filter(|table| !tried.contains(*table));
        let next = left.next().cloned();
        if left.next().is_none() {
            self.due = after(now, AGAIN);
            tried.clear();
        } else {
            tried.extend(next.clone());
        }
        self.tried = Tried::Alone(tried);
        next.into_iter().collect()
    }
}

impl<S: Store> Driver<S> {
    /// Sets what a node does about them.
    pub(super) fn set_new_tables(
        &mut self,
        node: &NodeId,
        policy: NewTables,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.known(node)?;
        self.check_follows(node)?;
        if let Some(record) = self.nodes.get_mut(node)
            && record.new_tables != policy
        {
            record.new_tables = policy;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
            let text = format!(
                "{node}: {} new tables, ordered by {operator}",
                policy.name()
            );
            let note = Note::info("tables.policy", text).node(node);
            self.log(note.field("operator", operator), now);
        }
        self.new_tables.remove(node);
        self.answer(ticket, Ok(Answer::Replies(Vec::new())));
        Ok(())
    }

    /// Begins to add what nodes are to follow.
    pub(super) fn tick_new_tables(&mut self, now: Timestamp) {
        let nodes = &self.nodes;
        self.new_tables.retain(|node, _| {
            let record = nodes.get(node);
            record.is_some_and(|record| record.new_tables == NewTables::Add)
        });
        let wanted: Vec<(NodeId, Vec<TableName>)> = self
            .nodes
            .values()
            .filter(|record| self.adds(record))
            .map(|record| (record.id.clone(), record.appeared.clone()))
            .collect();
        for (node, tables) in wanted {
            let pending = self.new_tables.entry(node.clone());
            let pending = pending
                .and_modify(|pending| pending.now(tables.clone(), now))
                .or_insert_with(|| Pending::new(tables, now));
            if pending.due <= now {
                let next = pending.next(now);
                self.add_by_itself(node, next, now);
            }
        }
    }

    /// Whether the node has tables to add, and everything that it takes is there.
    fn adds(&self, record: &NodeRecord) -> bool {
        let answers = |node: &NodeId| self.registry.get(node).is_some_and(Agent::postgres_answers);
        record.new_tables == NewTables::Add
            && !record.appeared.is_empty()
            && matches!(record.state, NodeState::Synchronized | NodeState::Diverged)
            && record.lost.is_none()
            && self.live_job(&record.id).is_none()
            && answers(&record.id)
            && record.source.as_ref().is_some_and(answers)
    }

    fn add_by_itself(&mut self, node: NodeId, tables: Vec<TableName>, now: Timestamp) {
        let spec = ChangeSpec {
            node: node.clone(),
            tables,
            change: Change::Add(Adding {
                schema_mode: SchemaMode::Strict,
                existing: ExistingRows::Refuse,
                parallel: None,
                max_rate: None,
            }),
        };
        if let Err(fault) = self.begin_change(spec, (BY, Confirmation::Needed), now) {
            let text = format!("{node}: its new tables cannot be added: {fault}");
            let note = Note::warn("tables.not_added", text).node(&node);
            self.log(note.field("hint", &fault.hint), now);
        }
    }
}

/// That tables of the source are not followed, for people.
pub(super) fn not_followed(record: &NodeRecord) -> Option<String> {
    let appeared = &record.appeared;
    let source = record.source.as_ref()?;
    if appeared.is_empty() {
        return None;
    }
    let named: Vec<String> = appeared
        .iter()
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    let more = match appeared.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "it does not follow tables that were created on {source} since: {}{more}; steep-repl tables add --node {} \
         copies and follows them",
        named.join(", "),
        record.id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(names: &[&str]) -> Vec<TableName> {
        let name = |name: &&str| TableName::new("s", *name).unwrap();
        names.iter().map(name).collect()
    }

    #[test]
    fn a_table_that_cannot_be_added_keeps_no_other_out_and_is_tried_again_later() {
        let start = Timestamp::UNIX_EPOCH;
        let mut pending = Pending::new(tables(&["a", "b", "c"]), start);
        let mut now = pending.due;
        assert_eq!(pending.next(now), tables(&["a", "b", "c"]));
        for alone in ["a", "b", "c"] {
            pending.now(pending.tables.clone(), now);
            assert!(pending.due <= after(now, SETTLED), "{alone}");
            now = pending.due;
            assert_eq!(pending.next(now), tables(&[alone]));
        }
        assert_eq!(pending.due, after(now, AGAIN));
        // One was added.
        pending.now(tables(&["a", "c"]), now);
        now = pending.due;
        assert_eq!(pending.next(now), tables(&["a"]));
        // Another one came.
        pending.now(tables(&["a", "c", "d"]), now);
        assert_eq!(pending.due, after(now, SETTLED));
        assert_eq!(pending.next(now), tables(&["a", "c", "d"]));
    }
}
