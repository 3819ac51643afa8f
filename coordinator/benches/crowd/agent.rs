//! Agents without servers that send the messages of real ones at the same times.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use steep_certs::Credentials;
use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, Observed, Outcome, PartDone, PartProgress,
    ProgressReport, PublicationState, PublicationStatus, Registration, Seat, SlotStatus,
    SourceCommand, TableSummary, TargetCommand,
};
use steep_protocol::message::facts::{SourceFacts, TargetFacts};
use steep_protocol::message::handover::Replication;
use steep_protocol::quic::{Endpoint, Expect, Sender, Tuning};
use steep_protocol::report_interval::{Cadence, LOOK_EVERY, News, ReportInterval, first_look};
use steep_protocol::{ByteCount, JobId, Lsn, PartNo, Phase, RowCount, TableName, TableNo};
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use super::healthy::server;
use super::{PART_MILLIS, PARTS_EACH, TABLES};

/// Messages of all agents, and the number of sends.
pub(super) static MESSAGES: AtomicU64 = AtomicU64::new(0);
pub(super) static SENDS: AtomicU64 = AtomicU64::new(0);

/// An agent that finishes every command at once, except that it copies for ever.
pub(super) struct FakeAgent {
    sender: Sender,
    cadence: Cadence,
    epoch: Instant,
    /// When its parts end, as an offset from a full second.
    phase: Duration,
    /// Jobs it copies, with the number of finished parts.
    copying: BTreeMap<JobId, u32>,
    /// Jobs whose slots it has, with their retained WAL.
    slots: BTreeMap<JobId, u64>,
    /// Audit entries that it has not acknowledged.
    audited: Vec<u64>,
    /// Time of its last report: the oldest unreported change is that old.
    changed: Duration,
    /// Whether it has observed its server since.
    looked: bool,
}

impl FakeAgent {
    pub(super) async fn run(
        address: &str,
        credentials: &Credentials,
        epoch: Instant,
        phase: Duration,
    ) -> Result<()> {
        let endpoint = Endpoint::dialer(credentials, Tuning::BULK)?;
        let connection = loop {
            match endpoint.dial(address, &Expect::Coordinator).await {
                Ok(connection) => break connection,
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        };
        let (mut sender, mut receiver) = connection.open().await?;
        let register = AgentMessage::Register(Registration {
            advertise: "127.0.0.1:7401".to_owned(),
            version: "0.1.0".to_owned(),
            incarnation: 1,
            open_snapshots: Vec::new(),
            admitted: Vec::new(),
            max_workers: 4,
            spool: None,
            seat: Seat(1),
            sequence_interval_seconds: 0,
        });
        sender.send(&register).await?;
        let interval = ReportInterval::default();
        let mut agent = Self {
            sender,
            cadence: Cadence::new(interval, Instant::now().into_std(), SystemTime::now()),
            epoch,
            phase,
            copying: BTreeMap::new(),
            slots: BTreeMap::new(),
            audited: Vec::new(),
            changed: epoch.elapsed(),
            looked: false,
        };
        let first = first_look(Instant::now().into_std(), SystemTime::now());
        let mut looks = interval_at(Instant::from_std(first), LOOK_EVERY);
        loop {
            let due = agent.due();
            tokio::select! {
                message = receiver.recv::<CoordinatorMessage>() => match message? {
                    Some(message) => agent.obey(message).await?,
                    None => bail!("the coordinator ended the session"),
                },
                _ = looks.tick() => agent.looked = true,
                () = sleep_until(due) => agent.speak().await?,
            }
        }
    }

    async fn obey(&mut self, message: CoordinatorMessage) -> Result<()> {
        match message {
            CoordinatorMessage::Command {
                job,
                command: Command::Target(TargetCommand::Copy(_)),
                ..
            } => {
                self.copying.insert(job, 0);
            }
            CoordinatorMessage::Command {
                id, job, command, ..
            } => {
                if let Command::Source(SourceCommand::Open(_)) = command {
                    self.slots.insert(job, 0);
                }
                let outcome = Ok(perform(&mut self.sender, job, &command).await?);
                let finished = AgentMessage::Finished {
                    command: id,
                    outcome,
                };
                self.sender.send(&finished).await?;
            }
            CoordinatorMessage::ReportInterval(interval) => self.cadence.keep(interval),
            CoordinatorMessage::Audit(entry) => self.audited.push(entry.seq),
            _ => {}
        }
        Ok(())
    }

    /// Time of its next report: for jobs it copies, bytes grow all the time.
    fn due(&self) -> Instant {
        let news = if !self.audited.is_empty() {
            News::Event
        } else if self.looked || !self.copying.is_empty() {
            News::Growth
        } else {
            News::None
        };
        let due = self.cadence.due(news);
        due.map_or(Instant::now() + LOOK_EVERY, Instant::from_std)
    }

    /// Sends everything new, together.
    async fn speak(&mut self) -> Result<()> {
        let now = Instant::now().into_std();
        let audited = std::mem::take(&mut self.audited).into_iter();
        let mut messages: Vec<AgentMessage> =
            audited.map(|seq| AgentMessage::Audited { seq }).collect();
        let done = self.epoch.elapsed().saturating_sub(self.phase).as_millis();
        let done = u32::try_from(done / u128::from(PART_MILLIS))?;
        let changed = std::mem::replace(&mut self.changed, self.epoch.elapsed());
        for (job, told) in &mut self.copying {
            if done > *told {
                let parts = vec![PartDone {
                    part: PartNo(*told),
                    rows: RowCount(1_000),
                    bytes: ByteCount(1),
                    wire: ByteCount(1),
                }];
                *told = done;
                messages.push(AgentMessage::PartsDone { job: *job, parts });
            }
            messages.push(AgentMessage::Progress(progress(
                *job,
                changed,
                self.changed,
            )?));
        }
        if std::mem::take(&mut self.looked) {
            messages.push(AgentMessage::Observed(self.observed()));
        }
        self.cadence.spoke(now);
        MESSAGES.fetch_add(messages.len() as u64, Ordering::Relaxed);
        SENDS.fetch_add(1, Ordering::Relaxed);
        Ok(self.sender.send_all(&messages).await?)
    }
}

impl FakeAgent {
    /// Its observations, in which nothing stands out: WAL is written all the time.
    fn observed(&mut self) -> Observed {
        let slots = self.slots.iter_mut().map(|(job, held)| {
            *held += 1_000;
            SlotStatus {
                slot: Replication::of(*job).slot,
                job: *job,
                active: false,
                lag: ByteCount(*held),
                wal_held: ByteCount(*held),
                wal_status: "reserved".to_owned(),
                confirmed: Lsn(1),
            }
        });
        let slots: Vec<SlotStatus> = slots.collect();
        let publications = slots.iter().map(|slot| PublicationStatus {
            job: slot.job,
            state: PublicationState::Sound,
            members: 1,
            newest: 1,
            mark: 1,
        });
        Observed {
            publications: publications.collect(),
            postgres: Some(Ok(180_000)),
            slots,
            ..Observed::default()
        }
    }
}

/// Four parts in flight; the first encodes when something changed and when that is sent.
fn progress(job: JobId, changed: Duration, now: Duration) -> Result<ProgressReport> {
    let changed = u64::try_from(changed.as_millis())?;
    let now = u64::try_from(now.as_millis())?;
    let active = (0..4).map(|n| PartProgress {
        part: PartNo(TABLES * PARTS_EACH - 1 - n),
        bytes: ByteCount(if n == 0 { changed << 20 } else { u64::from(n) }),
        wire: ByteCount(if n == 0 { now << 20 } else { 0 }),
    });
    Ok(ProgressReport {
        job,
        phase: Phase::Copy,
        active: active.collect(),
        work: None,
        retries: 0,
    })
}

async fn perform(sender: &mut Sender, job: JobId, command: &Command) -> Result<Outcome> {
    Ok(match command {
        Command::Source(SourceCommand::Gather { .. }) => {
            Outcome::SourceFacts(Box::new(SourceFacts {
                server: server(1),
                tables: TABLES.into(),
                total_bytes: ByteCount(500),
                replication_link: Some(Ok(())),
                pg_dump: Some(Ok(18)),
                ..SourceFacts::default()
            }))
        }
        Command::Target(TargetCommand::Gather { .. }) => {
            Outcome::TargetFacts(Box::new(TargetFacts {
                server: server(2),
                disk_free: Some(ByteCount(1 << 50)),
                agent_link: Some(Ok(300)),
                server_link: Some(Ok(())),
                ..TargetFacts::default()
            }))
        }
        Command::Source(SourceCommand::Open(_)) => {
            let tables = (0..TABLES).map(|n| {
                Ok(TableSummary {
                    no: TableNo(n),
                    name: TableName::new("public", format!("table_{n}"))?,
                    rows_estimate: RowCount(1_000_000),
                    bytes_estimate: ByteCount(10 << 30),
                    first_part: PartNo(n * PARTS_EACH),
                    parts: PARTS_EACH,
                })
            });
            let tables = tables.collect::<Result<_>>()?;
            sender.send(&AgentMessage::PlanPage { job, tables }).await?;
            Outcome::SourceOpened {
                lsn: Lsn(1),
                tables: TABLES,
                parts: TABLES * PARTS_EACH,
            }
        }
        _ => Outcome::Done,
    })
}
