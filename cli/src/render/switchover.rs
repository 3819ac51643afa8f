//! What a switchover does, as text and as JSON.

use serde_json::{Value, json};
use steep_protocol::Fault;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::switchover::{
    SwitchoverSpec, SwitchoverStep as Step, SwitchoverView, WayBack,
};

use super::clean;
use crate::units;

/// Tables named that were not compared.
const TABLES_NAMED: usize = 5;

/// What it is at, as a line.
pub(crate) fn step(view: &SwitchoverView) -> String {
    let (from, to) = (&view.from, &view.to);
    match view.step {
        Step::PrepareWayBack => format!("{to}: makes a slot for the way back"),
        Step::AdmitRows => format!("{from}: lets its rows be compared"),
        Step::CompareRows => format!("{to}: compares its rows with those of {from}"),
        Step::CloseNew => format!("{to}: read-only to applications until it takes over"),
        Step::StopWrites => format!("{from}: writes are being stopped"),
        Step::Drain => format!("{to}: applies what was written"),
        Step::AdmitSequences => format!("{from}: lets its sequences be read"),
        Step::Sequences => format!("{to}: sets its sequences"),
        Step::AdmitSmall => format!("{from}: lets the rows of small tables be compared"),
        Step::CompareSmall => {
            format!("{to}: compares the rows of small tables with those of {from}")
        }
        Step::ProveOpen => format!("{to}: sees whether somebody keeps it from taking writes"),
        Step::AdmitLast => format!("{from}: lets its sequences be read once more"),
        Step::LastSequences => format!("{to}: sets its sequences to what was used last"),
        Step::Decide => format!("{from}: gives its writes away"),
        Step::Open => format!("{to}: takes writes"),
        Step::Detach => format!("{to}: stops following {from}"),
        Step::Follow => format!("{from}: begins to follow {to}"),
        Step::Completed => format!("{to}: takes writes in place of {from}"),
        Step::ReopenOld => format!("{from}: gets its writes back"),
        Step::ReopenNew => format!("{to}: becomes what it was"),
        Step::DropWayBack => format!("{to}: drops the slot for the way back"),
        Step::Undone => format!("{from}: takes writes as before"),
    }
}

/// The same with what is in its way.
pub(crate) fn progress(view: &SwitchoverView) -> String {
    format!("{}{}", step(view), after(view.hindrance.as_ref()))
}

/// A fault at the end of a sentence.
fn after(fault: Option<&Fault>) -> String {
    fault.map_or_else(String::new, |fault| {
        format!("; {}", clean(&fault.to_string()))
    })
}

/// How long a stop was: tenths of a second matter.
fn seconds(view: &SwitchoverView) -> String {
    format!("{:.1} s", view.stopped_seconds.unwrap_or_default())
}

/// How it ended.
pub(crate) fn completed(view: &SwitchoverView) -> String {
    let (from, to) = (&view.from, &view.to);
    let mut text = format!("writes were stopped for {}\n", seconds(view));
    if view.ended_sessions > 0 {
        let count = units::count(view.ended_sessions);
        text.push_str(&format!("sessions that were ended on {from}: {count}\n"));
    }
    let compared = units::count(view.tables_compared);
    text.push_str(&format!("tables whose rows were compared: {compared}"));
    if !view.tables_not_compared.is_empty() {
        let listed = &view.tables_not_compared;
        let names = &listed.names[..listed.names.len().min(TABLES_NAMED)];
        let more = match listed.count.saturating_sub(names.len() as u64) {
            0 => String::new(),
            more => format!(" and {} more", units::count(more)),
        };
        text.push_str(&format!("; not: {}{more}", clean(&names.join(", "))));
    }
    text.push('\n');
    match view.way_back {
        WayBack::Follow if view.fault.is_none() => text.push_str(&format!(
            "{from} follows {to} and is read-only to applications; the way back: steep-repl switchover --from {to} --to {from}\n"
        )),
        WayBack::Follow | WayBack::None => {
            text.push_str(&format!("{from} is read-only to applications"));
            if let Some(reopen) = &view.reopen {
                text.push_str(&format!("; to change that by hand: {}", clean(reopen)));
            }
            text.push('\n');
        }
    }
    for warning in &view.warnings {
        text.push_str(&format!("warning: {}\n", clean(warning)));
    }
    text
}

/// The line of a node's status, where there is something to say.
pub(crate) fn status(view: &SwitchoverView) -> String {
    let (from, to) = (&view.from, &view.to);
    let fault = after(view.fault.as_ref());
    match (view.step, view.ended_at) {
        (Step::Completed, Some(at)) => {
            let reopen = match (&view.reopen, view.way_back) {
                (Some(_), _) if view.lifted => format!("; {from} is no longer read-only"),
                (Some(reopen), WayBack::None) => {
                    format!("; {from} is read-only: {} changes that", clean(reopen))
                }
                (Some(_), WayBack::Follow) => format!("; {from} is read-only to applications"),
                (None, _) => String::new(),
            };
            format!(
                "from {from} to {to}, at {at:.0}, by {}{reopen}{fault}",
                clean(&view.operator)
            )
        }
        (Step::Undone, Some(at)) => {
            format!("from {from} to {to} was undone at {at:.0}: {from} takes writes{fault}")
        }
        (_, _) => {
            let until = view.deadline.map_or_else(String::new, |at| {
                format!("; {from} gets its writes back at {at:.0} at the latest")
            });
            let stopped = match view.writable {
                None => format!("; writes are stopped for {}", seconds(view)),
                Some(_) => String::new(),
            };
            let hindrance = after(view.hindrance.as_ref());
            format!(
                "from {from} to {to}: {}{stopped}{until}{hindrance}{fault}",
                step(view)
            )
        }
    }
}

/// The same as a part of a node's JSON.
pub(crate) fn json(view: &SwitchoverView) -> Value {
    json!({
        "switchover_id": view.switchover_id.to_string(),
        "from": view.from,
        "to": view.to,
        "operator": view.operator,
        "began_at": view.began_at,
        "ended_at": view.ended_at,
        "step": view.step,
        "writable": view.writable,
        "stopped_seconds": view.stopped_seconds,
        "deadline": view.deadline,
        "reverse": view.way_back == WayBack::Follow,
        "reopen": view.reopen,
        "lifted": view.lifted,
        "ended_sessions": view.ended_sessions,
        "tables_compared": view.tables_compared,
        "tables_not_compared": view.tables_not_compared,
        "error_message": view.fault.as_ref().map(ToString::to_string),
        "hindrance": view.hindrance.as_ref().map(ToString::to_string),
        "warnings": view.warnings,
    })
}

fn event(name: &str, view: &SwitchoverView) -> Value {
    let mut object = json(view);
    object["event"] = name.into();
    object
}

/// A step, within a stream.
pub(crate) fn step_json(view: &SwitchoverView) -> Value {
    event("switchover.step", view)
}

/// The last line of a stream.
pub(crate) fn completed_json(view: &SwitchoverView) -> Value {
    let mut object = event("switchover.completed", view);
    let ended = view.ended_at.unwrap_or(view.began_at);
    let millis = ended.as_millisecond() - view.began_at.as_millisecond();
    object["duration_seconds"] = (millis.max(0) as f64 / 1e3).into();
    object
}

/// What speaks against it.
pub(crate) fn plan_json(spec: &SwitchoverSpec, findings: &[Finding]) -> Value {
    json!({
        "event": "switchover.plan",
        "from": spec.from,
        "to": spec.to,
        "findings": findings,
    })
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::switchover::SwitchoverStep;
    use steep_protocol::{FaultKind, JobId};

    use super::super::samples::{at, id};
    use super::*;

    fn view(step: SwitchoverStep) -> SwitchoverView {
        SwitchoverView {
            switchover_id: JobId(1),
            from: id("node_a"),
            to: id("node_b"),
            operator: "dba".to_owned(),
            began_at: at(0),
            ended_at: step.is_over().then(|| at(3)),
            step,
            writable: None,
            stopped_seconds: Some(1.44),
            deadline: None,
            way_back: WayBack::None,
            reopen: Some("ALTER DATABASE \"app\" RESET default_transaction_read_only".to_owned()),
            lifted: false,
            ended_sessions: 0,
            tables_compared: 3,
            tables_not_compared: ["app.big".to_owned()].into_iter().collect(),
            fault: None,
            hindrance: None,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn every_step_and_end_says_who_takes_writes() {
        let mut text = String::new();
        for at in SwitchoverStep::ALL {
            text.push_str(&format!("{}\n", step(&view(at))));
        }
        let back = SwitchoverView {
            way_back: WayBack::Follow,
            ended_sessions: 2,
            ..view(Step::Completed)
        };
        let failed = SwitchoverView {
            fault: Some(Fault::new(
                FaultKind::Failed,
                "node_a does not follow node_b",
            )),
            ..back.clone()
        };
        for ended in [&view(Step::Completed), &back, &failed] {
            text.push_str(&format!("\n{}", completed(ended)));
        }
        let late = SwitchoverView {
            deadline: Some(at(60)),
            ..view(Step::Drain)
        };
        let undone = SwitchoverView {
            fault: Some(Fault::new(FaultKind::Timeout, "too late").on(&id("node_b"))),
            ..view(Step::Undone)
        };
        let held = SwitchoverView {
            hindrance: Some(
                Fault::new(FaultKind::Failed, "process 4711 holds its settings").on(&id("node_b")),
            ),
            ..view(Step::Open)
        };
        let lifted = SwitchoverView {
            lifted: true,
            ..back.clone()
        };
        for one in [
            &view(Step::Completed),
            &back,
            &lifted,
            &late,
            &undone,
            &held,
        ] {
            text.push_str(&format!("\n{}", status(one)));
        }
        insta::assert_snapshot!(text);
    }
}
