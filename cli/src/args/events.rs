//! `events`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use steep_protocol::NodeId;

use crate::units::parse_duration;

/// `events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl events                                the newest 100
  steep-repl events node_b --since 10m --level warn
  steep-repl events --since 2026-11-28T20:00:00Z --json
  steep-repl events node_b --follow --limit 0      only what happens from now on
  steep-repl events --audit --since 24h            who asked for what")]
pub(crate) struct EventsArgs {
    /// Only events of this node, as target or source
    pub(crate) node: Option<NodeId>,
    /// Keep printing new events
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only events since then: a time such as 2026-11-28T20:00:00Z, or a duration such as 10m
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<Since>,
    /// Only the newest N [default: 100; all with --since or --json]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Only events of this level and above
    #[arg(long, default_value = "info", conflicts_with = "audit")]
    pub(crate) level: Level,
    /// Show operators' requests instead: who, when, from where, with which arguments
    #[arg(long, conflicts_with = "follow")]
    pub(crate) audit: bool,
}

/// `--since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// A point in time.
    At(Timestamp),
    /// A duration before now.
    Ago(SignedDuration),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        let ago = parse_duration(text).ok();
        ago.and_then(|ago| SignedDuration::try_from(ago).ok())
            .map(Self::Ago)
            .ok_or_else(|| {
                "give a time such as 2026-11-28T20:00:00Z, or a duration such as 10m".to_owned()
            })
    }
}

impl Since {
    /// The point in time; the earliest possible one if the duration reaches further back.
    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

/// Levels of events, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Level {
    /// Everything.
    Info,
    /// Warnings and errors.
    Warn,
    /// Errors.
    Error,
}

impl Level {
    /// The level of an event; an unknown one counts as the highest.
    pub(crate) fn of(text: &str) -> Self {
        match text {
            "info" => Self::Info,
            "warn" => Self::Warn,
            _ => Self::Error,
        }
    }
}
