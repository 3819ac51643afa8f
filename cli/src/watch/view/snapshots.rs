//! The snapshots, a line each: what needs somebody first, then what is being read, then what expires soonest.

use jiff::Timestamp;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use steep_protocol::message::snapshot::{SnapshotState, SnapshotView};

use super::rule;
use super::theme::Theme;
use super::widgets::{cell, put, right, seconds};
use crate::units;
use crate::watch::model::Model;

/// The most snapshots shown.
const SHOWN: usize = 5;

/// The lines that they would take, with their header.
pub(super) fn height(model: &Model) -> u16 {
    match model.snapshots.len().min(SHOWN) {
        0 => 0,
        shown => u16::try_from(shown + 1).unwrap_or(0),
    }
}

pub(super) fn draw(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    if area.height == 0 {
        return;
    }
    let all = &model.snapshots;
    let heading = format!("snapshots {}", all.len());
    let heading = rule(&heading, theme.strong(), theme, area.width);
    put(buffer, area, 0, &heading);
    let longest = all.iter().map(|view| view.source_node.as_str().len());
    let names = longest.max().unwrap_or(0).clamp(6, 16);
    let mut urgent: Vec<&SnapshotView> = all.iter().collect();
    urgent.sort_by_key(|view| {
        let expires = view.expires_at.unwrap_or(Timestamp::MAX);
        (
            !needs_somebody(view),
            !is_read(view),
            expires,
            view.snapshot_id,
        )
    });
    for (line, view) in (1..area.height).zip(urgent) {
        put(buffer, area, line, &line_of(view, names, model.now, theme));
    }
}

fn needs_somebody(view: &SnapshotView) -> bool {
    !view.warnings.is_empty() || view.error_message.is_some()
}

fn is_read(view: &SnapshotView) -> bool {
    matches!(view.state, SnapshotState::Opening | SnapshotState::Live)
}

fn line_of(view: &SnapshotView, names: usize, now: Timestamp, theme: &Theme) -> Line<'static> {
    let style = match view.state {
        _ if needs_somebody(view) => theme.warning(),
        SnapshotState::Opening | SnapshotState::Live => theme.moving(),
        SnapshotState::Sealed => theme.good(),
        SnapshotState::Lost => theme.bad(),
        SnapshotState::Expired => theme.faint(),
    };
    let mark = if needs_somebody(view) {
        theme.signs.trouble
    } else {
        ' '
    };
    let far = match view.bytes_total {
        0 if is_read(view) => "-".to_owned(),
        0 => units::size(view.stored_bytes),
        total => units::percent(view.bytes as f64 / total as f64 * 100.0),
    };
    let held = view
        .wal_held_bytes
        .map_or_else(|| "-".to_owned(), units::size);
    let expires = view.expires_at.map_or_else(String::new, |at| {
        let left = seconds(now, at).max(0.0) as u64;
        format!("  expires in {}", units::eta(left))
    });
    // An encrypted one needs a key. A longer word has no room on a narrow screen.
    let encrypted = match view.encryption {
        Some(_) => "  key",
        None => "",
    };
    Line::from(vec![
        Span::styled(format!(" {mark} "), style),
        Span::raw(format!("{} ", view.snapshot_id)),
        Span::styled(
            cell(view.source_node.as_str(), names, theme),
            theme.strong(),
        ),
        Span::styled(format!(" {}", cell(view.state.name(), 7, theme)), style),
        Span::raw(right(&far, 9, theme)),
        Span::styled("  WAL ".to_owned(), theme.faint()),
        Span::styled(
            right(&held, 7, theme),
            if needs_somebody(view) {
                style
            } else {
                Style::new()
            },
        ),
        Span::styled(expires, theme.faint()),
        Span::styled(encrypted, theme.faint()),
    ])
}
