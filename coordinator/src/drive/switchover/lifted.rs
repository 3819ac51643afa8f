//! The node that writes have moved away from: whether somebody lets applications write to it again.

use jiff::Timestamp;
use steep_protocol::message::switchover::SwitchoverStep as Step;
use steep_protocol::{Identifier, NodeId, NodeState};

use crate::drive::Driver;
use crate::drive::log::Note;
use crate::store::Store;
use crate::switchover::Switchover;

impl<S: Store> Driver<S> {
    /// The switchover that has made the node read-only, where its agent has seen since that new sessions may write.
    pub(in crate::drive) fn lifted(&self, node: &NodeId) -> Option<&Switchover> {
        let record = self.nodes.get(node)?;
        let moved = record.lineage.as_ref()?.moved.as_ref()?;
        let one = &self.switchovers.get(&moved.switchover)?.switchover;
        let decided = one.step > Step::Decide && one.step <= Step::Completed;
        // Whoever initialises it anew wants something else of it.
        let untouched = record.state == NodeState::Uninitialized
            || one.following.is_some() && one.following == record.job;
        let lifted = decided && untouched && one.spec.from == *node && !moved.read_only;
        lifted.then_some(one)
    }

    /// What a person should know and do about it.
    pub(in crate::drive) fn lifted_warning(&self, node: &NodeId) -> Option<String> {
        let one = self.lifted(node)?;
        let to = &one.spec.to;
        Some(format!(
            "it is no longer read-only, since somebody has changed its default_transaction_read_only: rows that are \
             written to it do not reach {to}, which takes writes; {}",
            self.close_again(one)
        ))
    }

    fn close_again(&self, one: &Switchover) -> String {
        let (from, to) = (&one.spec.from, &one.spec.to);
        let lineage = self.nodes.get(from).and_then(|node| node.lineage.as_ref());
        let moved = lineage.and_then(|lineage| lineage.moved.as_ref());
        let database = moved.and_then(|moved| Identifier::parse(moved.database.as_str()).ok());
        let database = database.map_or_else(|| "…".to_owned(), |name| name.quoted());
        format!(
            "let applications write to {to} only, run ALTER DATABASE {database} SET default_transaction_read_only = on \
             on {from}, end the sessions that began meanwhile, and see what they wrote: steep-repl verify {to} {from}"
        )
    }

    /// Tells of a change, once.
    pub(in crate::drive) fn tell_lifted(&mut self, node: &NodeId, before: bool, now: Timestamp) {
        let Some(switchovers) = self.last_switchover_from(node) else {
            return;
        };
        let (id, to) = (switchovers.id, switchovers.spec.to.clone());
        let note = match (before, self.lifted(node)) {
            (false, Some(one)) => {
                let text = format!("{node} is no longer read-only, although {to} takes writes");
                Note::warn("switchover.read_only_lifted", text).field("hint", self.close_again(one))
            }
            (true, None) => {
                let text = format!(
                    "new sessions of {node} are read-only again; those that began before may still write"
                );
                Note::info("switchover.read_only_restored", text)
            }
            (false, None) | (true, Some(_)) => return,
        };
        let note = note.node(node).of(Some(&to), None);
        self.log(note.field("switchover_id", id), now);
        self.out.observed = true;
    }

    fn last_switchover_from(&self, node: &NodeId) -> Option<&Switchover> {
        let all = self.switchovers.values().map(|one| &one.switchover);
        let from = all.filter(|one| one.spec.from == *node);
        from.max_by_key(|one| one.began_at)
    }
}
