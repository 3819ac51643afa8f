//! Tables that are created on a source while a node follows it: told to people, and, where the node's policy is so,
//! followed without being asked.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::job::{ExistingRows, NewTables, SchemaMode};
use steep_protocol::message::tables::{Adding, CHANGED_MAX, Change, ChangeSpec};
use steep_protocol::{Fault, NodeId, NodeState, TableName};

use super::log::Note;
use super::{Answer, Driver, Ticket};
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::{NodeRecord, Store, Write};

/// How long the tables must be the same before they are added: a migration creates several, and alters them.
const SETTLED: Duration = Duration::from_secs(10);

/// When those that could not be added are tried again.
const AGAIN: Duration = Duration::from_secs(600);

/// Who is said to have begun such a job.
const BY: &str = "--new-tables add";

/// Tables named in a warning.
const NAMED: usize = 5;

/// Tables that a node is to follow.
#[derive(Debug)]
pub(super) struct Pending {
    tables: Vec<TableName>,
    due: Timestamp,
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
        let wanted: Vec<(NodeId, Vec<TableName>)> = self
            .nodes
            .values()
            .filter(|record| self.adds(record))
            .map(|record| (record.id.clone(), record.appeared.clone()))
            .collect();
        self.new_tables
            .retain(|node, _| wanted.iter().any(|(wanted, _)| wanted == node));
        for (node, mut tables) in wanted {
            tables.truncate(CHANGED_MAX);
            let known = self.new_tables.get_mut(&node);
            match known.filter(|pending| pending.tables == tables) {
                Some(pending) if pending.due <= now => {
                    pending.due = after(now, AGAIN);
                    self.add_by_itself(node, tables, now);
                }
                Some(_) => {}
                None => {
                    let due = after(now, SETTLED);
                    self.new_tables.insert(node, Pending { tables, due });
                }
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
        if let Err(fault) = self.begin_change(spec, BY, now) {
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
