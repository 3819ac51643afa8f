//! The last word about a job.

use steep_protocol::message::api::EndView;

use super::nodes::state;
use super::progress::wire_ratio;
use super::table::pairs;
use super::{Paint, findings};
use crate::failure;
use crate::units;

/// What was copied, what crossed the network, where the time went, and what remains to be known;
/// for a job that failed, why and what next.
pub(crate) fn end(view: &EndView, paint: Paint) -> String {
    let mut text = match &view.fault {
        None => format!(
            "{} is {} with {} after {}\n",
            paint.bold(view.node_id.as_str()),
            state(view.state, paint),
            view.source_node,
            units::duration(view.duration_seconds)
        ),
        Some(fault) => {
            let mut fault = fault.clone();
            fault.node.get_or_insert_with(|| view.node_id.clone());
            format!(
                "{}\n{} is {} after {}\n",
                failure::render(&fault, paint),
                paint.bold(view.node_id.as_str()),
                state(view.state, paint),
                units::duration(view.duration_seconds)
            )
        }
    };
    let mut bytes = units::size(view.bytes_copied);
    if view.duration_seconds > 0.0 && view.phases.copying > 0.0 {
        let rate = view.bytes_copied as f64 / view.phases.copying;
        bytes.push_str(&format!(", {}", units::rate(rate)));
    }
    let mut wire = units::size(view.wire_bytes);
    if let Some(ratio) = wire_ratio(view.wire_bytes, view.bytes_copied) {
        wire.push_str(&format!(", {ratio} of the rows' bytes"));
    }
    let seconds = units::duration;
    text.push_str(&pairs(
        &[
            ("tables", units::count(view.tables)),
            ("rows", units::count(view.rows_copied)),
            ("bytes", bytes),
            ("wire", wire),
            (
                "time",
                format!(
                    "preparing {}, copying {}, indexing {}, catching up {}",
                    seconds(view.phases.preparing),
                    seconds(view.phases.copying),
                    seconds(view.phases.indexing),
                    seconds(view.phases.catching_up)
                ),
            ),
        ],
        2,
        paint,
    ));
    text.push_str(&findings::list(&view.warnings, paint));
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use steep_protocol::{Fault, FaultKind, NodeState};

    #[test]
    fn a_good_end_reports_amounts_times_and_warnings() {
        insta::assert_snapshot!(end(&samples::end(), Paint::Plain));
    }

    #[test]
    fn a_bad_end_begins_with_the_cause() {
        let mut view = samples::end();
        view.state = NodeState::Failed;
        view.fault = Some(Fault::new(FaultKind::Failed, "the disk is full").hint("free space"));
        view.warnings.clear();
        insta::assert_snapshot!(end(&view, Paint::Plain));
    }
}
