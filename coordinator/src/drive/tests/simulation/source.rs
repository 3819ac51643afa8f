//! What a source's agent does for each command, stage by stage, so that it can be killed in between. The semantics are
//! those of `agent/src/session/{dispatch,opening}.rs` and what they call.

use std::collections::BTreeSet;

use steep_protocol::message::agent::{
    EarlierEpoch, Export, OpenSource, Outcome, SlotOrigin, SourceCommand,
};
use steep_protocol::message::facts::SourceFacts;
use steep_protocol::message::handover::{Replication, SlotOwner};
use steep_protocol::message::snapshot::{Compared, VerifiedSnapshot};
use steep_protocol::{
    ByteCount, Fault, FaultKind, JobId, Lsn, NodeId, Retry, RowCount, SnapshotId, Sum,
};

use super::agent::{Holder, Open, Running, parts_of, table_number};
use super::postgres::{Note, Server, TABLES};
use super::world::{After, Cluster, Done, Next, Node};

/// The checksum of every stored snapshot's manifest.
pub(super) const MANIFEST: Sum = Sum([1; 32]);

/// COPY bytes of a row.
pub(super) const ROW: u64 = 100;

pub(super) fn failed(text: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Failed, text)
}

pub(super) fn transient(text: impl Into<String>) -> Fault {
    failed(text).retry(Retry::Backoff)
}

fn is_prepared(replication: &Replication) -> bool {
    replication.name().as_str() != replication.slot.as_str()
}

impl Cluster {
    pub(super) fn source_stage(
        &mut self,
        n: usize,
        run: &mut Running,
        command: &SourceCommand,
    ) -> Result<Next, Fault> {
        let job = run.job;
        match command {
            SourceCommand::Gather { target, slot, .. } => {
                self.nodes[n].agent.admit(job, target);
                self.asks_server(n)?;
                assert_eq!(*slot, SlotOrigin::Made);
                Ok(Done(Outcome::SourceFacts(Box::new(SourceFacts {
                    spool_room: Some(ByteCount(1 << 40)),
                    ..SourceFacts::default()
                }))))
            }
            SourceCommand::Admit { target, .. } | SourceCommand::AdmitChange { target, .. } => {
                self.nodes[n].agent.admit(job, target);
                Ok(Done(Outcome::Done))
            }
            SourceCommand::Open(request) => self.open(n, run, request),
            SourceCommand::CloseSnapshot => {
                self.close_snapshot(n, job);
                Ok(Done(Outcome::Done))
            }
            SourceCommand::AwaitFence { earlier } => self.await_fence(n, run, earlier),
            SourceCommand::Prove => match self.nodes[n].agent.totals(job) {
                Some((parts, rows)) => Ok(Done(totals(parts, rows))),
                None => Err(failed("this agent no longer knows what it sent")),
            },
            SourceCommand::Release => {
                self.nodes[n].agent.forget(job);
                Ok(Done(Outcome::Done))
            }
            SourceCommand::Cleanup { earlier, .. } => {
                self.nodes[n].agent.forget(job);
                self.asks_server(n)?;
                let names = earlier.iter().map(|epoch| &epoch.replication);
                let all: Vec<_> = names.chain([&run.replication]).collect();
                if let Some(replication) = all.get(run.stage as usize) {
                    self.drop_replication(n, replication);
                }
                let last = run.stage as usize + 1 >= all.len();
                Ok(if last { Done(Outcome::Done) } else { After(50) })
            }
            SourceCommand::Store(request) => self.store(n, run, request),
            SourceCommand::VerifyStored { .. } => {
                Ok(Done(Outcome::Verified(Box::new(VerifiedSnapshot {
                    unread: None,
                    snapshot: SnapshotId(job.0),
                    manifest: Some(MANIFEST),
                    parts: 1,
                    rows: 1,
                    bytes: 1,
                    problems: Vec::new(),
                    problems_total: 0,
                    compared: Compared::Nothing { why: String::new() },
                }))))
            }
            SourceCommand::DeleteSnapshot { location } => {
                if run.stage == 0 {
                    self.nodes[n].agent.forget(job);
                    self.asks_server(n)?;
                    self.drop_replication(n, &run.replication);
                    return Ok(After(50));
                }
                let archives = &mut self.nodes[n].server.archives;
                if let Some(location) = location
                    && archives.get(location).is_some_and(|a| a.snapshot == job)
                {
                    archives.remove(location);
                }
                Ok(Done(Outcome::Done))
            }
            SourceCommand::PrepareSlot { .. }
            | SourceCommand::OpenFollowed(_)
            | SourceCommand::AwaitFenceAfterWriters { .. }
            | SourceCommand::DropPrepared
            | SourceCommand::TakeSlot { .. }
            | SourceCommand::AdmitVerify { .. }
            | SourceCommand::ReturnSlot { .. } => Err(failed("not simulated")),
        }
    }

    pub(super) fn drop_replication(&mut self, n: usize, replication: &Replication) {
        let slot = replication.slot.as_str();
        let server = &mut self.nodes[n].server;
        if let Some(SlotOwner::Made(snapshot, job)) = SlotOwner::of(slot) {
            let own = Replication::of(job).name();
            server.drop_replication(own.as_str(), slot);
            let shared = Replication::of_snapshot(snapshot, job).name();
            return server.drop_replication(shared.as_str(), slot);
        }
        server.drop_replication(replication.name().as_str(), slot);
    }

    fn close_snapshot(&mut self, n: usize, job: JobId) {
        let counted = self.nodes[n].agent.totals(job);
        let agent = &mut self.nodes[n].agent;
        let Some(entry) = agent.jobs.get_mut(&job) else {
            return;
        };
        entry.counted = counted;
        entry.held = false;
        if let Some(Holder::Live(at)) = entry.open.take() {
            agent.opens[at].held = None;
        }
    }

    fn opened(&self, n: usize, job: JobId) -> Result<Next, Fault> {
        let Node { server, agent, .. } = &self.nodes[n];
        let lsn = match agent.jobs.get(&job).and_then(|entry| entry.open.as_ref()) {
            Some(Holder::Live(at) | Holder::Shared(at)) => agent.opens[*at].lsn,
            Some(Holder::Stored { location, .. }) => server.archives[location].lsn,
            None => return Err(transient("it was closed meanwhile")),
        };
        let plan = agent.plan(job).unwrap();
        Ok(Done(Outcome::SourceOpened {
            lsn: Lsn(lsn),
            tables: u32::try_from(plan.len()).unwrap(),
            parts: parts_of(&plan),
        }))
    }

    /// Whether the request's snapshot is open at that position.
    fn holds(&self, n: usize, job: JobId, request: &OpenSource, at: Lsn) -> bool {
        let Node { server, agent, .. } = &self.nodes[n];
        match agent.jobs.get(&job).and_then(|entry| entry.open.as_ref()) {
            Some(Holder::Live(open)) => {
                let held = &agent.opens[*open];
                let own = (held.epoch, held.restarts) == (request.epoch, request.restarts);
                own && held.lsn == at.0 && !agent.is_lost(*open, server.boots)
            }
            Some(Holder::Shared(_) | Holder::Stored { .. }) | None => false,
        }
    }

    fn open(&mut self, n: usize, run: &mut Running, request: &OpenSource) -> Result<Next, Fault> {
        let job = run.job;
        if let Some(at) = request.only_at
            && !self.holds(n, job, request, at)
        {
            let text = "the snapshot is not open any more";
            return Err(Fault::new(FaultKind::SourceChanged, text));
        }
        if run.stage == 0 {
            let Node { server, agent, .. } = &mut self.nodes[n];
            agent.admit(job, &request.target);
            if let Some(open) = agent.jobs[&job].open.clone() {
                let (gone, own) = match &open {
                    Holder::Live(at) => (
                        agent.opens[*at].lsn > 0 && agent.is_lost(*at, server.boots),
                        (agent.opens[*at].epoch, agent.opens[*at].restarts)
                            == (request.epoch, request.restarts),
                    ),
                    other => (agent.is_broken(other, server.boots), request.epoch.0 == 0),
                };
                if !gone && own {
                    return self.opened(n, job);
                }
                if let Holder::Live(at) = open {
                    agent.opens[at].held = None;
                }
            }
        }
        match &request.export {
            Export::Template { snapshot } => {
                self.copy_template(n, run, &request.target, *snapshot)?;
                Ok(Done(Outcome::Done))
            }
            Export::Stored(place) | Export::Files(place) => {
                let archive = self.nodes[n].server.archives.get(&place.location);
                let snapshot = JobId(place.snapshot.0);
                let whole =
                    archive.is_some_and(|a| a.complete && a.snapshot == snapshot && !a.damaged);
                if !whole {
                    let text = "the stored snapshot is not there";
                    return Err(Fault::new(FaultKind::StoreDamaged, text));
                }
                if matches!(request.export, Export::Stored(_)) {
                    self.copy_template(n, run, &request.target, place.snapshot)?;
                }
                let Node { server, agent, .. } = &mut self.nodes[n];
                let parts = &server.archives[&place.location].parts;
                let rows = parts.values().map(|rows| rows.len() as u64).sum();
                let holder = Holder::Stored {
                    location: place.location.clone(),
                    totals: (u32::try_from(parts.len()).unwrap(), rows),
                };
                agent.hold(job, holder);
                self.opened(n, job)
            }
            Export::Shared { snapshot } => {
                let Node { server, agent, .. } = &self.nodes[n];
                let shared = agent.jobs.get(&JobId(snapshot.0));
                let at = match shared.and_then(|entry| entry.open.as_ref()) {
                    Some(Holder::Live(at)) if !agent.is_lost(*at, server.boots) => *at,
                    _ => return Err(lost()),
                };
                self.copy_template(n, run, &request.target, *snapshot)?;
                self.nodes[n].agent.hold(job, Holder::Shared(at));
                self.opened(n, job)
            }
            Export::Slot | Export::SlotAndSnapshot => self.open_own(n, run, request),
        }
    }

    /// Publication, slot and snapshot of the job's own.
    fn open_own(
        &mut self,
        n: usize,
        run: &mut Running,
        request: &OpenSource,
    ) -> Result<Next, Fault> {
        self.asks_server(n)?;
        let now = self.now;
        let name = run.replication.name().as_str().to_owned();
        let slot = run.replication.slot.as_str().to_owned();
        let Node { server, agent, .. } = &mut self.nodes[n];
        let left = request.unfinished.iter().map(table_number);
        let left: BTreeSet<u32> = left.collect();
        match run.stage {
            0 => {
                run.boot = server.boots;
                if let Some(seconds) = request.kept_seconds {
                    let kept = i64::try_from(seconds.max(3_600)).unwrap();
                    server.notes.insert(
                        slot,
                        Note {
                            job: run.replication.id,
                            target: None,
                            lsn: None,
                            expires_at: now + kept * 1_000,
                        },
                    );
                }
                for epoch in &request.earlier {
                    narrow(server, &epoch.replication, &left)?;
                }
                Ok(After(50))
            }
            1 => {
                server.slots.remove(&slot);
                if !server.is_shared(&name, &slot) {
                    server.publications_mut().remove(&name);
                }
                Ok(After(50))
            }
            2 => {
                let members = match request.epoch.0 {
                    0 => (0..TABLES).collect(),
                    _ => left,
                };
                server.publications_mut().insert(name, members);
                // The slot waits for older transactions.
                Ok(After(200))
            }
            3 => {
                run.lsn = server.create_slot(&slot);
                Ok(After(100))
            }
            _ => {
                if run.boot != server.boots {
                    return Err(transient("the connection to PostgreSQL broke"));
                }
                let members = &server.publications()[&name];
                let is_native = request.export == Export::Slot;
                agent.opens.push(Open {
                    epoch: request.epoch,
                    restarts: request.restarts,
                    lsn: if is_native { 0 } else { run.lsn },
                    plan: members.iter().copied().collect(),
                    held: (!is_native).then_some(server.boots),
                    read: Default::default(),
                    spool: None,
                    sealed: false,
                });
                agent.hold(run.job, Holder::Live(agent.opens.len() - 1));
                if let Some(note) = server.notes.get_mut(&slot) {
                    note.lsn = Some(run.lsn);
                }
                self.opened(n, run.job)
            }
        }
    }

    /// What a failed or cancelled `Open` removes, if the server can be reached.
    pub(super) fn tidy_open(&mut self, n: usize, run: &Running, request: &OpenSource) {
        let own = matches!(request.export, Export::Slot | Export::SlotAndSnapshot);
        if own && run.stage > 0 && self.nodes[n].server.is_up() {
            self.drop_replication(n, &run.replication);
        }
    }

    fn copy_template(
        &mut self,
        n: usize,
        run: &Running,
        target: &NodeId,
        snapshot: SnapshotId,
    ) -> Result<(), Fault> {
        self.asks_server(n)?;
        let template = Replication::template(snapshot).slot;
        let own = run.replication.slot.as_str().to_owned();
        assert!(is_prepared(&run.replication));
        let server = &mut self.nodes[n].server;
        let noted = server.notes.get(&own);
        let there = noted.is_some_and(|note| note.target.as_ref() == Some(target));
        if there && server.slots.contains_key(&own) {
            return Ok(());
        }
        let note = server.notes.get(template.as_str());
        let note = note.and_then(|note| Some((note.job, note.lsn?, note.expires_at)));
        let slot = server.slots.get(template.as_str());
        let position = slot.filter(|slot| !slot.lost).map(|slot| slot.confirmed);
        let (Some((job, lsn, expires_at)), Some(position)) = (note, position) else {
            return Err(failed("the template slot of the snapshot is gone"));
        };
        server.notes.insert(
            own.clone(),
            Note {
                job,
                target: Some(target.clone()),
                lsn: Some(lsn),
                expires_at,
            },
        );
        if !server.slots.contains_key(&own) {
            server.copy_slot(&own, position);
        }
        Ok(())
    }

    fn await_fence(
        &mut self,
        n: usize,
        run: &mut Running,
        earlier: &[EarlierEpoch],
    ) -> Result<Next, Fault> {
        if !self.nodes[n].server.is_up() {
            run.waited += 2_000;
            run.lsn = 0;
            if run.waited > 60_000 {
                return Err(transient("PostgreSQL does not answer"));
            }
            return Ok(After(2_000));
        }
        run.waited = 0;
        let names = earlier.iter().map(|epoch| epoch.replication.clone());
        let all: Vec<_> = names.chain([run.replication.clone()]).collect();
        let at = run.tries as usize;
        match self.passed(n, run, &all[at])? {
            Some(lsn) if at + 1 == all.len() => Ok(Done(Outcome::FencePassed { lsn })),
            Some(_) => {
                run.tries += 1;
                run.lsn = 0;
                Ok(After(10))
            }
            None => Ok(After(200)),
        }
    }

    /// The fence, once the slot has confirmed it.
    pub(super) fn passed(
        &mut self,
        n: usize,
        run: &mut Running,
        replication: &Replication,
    ) -> Result<Option<Lsn>, Fault> {
        let server = &mut self.nodes[n].server;
        if run.lsn == 0 {
            run.lsn = server.tick_wal();
        }
        let Some(slot) = server.slots.get(replication.slot.as_str()) else {
            return Err(failed(format!("the slot {} is gone", replication.slot)));
        };
        if slot.lost {
            return Err(failed(format!("the slot {} is lost", replication.slot)));
        }
        Ok((slot.confirmed >= run.lsn).then_some(Lsn(run.lsn)))
    }
}

/// Takes tables out of an earlier epoch's publication. One that others share stays as it is: the epoch gets its own.
fn narrow(
    server: &mut Server,
    replication: &Replication,
    left: &BTreeSet<u32>,
) -> Result<(), Fault> {
    let name = replication.name().as_str().to_owned();
    let so_far = match replication.shared() {
        Some(shared) if !server.publications().contains_key(&name) => {
            shared.name().as_str().to_owned()
        }
        Some(_) | None => name.clone(),
    };
    let Some(members) = server.publications().get(&so_far) else {
        return Err(failed(format!("the publication {so_far} is gone")));
    };
    let members = members.difference(left).copied().collect();
    server.publications_mut().insert(name, members);
    Ok(())
}

pub(super) fn totals(parts: u32, rows: u64) -> Outcome {
    Outcome::Totals {
        parts,
        rows: RowCount(rows),
        bytes: ByteCount(rows * ROW),
    }
}

pub(super) fn lost() -> Fault {
    transient("the snapshot is gone, because the session that held it has ended")
}
