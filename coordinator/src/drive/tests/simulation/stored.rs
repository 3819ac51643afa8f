//! The parts of a source's snapshots: written into an archive, and served to targets from there or from PostgreSQL.
//! The semantics are those of `agent/src/{stored,peer/serve}`.

use jiff::{SignedDuration, Timestamp};
use steep_protocol::message::agent::Outcome;
use steep_protocol::message::snapshot::{SealedSnapshot, StoreSnapshot};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, Retry};

use super::agent::{Holder, Running, locate, parts_of};
use super::postgres::{Archive, PARTS, TABLES};
use super::source::{MANIFEST, ROW, failed, lost, transient};
use super::world::{After, BEGAN, Cluster, Done, Next, Node};

/// How long a part is read, in milliseconds.
const PART: i64 = 400;

impl Cluster {
    pub(super) fn store(
        &mut self,
        n: usize,
        run: &mut Running,
        request: &StoreSnapshot,
    ) -> Result<Next, Fault> {
        self.asks_server(n)?;
        let now = self.now;
        let Node { server, agent, .. } = &mut self.nodes[n];
        let location = &request.store.location;
        let at = match agent.jobs.get(&run.job).and_then(|job| job.open.as_ref()) {
            Some(Holder::Live(at)) if !agent.is_lost(*at, server.boots) => *at,
            _ => return Err(lost()),
        };
        let open = &mut agent.opens[at];
        let archive = server.archives.get(location);
        if archive.is_some_and(|archive| archive.snapshot != run.job) {
            return Err(failed("another snapshot is stored there"));
        }
        if archive.is_none_or(|archive| archive.lsn != open.lsn) {
            let archive = Archive {
                snapshot: run.job,
                lsn: open.lsn,
                parts: Default::default(),
                complete: false,
                damaged: false,
            };
            server.archives.insert(location.clone(), archive);
        }
        open.spool = Some(location.clone());
        let parts = parts_of(&open.plan);
        let stored = &server.archives[location].parts;
        if let Some(part) = (0..parts).find(|part| !stored.contains_key(part)) {
            let (table, of) = locate(&open.plan, part).unwrap();
            let rows = server.part_at(open.lsn, table, of);
            open.read.insert(part, rows.len() as u64);
            let archive = server.archives.get_mut(location).unwrap();
            archive.parts.insert(part, rows);
            return Ok(After(PART));
        }
        let archive = server.archives.get_mut(location).unwrap();
        archive.complete = true;
        open.sealed = true;
        open.held = None;
        let rows = archive.parts.values().map(|rows| rows.len() as u64).sum();
        let kept = i64::try_from(request.expires_seconds).unwrap();
        let expires_at = now + kept * 1_000;
        if let Some(note) = server.notes.get_mut(run.replication.slot.as_str()) {
            note.expires_at = expires_at;
        }
        agent.forget(run.job);
        Ok(Done(Outcome::Sealed(SealedSnapshot {
            tables: TABLES.into(),
            parts: PARTS.iter().sum::<u32>().into(),
            rows,
            bytes: rows * ROW,
            stored_bytes: rows,
            manifest: MANIFEST,
            expires_at: timestamp(expires_at),
        })))
    }

    /// A part of the job's snapshot, as its target gets it.
    pub(super) fn serve(
        &mut self,
        n: usize,
        (job, peer): (JobId, &NodeId),
        (epoch, part): (u32, u32),
    ) -> Result<(u32, Vec<u64>), Fault> {
        self.admitted(n, job, peer)?;
        let Node { server, agent, .. } = &mut self.nodes[n];
        let plan = agent.plan(job);
        let open = agent.jobs[&job].open.clone();
        let (Some(open), Some(plan)) = (open, plan) else {
            return Err(transient("the job's snapshot is not open"));
        };
        let Some((table, of)) = locate(&plan, part) else {
            return Err(Fault::new(
                FaultKind::BadRequest,
                "the plan has no such part",
            ));
        };
        let at = match &open {
            Holder::Stored { location, .. } => {
                return stored(server.archives.get(location), part).map(|rows| (table, rows));
            }
            Holder::Live(at) if agent.opens[*at].epoch.0 != epoch => {
                return Err(failed("the part belongs to a snapshot that is gone"));
            }
            Holder::Shared(at) => {
                let spool = agent.opens[*at].spool.as_ref();
                let archive = spool.and_then(|spool| server.archives.get(spool));
                let is_written = archive.is_some_and(|archive| archive.parts.contains_key(&part));
                if is_written || agent.opens[*at].sealed {
                    return stored(archive, part).map(|rows| (table, rows));
                }
                *at
            }
            Holder::Live(at) => *at,
        };
        if !server.is_up() || agent.is_lost(at, server.boots) {
            return Err(transient("the snapshot cannot be read"));
        }
        let rows = server.part_at(agent.opens[at].lsn, table, of);
        agent.opens[at].read.insert(part, rows.len() as u64);
        Ok((table, rows))
    }

    /// Whether that peer may ask for the job.
    pub(super) fn admitted(&self, n: usize, job: JobId, peer: &NodeId) -> Result<(), Fault> {
        let agent = &self.nodes[n].agent;
        let name = &self.nodes[n].name;
        if !agent.is_up() {
            let fault = Fault::new(
                FaultKind::Unreachable,
                "the source's agent cannot be reached",
            );
            return Err(fault.retry(Retry::Backoff).on(name));
        }
        match agent.jobs.get(&job) {
            Some(entry) if entry.target == *peer => Ok(()),
            _ => {
                let text = "it holds nothing for that node under that job";
                let fault = Fault::new(FaultKind::Unauthorized, text);
                Err(fault.retry(Retry::Backoff).on(name))
            }
        }
    }
}

fn stored(archive: Option<&Archive>, part: u32) -> Result<Vec<u64>, Fault> {
    let whole = archive.filter(|archive| !archive.damaged);
    let rows = whole.and_then(|archive| archive.parts.get(&part));
    let damaged = || Fault::new(FaultKind::StoreDamaged, "a stored part is not there");
    rows.cloned().ok_or_else(damaged)
}

pub(super) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_second(BEGAN).unwrap() + SignedDuration::from_millis(millis)
}
