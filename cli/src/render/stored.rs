//! Stored snapshots, for people.

use indicatif::{ProgressBar, ProgressStyle};
use steep_protocol::message::snapshot::{Compared, SnapshotState, SnapshotView, VerifiedSnapshot};

use super::table::{pairs, table};
use super::{Paint, clean};
use crate::units::{count, duration, size};

/// All snapshots, one line each.
pub(crate) fn list(views: &[SnapshotView], paint: Paint) -> String {
    if views.is_empty() {
        return "there are no snapshots; steep-repl snapshot generate makes one\n".to_owned();
    }
    let header = [
        "SNAPSHOT", "SOURCE", "STATE", "LSN", "ROWS", "SIZE", "STORED", "WAL HELD", "EXPIRES",
        "WHERE",
    ];
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|view| {
            let whole = view.state == SnapshotState::Sealed;
            let known = |text: String| if whole { text } else { "-".to_owned() };
            vec![
                view.snapshot_id.to_string(),
                view.source_node.to_string(),
                state(view, paint),
                view.lsn
                    .map_or_else(|| "-".to_owned(), |lsn| lsn.to_string()),
                known(count(view.rows)),
                size(view.bytes),
                known(size(view.stored_bytes)),
                view.wal_held_bytes.map_or_else(|| "-".to_owned(), size),
                view.expires_at
                    .map_or_else(|| "-".to_owned(), |at| format!("{at:.0}")),
                place(view).unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let mut text = table(&header, &rows, paint);
    for view in views {
        for warning in &view.warnings {
            let warning = paint.yellow(&clean(warning));
            text.push_str(&format!("{}: {warning}\n", view.snapshot_id));
        }
    }
    text
}

/// Where it is stored, and whether it can be read there without a key.
fn place(view: &SnapshotView) -> Option<String> {
    let place = clean(view.location.as_ref()?);
    Some(match &view.encryption {
        Some(_) => format!("{place} (encrypted)"),
        None => place,
    })
}

fn state(view: &SnapshotView, paint: Paint) -> String {
    let name = view.state.name();
    match view.state {
        SnapshotState::Sealed => paint.green(name),
        SnapshotState::Opening | SnapshotState::Live => paint.cyan(name),
        SnapshotState::Lost => paint.red(name),
        SnapshotState::Expired => paint.yellow(name),
    }
}

/// One snapshot in full.
pub(crate) fn full(view: &SnapshotView, paint: Paint) -> String {
    let mut lines = vec![
        ("state", state(view, paint)),
        ("source", view.source_node.to_string()),
    ];
    if let (Some(location), Some(codec)) = (&view.location, view.codec) {
        lines.push(("stored in", format!("{} ({codec})", clean(location))));
    }
    if let Some(encryption) = &view.encryption {
        let (format, recipients) = (encryption.format, &encryption.recipients);
        lines.push(("encrypted", format!("{format}, to {recipients}")));
    }
    if let Some(lsn) = view.lsn {
        lines.push(("lsn", lsn.to_string()));
    }
    let amount = match view.state {
        SnapshotState::Opening | SnapshotState::Live => so_far(view),
        SnapshotState::Sealed | SnapshotState::Lost | SnapshotState::Expired => format!(
            "{} tables, {} parts, {} rows, {}, {} stored",
            count(view.tables),
            count(view.parts),
            count(view.rows),
            size(view.bytes),
            size(view.stored_bytes)
        ),
    };
    lines.push(("holds", amount));
    if !matches!(view.state, SnapshotState::Lost | SnapshotState::Expired) {
        let held = view.wal_held_bytes;
        let held = held.map_or_else(String::new, |held| format!(", holds {} of WAL", size(held)));
        lines.push(("slot", format!("{}{held}", view.slot_name)));
    }
    lines.push((
        "made",
        format!(
            "{:.0} by {}, in {}",
            view.created_at,
            clean(&view.operator),
            duration(view.duration_seconds)
        ),
    ));
    if let Some(at) = view.expires_at {
        lines.push(("expires", format!("{at:.0}")));
    }
    for holder in &view.holders {
        lines.push((
            "holder",
            format!("{} ({})", holder.node_id, clean(&holder.location)),
        ));
    }
    if let Some(why) = &view.error_message {
        lines.push(("error", paint.red(&clean(why))));
    }
    if let Some(hint) = view.hint.as_ref().filter(|hint| !hint.is_empty()) {
        lines.push(("hint", clean(hint)));
    }
    for warning in &view.warnings {
        lines.push(("warning", paint.yellow(&clean(warning))));
    }
    let name = paint.bold(&view.snapshot_id.to_string());
    format!("snapshot {name}\n{}", pairs(&lines, 2, paint))
}

/// How far a snapshot is and what is in its way, in one line that changes rarely.
pub(crate) fn line(view: &SnapshotView) -> String {
    let (id, state) = (view.snapshot_id, view.state.name());
    let line = match view.state {
        SnapshotState::Live => {
            let total = view.bytes_total.max(1);
            let tenth = view.bytes.saturating_mul(10) / total;
            format!("snapshot {id}: {state}, about {} %", (tenth * 10).min(100))
        }
        _ => format!("snapshot {id}: {state}"),
    };
    match &view.error_message {
        Some(why) if matches!(view.state, SnapshotState::Opening | SnapshotState::Live) => {
            format!("{line}; it waits, and tries again: {}", clean(why))
        }
        _ => line,
    }
}

fn so_far(view: &SnapshotView) -> String {
    match view.bytes_total {
        0 => "nothing yet".to_owned(),
        total => format!("{} of about {} read", size(view.bytes), size(total)),
    }
}

/// A bar of bytes.
pub(crate) fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template =
        "{prefix} {wide_bar} {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Moves the bar of a snapshot.
pub(crate) fn advance(bar: &ProgressBar, view: &SnapshotView) {
    bar.set_prefix(view.state.name());
    bar.set_length(view.bytes_total.max(view.bytes));
    bar.set_position(view.bytes);
    let table = view.current_table.as_deref().unwrap_or_default();
    let trouble = view.error_message.as_deref();
    bar.set_message(clean(trouble.unwrap_or(table)));
}

/// What reading a stored snapshot again showed.
pub(crate) fn verified(verified: &VerifiedSnapshot, paint: Paint) -> String {
    let id = verified.snapshot;
    let sums = format!(
        "{} parts, {} rows, {}",
        count(verified.parts),
        count(verified.rows),
        size(verified.bytes)
    );
    let sums = match &verified.unread {
        Some(_) => format!("{} parts as they are stored", count(verified.parts)),
        None => sums,
    };
    let unread = verified.unread.as_ref().map_or_else(String::new, |why| {
        let why = paint.yellow(&clean(why));
        format!("  its rows were not read: {why}\n")
    });
    let compared = match &verified.compared {
        Compared::Recorded => String::new(),
        Compared::Nothing { why } => {
            let text = format!(
                "its manifest was compared with nothing ({}): whoever can write there could have replaced everything",
                clean(why)
            );
            format!("  {}\n", paint.yellow(&text))
        }
    };
    if verified.problems_total == 0 {
        return format!(
            "snapshot {id} is {}: {sums}\n{unread}{compared}",
            paint.green("whole")
        );
    }
    let problems = match verified.problems_total {
        1 => "1 problem".to_owned(),
        many => format!("{} problems", count(many)),
    };
    let mut text = format!(
        "snapshot {id} is {}: {problems}; whole are {sums}\n",
        paint.red("damaged"),
    );
    for problem in &verified.problems {
        text.push_str(&format!("  {}\n", clean(problem)));
    }
    let further = verified
        .problems_total
        .saturating_sub(verified.problems.len() as u64);
    if further > 0 {
        text.push_str(&format!("  and {} more\n", count(further)));
    }
    text + &unread + &compared
}

#[cfg(test)]
mod tests {
    use steep_protocol::SnapshotId;
    use steep_protocol::encryption::{Encryption, Recipients};

    use super::*;
    use crate::render::{json, samples};

    #[test]
    fn an_encrypted_snapshot_is_shown_with_its_recipients() {
        let mut view = samples::snapshot(7, SnapshotState::Sealed);
        view.codec = Some(steep_protocol::stored::StoredCodec::Lz4);
        let plain = full(&view, Paint::Plain);
        assert!(!plain.contains("encrypted"), "{plain}");
        assert_eq!(json::snapshot(&view)["encryption"], serde_json::Value::Null);

        let recipient = format!("age1{}", "q".repeat(58));
        let recipients = vec![recipient.parse().unwrap()];
        let recipients = Recipients::try_from(recipients).unwrap();
        view.encryption = Some(Encryption::age(recipients));
        let shown = full(&view, Paint::Plain);
        assert!(shown.contains(&format!("age, to {recipient}")), "{shown}");
        let listed = list(std::slice::from_ref(&view), Paint::Plain);
        assert!(listed.contains("/backup/app (encrypted)"), "{listed}");
        assert_eq!(
            json::snapshot(&view)["encryption"],
            serde_json::json!({ "format": "age", "recipients": [recipient] })
        );
    }

    #[test]
    fn rows_that_were_not_read_are_not_counted_and_it_is_said_why() {
        let mut found = VerifiedSnapshot {
            snapshot: SnapshotId(7),
            manifest: None,
            parts: 9,
            rows: 0,
            bytes: 0,
            unread: Some("there is no key for snapshots".to_owned()),
            problems: Vec::new(),
            problems_total: 0,
            compared: Compared::Recorded,
        };
        for problem in [None, Some("parts/0000001.copy.age is missing".to_owned())] {
            found.problems_total = problem.iter().count() as u64;
            found.problems.extend(problem);
            let text = verified(&found, Paint::Plain);
            for part in ["9 parts as they are stored", "not read: there is no key"] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
            assert!(!text.contains("0 rows"), "{text}");
            assert!(!text.contains("compared"), "{text}");
            let shown = json::verified(&found);
            assert_eq!(shown["manifest_compared"], true);
            assert_eq!(shown["not_compared"], serde_json::Value::Null);
        }
        let why = "no coordinator is given".to_owned();
        found.compared = Compared::Nothing { why };
        let text = verified(&found, Paint::Plain);
        assert!(
            text.contains("compared with nothing (no coordinator is given)"),
            "{text}"
        );
        let shown = json::verified(&found);
        assert_eq!(shown["manifest_compared"], false);
        assert_eq!(shown["not_compared"], "no coordinator is given");
    }

    #[test]
    fn what_is_in_the_way_is_in_the_line_of_a_snapshot_that_is_made() {
        let mut view = samples::snapshot(7, SnapshotState::Live);
        assert!(!line(&view).contains("waits"), "{}", line(&view));
        view.error_message = Some("node_a: no space is left in /backup".to_owned());
        let shown = line(&view);
        assert!(
            shown.contains("waits, and tries again: node_a: no space is left"),
            "{shown}"
        );
    }
}
