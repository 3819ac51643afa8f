//! From views to text. Pure: no clock, no terminal, no stream; what depends on those comes in as an
//! argument.

pub(crate) mod certificate;
pub(crate) mod events;
pub(crate) mod findings;
pub(crate) mod json;
pub(crate) mod nodes;
pub(crate) mod progress;
pub(crate) mod report;
mod table;

#[cfg(test)]
pub(crate) mod samples;

use console::{StyledObject, style};

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

/// Text from a server, fit for a terminal: control characters would move the cursor or worse.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_no_escapes_and_painted_text_has() {
        assert_eq!(Paint::Plain.red("x"), "x");
        assert!(Paint::Ansi.red("x").contains('\u{1b}'));
    }

    #[test]
    fn what_a_server_says_cannot_drive_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{7}"), "a\u{fffd}[2Jb\nc\u{fffd}");
    }
}
