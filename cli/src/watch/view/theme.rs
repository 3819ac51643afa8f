//! Colours and signs. Colours carry no information of their own, so that NO_COLOR loses nothing.

use ratatui::style::{Color, Modifier, Style};
use steep_protocol::NodeState;

/// Colours and signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Theme {
    /// Whether there are colours.
    pub(crate) colours: Colours,
    /// The signs.
    pub(crate) signs: Signs,
}

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    /// The sixteen colours of the terminal.
    Yes,
    /// None, as NO_COLOR wants it.
    No,
}

/// What bars and marks are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signs {
    /// Done, its last half cell, and to come.
    pub(crate) bar: [char; 3],
    /// Throughput, from nothing to the most.
    pub(crate) levels: [char; 8],
    /// An agent that is there, and one that is not.
    pub(crate) agent: [char; 2],
    /// Something is wrong.
    pub(crate) trouble: char,
    /// Between parts of a line.
    pub(crate) dot: char,
    /// A horizontal line.
    pub(crate) line: char,
    /// Towards.
    pub(crate) from: &'static str,
    /// Finished.
    pub(crate) done: char,
    /// At work.
    pub(crate) active: char,
    /// More than fits.
    pub(crate) more: &'static str,
    /// Up and down, in the list of keys.
    pub(crate) arrows: &'static str,
}

impl Signs {
    /// For terminals that show Unicode.
    pub(crate) const UNICODE: Self = Self {
        bar: ['━', '╸', '─'],
        levels: ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
        agent: ['●', '○'],
        trouble: '!',
        dot: '·',
        line: '─',
        from: "←",
        done: '✓',
        active: '▸',
        more: "…",
        arrows: "↑↓",
    };

    /// For those that don't.
    pub(crate) const ASCII: Self = Self {
        bar: ['=', '>', '-'],
        levels: ['_', '.', ',', '-', '~', '+', '*', '#'],
        agent: ['*', 'o'],
        trouble: '!',
        dot: '-',
        line: '-',
        from: "<-",
        done: 'x',
        active: '>',
        more: "~",
        arrows: "up/down",
    };

    /// Those that the locale of the environment can show.
    pub(crate) fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Self {
        let names = ["LC_ALL", "LC_CTYPE", "LANG"];
        let set = names
            .into_iter()
            .filter_map(variable)
            .find(|value| !value.is_empty());
        let locale = set.unwrap_or_default().to_ascii_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") {
            Self::UNICODE
        } else {
            Self::ASCII
        }
    }
}

impl Theme {
    /// What the environment asks for.
    pub(crate) fn of_environment() -> Self {
        Self {
            colours: if crate::terminal::no_color() {
                Colours::No
            } else {
                Colours::Yes
            },
            signs: Signs::of_locale(|name| std::env::var(name).ok()),
        }
    }

    fn coloured(self, colour: Color) -> Style {
        match self.colours {
            Colours::Yes => Style::new().fg(colour),
            Colours::No => Style::new(),
        }
    }

    /// For what stands out.
    pub(super) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// For what can be skipped.
    pub(super) fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// For what went well.
    pub(super) fn good(self) -> Style {
        self.coloured(Color::Green)
    }

    /// For what is on its way.
    pub(super) fn moving(self) -> Style {
        self.coloured(Color::Cyan)
    }

    /// For warnings.
    pub(super) fn warning(self) -> Style {
        self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// For errors.
    pub(super) fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// For the chosen row and for titles.
    pub(super) fn reversed(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Of a node in that state.
    pub(super) fn state(self, state: NodeState) -> Style {
        match state {
            NodeState::Uninitialized => self.faint(),
            NodeState::Synchronized => self.good(),
            NodeState::Diverged | NodeState::Failed => self.bad(),
            NodeState::Preparing
            | NodeState::Copying
            | NodeState::CatchingUp
            | NodeState::Reinitializing => self.moving(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_those_the_first_locale_that_is_set_can_show() {
        let of = |all: Option<&str>, lang: Option<&str>| {
            Signs::of_locale(|name| match name {
                "LC_ALL" => all.map(str::to_owned),
                "LANG" => lang.map(str::to_owned),
                _ => None,
            })
        };
        assert_eq!(of(None, Some("de_DE.UTF-8")), Signs::UNICODE);
        assert_eq!(of(Some(""), Some("C.utf8")), Signs::UNICODE);
        assert_eq!(of(Some("C"), Some("de_DE.UTF-8")), Signs::ASCII);
        assert_eq!(of(None, None), Signs::ASCII);
    }
}
