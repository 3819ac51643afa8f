//! Whether a job that cannot go on says so: `nodes` names what it waits for within fifteen seconds.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use steep_tests::wait;

use super::world::{SOURCE, TARGET, World};

/// The promise, with a second for the question.
pub(super) const LIMIT: Duration = Duration::from_secs(16);

/// What was seen within the limit.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// What is waited for was named.
    Named,
    /// The job went on meanwhile.
    WentOn,
    /// Neither: the node as it was shown.
    Silent(Box<Value>),
}

/// Looks until the limit has passed since the strike.
pub(super) fn look(world: &World, struck: Instant) -> Result<Said> {
    let mut first = None;
    let mut last = Value::Null;
    while struck.elapsed() < LIMIT {
        anyhow::ensure!(!wait::interrupted(), "interrupted");
        if let (Ok(Some(target)), Ok(Some(source))) = (
            world.cluster.node_view(TARGET),
            world.cluster.node_view(SOURCE),
        ) {
            if names(&target, &source) {
                return Ok(Said::Named);
            }
            first.get_or_insert_with(|| progress(&target));
            last = target;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    if first.is_some_and(|first| first != progress(&last)) {
        return Ok(Said::WentOn);
    }
    Ok(Said::Silent(Box::new(last)))
}

/// A running job has to name what it waits for; of other nodes it is enough to see what is away.
fn names(target: &Value, source: &Value) -> bool {
    let at_work = ["preparing", "copying", "catching_up", "reinitializing"].map(Value::from);
    if at_work.contains(&target["state"]) {
        return !target["waiting"].is_null();
    }
    let away = |node: &Value| {
        node["agent_online"] == false
            || !node["postgres_error"].is_null()
            || !node["unseen_since"].is_null()
            || node["warnings"].as_array().is_some_and(|w| !w.is_empty())
    };
    target["state"] != "synchronized" || away(target) || away(source)
}

fn progress(node: &Value) -> (Value, Value) {
    (node["state"].clone(), node["progress"].clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_job_has_to_name_what_it_waits_for() {
        let node = |state: &str, waiting: Value, online: bool| json!({"state": state, "waiting": waiting, "agent_online": online});
        let fine = node("uninitialized", Value::Null, true);
        let waits = json!({"node_id": "node_a"});
        assert!(names(&node("copying", waits, true), &fine));
        assert!(!names(&node("copying", Value::Null, false), &fine));
        assert!(!names(&node("synchronized", Value::Null, true), &fine));
        let away = node("uninitialized", Value::Null, false);
        assert!(names(&node("synchronized", Value::Null, true), &away));
        assert!(names(&node("failed", Value::Null, true), &fine));
    }
}
