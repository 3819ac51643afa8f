//! `init adjust`: other terms for a job that is running.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::job::JobSpec;
use crate::wire::units::parse_size;
use crate::wire::{ByteCount, JobId, Phase};

/// New terms. What is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjustment {
    /// See [`JobSpec::parallel`].
    pub parallel: Option<u8>,
    /// See [`JobSpec::max_rate`].
    pub max_rate: Option<MaxRate>,
}

/// A limit on COPY bytes a second, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MaxRate {
    /// As fast as possible.
    Unlimited,
    /// At most that many.
    Limited(ByteCount),
}

impl MaxRate {
    /// Reads `50MB` or `none`.
    ///
    /// # Errors
    /// A sentence that names the allowed values.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Unlimited);
        }
        let bytes = parse_size(text).map_err(|why| format!("{why}, or none"))?;
        Ok(Self::Limited(bytes))
    }

    /// As in [`JobSpec::max_rate`].
    #[must_use]
    pub fn limit(self) -> Option<ByteCount> {
        match self {
            Self::Unlimited => None,
            Self::Limited(bytes) => Some(bytes),
        }
    }
}

/// The terms that the job has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    /// The job.
    pub job_id: JobId,
    /// Its workers, as asked for.
    pub parallel: u8,
    /// Those that both agents have room for.
    pub parallel_workers: u8,
    /// Its limit on COPY bytes a second.
    pub max_rate: Option<ByteCount>,
    /// The phase from which on the new terms count; `None` where they count at once.
    pub from_phase: Option<Phase>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_size_or_none() {
        assert_eq!(MaxRate::parse("none"), Ok(MaxRate::Unlimited));
        let limited = MaxRate::parse("1MB").unwrap();
        assert_eq!(limited.limit(), Some(ByteCount(1_000_000)));
        for bad in ["", "0", "None", "fast"] {
            assert!(
                MaxRate::parse(bad).unwrap_err().ends_with(", or none"),
                "{bad:?}"
            );
        }
    }
}
