//! Trace spans of jobs and phases, created when they end, if traces are sent.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use steep_daemon::traces::{Place, Side, Span};
use steep_protocol::trace::{job_span, phase_span, trace_id};
use steep_protocol::{Fault, FaultKind, Phase};

use crate::job::{Closed, Job, Stage, Totals, Why};

/// Records a phase that has ended.
pub(super) fn phase(job: &Job, phase: Phase, millis: u64, counted: Totals, now: Timestamp) {
    let times = job.clock.spent.iter().filter(|(p, _)| *p == phase).count();
    let mut span = Span::begin("phase", Side::Within, || Place {
        trace: trace_id(job.id),
        // Repetitions of a phase have ids of their own; the spans of parts refer to the first.
        span: (times <= 1).then(|| phase_span(job.id, phase)),
        parent: Some(job_span(job.id)),
    });
    describe(&mut span, job);
    span.text("phase", phase);
    span.number("rows_copied", counted.rows.0);
    span.number("bytes_copied", counted.bytes.0);
    match interrupted(job).filter(|_| phase != Phase::Cleanup) {
        None => span.good("completed"),
        Some(why) => span.bad(why),
    }
    let ended = SystemTime::from(now);
    let began = ended.checked_sub(Duration::from_millis(millis));
    // Rounding to milliseconds must not move it before the job.
    let began = began.unwrap_or(ended).max(job.accepted_at.into());
    drop(span.lasted(began, ended));
}

/// The kind of fault that stopped a job, if any.
fn interrupted(job: &Job) -> Option<&'static str> {
    match &job.stage {
        Stage::Working(_)
        | Stage::Closed(Closed::Synchronized | Closed::Loaded | Closed::Changed) => None,
        Stage::Ending(ending) => Some(match &ending.why {
            Why::Failed(fault) | Why::Again(fault) => fault.kind.as_str(),
            Why::Cancelled(_) => FaultKind::Cancelled.as_str(),
        }),
        Stage::Kept(kept) => Some(kept.fault.kind.as_str()),
        Stage::Closed(Closed::Failed(fault)) => Some(fault.kind.as_str()),
        Stage::Closed(Closed::Cancelled) => Some(FaultKind::Cancelled.as_str()),
    }
}

/// Records a job that has ended or only has its cleanup left.
pub(super) fn job(job: &Job, fault: Option<&Fault>, counted: Totals, now: Timestamp) {
    // A job that had ended before its cancel or cleanup has its span already.
    if job.ended_at.is_some_and(|ended| ended < now) {
        return;
    }
    let mut span = Span::begin("job", Side::Within, || Place {
        trace: trace_id(job.id),
        span: Some(job_span(job.id)),
        parent: None,
    });
    describe(&mut span, job);
    span.number("parallel", job.spec.parallel.into());
    span.number("rows_copied", counted.rows.0);
    span.number("bytes_copied", counted.bytes.0);
    match fault {
        None => span.good("completed"),
        Some(fault) => span.bad(fault.kind.as_str()),
    }
    drop(span.lasted(job.accepted_at.into(), now.into()));
}

fn describe(span: &mut Span, job: &Job) {
    span.text("job_id", job.id);
    span.text("node_id", &job.spec.target);
    span.text("source_node", &job.spec.source);
}
