//! Events as text, one line each.

use steep_protocol::message::api::EventView;

use super::{Paint, clean};

/// Time, level, event, node, message.
pub(crate) fn event(event: &EventView, paint: Paint) -> String {
    let level = format!("{:<5}", clean(&event.level));
    let level = match event.level.as_str() {
        "error" => paint.red(&level),
        "warn" => paint.yellow(&level),
        _ => paint.dim(&level),
    };
    let node = event.node_id.as_ref().map_or("-", |node| node.as_str());
    format!(
        "{}  {level}  {:<22}  {}  {}",
        paint.dim(&format!("{:.3}", event.timestamp)),
        clean(&event.event),
        paint.bold(node),
        clean(&event.message),
    )
}

/// The short form among progress bars.
pub(crate) fn brief(event: &EventView, paint: Paint) -> String {
    let node = event.node_id.as_ref().map_or("-", |node| node.as_str());
    format!(
        "{} {}: {}",
        paint.yellow(&clean(&event.level)),
        paint.bold(node),
        clean(&event.message),
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut view = samples::event();
        view.message.push_str("\nand more");
        insta::assert_snapshot!(event(&view, Paint::Plain));
        insta::assert_snapshot!(brief(&view, Paint::Plain));
    }
}
