//! Decides what to do after a signal or an answer. Pure.

use super::LeftBy;
use crate::signals::Interrupt;

/// What the follower is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Showing progress.
    Following,
    /// Waiting for an answer.
    Asking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// A signal.
    Interrupt(Interrupt),
    /// An answer.
    Answer(Answer),
}

/// The answer of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// `c`.
    Cancel,
    /// `l`.
    Leave,
    /// `w`.
    Watch,
    /// Something else.
    Unclear,
    /// Nothing: the terminal is gone.
    Gone,
}

impl Answer {
    /// The answer in a typed line.
    pub(super) fn of(line: Option<&str>) -> Self {
        match line {
            None => Self::Gone,
            Some("c" | "cancel") => Self::Cancel,
            Some("l" | "leave") => Self::Leave,
            Some("w" | "watch") => Self::Watch,
            Some(_) => Self::Unclear,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// Ask whether to cancel or to leave.
    Ask,
    /// Go on showing progress.
    Watch,
    /// Go, and leave the jobs running.
    Leave(LeftBy),
    /// Cancel the jobs.
    Cancel,
}

/// Who follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// Nobody who could be asked.
    Program,
    /// A person who only looks on.
    Onlooker,
    /// The person who started the jobs.
    Starter,
}

/// The reaction to an input. Only a typed `c` cancels.
pub(super) fn after(mode: Mode, input: Input, who: Follows) -> Intent {
    match (input, mode) {
        (Input::Interrupt(Interrupt::Keyboard), mode) => match (who, mode) {
            (Follows::Program, _) => Intent::Leave(LeftBy::Signal),
            (Follows::Starter, Mode::Following) => Intent::Ask,
            (Follows::Starter, Mode::Asking) | (Follows::Onlooker, _) => {
                Intent::Leave(LeftBy::Choice)
            }
        },
        (Input::Interrupt(Interrupt::Terminate), _) => Intent::Leave(LeftBy::Signal),
        (Input::Answer(Answer::Cancel), _) => Intent::Cancel,
        (Input::Answer(Answer::Leave), _) => Intent::Leave(LeftBy::Choice),
        (Input::Answer(Answer::Watch), _) => Intent::Watch,
        (Input::Answer(Answer::Unclear), _) => Intent::Ask,
        (Input::Answer(Answer::Gone), _) => Intent::Leave(LeftBy::Signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ctrl_c_asks_a_person_and_the_second_leaves() {
        let ctrl_c = Input::Interrupt(Interrupt::Keyboard);
        let starter = Follows::Starter;
        assert_eq!(after(Mode::Following, ctrl_c, starter), Intent::Ask);
        assert_eq!(
            after(Mode::Asking, ctrl_c, starter),
            Intent::Leave(LeftBy::Choice)
        );
    }

    #[test]
    fn who_only_looks_on_is_not_asked() {
        let ctrl_c = Input::Interrupt(Interrupt::Keyboard);
        assert_eq!(
            after(Mode::Following, ctrl_c, Follows::Onlooker),
            Intent::Leave(LeftBy::Choice)
        );
    }

    #[test]
    fn without_a_person_every_signal_leaves_and_none_cancels() {
        for mode in [Mode::Following, Mode::Asking] {
            for interrupt in [Interrupt::Keyboard, Interrupt::Terminate] {
                let intent = after(mode, Input::Interrupt(interrupt), Follows::Program);
                assert_eq!(intent, Intent::Leave(LeftBy::Signal));
            }
            let term = Input::Interrupt(Interrupt::Terminate);
            let left = after(mode, term, Follows::Starter);
            assert_eq!(left, Intent::Leave(LeftBy::Signal));
        }
    }

    #[test]
    fn only_a_clear_answer_cancels() {
        let answered = |line| {
            let answer = Input::Answer(Answer::of(line));
            after(Mode::Asking, answer, Follows::Starter)
        };
        assert_eq!(answered(Some("c")), Intent::Cancel);
        assert_eq!(answered(Some("l")), Intent::Leave(LeftBy::Choice));
        assert_eq!(answered(Some("w")), Intent::Watch);
        assert_eq!(answered(Some("")), Intent::Ask);
        assert_eq!(answered(Some("yes")), Intent::Ask);
        assert_eq!(answered(None), Intent::Leave(LeftBy::Signal));
    }
}
