//! `switchover`.

use std::time::Duration;

use clap::Args;
use steep_protocol::message::switchover::{Lacking, RowsCheck, SwitchoverSpec, WayBack};
use steep_protocol::units::parse_duration;
use steep_protocol::{ByteCount, NodeId};

use crate::units::parse_size;

/// How much longer than transactions writes may be stopped, where nothing else is said: for what follows.
const AFTER_TRANSACTIONS: Duration = Duration::from_secs(30);

/// `switchover`.
#[derive(Debug, Args)]
#[command(after_help = "\
Stops writes to the source, waits until its replica has applied everything, sets the replica's sequences,
and lets applications write to it. Whatever fails before the source has given its writes away gives
them back to it, and so does its own agent when --max-stop is over. The source stays read-only.

Examples:
  steep-repl switchover --from node_a --to node_b --dry-run
  steep-repl switchover --from node_a --to node_b --yes
  steep-repl switchover --from node_a --to node_b --reverse --verify")]
pub(crate) struct SwitchoverArgs {
    /// The node that takes writes now
    #[arg(long, value_name = "NODE")]
    pub(crate) from: NodeId,
    /// Its replica, which takes them afterwards
    #[arg(long, value_name = "NODE")]
    pub(crate) to: NodeId,
    /// Let the old node follow the new one, so that there is a way back
    #[arg(long)]
    pub(crate) reverse: bool,
    /// First compare all rows, while both are in use; any difference ends the switchover
    #[arg(long)]
    pub(crate) verify: bool,
    /// How long transactions may go on before their sessions are ended
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) terminate_after: Duration,
    /// How long writes may be stopped before the old node gets them back [default: 30s more than
    /// --terminate-after]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) max_stop: Option<Duration>,
    /// Most WAL that the replica may still have to apply when this begins
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = parse_size)]
    pub(crate) max_lag: ByteCount,
    /// Also if tables are not replicated, or roles are missing on the new node
    #[arg(long)]
    pub(crate) force: bool,
    /// Show what speaks against it, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
}

impl SwitchoverArgs {
    /// What is wanted.
    pub(crate) fn spec(&self) -> SwitchoverSpec {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let max_stop = self
            .max_stop
            .unwrap_or(self.terminate_after.saturating_add(AFTER_TRANSACTIONS));
        SwitchoverSpec {
            from: self.from.clone(),
            to: self.to.clone(),
            way_back: match self.reverse {
                true => WayBack::Follow,
                false => WayBack::None,
            },
            rows: match self.verify {
                true => RowsCheck::Compared,
                false => RowsCheck::Skipped,
            },
            terminate_after_seconds: seconds(self.terminate_after),
            max_stop_seconds: seconds(max_stop),
            max_lag: self.max_lag,
            lacking: match self.force {
                true => Lacking::Accepted,
                false => Lacking::Refused,
            },
        }
    }
}
