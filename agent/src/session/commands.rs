//! Commands, each from its arrival until its outcome is acknowledged. They outlive a session.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use steep_protocol::message::agent::{
    AfterStop, AtStop, Command, Outcome, SourceCommand, TargetCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::dispatch::Agent;
use super::drainer::Drainer;
use crate::task::CopyTerms;

#[derive(Debug)]
pub(super) struct Commands {
    agent: Arc<Agent>,
    entries: HashMap<CommandId, Entry>,
    running: JoinSet<Done>,
}

/// How long a cleanup, or a command that an adopted job begins with, waits for the other commands of its job.
const OTHERS_END_WITHIN: Duration = Duration::from_secs(10);

type Done = (CommandId, JobId, Result<Outcome, Fault>);

#[derive(Debug)]
enum Entry {
    Running {
        job: JobId,
        cancel: CancellationToken,
        at_stop: AtStop,
        wanted: Wanted,
        terms: watch::Sender<CopyTerms>,
    },
    Ended {
        job: JobId,
        outcome: Result<Outcome, Fault>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Outcome,
    Abort,
}

impl Commands {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            entries: HashMap::new(),
            running: JoinSet::new(),
        }
    }

    pub(super) fn at_work(&self) -> usize {
        self.running.len()
    }

    /// The next command that ends, for [`Commands::ended`]; `None` where none is at work. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Done, JoinError>> {
        self.running.join_next().await
    }

    /// Commands that ended and whose outcomes the coordinator has not acknowledged.
    pub(super) fn unacknowledged(&self) -> Vec<CommandId> {
        let ended =
            |(id, entry): (&CommandId, &Entry)| matches!(entry, Entry::Ended { .. }).then_some(*id);
        self.entries.iter().filter_map(ended).collect()
    }

    pub(super) fn outcome(&self, id: CommandId) -> Option<(JobId, &Result<Outcome, Fault>)> {
        match self.entries.get(&id) {
            Some(Entry::Ended { job, outcome }) => Some((*job, outcome)),
            Some(Entry::Running { .. }) | None => None,
        }
    }

    /// Cancels a command that the coordinator gave up. Returns its id where it must be answered at once: the
    /// connection broke before the command arrived, and the coordinator waits for its end.
    pub(super) fn abort(&mut self, id: CommandId, job: JobId) -> Option<CommandId> {
        match self.entries.get_mut(&id) {
            Some(Entry::Running { cancel, wanted, .. }) => {
                *wanted = Wanted::Abort;
                cancel.cancel();
                None
            }
            Some(Entry::Ended { .. }) => None,
            None => {
                let fault = Fault::new(FaultKind::Cancelled, "cancelled before it began");
                let outcome = Err(fault.on(&self.agent.node));
                self.entries.insert(id, Entry::Ended { job, outcome });
                Some(id)
            }
        }
    }

    /// The coordinator has the outcome.
    pub(super) fn forget(&mut self, id: CommandId) {
        if let Some(Entry::Ended { .. }) = self.entries.get(&id) {
            self.entries.remove(&id);
        }
    }

    pub(super) fn cancel(&self, which: impl Fn(AtStop) -> bool) {
        for entry in self.entries.values() {
            if let Entry::Running {
                cancel, at_stop, ..
            } = entry
                && which(*at_stop)
            {
                cancel.cancel();
            }
        }
    }

    /// Begins a command, once; repeated, a copy takes its new terms. Returns its id where it has already ended
    /// and must be answered again.
    pub(super) fn begin(
        &mut self,
        id: CommandId,
        of: (JobId, Replication),
        command: Command,
        drainer: &Drainer,
    ) -> Option<CommandId> {
        match self.entries.get(&id) {
            Some(Entry::Running { terms, .. }) => {
                terms.send_replace(CopyTerms::of(&command));
                self.agent.repeated(&command);
                return None;
            }
            Some(Entry::Ended { .. }) => {
                self.agent.repeated(&command);
                return Some(id);
            }
            None => {}
        }
        let policy = command.policy();
        if drainer.is_down() {
            match policy.after_stop {
                AfterStop::Do => {}
                AfterStop::Ignore => return None,
                AfterStop::Refuse => {
                    let outcome = Err(stopping(&self.agent.node));
                    let refused = Entry::Ended { job: of.0, outcome };
                    self.entries.insert(id, refused);
                    return Some(id);
                }
            }
        }
        let others = match command {
            Command::Target(
                TargetCommand::Cleanup { .. }
                | TargetCommand::Prepare(_)
                | TargetCommand::BuildIndexes { .. }
                | TargetCommand::Fold { .. },
            )
            | Command::Source(SourceCommand::Cleanup { .. }) => self.end_others(of.0),
            _ => Vec::new(),
        };
        let cancel = CancellationToken::new();
        let (terms, newest) = watch::channel(CopyTerms::of(&command));
        let running = Entry::Running {
            job: of.0,
            cancel: cancel.clone(),
            at_stop: policy.at_stop,
            wanted: Wanted::Outcome,
            terms,
        };
        self.entries.insert(id, running);
        let agent = Arc::clone(&self.agent);
        self.running.spawn(async move {
            let job = of.0;
            let over = async {
                for other in others {
                    other.closed().await;
                }
            };
            // What does not end is in the cleanup's way, which then says so.
            let waiting = tokio::time::timeout(OTHERS_END_WITHIN, over);
            let _ = cancel.run_until_cancelled(waiting).await;
            // A panic ends this job, at once and with a reason, and no other.
            let work = AssertUnwindSafe(agent.fulfil(of, command, newest, cancel));
            let outcome = work.catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err(panicked(policy.name, &agent.node)));
            (id, job, outcome)
        });
        None
    }

    /// Cancels what runs of a job that is removed or adopted: a coordinator that has lost its store does not know of
    /// it. Returns whose receivers are gone when it has ended.
    fn end_others(&self, of: JobId) -> Vec<watch::Sender<CopyTerms>> {
        let running = self.entries.values().filter_map(|entry| match entry {
            Entry::Running {
                job, cancel, terms, ..
            } if *job == of => {
                cancel.cancel();
                Some(terms.clone())
            }
            Entry::Running { .. } | Entry::Ended { .. } => None,
        });
        running.collect()
    }

    /// Keeps the outcome until it is acknowledged; returns the id where the coordinator is to hear of it.
    pub(super) fn ended(
        &mut self,
        ended: Result<Done, JoinError>,
        drainer: &mut Drainer,
    ) -> Option<CommandId> {
        match ended {
            Ok((id, job, outcome)) => {
                let told = match self.entries.get(&id) {
                    Some(Entry::Running { wanted, .. }) => {
                        *wanted == Wanted::Abort || outcome.is_ok()
                    }
                    Some(Entry::Ended { .. }) | None => true,
                };
                if drainer.is_down() && !told {
                    // Reported, it would end the job. Unreported, the command goes to the next process,
                    // which finds what this one has done.
                    self.entries.remove(&id);
                    drainer.interrupted += 1;
                    return None;
                }
                drainer.ended();
                self.entries.insert(id, Entry::Ended { job, outcome });
                Some(id)
            }
            Err(error) => {
                // Commands are not aborted from outside, and their panics are caught.
                tracing::error!(%error, "a command was lost");
                None
            }
        }
    }
}

/// The fault of a command that panicked. The panic's message may hold values, so it stays in the agent's
/// log.
fn panicked(command: &str, node: &NodeId) -> Fault {
    let text = format!("internal error in the command {command} (please report it)");
    Fault::new(FaultKind::Failed, text)
        .hint("the agent's log has the details (\"panicked at\"); run init again")
        .on(node)
}

fn stopping(node: &NodeId) -> Fault {
    Fault::new(FaultKind::Unreachable, "the agent is being stopped")
        .hint("ask again when it is back")
        .retry(Retry::Backoff)
        .on(node)
}
