//! Ids and units, so that messages never carry two bare integers side by side.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::limits;

/// An id or unit that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {rule}")]
pub struct InvalidId {
    what: &'static str,
    given: String,
    rule: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, given: &str, rule: &'static str) -> Self {
        // Truncated, so that the error stays on one line.
        let given = given.chars().take(80).collect();
        Self { what, given, rule }
    }
}

/// The name of a node: one PostgreSQL server and the agent beside it.
///
/// It is used in certificates, slot and publication names and file names, which limits its
/// alphabet: 1 to 63 of `a-z 0-9 _ -`, starting with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    const RULE: &'static str =
        "use 1 to 63 of a-z, 0-9, underscore and hyphen, beginning with a letter";

    /// Parses a node name.
    ///
    /// # Errors
    /// [`InvalidId`] if the name breaks the rule above.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let valid = text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new("node name", text, Self::RULE))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(&text)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::parse(text)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let bad = || InvalidId::new($what, text, "use 16 hexadecimal digits");
                if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                u64::from_str_radix(text, 16).map(Self).map_err(|_| bad())
            }
        }
    };
}

random_id! {
    /// One initialisation. Random; written as 16 hexadecimal digits.
    JobId, "job id"
}
random_id! {
    /// One snapshot of a source, live or stored. Random; written as 16 hexadecimal digits.
    SnapshotId, "snapshot id"
}

/// One command of the coordinator to one agent. Unique for the coordinator's life. An agent that
/// receives an id again answers with that command's outcome so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId(pub u64);

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// The snapshot of a job that a part belongs to. A job that loses its snapshot gets another one for
/// the unfinished tables.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u32);

impl JobId {
    /// The id that an epoch's publication, slot and subscription are named after: the job's own for the first.
    #[must_use]
    pub fn of_epoch(self, epoch: Epoch) -> Self {
        Self(self.0.wrapping_add(u64::from(epoch.0)))
    }

    /// Whether `other` is the id of one of its epochs.
    #[must_use]
    pub fn has_epoch(self, other: Self) -> bool {
        other.0.wrapping_sub(self.0) <= u64::from(limits::EPOCHS_MAX)
    }
}

/// A table's place in its job's plan, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableNo(pub u32);

/// A part's place in its job's plan, from 0; parts of one table are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartNo(pub u32);

impl fmt::Display for PartNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! count {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl std::ops::Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl std::ops::Sub for $name {
            type Output = Self;
            /// Saturates at zero: counts read at different times may be out of order.
            fn sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self(0), |a, b| a + b)
            }
        }
    };
}

count! {
    /// Bytes.
    ByteCount
}
count! {
    /// Rows.
    RowCount
}

/// A position in PostgreSQL's write-ahead log, in bytes; written as two hexadecimal halves
/// (`16/B374D848`), see the manual's section "pg_lsn Type".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How far `self` is ahead of `other`; 0 if it is behind.
    #[must_use]
    pub fn distance_from(self, other: Self) -> ByteCount {
        ByteCount(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("LSN", text, "write it as PostgreSQL does, like 16/B374D848");
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |s: &str| {
            let digits = (1..=8).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
            digits
                .then(|| u32::from_str_radix(s, 16).ok())
                .flatten()
                .ok_or_else(bad)
        };
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn node_names_are_what_slots_files_and_certificates_can_carry() {
        for good in ["a", "node_a", "eu-west-1", &"x".repeat(63)] {
            assert_eq!(NodeId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "A",
            "1a",
            "_a",
            "a.b",
            "a b",
            "a/b",
            "é",
            &"x".repeat(64),
        ] {
            assert!(NodeId::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_lsn_is_read_and_written_as_postgresql_does() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap(), Lsn(0x16_B374_D848));
        assert_eq!(Lsn(0x16_0000_0001).to_string(), "16/1");
        for bad in [
            "",
            "/",
            "1/",
            "/1",
            "1/2/3",
            "123456789/0",
            "g/0",
            "+1/0",
            "1/ 2",
        ] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn lsn_text_round_trips(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
        }

        #[test]
        fn id_text_round_trips(value: u64) {
            prop_assert_eq!(JobId(value).to_string().parse::<JobId>().unwrap(), JobId(value));
            let snapshot = SnapshotId(value);
            prop_assert_eq!(snapshot.to_string().parse::<SnapshotId>().unwrap(), snapshot);
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text: String) {
            let _ = (text.parse::<Lsn>(), text.parse::<SnapshotId>(), NodeId::parse(&text));
        }
    }
}
