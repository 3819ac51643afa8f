//! Parts of lines: cells, bars, sparklines, wrapped text.

use std::collections::VecDeque;

use console::{Alignment, measure_text_width, pad_str};
use jiff::Timestamp;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::theme::Theme;

/// Text padded or cut to a width.
pub(super) fn cell(text: &str, width: usize, theme: &Theme) -> String {
    padded(text, width, Alignment::Left, theme)
}

/// [`cell`], aligned to the right.
pub(super) fn right(text: &str, width: usize, theme: &Theme) -> String {
    padded(text, width, Alignment::Right, theme)
}

fn padded(text: &str, width: usize, place: Alignment, theme: &Theme) -> String {
    // Pad after cutting: a cut wide character leaves a free column.
    pad_str(&cut(text, width, theme), width, place, None).into_owned()
}

/// Text cut to a width.
pub(super) fn cut(text: &str, width: usize, theme: &Theme) -> String {
    console::truncate_str(text, width, theme.signs.more).into_owned()
}

/// The width of a text in columns.
pub(super) fn width(text: &str) -> usize {
    measure_text_width(text)
}

/// Draws a line of an area, if the area has it.
pub(super) fn put(buffer: &mut Buffer, area: Rect, line: u16, text: &Line<'_>) {
    if line < area.height {
        buffer.set_line(area.x, area.y + line, text, area.width);
    }
}

/// A bar of that width, so many percent of it done.
pub(super) fn bar(percent: f64, width: usize, style: Style, theme: &Theme) -> [Span<'static>; 2] {
    let share = if percent.is_finite() {
        (percent / 100.0).clamp(0.0, 1.0)
    } else {
        0.0
    };
    // Halves of cells; widths are those of a screen.
    let halves = (share * width as f64 * 2.0).floor() as usize;
    let [done, half, open] = theme.signs.bar;
    let mut text: String = std::iter::repeat_n(done, halves / 2).collect();
    if halves % 2 == 1 {
        text.push(half);
    }
    let rest = width - text.chars().count();
    [
        Span::styled(text, style),
        Span::styled(
            String::from_iter(std::iter::repeat_n(open, rest)),
            theme.faint(),
        ),
    ]
}

/// The newest samples as a line of that width, the highest of them at the top.
pub(super) fn spark(samples: &VecDeque<u64>, width: usize, theme: &Theme) -> String {
    let shown = samples.len().min(width);
    let newest = samples.iter().skip(samples.len() - shown);
    let most = newest.clone().max().copied().unwrap_or(0).max(1);
    let levels = theme.signs.levels;
    let level = |sample: &u64| {
        let place = u128::from(*sample) * (levels.len() as u128 - 1) / u128::from(most);
        levels[usize::try_from(place).unwrap_or(0)]
    };
    let line: String = newest.map(level).collect();
    format!("{}{line}", " ".repeat(width - shown))
}

/// Words in lines of at most that width. A word that is longer is cut into pieces.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        // Measuring the whole line for each word would be slow for long texts.
        let mut used = 0;
        for word in paragraph.split_whitespace() {
            let taken = width(word);
            if !line.is_empty() {
                if used + 1 + taken > columns {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                } else {
                    line.push(' ');
                    used += 1;
                }
            }
            if taken <= columns {
                line.push_str(word);
                used += taken;
                continue;
            }
            for c in word.chars() {
                let taken = width(c.encode_utf8(&mut [0; 4]));
                if used + taken > columns && !line.is_empty() {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push(c);
                used += taken;
            }
        }
        lines.push(line);
    }
    lines
}

/// Parts in lines of at most that width. A part is not split if it fits in a line.
pub(super) fn flow(parts: Vec<Span<'static>>, columns: usize, between: &str) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut line = vec![Span::raw(" ")];
    let mut used = 0;
    for part in parts {
        let taken = width(&part.content);
        if used > 0 && used + width(between) + taken > columns {
            lines.push(Line::from(std::mem::replace(
                &mut line,
                vec![Span::raw(" ")],
            )));
            used = 0;
        }
        if used > 0 {
            line.push(Span::raw(between.to_owned()));
            used += width(between);
        }
        used += taken;
        line.push(part);
    }
    lines.push(Line::from(line));
    lines
}

/// `22:51:03`.
pub(super) fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

/// Seconds from one moment to another; clocks of two machines may disagree a little.
pub(super) fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::theme::{Colours, Signs};
    use super::*;

    const PLAIN: Theme = Theme {
        colours: Colours::No,
        signs: Signs::UNICODE,
    };

    #[test]
    fn cells_are_as_wide_as_asked_whatever_is_in_them() {
        for text in [
            "",
            "abc",
            "a name that is longer",
            "漢字漢字漢字漢字",
            "ü\u{301}",
        ] {
            for columns in [1usize, 2, 5, 9] {
                let text = cell(text, columns, &PLAIN);
                assert_eq!(width(&text), columns, "{text:?}");
            }
        }
    }

    #[test]
    fn a_bar_is_full_at_the_end_only_and_never_longer() {
        let text = |percent| {
            let [done, open] = bar(percent, 10, Style::new(), &PLAIN);
            format!("{}{}", done.content, open.content)
        };
        assert_eq!(text(0.0), "──────────");
        assert_eq!(text(55.0), "━━━━━╸────");
        assert_eq!(text(99.9), "━━━━━━━━━╸");
        assert_eq!(text(100.0), "━━━━━━━━━━");
        assert_eq!(text(f64::NAN), text(0.0));
        assert_eq!(text(1e300), text(100.0));
    }

    #[test]
    fn a_spark_shows_the_newest_and_scales_to_the_highest() {
        let samples: VecDeque<u64> = [900, 0, 50, 100].into();
        assert_eq!(spark(&samples, 3, &PLAIN), "▁▄█");
        assert_eq!(spark(&samples, 6, &PLAIN), "  █▁▁▁");
        assert_eq!(spark(&VecDeque::new(), 3, &PLAIN), "   ");
        assert_eq!(spark(&[u64::MAX, 0].into(), 2, &PLAIN), "█▁");
    }

    #[test]
    fn words_are_wrapped_and_long_ones_cut() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("a\nb", 9), ["a", "b"]);
        assert_eq!(wrap("", 0), [""]);
        assert!(wrap("漢字漢字", 3).iter().all(|line| width(line) <= 3));
    }
}
