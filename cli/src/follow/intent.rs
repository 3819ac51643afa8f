//! What a signal or an answer means. Pure.

use super::Wish;
use crate::signals::Interrupt;

/// What the follower is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Showing progress.
    Following,
    /// Waiting for an answer.
    Asking,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// A signal.
    Interrupt(Interrupt),
    /// An answer.
    Answer(Answer),
}

/// What a person typed.
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
    Leave(Wish),
    /// Cancel the jobs.
    Cancel,
}

/// What to do after that. Nothing but a typed `c` ever cancels.
pub(super) fn after(mood: Mood, said: Said, interactive: bool) -> Intent {
    match (said, mood) {
        (Said::Interrupt(Interrupt::Keyboard), Mood::Following) if interactive => Intent::Ask,
        (Said::Interrupt(_), _) => Intent::Leave(Wish::Signal),
        (Said::Answer(Answer::Cancel), _) => Intent::Cancel,
        (Said::Answer(Answer::Leave), _) => Intent::Leave(Wish::Spoken),
        (Said::Answer(Answer::Watch), _) => Intent::Watch,
        (Said::Answer(Answer::Unclear), _) => Intent::Ask,
        (Said::Answer(Answer::Gone), _) => Intent::Leave(Wish::Signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ctrl_c_asks_a_person_and_the_second_leaves() {
        let ctrl_c = Said::Interrupt(Interrupt::Keyboard);
        assert_eq!(after(Mood::Following, ctrl_c, true), Intent::Ask);
        assert_eq!(
            after(Mood::Asking, ctrl_c, true),
            Intent::Leave(Wish::Signal)
        );
    }

    #[test]
    fn without_a_person_every_signal_leaves_and_none_cancels() {
        for mood in [Mood::Following, Mood::Asking] {
            for interrupt in [Interrupt::Keyboard, Interrupt::Terminate] {
                let intent = after(mood, Said::Interrupt(interrupt), false);
                assert_eq!(intent, Intent::Leave(Wish::Signal));
            }
            let term = Said::Interrupt(Interrupt::Terminate);
            assert_eq!(after(mood, term, true), Intent::Leave(Wish::Signal));
        }
    }

    #[test]
    fn only_a_clear_answer_cancels() {
        let answered = |line| after(Mood::Asking, Said::Answer(Answer::of(line)), true);
        assert_eq!(answered(Some("c")), Intent::Cancel);
        assert_eq!(answered(Some("l")), Intent::Leave(Wish::Spoken));
        assert_eq!(answered(Some("w")), Intent::Watch);
        assert_eq!(answered(Some("")), Intent::Ask);
        assert_eq!(answered(Some("yes")), Intent::Ask);
        assert_eq!(answered(None), Intent::Leave(Wish::Signal));
    }
}
