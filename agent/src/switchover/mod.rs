//! A switchover's steps on this node: who may write here.
//!
//! `default_transaction_read_only` of the database makes new sessions read-only; those that began before are ended.
//! A session may override that, so the last writers are locked out, table by table, while the replica applies the
//! rest and the stop becomes final ([`decide`]). `steep_repl.write_stop` ([`note`]) says who may write, and changes
//! only together with that setting. It is where a switchover is decided: `closed` becomes `final` or `open`, in one
//! transaction, and after its deadline only `open` ([`guard`]).
//!
//! ```text
//! old node:  open ──close──▶ closed ──decide──▶ final       new node:  open ──close──▶ closed ──open──▶ open
//!                              │                                                         │
//!                              └──reopen, deadline──▶ open                               └──reopen──▶ open
//! ```
//!
//! Our own sessions set `default_transaction_read_only` to off for themselves, and apply workers write whatever it is,
//! except in triggers.

mod close;
mod decide;
mod facts;
mod guard;
mod holders;
mod note;
mod open;
mod sessions;

use steep_protocol::Fault;
use steep_protocol::message::agent::Outcome;
use steep_protocol::message::switchover::SwitchoverCommand;

use tokio::sync::Notify;

pub(crate) use guard::Guard;
pub(crate) use note::{SETTING, is_on};

use crate::task::Task;

/// Runs a step. Each is idempotent. `steps` is notified of each change, for the [`Guard`].
pub(crate) async fn perform(
    task: &Task,
    command: SwitchoverCommand,
    steps: &Notify,
) -> Result<Outcome, Fault> {
    match command {
        SwitchoverCommand::Look { needed } => {
            let facts = facts::gather(task, &needed).await?;
            Ok(Outcome::SwitchoverFacts(Box::new(facts)))
        }
        SwitchoverCommand::Close(closing) => {
            let stopped = close::close(task, closing, steps).await?;
            Ok(Outcome::WritesStopped(stopped))
        }
        SwitchoverCommand::ProveOpen => open::prove(task).await.map(|()| Outcome::Done),
        SwitchoverCommand::Decide => decide::decide(task).await.map(Outcome::WriteState),
        SwitchoverCommand::Open => open::open(task).await.map(Outcome::WriteState),
        SwitchoverCommand::Reopen => open::reopen(task).await.map(Outcome::WriteState),
    }
}
