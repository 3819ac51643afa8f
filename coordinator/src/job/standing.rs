//! Tracks whether one part of a replication (slot, publication, subscription, columns) is healthy across
//! observations: while a job runs ([`super::health`]) and while its node follows after that.
//!
//! Pure, and in memory only: agents report everything again after a restart.

/// Consecutive observations that must miss a slot or subscription before it counts as gone: one may have
/// been sent before it was created, or while PostgreSQL was starting.
pub const SUSPICIONS: u8 = 3;

/// What one observation says about a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health<C> {
    /// It is healthy.
    Good,
    /// It cannot be judged now.
    Unknown,
    /// It looks broken but may recover; counted.
    Suspect(C),
    /// It is broken.
    Bad(C),
}

/// Which agent an observation came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The agent that observes this part.
    News,
    /// Another one: the part is judged again from known facts, and a suspicion is not counted.
    Known,
}

/// One part across observations. Once bad, it stays bad until it is seen to be good.
#[derive(Debug, Clone)]
pub struct Part<C> {
    suspicions: u8,
    standing: Standing<C>,
}

#[derive(Debug, Clone)]
enum Standing<C> {
    Undecided,
    Sound,
    Bad(C),
}

impl<C> Default for Part<C> {
    fn default() -> Self {
        Self {
            suspicions: 0,
            standing: Standing::Undecided,
        }
    }
}

impl<C> Part<C> {
    /// Takes an observation.
    pub fn take(&mut self, health: Health<C>, word: Word) {
        match health {
            Health::Good => {
                self.suspicions = 0;
                self.standing = Standing::Sound;
            }
            Health::Bad(cause) => self.standing = Standing::Bad(cause),
            Health::Suspect(cause) => {
                if word == Word::News {
                    self.suspicions = self.suspicions.saturating_add(1);
                }
                if self.suspicions >= SUSPICIONS {
                    self.standing = Standing::Bad(cause);
                } else {
                    self.doubt();
                }
            }
            Health::Unknown => self.doubt(),
        }
    }

    fn doubt(&mut self) {
        if let Standing::Sound = self.standing {
            self.standing = Standing::Undecided;
        }
    }

    /// Why it is bad, if it is.
    pub fn cause(&self) -> Option<&C> {
        match &self.standing {
            Standing::Bad(cause) => Some(cause),
            Standing::Undecided | Standing::Sound => None,
        }
    }

    /// Whether it was seen to be good and has not been doubted since.
    pub fn is_sound(&self) -> bool {
        matches!(self.standing, Standing::Sound)
    }

    /// Whether it is known to be good or bad.
    pub fn is_decided(&self) -> bool {
        !matches!(self.standing, Standing::Undecided)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_missed_is_bad_only_when_its_own_observer_says_so_often_enough() {
        let mut part = Part::default();
        part.take(Health::Good, Word::News);
        for _ in 0..SUSPICIONS - 1 {
            part.take(Health::Suspect("gone"), Word::News);
            part.take(Health::Suspect("gone"), Word::Known);
            assert_eq!(part.cause(), None);
        }
        part.take(Health::Suspect("gone"), Word::News);
        assert!(part.cause().is_some());
        part.take(Health::Unknown, Word::News);
        assert!(part.cause().is_some(), "bad until it is seen to be good");
        part.take(Health::Good, Word::Known);
        assert_eq!(part.cause(), None);
    }
}
