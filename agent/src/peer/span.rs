//! Trace spans of parts, on the target and on the source. Empty where traces are off.

use steep_daemon::traces::{Place, Side, Span};
use steep_protocol::message::agent::PartDone;
use steep_protocol::trace::{part_span, phase_span, trace_id};
use steep_protocol::{ByteCount, Epoch, Fault, JobId, NodeId, PartNo, Phase, RowCount};

use crate::chunk::Sent;

/// On the target: from the queue to the commit, within the job's copy.
pub(super) fn load(node: &NodeId, job: JobId, epoch: Epoch, part: PartNo) -> Span {
    let mut span = Span::begin("part", Side::Asks, || Place {
        trace: trace_id(job),
        span: Some(part_span(job, epoch, part)),
        parent: Some(phase_span(job, Phase::Copy)),
    });
    describe(&mut span, node, job, part);
    span.number("retries", 0);
    span
}

/// On the agent that sends the part: one answer, within the target's span of that part.
pub(super) fn serve(node: &NodeId, job: JobId, epoch: Epoch, part: PartNo) -> Span {
    let mut span = Span::begin("part.serve", Side::Answers, || Place {
        trace: trace_id(job),
        span: None,
        parent: Some(part_span(job, epoch, part)),
    });
    describe(&mut span, node, job, part);
    span
}

fn describe(span: &mut Span, node: &NodeId, job: JobId, part: PartNo) {
    span.text("job_id", job);
    span.text("node_id", node);
    span.number("part", part.0.into());
}

pub(super) fn committed(span: &mut Span, done: PartDone) {
    moved(span, done.rows, done.bytes, done.wire);
    span.good("committed");
}

pub(super) fn served(span: &mut Span, sent: &Result<Sent, Fault>) {
    match sent {
        Ok(sent) => {
            moved(span, sent.rows, sent.bytes, sent.wire);
            span.good("sent");
        }
        Err(fault) => failed(span, fault),
    }
}

fn moved(span: &mut Span, rows: RowCount, bytes: ByteCount, wire: ByteCount) {
    span.number("rows", rows.0);
    span.number("bytes", bytes.0);
    span.number("wire_bytes", wire.0);
}

/// Records only the kind of fault; messages belong in the log.
pub(super) fn failed(span: &mut Span, fault: &Fault) {
    span.bad(fault.kind.as_str());
}
