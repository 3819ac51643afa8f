//! Merging two nodes that both have rows and applications: what an operator orders, and sequences that are set apart.
//!
//! The rows are planned and written as those of a [`repair`](super::repair), in both directions.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::{JobId, NodeId, TableName};

/// What an operator orders. Rows are compared and written by orders of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeSpec {
    /// The first node.
    pub node_a: NodeId,
    /// The second node.
    pub node_b: NodeId,
    /// How sequences are set apart.
    pub sequences: SequenceRanges,
}

/// How sequences are set apart, so that the two nodes never hand out the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceRanges {
    /// Both take steps of twice the size, the second node from one step later.
    #[default]
    Interleaved,
    /// The first node has that many values, the second one those beyond.
    Apart(u64),
    /// Not at all: nothing is changed.
    Keep,
}

impl SequenceRanges {
    /// Reads `interleaved`, `keep` or a number of values.
    ///
    /// # Errors
    /// A sentence that names the allowed values.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "interleaved" => Ok(Self::Interleaved),
            "keep" => Ok(Self::Keep),
            number => match number.parse() {
                Ok(values) if values > 0 => Ok(Self::Apart(values)),
                _ => {
                    Err("use interleaved, keep, or how many values the first node gets".to_owned())
                }
            },
        }
    }
}

impl fmt::Display for SequenceRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interleaved => f.write_str("interleaved"),
            Self::Apart(values) => write!(f, "{values}"),
            Self::Keep => f.write_str("keep"),
        }
    }
}

/// A sequence as it is on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceState {
    /// Its name.
    pub name: TableName,
    /// The last value that it handed out or reserved; one step before its start if it was never used.
    pub last: i64,
    /// Its step, of before it was set apart.
    pub increment: i64,
    /// Its smallest value.
    pub min: i64,
    /// Its largest value, of before it was set apart.
    pub max: i64,
    /// Whether it begins anew after its last value.
    pub cycles: bool,
}

/// Sequences as they are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSequences {
    /// The job whose cleanup gives them their steps and ends back.
    pub job: JobId,
    /// Which, at most [`crate::limits::SEQUENCES_MAX`].
    pub sequences: Vec<SequenceApart>,
}

/// A sequence as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceApart {
    /// Its name.
    pub name: TableName,
    /// Values up to here may have been handed out: past it, nothing is set.
    pub below: i64,
    /// The next value.
    pub start: i64,
    /// The step.
    pub increment: i64,
    /// The largest value, or the smallest one of a sequence that goes down.
    pub end: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_a_word_or_a_number() {
        use SequenceRanges::{Apart, Interleaved, Keep};
        let parsed = |text: &str| SequenceRanges::parse(text).ok();
        assert_eq!(parsed("interleaved"), Some(Interleaved));
        assert_eq!(
            (parsed("keep"), parsed("1000")),
            (Some(Keep), Some(Apart(1000)))
        );
        assert_eq!(
            (parsed("0"), parsed("-1"), parsed("even")),
            (None, None, None)
        );
    }
}
