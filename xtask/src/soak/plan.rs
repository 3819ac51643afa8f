//! Draws a round from the seed: which job, and what strikes it when. Pure: the same seed and number give
//! the same round, whichever rounds ran before.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::fault::{Fault, Phase, Process};

/// A job and its faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) seed: u64,
    pub(super) number: u32,
    pub(super) method: Method,
    /// In the order of their phases.
    pub(super) strikes: Vec<Strike>,
}

/// How the target is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Method {
    /// `init` that reads while it copies.
    Live,
    /// `init --method two-phase`.
    TwoPhase,
    /// `init` of two targets at once.
    Several,
    /// `snapshot generate`, then `snapshot apply`.
    Stored,
    /// `init`, `init cancel` in mid-copy, and `init` again.
    Again,
}

/// A fault at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strike {
    pub(super) phase: Phase,
    /// From the beginning of the phase.
    pub(super) delay: Duration,
    pub(super) fault: Fault,
    /// Until what was taken away is back; zero for a fault that does not last.
    pub(super) away: Duration,
}

impl Method {
    const ALL: [Self; 5] = [
        Self::Live,
        Self::TwoPhase,
        Self::Several,
        Self::Stored,
        Self::Again,
    ];

    /// Targets of its jobs.
    pub(super) fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Several => &["node_b", "node_c"],
            _ => &["node_b"],
        }
    }

    fn phases(self) -> Vec<Phase> {
        let has = |phase: &Phase| match phase {
            Phase::Storing => self == Self::Stored,
            Phase::Cancelling => self == Self::Again,
            // The others have the same code, and seldom more than one epoch.
            Phase::Folding => self == Self::Live,
            _ => true,
        };
        Phase::ALL.into_iter().filter(has).collect()
    }

    /// Whether the fault can strike there, with nothing under way that it would end.
    fn survives(self, fault: Fault, phase: Phase) -> bool {
        match (fault, self) {
            // The other target may be anywhere.
            (Fault::LoseStore, Self::Several) => false,
            // Its spool is being removed.
            (Fault::LoseStore, Self::TwoPhase) => phase > Phase::Indexing,
            _ => fault.fits(phase),
        }
    }
}

impl Round {
    /// Draws the round of that number.
    pub(super) fn draw(seed: u64, number: u32) -> Self {
        // Neighbours must not resemble each other.
        let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(number);
        let mut random = StdRng::seed_from_u64(mixed);
        let method = *Method::ALL.choose(&mut random).unwrap_or(&Method::Live);
        let count = match random.random_range(0..10) {
            0..5 => 1,
            5..8 => 2,
            _ => 3,
        };
        let phases = method.phases();
        let mut chosen: BTreeSet<Phase> = phases
            .choose_multiple(&mut random, count)
            .copied()
            .collect();
        if method == Method::Again {
            chosen.insert(Phase::Cancelling);
        }
        // A job has epochs to fold only if it lost a snapshot.
        if chosen.contains(&Phase::Folding) {
            chosen.insert(Phase::CopyingLate);
        }
        let folds = chosen.contains(&Phase::Folding);
        let strikes = chosen.into_iter().map(|phase| {
            let strike = draw_strike(&mut random, method, phase);
            if folds && phase == Phase::CopyingLate {
                let fault = Fault::Kill(Process::SourceAgent);
                let away = Duration::from_secs(1);
                return Strike {
                    fault,
                    away,
                    ..strike
                };
            }
            strike
        });
        let strikes = strikes.collect();
        Self {
            seed,
            number,
            method,
            strikes,
        }
    }

    /// Whether its job has epochs to fold.
    pub(super) fn folds(&self) -> bool {
        self.strikes.iter().any(|s| s.phase == Phase::Folding)
    }

    /// Whether its description contains the word.
    pub(super) fn matches(&self, word: &str) -> bool {
        self.to_string().contains(word)
    }
}

fn draw_strike(random: &mut StdRng, method: Method, phase: Phase) -> Strike {
    let fitting: Vec<Fault> = Fault::all()
        .into_iter()
        .filter(|fault| method.survives(*fault, phase))
        .collect();
    let fault = *fitting
        .choose(random)
        .unwrap_or(&Fault::Kill(Process::SourceAgent));
    let delay = phase.delay_max().mul_f64(random.random());
    // Longer than what a session survives in silence, and than the time after which a wait must be said.
    let away = match random.random_range(0..10) {
        0..5 => Duration::from_millis(random.random_range(0..2_000)),
        5..7 => Duration::from_secs(5),
        7..9 => Duration::from_secs(20),
        _ => Duration::from_secs(75),
    };
    let away = if fault.lasts() { away } else { Duration::ZERO };
    Strike {
        phase,
        delay,
        fault,
        away,
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::TwoPhase => "two-phase",
            Self::Several => "two targets",
            Self::Stored => "stored",
            Self::Again => "cancel and again",
        })
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fault)?;
        if self.fault.lasts() {
            write!(f, " for {:.1} s", self.away.as_secs_f64())?;
        }
        write!(f, " ({})", self.phase)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strikes: Vec<String> = self.strikes.iter().map(Strike::to_string).collect();
        write!(f, "{}: {}", self.method, strikes.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds() -> Vec<Round> {
        (0..5_000).map(|number| Round::draw(1, number)).collect()
    }

    #[test]
    fn a_round_depends_on_seed_and_number_alone() {
        assert_eq!(Round::draw(3, 4), Round::draw(3, 4));
        let same = (0..100).filter(|n| {
            let (one, two) = (Round::draw(1, *n), Round::draw(2, *n));
            one.strikes == two.strikes
        });
        assert!(same.count() < 5);
    }

    #[test]
    fn every_fault_strikes_in_every_phase_that_it_fits() {
        let struck: BTreeSet<(Fault, Phase)> = rounds()
            .iter()
            .flat_map(|round| round.strikes.iter().map(|s| (s.fault, s.phase)))
            .collect();
        for fault in Fault::all() {
            for phase in Phase::ALL {
                let fits = fault.fits(phase);
                assert_eq!(struck.contains(&(fault, phase)), fits, "{fault} in {phase}");
            }
            assert!(Phase::ALL.iter().any(|phase| fault.fits(*phase)), "{fault}");
        }
    }

    #[test]
    fn phases_come_in_order_and_only_those_that_the_method_has() {
        for round in rounds() {
            let phases: Vec<Phase> = round.strikes.iter().map(|strike| strike.phase).collect();
            assert!(phases.is_sorted(), "{round}");
            assert!(!phases.is_empty(), "{round}");
            let possible = round.method.phases();
            assert!(phases.iter().all(|p| possible.contains(p)), "{round}");
            let folds = phases.contains(&Phase::Folding);
            let loses = Fault::Kill(Process::SourceAgent);
            assert!(
                !folds || round.strikes.iter().any(|s| s.fault == loses),
                "{round} has one epoch"
            );
        }
    }

    #[test]
    fn a_round_is_found_by_words_of_its_description() {
        let round = Round::draw(1, 1);
        let phase = round.strikes[0].phase.to_string();
        assert!(round.matches(&phase) && round.matches(&round.method.to_string()));
        assert!(!round.matches("no such word"));
    }
}
