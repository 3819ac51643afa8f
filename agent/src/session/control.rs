//! The session loop: dial, register, serve commands, dial again; and the shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use steep_daemon::Stop;
use steep_protocol::close::CloseCode;
use steep_protocol::limits::SUMMARY_PAGE;
use steep_protocol::message::agent::{
    AgentMessage, AtStop, CoordinatorMessage, MirrorRow, Observed, Outcome, Registration, Seat,
};
use steep_protocol::message::api::AuditView;
use steep_protocol::message::handover::PreparedSlot;
use steep_protocol::message::lineage::Lineage;
use steep_protocol::message::snapshot::RecordedSnapshot;
use steep_protocol::quic::{Expect, Receiver, Sender};
use steep_protocol::report_interval::{Cadence, News, ReportInterval};
use steep_protocol::{CommandId, Fault, FaultKind, Retry};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::commands::Commands;
use super::dispatch::Agent;
use super::drain::{LAST_WORDS, Stage};
use super::drainer::{Drainer, until};
use super::greet::{Standing, Unwelcome, greet};
use super::observe::stands_out;
use crate::shutdown::Shutdown;

/// First pause after a failed dial; doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(250);

/// The longest pause: an agent is back within this of its coordinator.
const PAUSE_MAX: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) address: String,
    pub(crate) advertise: String,
    pub(crate) max_workers: u8,
    pub(crate) spool: Option<String>,
    pub(crate) seat: Seat,
    pub(crate) sequence_interval_seconds: u32,
    /// How long a snapshot that nobody reads is held without a coordinator; `None` for ever.
    pub(crate) snapshot_grace: Option<Duration>,
}

/// What is seen of the server; the newest replaces the last.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) observed: watch::Receiver<Observed>,
    /// `None` until first read.
    pub(crate) prepared: watch::Receiver<Option<Vec<PreparedSlot>>>,
    /// `None` until first read.
    pub(crate) lineage: watch::Receiver<Option<Lineage>>,
    /// `None` until first read.
    pub(crate) recorded: watch::Receiver<Option<Vec<RecordedSnapshot>>>,
}

/// Rows for this node's `steep_repl` tables.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) mirror: mpsc::Sender<MirrorRow>,
    pub(crate) audit: mpsc::Sender<AuditView>,
}

/// Everything that outlives a session with the coordinator.
#[derive(Debug)]
pub(crate) struct Control {
    agent: Arc<Agent>,
    coordinator: Coordinator,
    seen: Seen,
    queues: Queues,
    commands: Commands,
    incarnation: u64,
}

/// What is sent in one session, and when.
struct Speech<'a> {
    sender: &'a mut Sender,
    cadence: Cadence,
    /// The last observation sent.
    told: Option<Observed>,
    /// What the next observation brings that was not sent.
    looked: News,
}

/// Why a session ended.
enum Gone {
    Down,
    Lost {
        fault: Fault,
        welcomed: bool,
    },
    /// The coordinator takes another process for the node's agent.
    Rejected(Fault),
}

impl Control {
    pub(crate) fn new(
        agent: Arc<Agent>,
        seen: Seen,
        queues: Queues,
        coordinator: Coordinator,
    ) -> Self {
        Self {
            commands: Commands::new(Arc::clone(&agent)),
            agent,
            coordinator,
            seen,
            queues,
            incarnation: rand::random(),
        }
    }

    /// Keeps a session up until told to stop, then until what runs has ended or been cancelled. Fails with
    /// the coordinator's reason where it rejected this process from the start.
    pub(crate) async fn run(mut self, stop: Stop, shutdown: Shutdown) -> Result<(), Fault> {
        let drainer = &mut Drainer::new(stop, shutdown);
        let mut pause = PAUSE;
        let mut standing = Standing::New;
        let mut away = Instant::now();
        loop {
            let fault = match self.session(drainer).await {
                Gone::Down => break,
                Gone::Lost { fault, welcomed } => {
                    if welcomed {
                        pause = PAUSE;
                        standing = Standing::Welcomed;
                        away = Instant::now();
                    }
                    fault
                }
                Gone::Rejected(fault) => {
                    pause = PAUSE_MAX;
                    standing = standing.rejected(Instant::now());
                    if standing.is_hopeless(Instant::now()) {
                        return Err(fault);
                    }
                    fault
                }
            };
            if fault.retry == Retry::Never {
                // Still retried: certificates get renewed and coordinators upgraded.
                pause = PAUSE_MAX;
            }
            warn!(error = %fault, hint = %fault.hint, "no session with the coordinator, trying again");
            // Commands go on meanwhile, and their ends are collected.
            if self
                .beside(drainer, tokio::time::sleep(pause))
                .await
                .is_none()
            {
                break;
            }
            pause = (pause * 2).min(PAUSE_MAX);
            self.close_abandoned(away).await;
        }
        if drainer.is_over() {
            self.say_drained(drainer);
        }
        Ok(())
    }

    /// Closes snapshots that nobody reads any more, where no coordinator has said for long that somebody will: they keep
    /// vacuum from its work (G5). Slots stay, so jobs go on with another snapshot for what is missing.
    async fn close_abandoned(&self, away: Instant) {
        let Some(grace) = self.coordinator.snapshot_grace else {
            return;
        };
        if away.elapsed() < grace {
            return;
        }
        for job in self.agent.jobs.idle(grace) {
            if let Some(open) = self.agent.jobs.released(job) {
                let idle = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                warn!(event = "snapshot.abandoned", node_id = %self.agent.node, job_id = %job, duration_ms = idle, "a snapshot that nobody read is closed, since the coordinator is away");
                open.close().await;
            }
        }
    }

    fn say_drained(&self, drainer: &Drainer) {
        info!(event = "drained", node_id = %self.agent.node, duration_ms = drainer.millis(), interrupted = drainer.interrupted, "all work has ended");
    }

    async fn session(&mut self, drainer: &mut Drainer) -> Gone {
        let endpoint = Arc::clone(&self.agent.endpoint);
        let address = self.coordinator.address.clone();
        let dial = endpoint.dial(&address, &Expect::Coordinator);
        let connection = match self.beside(drainer, dial).await {
            None => return Gone::Down,
            Some(Ok(connection)) => connection,
            Some(Err(error)) => return lost(error.to_fault()),
        };
        let _watched = self.agent.telemetry.links.watch(&connection);
        let registration = self.registration();
        let greet = greet(&connection, &registration);
        let (mut sender, mut receiver) = match self.beside(drainer, greet).await {
            None => {
                connection.close(CloseCode::ShuttingDown);
                return Gone::Down;
            }
            Some(Ok((sender, receiver, state))) => {
                info!(event = "session", node_id = %self.agent.node, state = %state, "session with the coordinator");
                (sender, receiver)
            }
            Some(Err(Unwelcome::Lost(fault))) => {
                connection.close(CloseCode::Done);
                return lost(fault);
            }
            Some(Err(Unwelcome::Rejected(fault))) => {
                connection.close(CloseCode::Done);
                return Gone::Rejected(fault);
            }
        };
        let mut speech = Speech {
            sender: &mut sender,
            cadence: Cadence::new(ReportInterval::default(), Instant::now(), SystemTime::now()),
            told: None,
            looked: News::None,
        };
        self.agent.reports.tell_again();
        self.agent.telemetry.coordinator(true);
        let conversed = self.converse(&mut speech, &mut receiver, drainer).await;
        self.agent.telemetry.coordinator(false);
        let Err(fault) = conversed else {
            let last = async {
                self.report(&mut speech).await?;
                speech.sender.finish();
                let heard = speech.sender.drained().await;
                heard.map_err(|error| error.to_fault())
            };
            // A part that is not reported now is in the ledger, and the next process reports it.
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
            connection.close(CloseCode::ShuttingDown);
            return Gone::Down;
        };
        sender.finish();
        connection.close(CloseCode::Done);
        Gone::Lost {
            fault,
            welcomed: true,
        }
    }

    fn registration(&self) -> AgentMessage {
        AgentMessage::Register(Registration {
            advertise: self.coordinator.advertise.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.incarnation,
            open_snapshots: self.agent.jobs.open_snapshots(),
            admitted: self.agent.jobs.admitted(),
            max_workers: self.coordinator.max_workers,
            spool: self.coordinator.spool.clone(),
            seat: self.coordinator.seat,
            sequence_interval_seconds: self.coordinator.sequence_interval_seconds,
        })
    }

    /// The result of `work`; `None` if the shutdown ends first. Commands go on meanwhile.
    async fn beside<T>(
        &mut self,
        drainer: &mut Drainer,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        while !drainer.is_over() {
            tokio::select! {
                done = &mut work => return Some(done),
                // Without a session nobody closes snapshots.
                stage = drainer.turn(self.commands.at_work(), 0) => self.descend(stage, drainer),
                Some(ended) = self.commands.next() => { self.commands.ended(ended, drainer); }
            }
        }
        None
    }

    fn descend(&self, stage: Stage, drainer: &Drainer) {
        match stage {
            Stage::Up | Stage::Over => {}
            Stage::Draining { .. } => {
                let (commands, answers) = (self.commands.at_work(), drainer.answers());
                info!(event = "draining", node_id = %self.agent.node, commands, answers, "finishing running work, taking no new work");
                self.commands.cancel(|at_stop| at_stop == AtStop::Cancel);
            }
            Stage::Cut { .. } => self.commands.cancel(|_| true),
        }
    }

    async fn converse(
        &mut self,
        speech: &mut Speech<'_>,
        receiver: &mut Receiver,
        drainer: &mut Drainer,
    ) -> Result<(), Fault> {
        let ended = self.commands.unacknowledged();
        self.report(speech).await?;
        for id in ended {
            self.tell(id, speech).await?;
        }
        self.seen.prepared.mark_changed();
        self.seen.lineage.mark_changed();
        self.seen.recorded.mark_changed();
        let mut news = self.agent.reports.news();
        if self.seen.observed.borrow().postgres.is_some() {
            self.seen.observed.mark_changed();
        }
        while !drainer.is_over() {
            let waits = (*news.borrow_and_update()).max(speech.looked);
            let due = speech.cadence.due(waits);
            let held = self.agent.jobs.open_snapshots().len();
            tokio::select! {
                stage = drainer.turn(self.commands.at_work(), held) => self.descend(stage, drainer),
                message = receiver.recv::<CoordinatorMessage>() => {
                    let message = message.map_err(|e| e.to_fault())?.ok_or_else(unwelcome)?;
                    if let CoordinatorMessage::ReportInterval(interval) = message {
                        speech.cadence.keep(interval);
                    } else if let Some(again) = self.obey(message, drainer) {
                        self.report(speech).await?;
                        self.tell(again, speech).await?;
                    }
                }
                Some(ended) = self.commands.next() => {
                    if let Some(id) = self.commands.ended(ended, drainer) {
                        // What the command did is reported before its end.
                        self.report(speech).await?;
                        self.tell(id, speech).await?;
                    }
                }
                // Something more urgent waits. We hold a sender ourselves, so this never errs.
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
                changed = self.seen.lineage.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let lineage = self.seen.lineage.borrow_and_update().clone();
                    if let Some(lineage) = lineage {
                        send(speech.sender, &AgentMessage::Lineage(Box::new(lineage))).await?;
                    }
                }
                changed = self.seen.recorded.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let recorded = self.seen.recorded.borrow_and_update().clone();
                    if let Some(recorded) = recorded {
                        send(speech.sender, &AgentMessage::Recorded(recorded)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the id of a command that has already ended and must be answered again.
    fn obey(&mut self, message: CoordinatorMessage, drainer: &Drainer) -> Option<CommandId> {
        match message {
            CoordinatorMessage::Welcome { .. } => None,
            CoordinatorMessage::Command {
                id,
                job,
                replication,
                command,
            } => {
                let of = (job, replication);
                self.commands.begin(id, of, command, drainer)
            }
            CoordinatorMessage::Abort { id, job } => self.commands.abort(id, job),
            CoordinatorMessage::Forget { id } => {
                self.commands.forget(id);
                None
            }
            CoordinatorMessage::Mirror(row) => {
                // A full queue means that PostgreSQL is slow; the next row replaces this one.
                let _ = self.queues.mirror.try_send(row);
                None
            }
            CoordinatorMessage::Audit(entry) => {
                // The coordinator repeats it until it is written.
                let _ = self.queues.audit.try_send(*entry);
                None
            }
            // Handled by the session.
            CoordinatorMessage::ReportInterval(_) | CoordinatorMessage::Rejected(_) => None,
        }
    }

    /// Sends everything that has changed, with the newest observation.
    async fn report(&self, speech: &mut Speech<'_>) -> Result<(), Fault> {
        let mut messages = self.agent.reports.take();
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
        let Some((job, outcome)) = self.commands.outcome(id) else {
            return Ok(());
        };
        if matches!(outcome, Ok(Outcome::SourceOpened { .. }))
            && let Some(open) = self.agent.opened(job)
        {
            for tables in open.summaries().chunks(SUMMARY_PAGE) {
                let page = AgentMessage::PlanPage {
                    job,
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

fn lost(fault: Fault) -> Gone {
    Gone::Lost {
        fault,
        welcomed: false,
    }
}

pub(super) async fn send(sender: &mut Sender, message: &AgentMessage) -> Result<(), Fault> {
    sender.send(message).await.map_err(|e| e.to_fault())
}

pub(super) fn unwelcome() -> Fault {
    Fault::new(FaultKind::Unreachable, "the coordinator ended the session").retry(Retry::Backoff)
}
