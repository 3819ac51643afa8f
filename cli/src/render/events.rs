//! Events as text, one line each.

use steep_protocol::message::api::EventView;

use super::table::pairs;
use super::{Paint, clean, paragraph};

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

/// The short form among progress bars; a finding with where it was found, why it matters, and what to do.
pub(crate) fn brief(event: &EventView, paint: Paint) -> String {
    let node = event.node_id.as_ref().map_or("-", |node| node.as_str());
    let mut text = format!(
        "{} {}: {}",
        paint.yellow(&clean(&event.level)),
        paint.bold(&clean(field(event, "found_on").unwrap_or(node))),
        clean(&event.message),
    );
    if event.event == "init.finding" {
        let more = [("why", field(event, "why")), ("fix", field(event, "hint"))];
        let more: Vec<_> = more
            .into_iter()
            .filter_map(|(label, value)| Some((label, paragraph(value?))))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        text.push('\n');
        text.push_str(&pairs(&more, 2, paint));
    }
    text
}

fn field<'a>(event: &'a EventView, name: &str) -> Option<&'a str> {
    let fields = event.fields.iter();
    let mut found = fields.filter(|(known, _)| known == name);
    found.next().map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_finding_among_bars_says_where_why_and_what_to_do() {
        let mut view = samples::event();
        view.level = "warn".to_owned();
        view.event = "init.finding".to_owned();
        view.message = "1 table has no replica identity: app.log".to_owned();
        let fields = [
            ("found_on", "node_a"),
            ("why", "updates would fail"),
            ("hint", "give it a key"),
        ];
        view.fields = fields.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let text = brief(&view, Paint::Plain);
        assert!(text.starts_with("warn node_a: 1 table has"), "{text}");
        assert!(text.contains("why  updates would fail"), "{text}");
        assert!(text.contains("fix  give it a key"), "{text}");
    }

    #[test]
    fn an_event_is_one_line() {
        let mut view = samples::event();
        view.message.push_str("\nand more");
        insta::assert_snapshot!(event(&view, Paint::Plain));
        insta::assert_snapshot!(brief(&view, Paint::Plain));
    }
}
