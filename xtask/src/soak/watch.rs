//! Follows a job in the coordinator's log, which has every phase at once and survives the coordinator.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use steep_tests::wait;

use super::fault::Phase;
use super::world::{TARGET, World};

/// A phase begins within this time after the one before, or the job hangs.
const PHASE_LIMIT: Duration = Duration::from_secs(300);

/// The copy is late once this table is complete: one of the same size is still to come.
const FIRST: &str = "soak.large";

/// How far the coordinator's log has been read, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position(usize);

/// Lines from a position on, each with the position behind it.
pub(super) fn lines(log: &Path, from: Position) -> Vec<(Value, Position)> {
    let content = fs::read(log).unwrap_or_default();
    let rest = content.get(from.0..).unwrap_or_default();
    let mut at = from.0;
    let mut lines = Vec::new();
    for line in rest.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if let Ok(value) = serde_json::from_slice(line) {
            lines.push((value, Position(at)));
        }
    }
    lines
}

/// The end of the coordinator's log.
pub(super) fn now(world: &World) -> Position {
    let length = fs::metadata(world.coordinator_log()).map_or(0, |meta| meta.len());
    Position(usize::try_from(length).unwrap_or(usize::MAX))
}

/// Waits for the beginning of a phase of the target's job; `None` if the job ends without it.
pub(super) fn reach(world: &World, phase: Phase, from: Position) -> Result<Option<Position>> {
    enum Seen {
        Begun(Position),
        Over,
    }
    let seen = wait::until(&format!("the phase {phase}"), PHASE_LIMIT, || {
        let lines = lines(&world.coordinator_log(), from);
        let begun = lines.iter().find(|(line, _)| begins(line, phase));
        if let Some((_, at)) = begun
            && is_there(world, phase)
        {
            return Ok(Some(Seen::Begun(*at)));
        }
        let over = lines.iter().any(|(line, _)| ends(line, phase));
        Ok(over.then_some(Seen::Over))
    });
    match seen? {
        Seen::Begun(at) => Ok(Some(at)),
        Seen::Over => Ok(None),
    }
}

fn begins(line: &Value, phase: Phase) -> bool {
    let begun = |name: &str| {
        line["event"] == "init.phase_started" && line["node_id"] == TARGET && line["phase"] == name
    };
    match phase {
        Phase::Storing => line["event"] == "snapshot.opened",
        Phase::Preparing => begun("snapshot"),
        Phase::Schema => begun("schema"),
        Phase::Cancelling | Phase::CopyingEarly => begun("copy"),
        Phase::CopyingLate => {
            line["event"] == "init.table_complete"
                && line["node_id"] == TARGET
                && line["table"] == FIRST
        }
        Phase::Indexing => begun("indexes"),
        Phase::Subscribing => begun("subscribe"),
        Phase::CatchingUp | Phase::Folding => begun("catch_up"),
        Phase::Synchronized => line["event"] == "init.completed" && line["node_id"] == TARGET,
    }
}

fn ends(line: &Value, phase: Phase) -> bool {
    // The spool of a job is complete long before the job is.
    if phase == Phase::Storing {
        return line["event"] == "snapshot.generated";
    }
    let ended = ["init.completed", "init.failed", "init.cancelled"].map(Value::from);
    ended.contains(&line["event"]) && line["node_id"] == TARGET
}

/// What the coordinator's log does not show.
fn is_there(world: &World, phase: Phase) -> bool {
    match phase {
        Phase::Folding => {
            let log = lines(&world.agent_log(TARGET), Position::default());
            let folds =
                |line: &Value| line["event"] == "command.started" && line["command"] == "fold";
            log.iter().any(|(line, _)| folds(line))
        }
        _ => true,
    }
}
