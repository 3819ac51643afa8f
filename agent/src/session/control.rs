//! The session loop: dial, register, serve commands, and again.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use steep_protocol::limits::SUMMARY_PAGE;
use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, MirrorRow, Observed, Outcome, Registration,
};
use steep_protocol::message::api::AuditView;
use steep_protocol::message::handover::{PreparedSlot, Replication};
use steep_protocol::pace::{Cadence, News, Pace};
use steep_protocol::quic::{Endpoint, Expect, Receiver, Sender};
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::dispatch::Agent;
use super::observe::stands_out;
use super::report::Reports;

/// First pause after a failed dial; doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(250);

/// The longest pause: an agent is back within this of its coordinator.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// One command, from its arrival until its outcome is acknowledged.
#[derive(Debug)]
enum Entry {
    Running {
        cancel: CancellationToken,
    },
    Ended {
        job: JobId,
        outcome: Result<Outcome, Fault>,
    },
}

/// The coordinator, and what it is to know of this agent.
#[derive(Debug)]
pub struct Coordinator {
    /// Its `HOST:PORT`.
    pub address: String,
    /// Dials it.
    pub endpoint: Arc<Endpoint>,
    /// Where peers reach this agent.
    pub advertise: String,
    /// Workers this agent will run at once.
    pub max_workers: u8,
}

/// What is seen of the server; the newest replaces the last.
#[derive(Debug)]
pub struct Seen {
    /// What is true beside this agent.
    pub observed: watch::Receiver<Observed>,
    /// Slots that are prepared here; nothing until they have been looked at.
    pub prepared: watch::Receiver<Option<Vec<PreparedSlot>>>,
}

/// What goes into this node's `steep_repl` tables.
#[derive(Debug)]
pub struct Queues {
    /// Its state and progress.
    pub mirror: mpsc::Sender<MirrorRow>,
    /// What operators wanted.
    pub audit: mpsc::Sender<AuditView>,
}

/// Everything that outlives a session with the coordinator.
#[derive(Debug)]
pub struct Control {
    agent: Arc<Agent>,
    reports: Arc<Reports>,
    coordinator: Coordinator,
    seen: Seen,
    queues: Queues,
    entries: HashMap<CommandId, Entry>,
    tasks: JoinSet<(CommandId, JobId, Result<Outcome, Fault>)>,
    incarnation: u64,
}

/// What goes out in one session, and when.
struct Speech<'a> {
    sender: &'a mut Sender,
    cadence: Cadence,
    /// What was said to be observed last.
    told: Option<Observed>,
    /// What it is to say of the server that it has not.
    looked: News,
}

/// Why a session ended.
enum Gone {
    Cancelled,
    Lost { fault: Fault, welcomed: bool },
}

impl Control {
    /// A control path with no session yet. `seen` is what is observed of the server, `queues` take
    /// what goes into its `steep_repl` tables.
    #[must_use]
    pub fn new(
        agent: Arc<Agent>,
        reports: Arc<Reports>,
        seen: Seen,
        queues: Queues,
        coordinator: Coordinator,
    ) -> Self {
        Self {
            agent,
            reports,
            coordinator,
            seen,
            queues,
            entries: HashMap::new(),
            tasks: JoinSet::new(),
            incarnation: rand::random(),
        }
    }

    /// Keeps a session up until cancelled, then ends what runs.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut pause = PAUSE;
        while !cancel.is_cancelled() {
            match self.session(&cancel).await {
                Gone::Cancelled => break,
                Gone::Lost { fault, welcomed } => {
                    if welcomed {
                        pause = PAUSE;
                    }
                    if fault.retry == Retry::Never {
                        // Still tried: certificates are renewed and coordinators are upgraded.
                        pause = PAUSE_MAX;
                    }
                    warn!(error = %fault, hint = %fault.hint, "no session with the coordinator, trying again");
                }
            }
            // Commands go on meanwhile; their ends are collected so that none is lost.
            let wait = tokio::time::sleep(pause);
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = &mut wait => break,
                    Some(ended) = self.tasks.join_next() => { self.ended(ended); }
                }
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        for entry in self.entries.values() {
            if let Entry::Running { cancel, .. } = entry {
                cancel.cancel();
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
    }

    async fn session(&mut self, cancel: &CancellationToken) -> Gone {
        let dial = self
            .coordinator
            .endpoint
            .dial(&self.coordinator.address, &Expect::Coordinator);
        let connection = tokio::select! {
            () = cancel.cancelled() => return Gone::Cancelled,
            dialled = dial => match dialled {
                Ok(connection) => connection,
                Err(error) => return Gone::Lost { fault: error.to_fault(), welcomed: false },
            },
        };
        let _watched = self.agent.telemetry.links.watch(&connection);
        let gone = match connection.open().await {
            Ok((mut sender, mut receiver)) => {
                let mut speech = Speech {
                    sender: &mut sender,
                    cadence: Cadence::new(Pace::default(), Instant::now(), SystemTime::now()),
                    told: None,
                    looked: News::None,
                };
                let served = self.serve(&mut speech, &mut receiver, cancel).await;
                sender.finish();
                served
            }
            Err(error) => Gone::Lost {
                fault: error.to_fault(),
                welcomed: false,
            },
        };
        let code = match &gone {
            Gone::Cancelled => steep_protocol::close::CloseCode::ShuttingDown,
            Gone::Lost { .. } => steep_protocol::close::CloseCode::Done,
        };
        connection.close(code);
        gone
    }

    async fn serve(
        &mut self,
        speech: &mut Speech<'_>,
        receiver: &mut Receiver,
        cancel: &CancellationToken,
    ) -> Gone {
        let register = AgentMessage::Register(Registration {
            advertise: self.coordinator.advertise.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.incarnation,
            open_snapshots: self.agent.jobs.open_snapshots(),
            max_workers: self.coordinator.max_workers,
        });
        if let Err(error) = speech.sender.send(&register).await {
            return Gone::Lost {
                fault: error.to_fault(),
                welcomed: false,
            };
        }
        match receiver.recv::<CoordinatorMessage>().await {
            Ok(Some(CoordinatorMessage::Welcome { state })) => {
                info!(event = "session", node_id = %self.agent.node, state = %state, "session with the coordinator");
            }
            Ok(_) => {
                return Gone::Lost {
                    fault: unwelcome(),
                    welcomed: false,
                };
            }
            Err(error) => {
                return Gone::Lost {
                    fault: error.to_fault(),
                    welcomed: false,
                };
            }
        }
        self.reports.tell_again();
        self.agent.telemetry.coordinator(true);
        let conversed = self.converse(speech, receiver, cancel).await;
        self.agent.telemetry.coordinator(false);
        match conversed {
            Ok(()) => Gone::Cancelled,
            Err(fault) => Gone::Lost {
                fault,
                welcomed: true,
            },
        }
    }

    async fn converse(
        &mut self,
        speech: &mut Speech<'_>,
        receiver: &mut Receiver,
        cancel: &CancellationToken,
    ) -> Result<(), Fault> {
        let ended: Vec<CommandId> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e, Entry::Ended { .. }))
            .map(|(id, _)| *id)
            .collect();
        self.report(speech).await?;
        for id in ended {
            self.tell(id, speech).await?;
        }
        self.seen.prepared.mark_changed();
        let mut news = self.reports.news();
        if self.seen.observed.borrow().postgres.is_some() {
            self.seen.observed.mark_changed();
        }
        loop {
            let waits = (*news.borrow_and_update()).max(speech.looked);
            let due = speech.cadence.due(waits);
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                message = receiver.recv::<CoordinatorMessage>() => {
                    let message = message.map_err(|e| e.to_fault())?.ok_or_else(unwelcome)?;
                    if let CoordinatorMessage::Pace(pace) = message {
                        speech.cadence.keep(pace);
                    } else if let Some(again) = self.obey(message) {
                        self.report(speech).await?;
                        self.tell(again, speech).await?;
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Some(id) = self.ended(ended) {
                        // What the command did comes before its end.
                        self.report(speech).await?;
                        self.tell(id, speech).await?;
                    }
                }
                // What waits weighs more than it did; there is always a sender, which is ours.
                _ = news.changed() => {}
                () = until(due) => self.report(speech).await?,
                changed = self.seen.observed.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let told = speech.told.as_ref();
                    let seen = self.seen.observed.borrow_and_update();
                    speech.looked = match told {
                        Some(told) if !stands_out(told, &seen) => News::Growth,
                        _ => News::Event,
                    };
                }
                changed = self.seen.prepared.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let prepared = self.seen.prepared.borrow_and_update().clone();
                    if let Some(prepared) = prepared {
                        send(speech.sender, &AgentMessage::Prepared(prepared)).await?;
                    }
                }
            }
        }
    }

    /// Does as told. The id of a command that has ended already and must be answered again.
    fn obey(&mut self, message: CoordinatorMessage) -> Option<CommandId> {
        match message {
            CoordinatorMessage::Welcome { .. } => None,
            CoordinatorMessage::Command { id, job, command } => {
                self.begin(id, (job, Replication::of(job)), command)
            }
            CoordinatorMessage::CommandOn {
                id,
                job,
                replication,
                command,
            } => self.begin(id, (job, replication), command),
            CoordinatorMessage::Abort { id } => {
                if let Some(Entry::Running { cancel, .. }) = self.entries.get(&id) {
                    cancel.cancel();
                }
                None
            }
            CoordinatorMessage::Forget { id } => {
                if let Some(Entry::Ended { .. }) = self.entries.get(&id) {
                    self.entries.remove(&id);
                }
                None
            }
            CoordinatorMessage::Mirror(row) => {
                // A full queue means that PostgreSQL is slow; the next row says more anyway.
                let _ = self.queues.mirror.try_send(row);
                None
            }
            CoordinatorMessage::Audit(wish) => {
                // Said again until it is written.
                let _ = self.queues.audit.try_send(*wish);
                None
            }
            // The session's, not a command's.
            CoordinatorMessage::Pace(_) => None,
        }
    }

    /// Begins a command, once. Its id where it has ended already and must be answered again.
    fn begin(
        &mut self,
        id: CommandId,
        of: (JobId, Replication),
        command: Command,
    ) -> Option<CommandId> {
        match self.entries.get(&id) {
            Some(Entry::Running { .. }) => return None,
            Some(Entry::Ended { .. }) => return Some(id),
            None => {}
        }
        let cancel = CancellationToken::new();
        let running = Entry::Running {
            cancel: cancel.clone(),
        };
        self.entries.insert(id, running);
        let agent = Arc::clone(&self.agent);
        self.tasks.spawn(async move {
            let job = of.0;
            // A mistake of ours ends this job, at once and with a reason, and no other.
            let work = AssertUnwindSafe(agent.fulfil(of, command, cancel));
            let outcome = work.catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err(panicked(&agent.node)));
            (id, job, outcome)
        });
        None
    }

    fn ended(
        &mut self,
        ended: Result<(CommandId, JobId, Result<Outcome, Fault>), tokio::task::JoinError>,
    ) -> Option<CommandId> {
        match ended {
            Ok((id, job, outcome)) => {
                self.entries.insert(id, Entry::Ended { job, outcome });
                Some(id)
            }
            Err(error) => {
                // Commands are never aborted from outside, and what they panic with is caught.
                tracing::error!(%error, "a command was lost");
                None
            }
        }
    }

    /// Says everything there is to say, together: what has changed, and the newest observation.
    async fn report(&self, speech: &mut Speech<'_>) -> Result<(), Fault> {
        let mut messages = self.reports.take();
        let now = Instant::now();
        if std::mem::take(&mut speech.looked) != News::None {
            let seen = self.seen.observed.borrow().clone();
            messages.push(AgentMessage::Observed(seen.clone()));
            speech.told = Some(seen);
        }
        speech.cadence.spoke(now);
        if messages.is_empty() {
            return Ok(());
        }
        let sent = speech.sender.send_all(&messages).await;
        sent.map_err(|error| error.to_fault())
    }

    async fn tell(&self, id: CommandId, speech: &mut Speech<'_>) -> Result<(), Fault> {
        let Some(Entry::Ended { job, outcome }) = self.entries.get(&id) else {
            return Ok(());
        };
        if matches!(outcome, Ok(Outcome::SourceOpened { .. }))
            && let Some(open) = self.agent.jobs.get(*job).and_then(|j| j.open)
        {
            for tables in open.summaries().chunks(SUMMARY_PAGE) {
                let page = AgentMessage::PlanPage {
                    job: *job,
                    tables: tables.to_vec(),
                };
                send(speech.sender, &page).await?;
            }
        }
        let finished = AgentMessage::Finished {
            command: id,
            outcome: outcome.clone(),
        };
        send(speech.sender, &finished).await
    }
}

/// Until that moment; for ever where there is none.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn send(sender: &mut Sender, message: &AgentMessage) -> Result<(), Fault> {
    sender.send(message).await.map_err(|e| e.to_fault())
}

/// What a command that panicked comes to. The panic itself is in the agent's log.
fn panicked(node: &NodeId) -> Fault {
    Fault::new(
        FaultKind::Failed,
        "the agent made a mistake that it had not provided for",
    )
    .hint("the agent's log says where (\"panicked at\"); please report it, and run init again")
    .on(node)
}

fn unwelcome() -> Fault {
    Fault::new(FaultKind::Unreachable, "the coordinator ended the session").retry(Retry::Backoff)
}
