//! Event triggers that fire on a job's statements: they may refuse them, or write rows of their own.

use steep_protocol::NodeId;
use steep_protocol::message::facts::{Finding, Listed};

use super::text::{counted, names};
use super::{Pair, Text, warning};

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let (source, target) = (&pair.source.server, &pair.target.server);
    findings.extend(firing(
        &pair.spec.source,
        &source.event_triggers,
        "they fire when the publication is created and dropped, and an error raised by one ends the job; \
         those that come with the schema fire on the target, too",
    ));
    findings.extend(firing(
        &pair.spec.target,
        &target.event_triggers,
        "they fire on every table, index and subscription that the job makes: one that raises an error \
         prevents an object from being created, and rows that one writes exist on this node only",
    ));
}

fn firing(node: &NodeId, triggers: &Listed, why: &str) -> Option<Finding> {
    (!triggers.is_empty()).then(|| {
        let what = format!(
            "{} on the statements of this job: {}",
            counted(triggers.count, "event trigger fires", "event triggers fire"),
            names(triggers)
        );
        let fix = "ALTER EVENT TRIGGER … DISABLE (or ENABLE, if the agent's role may set \
                   session_replication_role), and set it back once the node is synchronized";
        warning("event_triggers", node, Text::new(what, why, fix))
    })
}
