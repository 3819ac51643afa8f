//! From views to text. Pure: no clock, no terminal, no stream; what depends on those comes in as an
//! argument.

pub(crate) mod adjusted;
pub(crate) mod audit;
pub(crate) mod certificate;
pub(crate) mod detach;
pub(crate) mod events;
pub(crate) mod findings;
pub(crate) mod json;
pub(crate) mod locks;
pub(crate) mod merge;
pub(crate) mod missing;
pub(crate) mod nodes;
pub(crate) mod overlap;
pub(crate) mod prepared;
pub(crate) mod progress;
pub(crate) mod repair;
pub(crate) mod report;
pub(crate) mod schema;
pub(crate) mod stored;
pub(crate) mod switchover;
mod table;
pub(crate) mod tables;
pub(crate) mod verify;
pub(crate) mod waiting;

#[cfg(test)]
pub(crate) mod samples;

use console::{StyledObject, measure_text_width, style};

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// As it is.
    Plain,
    /// With ANSI escapes.
    Ansi,
}

impl Paint {
    fn dress(
        self,
        text: &str,
        with: impl FnOnce(StyledObject<String>) -> StyledObject<String>,
    ) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Ansi => with(style(text.to_owned()).force_styling(true)).to_string(),
        }
    }

    /// For what stands out.
    pub(crate) fn bold(self, text: &str) -> String {
        self.dress(text, StyledObject::bold)
    }

    /// For what can be skipped.
    pub(crate) fn dim(self, text: &str) -> String {
        self.dress(text, StyledObject::dim)
    }

    /// For errors.
    pub(crate) fn red(self, text: &str) -> String {
        self.dress(text, |t| t.red().bold())
    }

    /// For warnings.
    pub(crate) fn yellow(self, text: &str) -> String {
        self.dress(text, StyledObject::yellow)
    }

    /// For what went well.
    pub(crate) fn green(self, text: &str) -> String {
        self.dress(text, StyledObject::green)
    }

    /// For hints and what is on its way.
    pub(crate) fn cyan(self, text: &str) -> String {
        self.dress(text, StyledObject::cyan)
    }
}

/// Text from a server as one line, fit for a terminal: control characters would move the cursor or
/// worse, those that turn the direction of writing would make a name look like another, and a line
/// break would let an agent write lines that seem to be ours.
pub(crate) fn clean(text: &str) -> String {
    harmless(text).replace('\n', " ")
}

/// [`clean`] for text of several lines: those after the first are indented, so that none of them
/// looks like a line of ours.
pub(crate) fn paragraph(text: &str) -> String {
    harmless(text).replace('\n', "\n    ")
}

fn harmless(text: &str) -> String {
    let odd = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let breaks = matches!(c, '\u{2028}' | '\u{2029}');
        turns || breaks || (c.is_control() && c != '\n')
    };
    text.chars()
        .map(|c| if odd(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Breaks lines that are longer than the terminal at spaces, further lines under the text of the
/// first: under the value where a line is a name and a value. Commands in backticks stay whole, so
/// that they can be copied.
pub(crate) fn fold(text: &str, columns: usize) -> String {
    let mut folded = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if measure_text_width(line.trim_end()) <= columns {
            folded.push_str(line);
            continue;
        }
        let hang = hang(line).min(columns / 2);
        let mut used = 0;
        let mut quoted = false;
        let ends = |c: char| {
            quoted ^= c == '`';
            c == ' ' && !quoted
        };
        for word in line.split_inclusive(ends) {
            let width = measure_text_width(word.trim_end());
            if used + width > columns && used > hang {
                folded.truncate(folded.trim_end_matches(' ').len());
                folded.push('\n');
                folded.push_str(&" ".repeat(hang));
                used = hang;
            }
            folded.push_str(word);
            used += measure_text_width(word.trim_end_matches('\n'));
        }
    }
    folded
}

/// Where the text of a line begins: after its indent and, where two spaces follow a word, the name.
fn hang(line: &str) -> usize {
    let bare = console::strip_ansi_codes(line);
    let text = bare.trim_start();
    let indent = bare.len() - text.len();
    let name = text.find("  ").filter(|end| *end <= NAME_WIDTH);
    match name {
        Some(end) => {
            let gap = text[end..].len() - text[end..].trim_start().len();
            indent + measure_text_width(&text[..end]) + gap
        }
        None => indent + 2,
    }
}

/// The longest name of a value.
const NAME_WIDTH: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_no_escapes_and_painted_text_has() {
        assert_eq!(Paint::Plain.red("x"), "x");
        assert!(Paint::Ansi.red("x").contains('\u{1b}'));
    }

    #[test]
    fn long_lines_are_folded_under_their_text_and_short_ones_stay() {
        let text = "short\n  time    one two three four\n  warning a long sentence\n";
        assert_eq!(
            fold(text, 20),
            "short\n  time    one two\n          three four\n  warning a long\n    sentence\n"
        );
        let painted = format!("  {}  a b c d e f g\n", Paint::Ansi.dim("why"));
        let plain = console::strip_ansi_codes(&fold(&painted, 12)).into_owned();
        assert_eq!(plain, "  why  a b c\n      d e f\n      g\n");
        assert_eq!(fold("unbreakableword", 4), "unbreakableword");
        assert_eq!(fold("a b", 0), "a\nb");
        assert_eq!(fold("see `a b c` d", 6), "see\n  `a b c`\n  d");
    }

    #[test]
    fn what_a_server_says_cannot_drive_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{7}"), "a\u{fffd}[2Jb c\u{fffd}");
        assert_eq!(paragraph("a\nb\u{7}"), "a\n    b\u{fffd}");
        assert_eq!(
            clean("\u{9b}31m\u{202e}b\u{2028}ü漢"),
            "\u{fffd}31m\u{fffd}b\u{fffd}ü漢"
        );
    }
}
