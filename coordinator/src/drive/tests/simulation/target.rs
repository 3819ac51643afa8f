//! What a target's agent does for each command. The semantics are those of `agent/src/{target,peer/fetch,replication}`.

use steep_protocol::message::agent::{
    Command, CopyParts, EarlierEpoch, NodeCommand, Outcome, PeerAddress, PrepareTarget,
    SequencesFrom, SubscriptionStart, TargetCommand,
};
use steep_protocol::message::facts::TargetFacts;
use steep_protocol::message::job::{CancelledData, ExistingRows, SyncSlots};
use steep_protocol::{Fault, JobId, Retry};

use super::agent::{Running, done};
use super::postgres::Subscription;
use super::source::{failed, totals, transient};
use super::world::{After, Cluster, Done, Next};

/// Tries of a part before its fault is the copy's.
const TRIES: u32 = 4;

impl Cluster {
    pub(super) fn target_stage(
        &mut self,
        n: usize,
        run: &mut Running,
        command: &TargetCommand,
    ) -> Result<Next, Fault> {
        self.asks_server(n)?;
        let job = run.job;
        match command {
            TargetCommand::Gather { .. } => {
                Ok(Done(Outcome::TargetFacts(Box::<TargetFacts>::default())))
            }
            TargetCommand::Prepare(request) => self.prepare(n, run, request),
            TargetCommand::Copy(request) => self.copy(n, run, request),
            TargetCommand::BuildIndexes { .. } | TargetCommand::BuildConstraints { .. } => {
                if let TargetCommand::BuildIndexes { note, .. } = command {
                    self.renew_note(n, job, note);
                }
                if run.stage == 0 {
                    return Ok(After(self.dice.between(100, 6_000)));
                }
                Ok(Done(Outcome::Warned(Vec::new())))
            }
            TargetCommand::Subscribe {
                source,
                start,
                earlier,
                ..
            } => self.subscribe(n, run, (source, *start), earlier),
            TargetCommand::Fold {
                source,
                earlier,
                note,
                ..
            } => {
                self.renew_note(n, job, note);
                self.fold(n, run, source, earlier)
            }
            TargetCommand::AwaitNativeCopy => {
                let name = run.replication.name();
                let subscriptions = &self.nodes[n].server.subscriptions;
                match subscriptions.get(name.as_str()) {
                    None => Err(failed("the subscription is not there")),
                    Some(own) if own.tables.values().all(Option::is_some) => {
                        Ok(Done(Outcome::Done))
                    }
                    Some(_) => Ok(After(200)),
                }
            }
            TargetCommand::Finish {
                source, sequences, ..
            } => {
                if run.stage == 0 {
                    let m = self.peer(source);
                    self.reaches(n, m, job)?;
                    if *sequences == SequencesFrom::Source {
                        self.asks_server(m)?;
                    }
                    return Ok(After(self.dice.between(100, 2_000)));
                }
                Ok(Done(Outcome::Finished {
                    findings: Vec::new(),
                    missing: Default::default(),
                }))
            }
            TargetCommand::Prove => {
                let ledger = self.nodes[n].server.ledger.iter();
                let own = ledger.filter(|((of, _, _), _)| *of == job);
                let (parts, rows) =
                    own.fold((0, 0), |(n, sum), (_, (_, rows))| (n + 1, sum + rows));
                Ok(Done(totals(parts, rows)))
            }
            TargetCommand::Release => {
                self.nodes[n].agent.reports.remove(&job);
                self.forget_ledger(n, job);
                Ok(Done(Outcome::Done))
            }
            TargetCommand::Cleanup { data, earlier, .. } => {
                self.clean_target(n, run, *data, earlier)
            }
            TargetCommand::Compare { .. } => Ok(Done(Outcome::Reviewed(Box::default()))),
            _ => Err(failed("not simulated")),
        }
    }

    fn forget_ledger(&mut self, n: usize, job: JobId) {
        let server = &mut self.nodes[n].server;
        server.ledger.retain(|(of, _, _), _| *of != job);
        server.records.remove(&job);
    }

    pub(super) fn peer(&self, address: &PeerAddress) -> usize {
        let mut nodes = self.nodes.iter();
        nodes.position(|node| node.name == address.node).unwrap()
    }

    /// Whether the target's agent gets an answer from its source's.
    pub(super) fn reaches(&self, n: usize, m: usize, job: JobId) -> Result<(), Fault> {
        self.admitted(m, job, &self.nodes[n].name)
    }

    fn plan_of(&self, n: usize, m: usize, job: JobId) -> Result<Vec<u32>, Fault> {
        self.reaches(n, m, job)?;
        let name = &self.nodes[m].name;
        let plan = self.nodes[m].agent.plan(job);
        plan.ok_or_else(|| transient("the job's snapshot is not open").on(name))
    }

    fn renew_note(&mut self, n: usize, job: JobId, note: &Option<String>) {
        if let (Some(record), Some(_)) = (self.nodes[n].server.records.get_mut(&job), note) {
            record.note.clone_from(note);
        }
    }

    fn prepare(
        &mut self,
        n: usize,
        run: &mut Running,
        request: &PrepareTarget,
    ) -> Result<Next, Fault> {
        let job = run.job;
        if run.stage == 0 {
            self.nodes[n].agent.reports.remove(&job);
        }
        let m = self.peer(&request.source);
        let plan = self.plan_of(n, m, job)?;
        self.asks_server(m)?;
        let server = &mut self.nodes[n].server;
        if request.epoch.0 > 0 {
            let record = server.records.get(&job);
            if record.is_none_or(|record| plan.iter().any(|t| !record.planned.contains(t))) {
                return Err(failed("the new plan has tables that the first one had not"));
            }
            if run.stage == 0 {
                server
                    .ledger
                    .retain(|(of, _, _), (table, _)| *of != job || !plan.contains(table));
                return Ok(After(100));
            }
            for table in plan {
                server.truncate(table);
            }
            return Ok(Done(Outcome::Warned(Vec::new())));
        }
        match run.stage {
            0 => {
                if server.records.get(&job).is_some_and(|r| r.prepared) {
                    return Ok(Done(Outcome::Warned(Vec::new())));
                }
                let record = server.records.entry(job).or_default();
                record.open(&plan, request);
                Ok(After(200))
            }
            1 => {
                let full = plan.iter().any(|table| server.rows.contains_key(table));
                if full && request.existing == ExistingRows::Refuse {
                    return Err(failed("tables to be copied hold rows here"));
                }
                for table in plan {
                    server.truncate(table);
                }
                if let Some(record) = server.records.get_mut(&job) {
                    record.owns_rows = true;
                }
                Ok(After(200))
            }
            _ => {
                if let Some(record) = server.records.get_mut(&job) {
                    record.prepared = true;
                }
                Ok(Done(Outcome::Warned(Vec::new())))
            }
        }
    }

    fn copy(&mut self, n: usize, run: &mut Running, request: &CopyParts) -> Result<Next, Fault> {
        let job = run.job;
        let m = self.peer(&request.source);
        let epoch = request.epoch;
        if run.stage == 0 {
            self.plan_of(n, m, job)?;
            self.asks_server(m)?;
            let there = self.nodes[n].server.ledger.iter();
            let there = there.filter(|((of, at, _), _)| *of == job && *at == epoch);
            let there: Vec<_> = there
                .map(|((_, _, part), (_, rows))| (*part, *rows))
                .collect();
            for (part, rows) in there {
                self.nodes[n].agent.part_done(job, done(part, rows));
            }
            return Ok(After(100));
        }
        let mut order = request.order.iter().map(|part| part.0);
        let ledger = &self.nodes[n].server.ledger;
        let Some(part) = order.find(|part| !ledger.contains_key(&(job, epoch, *part))) else {
            return Ok(Done(Outcome::Done));
        };
        let name = self.nodes[n].name.clone();
        match self.serve(m, (job, &name), (epoch.0, part)) {
            Ok((table, rows)) => {
                run.tries = 0;
                let server = &mut self.nodes[n].server;
                let count = rows.len() as u64;
                server.insert(table, rows);
                let before = server.ledger.insert((job, epoch, part), (table, count));
                assert!(before.is_none(), "part {part} is committed twice");
                self.nodes[n].agent.part_done(job, done(part, count));
                Ok(After(self.dice.between(100, 1_500)))
            }
            Err(fault) => {
                run.tries += 1;
                if fault.retry == Retry::Never || run.tries >= TRIES {
                    return Err(if fault.node.is_none() {
                        fault.on(&self.nodes[m].name)
                    } else {
                        fault
                    });
                }
                Ok(After(250 << (run.tries - 1)))
            }
        }
    }

    fn subscribe(
        &mut self,
        n: usize,
        run: &mut Running,
        (source, start): (&PeerAddress, SubscriptionStart),
        earlier: &[EarlierEpoch],
    ) -> Result<Next, Fault> {
        let m = self.peer(source);
        self.reaches(n, m, run.job)?;
        let own = (run.replication.clone(), start);
        let at_slot = |e: &EarlierEpoch| (e.replication.clone(), SubscriptionStart::AtSlot(e.lsn));
        let all: Vec<_> = earlier.iter().map(at_slot).chain([own]).collect();
        let at = run.stage as usize;
        if let Some((replication, start)) = all.get(at) {
            let name = replication.name().as_str().to_owned();
            if !self.nodes[n].server.subscriptions.contains_key(&name) {
                self.asks_server(m)?;
                let published = self.nodes[m].server.publications().get(&name);
                let Some(tables) = published.cloned() else {
                    return Err(failed(format!("the publication {name} is not there")));
                };
                let (position, from) = match start {
                    SubscriptionStart::AtSlot(lsn) => (lsn.0, Some(0)),
                    SubscriptionStart::AtOrigin(_) => return Err(failed("not simulated")),
                    SubscriptionStart::NativeCopy => (0, None),
                };
                let tables = tables.into_iter().map(|table| (table, from));
                let shared = replication.shared();
                let decoded_for = shared.as_ref().unwrap_or(replication).name();
                let subscription = Subscription {
                    slot: replication.slot.as_str().to_owned(),
                    publication: decoded_for.as_str().to_owned(),
                    enabled: false,
                    position,
                    tables: tables.collect(),
                };
                self.nodes[n]
                    .server
                    .subscriptions
                    .insert(name, subscription);
            }
            return Ok(After(100));
        }
        for (replication, _) in &all {
            let name = replication.name().as_str().to_owned();
            if let Some(own) = self.nodes[n].server.subscriptions.get_mut(&name) {
                own.enabled = true;
            }
        }
        Ok(Done(match start {
            SubscriptionStart::NativeCopy => Outcome::Subscribed {
                sync_slots: SyncSlots {
                    subscription: 7,
                    system: 9,
                },
            },
            _ => Outcome::Done,
        }))
    }

    fn clean_target(
        &mut self,
        n: usize,
        run: &mut Running,
        data: CancelledData,
        earlier: &[EarlierEpoch],
    ) -> Result<Next, Fault> {
        let job = run.job;
        // It ends the job's sessions that a dead agent left behind.
        let server = &mut self.nodes[n].server;
        if run.stage == 0 {
            let name = run.replication.name().as_str().to_owned();
            let of = |epoch: &EarlierEpoch| epoch.replication.name().as_str().to_owned();
            let mut all: Vec<String> = earlier.iter().map(of).collect();
            all.extend([format!("{name}_stopped"), name]);
            server.subscriptions.retain(|name, _| !all.contains(name));
            self.nodes[n].agent.reports.remove(&job);
            return Ok(After(200));
        }
        if data == CancelledData::Keep {
            self.keeps_rows.insert(n);
        } else if let Some(record) = server.records.get(&job)
            && record.owns_rows
        {
            for table in record.planned.clone() {
                server.truncate(table);
            }
        }
        self.forget_ledger(n, job);
        Ok(Done(Outcome::Warned(Vec::new())))
    }

    /// Runs a command's next stage.
    pub(super) fn stage(&mut self, n: usize, run: &mut Running) -> Result<Next, Fault> {
        let command = run.command.clone();
        match &command {
            Command::Source(command) => self.source_stage(n, run, command),
            Command::Target(command) => self.target_stage(n, run, command),
            Command::Node(NodeCommand::CheckStored { .. }) => Ok(Done(Outcome::Done)),
            Command::Node(_) => Err(failed("not simulated")),
        }
    }
}
