//! An agent's process: what it knows until it is killed, and what it says to the coordinator.
//!
//! Commands are answered as `agent/src/session/commands.rs` does: once each, by id, their outcome kept until it is
//! forgotten, an abort of an unknown one answered with `Cancelled`.

use std::collections::{BTreeMap, VecDeque};

use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, HeldSnapshot, Outcome, PartDone, SourceCommand,
    TableSummary, TargetCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::lineage::Lineage;
use steep_protocol::{
    ByteCount, CommandId, Epoch, Fault, FaultKind, JobId, Lsn, NodeId, PartNo, RowCount, TableName,
    TableNo,
};
use tokio::sync::mpsc;

use super::postgres::PARTS;
use super::source::ROW;
use crate::registry::SessionId;

/// A session with the coordinator, as the agent sees it.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) queue: mpsc::Receiver<CoordinatorMessage>,
    /// Messages on their way; lost with the connection.
    pub(super) sent: VecDeque<AgentMessage>,
    /// What it was told of this node's jobs.
    pub(super) lineage: Option<Lineage>,
}

/// A command from its arrival until its outcome is forgotten.
pub(super) enum Entry {
    Running(Box<Running>),
    Ended {
        job: JobId,
        outcome: Result<Outcome, Fault>,
    },
}

pub(super) struct Running {
    pub(super) job: JobId,
    pub(super) replication: Replication,
    pub(super) command: Command,
    /// When its next stage is due.
    pub(super) due: i64,
    pub(super) stage: u32,
    pub(super) cancelled: bool,
    /// Since when it waits for something, or failures of the present part.
    pub(super) waited: i64,
    pub(super) tries: u32,
    /// A fence.
    pub(super) lsn: u64,
    /// Which boot of the server it began under.
    pub(super) boot: u64,
}

/// Whether it first ends what runs of its job.
fn ends_others(command: &Command) -> bool {
    matches!(
        command,
        Command::Target(TargetCommand::Prepare(_) | TargetCommand::Cleanup { .. })
            | Command::Source(SourceCommand::Cleanup { .. })
    )
}

/// A plan: tables by their number in it.
pub(super) type Plan = Vec<u32>;

/// The table and part of the table that has that number in a plan.
pub(super) fn locate(plan: &Plan, part: u32) -> Option<(u32, u32)> {
    let mut first = 0;
    for table in plan {
        let parts = PARTS[*table as usize];
        if part < first + parts {
            return Some((*table, part - first));
        }
        first += parts;
    }
    None
}

pub(super) fn parts_of(plan: &Plan) -> u32 {
    plan.iter().map(|table| PARTS[*table as usize]).sum()
}

pub(super) fn table_name(table: u32) -> TableName {
    TableName::new("public", format!("t{table}")).unwrap()
}

pub(super) fn table_number(name: &TableName) -> u32 {
    name.table.as_str()[1..].parse().unwrap()
}

pub(super) fn summaries(plan: &Plan) -> Vec<TableSummary> {
    let mut first = 0;
    let mut tables = Vec::new();
    for (no, table) in (0..).zip(plan) {
        let parts = PARTS[*table as usize];
        tables.push(TableSummary {
            no: TableNo(no),
            name: table_name(*table),
            rows_estimate: RowCount(10),
            bytes_estimate: ByteCount(1_000),
            first_part: PartNo(first),
            parts,
        });
        first += parts;
    }
    tables
}

pub(super) fn done(part: u32, rows: u64) -> PartDone {
    PartDone {
        part: PartNo(part),
        rows: RowCount(rows),
        bytes: ByteCount(rows * ROW),
        wire: ByteCount(rows * 30),
    }
}

/// A snapshot that this process has opened.
pub(super) struct Open {
    pub(super) epoch: Epoch,
    pub(super) restarts: u8,
    /// 0 without a snapshot, as natively.
    pub(super) lsn: u64,
    pub(super) plan: Plan,
    /// The boot of the server under which it is held; `None` once it is closed.
    pub(super) held: Option<u64>,
    /// Rows of the parts that were read to their end.
    pub(super) read: BTreeMap<u32, u64>,
    /// Where its parts are written, and whether all are.
    pub(super) spool: Option<String>,
    pub(super) sealed: bool,
}

/// Who has a job's parts.
#[derive(Clone)]
pub(super) enum Holder {
    /// By number in [`Agent::opens`].
    Live(usize),
    Shared(usize),
    Stored {
        location: String,
        /// Its parts and rows, which this process knows from the manifest.
        totals: (u32, u64),
    },
}

pub(super) struct SourceJob {
    pub(super) target: NodeId,
    pub(super) open: Option<Holder>,
    pub(super) held: bool,
    pub(super) counted: Option<(u32, u64)>,
}

#[derive(Default)]
pub(super) struct Report {
    pub(super) done: Vec<PartDone>,
    pub(super) told: usize,
}

pub(super) struct Agent {
    pub(super) incarnation: u64,
    /// Down until then.
    pub(super) down_until: Option<i64>,
    pub(super) session: Option<Session>,
    pub(super) dials_at: i64,
    pub(super) looks_at: i64,
    pub(super) commands: BTreeMap<CommandId, Entry>,
    pub(super) jobs: BTreeMap<JobId, SourceJob>,
    pub(super) opens: Vec<Open>,
    pub(super) reports: BTreeMap<JobId, Report>,
}

impl Agent {
    pub(super) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            down_until: None,
            session: None,
            dials_at: 0,
            looks_at: 0,
            commands: BTreeMap::new(),
            jobs: BTreeMap::new(),
            opens: Vec::new(),
            reports: BTreeMap::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.down_until.is_none()
    }

    /// The process dies, and another one starts then.
    pub(super) fn kill(&mut self, until: i64) {
        *self = Self {
            down_until: Some(until),
            dials_at: until,
            ..Self::new(self.incarnation + 1)
        };
    }

    pub(super) fn say(&mut self, message: AgentMessage) {
        if let Some(session) = &mut self.session {
            session.sent.push_back(message);
        }
    }

    /// Says what is new of its parts.
    pub(super) fn report(&mut self) {
        let mut messages = Vec::new();
        for (job, report) in &mut self.reports {
            if report.told < report.done.len() {
                messages.push(AgentMessage::PartsDone {
                    job: *job,
                    parts: report.done[report.told..].to_vec(),
                });
            }
            report.told = report.done.len();
        }
        for message in messages {
            self.say(message);
        }
    }

    /// What follows the registration: everything that the coordinator may have missed.
    pub(super) fn tell_again(&mut self) {
        for report in self.reports.values_mut() {
            report.told = 0;
        }
        self.report();
        let ended = self.commands.iter();
        let ended = ended.filter(|(_, entry)| matches!(entry, Entry::Ended { .. }));
        for id in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tell(id);
        }
    }

    /// Says how a command ended, after the plan that it has opened.
    pub(super) fn tell(&mut self, id: CommandId) {
        let Some(Entry::Ended { job, outcome }) = self.commands.get(&id) else {
            return;
        };
        let (job, outcome) = (*job, outcome.clone());
        if matches!(outcome, Ok(Outcome::SourceOpened { .. }))
            && let Some(plan) = self.plan(job)
        {
            for tables in summaries(&plan).chunks(2) {
                let tables = tables.to_vec();
                self.say(AgentMessage::PlanPage { job, tables });
            }
        }
        self.say(AgentMessage::Finished {
            command: id,
            outcome,
        });
    }

    /// The plan of what is open for the job.
    pub(super) fn plan(&self, job: JobId) -> Option<Plan> {
        match self.jobs.get(&job)?.open.as_ref()? {
            Holder::Live(at) | Holder::Shared(at) => Some(self.opens[*at].plan.clone()),
            Holder::Stored { .. } => Some((0..super::postgres::TABLES).collect()),
        }
    }

    /// Lets `target` ask for the job. What is open stays.
    pub(super) fn admit(&mut self, job: JobId, target: &NodeId) {
        let entry = self.jobs.entry(job).or_insert_with(|| SourceJob {
            target: target.clone(),
            open: None,
            held: false,
            counted: None,
        });
        entry.target = target.clone();
    }

    /// From here on nobody may ask for the job.
    pub(super) fn forget(&mut self, job: JobId) {
        if let Some(SourceJob {
            open: Some(Holder::Live(at)),
            ..
        }) = self.jobs.remove(&job)
        {
            self.opens[at].held = None;
        }
        self.reports.remove(&job);
    }

    pub(super) fn hold(&mut self, job: JobId, holder: Holder) {
        let held = match &holder {
            Holder::Live(at) => self.opens[*at].lsn > 0,
            Holder::Shared(_) => true,
            Holder::Stored { .. } => false,
        };
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.held = held;
            if !matches!(holder, Holder::Stored { .. }) {
                entry.counted = None;
            }
            entry.open = Some(holder);
        }
    }

    pub(super) fn is_lost(&self, at: usize, boots: u64) -> bool {
        self.opens[at].held != Some(boots)
    }

    /// Whether what is open ended although the job has not closed it.
    pub(super) fn is_broken(&self, holder: &Holder, boots: u64) -> bool {
        match holder {
            Holder::Live(at) => self.opens[*at].held.is_some_and(|boot| boot != boots),
            Holder::Shared(at) => self.is_lost(*at, boots) && !self.opens[*at].sealed,
            Holder::Stored { .. } => false,
        }
    }

    /// Parts and rows that were read for the job.
    pub(super) fn totals(&self, job: JobId) -> Option<(u32, u64)> {
        let entry = self.jobs.get(&job)?;
        entry.counted.or_else(|| match entry.open.as_ref()? {
            Holder::Live(at) | Holder::Shared(at) => {
                let read = &self.opens[*at].read;
                Some((u32::try_from(read.len()).unwrap(), read.values().sum()))
            }
            Holder::Stored { totals, .. } => Some(*totals),
        })
    }

    pub(super) fn open_snapshots(&self) -> Vec<HeldSnapshot> {
        let held = self.jobs.iter().filter(|(_, job)| job.held);
        held.map(|(id, job)| HeldSnapshot {
            job: *id,
            target: job.target.clone(),
            lsn: match job.open {
                Some(Holder::Live(at) | Holder::Shared(at)) => Lsn(self.opens[at].lsn),
                Some(Holder::Stored { .. }) | None => Lsn(0),
            },
        })
        .collect()
    }

    pub(super) fn lost_snapshots(&self, boots: u64) -> Vec<JobId> {
        let held = self.jobs.iter().filter(|(_, job)| job.held);
        let broken = held.filter(|(_, job)| {
            let open = job.open.as_ref();
            open.is_some_and(|open| self.is_broken(open, boots))
        });
        broken.map(|(id, _)| *id).collect()
    }

    pub(super) fn part_done(&mut self, job: JobId, part: PartDone) {
        self.reports.entry(job).or_default().done.push(part);
    }

    fn end_others(&mut self, of: JobId, due: i64) {
        for entry in self.commands.values_mut() {
            if let Entry::Running(running) = entry
                && running.job == of
            {
                running.cancelled = true;
                running.due = running.due.min(due);
            }
        }
    }

    /// Obeys a message of the coordinator.
    pub(super) fn obey(&mut self, node: &NodeId, message: CoordinatorMessage, due: i64) {
        match message {
            CoordinatorMessage::Command {
                id,
                job,
                replication,
                command,
            } => match self.commands.get(&id) {
                Some(Entry::Running(_)) => {}
                Some(Entry::Ended { .. }) => {
                    self.report();
                    self.tell(id);
                }
                None => {
                    if ends_others(&command) {
                        self.end_others(job, due);
                    }
                    let running = Running {
                        job,
                        replication,
                        command,
                        due,
                        stage: 0,
                        cancelled: false,
                        waited: 0,
                        tries: 0,
                        lsn: 0,
                        boot: 0,
                    };
                    let running = Entry::Running(Box::new(running));
                    self.commands.insert(id, running);
                }
            },
            CoordinatorMessage::Abort { id, job } => match self.commands.get_mut(&id) {
                Some(Entry::Running(running)) => {
                    running.cancelled = true;
                    running.due = running.due.min(due);
                }
                Some(Entry::Ended { .. }) => {}
                None => {
                    let fault = Fault::new(FaultKind::Cancelled, "cancelled before it began");
                    let outcome = Err(fault.on(node));
                    self.commands.insert(id, Entry::Ended { job, outcome });
                    self.report();
                    self.tell(id);
                }
            },
            CoordinatorMessage::Forget { id } => {
                if let Some(Entry::Ended { .. }) = self.commands.get(&id) {
                    self.commands.remove(&id);
                }
            }
            CoordinatorMessage::Audit(entry) => self.say(AgentMessage::Audited { seq: entry.seq }),
            CoordinatorMessage::Welcome { .. }
            | CoordinatorMessage::Mirror(_)
            | CoordinatorMessage::ReportInterval(_)
            | CoordinatorMessage::Rejected(_) => {}
        }
    }
}
