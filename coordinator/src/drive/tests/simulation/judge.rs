//! What must hold: at every step, when the faults are over, and of what is left on the servers.

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::message::job::Method;
use steep_protocol::{JobId, NodeState};

use super::super::super::{Answer, Interest, Question};
use super::agent::Entry;
use super::postgres::Server;
use super::world::Cluster;
use crate::job::{Closed, Job, Stage, Why};
use crate::snapshot;
use crate::testing::node;

/// Within that time a job says what it waits for.
const SAID: i64 = 15_000;

/// What is watched over time.
#[derive(Default)]
pub(super) struct Watch {
    /// Since when nothing works for a job.
    idle: BTreeMap<JobId, i64>,
}

impl Watch {
    /// A look at the cluster after a step.
    pub(super) fn look(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        keep_complete_tables(cluster)?;
        let jobs = cluster.jobs();
        self.idle.retain(|id, _| jobs.contains_key(id));
        for (id, job) in jobs {
            let Stage::Working(step) = &job.stage else {
                self.idle.remove(&id);
                continue;
            };
            if works(cluster, id) {
                self.idle.remove(&id);
                continue;
            }
            let since = *self.idle.entry(id).or_insert(cluster.now);
            if cluster.now - since < SAID {
                continue;
            }
            let progress = Question::Progress {
                node: job.spec.target.clone(),
                interest: Interest::Once,
            };
            if let Some(Ok(Answer::Progress { view, .. })) = cluster.ask(progress) {
                if view.detail.waiting.is_some() {
                    self.idle.remove(&id);
                    continue;
                }
                return Err(format!(
                    "nothing has worked for job {id} for {} ms in {step:?}, and it does not say what it waits for: {job:?}",
                    cluster.now - since
                ));
            }
        }
        Ok(())
    }
}

/// No job that loses its snapshot throws complete tables away, whoever shares it.
fn keep_complete_tables(cluster: &Cluster) -> Result<(), String> {
    let jobs = cluster
        .driver
        .iter()
        .flat_map(|driver| driver.jobs.values());
    for live in jobs {
        let again =
            matches!(&live.job.stage, Stage::Ending(ending) if matches!(ending.why, Why::Again(_)));
        let complete = live.copied.counted().complete;
        if again && complete.sum.bytes.0 > 0 && live.job.spec.method != Method::Native {
            return Err(format!(
                "job {} starts over although {} of its tables are complete: {:?}",
                live.job.id, complete.tables, live.job
            ));
        }
    }
    Ok(())
}

/// Whether an agent works for the job, or for the snapshot that it shares.
fn works(cluster: &Cluster, id: JobId) -> bool {
    let driver = cluster.driver.as_ref();
    let shared = driver.and_then(|driver| driver.jobs.get(&id)?.job.shared);
    let shared = shared.map(|shared| JobId(shared.0));
    cluster.nodes.iter().any(|node| {
        let mut commands = node.agent.commands.values();
        commands.any(|entry| match entry {
            Entry::Running(run) => run.job == id || Some(run.job) == shared,
            Entry::Ended { .. } => false,
        })
    })
}

/// Whether everything has come to an end: jobs are over or wait to be resumed, and so are snapshots.
pub(super) fn is_quiet(cluster: &Cluster) -> bool {
    let Some(driver) = &cluster.driver else {
        return false;
    };
    let ended = |job: &Job| matches!(job.stage, Stage::Kept(_) | Stage::Closed(_));
    let jobs = driver.jobs.values().all(|live| ended(&live.job));
    let kept = |id| {
        let mut jobs = driver.jobs.values();
        jobs.any(|live| live.job.shared == Some(id))
    };
    let snapshots = driver.snapshots.values().all(|stored| {
        let snapshot = &stored.snapshot;
        match snapshot.stage {
            snapshot::Stage::Over(_) => true,
            snapshot::Stage::Sealed | snapshot::Stage::Shared => {
                snapshot.owner == snapshot::Owner::Operator || kept(snapshot.id)
            }
            snapshot::Stage::Opening | snapshot::Stage::Storing | snapshot::Stage::Removing(_) => {
                false
            }
        }
    });
    let agents = cluster.nodes.iter().all(|node| {
        let mut commands = node.agent.commands.values();
        node.agent.session.is_some() && !commands.any(|entry| matches!(entry, Entry::Running(_)))
    });
    jobs && snapshots && agents
}

/// What still goes on, for a hang.
pub(super) fn unfinished(cluster: &Cluster) -> String {
    let mut text = String::new();
    for (id, job) in cluster.jobs() {
        text.push_str(&format!("job {id}: {job:?}\n"));
    }
    if let Some(driver) = &cluster.driver {
        for (id, stored) in &driver.snapshots {
            text.push_str(&format!("snapshot {id}: {:?}\n", stored.snapshot));
        }
    }
    for node in &cluster.nodes {
        for (id, entry) in &node.agent.commands {
            let what = match entry {
                Entry::Running(run) => format!("runs {:?} in stage {}", run.command, run.stage),
                Entry::Ended { outcome, .. } => format!("ended {outcome:?}"),
            };
            text.push_str(&format!("{}: {id:?} {what}\n", node.name));
        }
    }
    text
}

/// What the cluster's servers must have once everything is quiet.
pub(super) fn judge(cluster: &mut Cluster, targets: &[&str]) -> Result<(), String> {
    cluster.catch_up();
    let jobs = cluster.jobs();
    let mut owned = Owned::default();
    for job in jobs.values() {
        if let Stage::Kept(_) = job.stage {
            owned.job(job);
        }
    }
    let driver = cluster.driver.as_ref().ok_or("the coordinator is down")?;
    for stored in driver.snapshots.values() {
        let snapshot = &stored.snapshot;
        if !snapshot.is_over() {
            owned
                .slots
                .insert(snapshot.replication().slot.as_str().to_owned());
            owned
                .names
                .insert(snapshot.replication().name().as_str().to_owned());
            owned
                .archives
                .extend(snapshot.location().map(str::to_owned));
        }
    }
    for name in targets {
        let record = &driver.nodes[&node(name)];
        let follows = matches!(record.state, NodeState::Synchronized | NodeState::Diverged);
        if follows && let Some(id) = record.replication() {
            let name = steep_protocol::message::handover::Replication::of(id).name();
            let slot = record.slot.as_ref().map(|slot| slot.as_str().to_owned());
            owned.slots.insert(slot.unwrap_or(name.as_str().to_owned()));
            owned.names.insert(name.as_str().to_owned());
        }
    }
    for n in 0..cluster.nodes.len() {
        let server = &cluster.nodes[n].server;
        owned.check(&cluster.nodes[n].name.to_string(), server, n)?;
    }
    for (at, name) in targets.iter().enumerate() {
        rows(cluster, at + 1, name)?;
    }
    Ok(())
}

/// What belongs to somebody.
#[derive(Default)]
struct Owned {
    slots: BTreeSet<String>,
    /// Of publications and subscriptions.
    names: BTreeSet<String>,
    ledgers: BTreeSet<JobId>,
    archives: BTreeSet<String>,
}

impl Owned {
    fn job(&mut self, job: &Job) {
        let earlier = job.earlier.iter().map(|epoch| epoch.replication.clone());
        for replication in earlier.chain([job.replication()]) {
            self.slots.insert(replication.slot.as_str().to_owned());
            // Its slot decodes by the publication that it was made with.
            let made_with = replication.shared().map(|made| made.name());
            self.names
                .extend(made_with.map(|name| name.as_str().to_owned()));
            let name = replication.name().as_str().to_owned();
            self.names.insert(format!("{name}_stopped"));
            self.names.insert(name);
        }
        self.ledgers.insert(job.id);
    }

    fn check(&self, node: &str, server: &Server, n: usize) -> Result<(), String> {
        let left = |what: &str, name: &str| Err(format!("the {what} {name} is left on {node}"));
        for name in server.slots.keys() {
            if !self.slots.contains(name) {
                return left("slot", name);
            }
        }
        for name in server.notes.keys() {
            if !self.slots.contains(name) {
                return left("note of slot", name);
            }
        }
        for name in server.publications().keys() {
            if !self.names.contains(name) {
                return left("publication", name);
            }
        }
        for name in server.subscriptions.keys() {
            if !self.names.contains(name) {
                return left("subscription", name);
            }
        }
        for name in server.archives.keys() {
            if !self.archives.contains(name) {
                return left("archive", name);
            }
        }
        let ledgers = server.ledger.keys().map(|(job, _, _)| job);
        for job in ledgers.chain(server.records.keys()) {
            if !self.ledgers.contains(job) {
                return left("ledger of job", &job.to_string());
            }
        }
        assert!(n > 0 || server.rows.is_empty());
        Ok(())
    }
}

/// A synchronized target has every row of the source once, and one whose job is undone has none.
fn rows(cluster: &mut Cluster, n: usize, name: &str) -> Result<(), String> {
    let driver = cluster.driver.as_ref().ok_or("the coordinator is down")?;
    let record = driver.nodes[&node(name)].clone();
    let kept = cluster.jobs().into_values();
    let kept = kept.filter(|job| job.spec.target == record.id).count() > 0;
    let kept = kept || cluster.keeps_rows.contains(&n);
    let there: BTreeMap<u64, u32> = cluster.nodes[n].server.rows.values().flatten().fold(
        BTreeMap::new(),
        |mut all, (row, times)| {
            *all.entry(*row).or_default() += times;
            all
        },
    );
    match record.state {
        NodeState::Synchronized => {
            let source = &cluster.nodes[0].server;
            for change in &source.log {
                match there.get(&change.row) {
                    Some(1) => {}
                    other => {
                        return Err(format!(
                            "{name} is synchronized and has row {} of table {}, written at {}, {} times",
                            change.row,
                            change.table,
                            change.lsn,
                            other.copied().unwrap_or(0)
                        ));
                    }
                }
            }
            Ok(())
        }
        NodeState::Failed if record.error_message.is_none() => {
            Err(format!("{name} is FAILED without a cause"))
        }
        NodeState::Failed | NodeState::Uninitialized if !kept && record.loaded.is_none() => {
            match there.is_empty() {
                true => Ok(()),
                false => Err(format!(
                    "{name} is {} and has rows: {there:?}",
                    record.state
                )),
            }
        }
        NodeState::Failed | NodeState::Uninitialized | NodeState::Diverged => Ok(()),
        other => Err(format!("{name} is {other} although nothing goes on")),
    }
}

/// How each target ended, for the statistics.
pub(super) fn ends(cluster: &Cluster, targets: &[&str]) -> Vec<String> {
    let Some(driver) = &cluster.driver else {
        return Vec::new();
    };
    let end = |name: &&str| {
        let record = &driver.nodes[&node(name)];
        let why = record.error_message.clone().unwrap_or_default();
        format!("{} {why}", record.state)
    };
    targets.iter().map(end).collect()
}

/// A restored coordinator goes on where the one before it was.
pub(super) fn is_restored(
    before: &BTreeMap<JobId, Job>,
    after: &BTreeMap<JobId, Job>,
) -> Result<(), String> {
    for (id, job) in before {
        if matches!(
            job.stage,
            Stage::Closed(Closed::Synchronized | Closed::Loaded)
        ) {
            continue;
        }
        let Some(other) = after.get(id) else {
            if matches!(job.stage, Stage::Closed(_)) {
                continue;
            }
            return Err(format!("job {id} is not restored: {job:?}"));
        };
        let mut restored = other.clone();
        for (end, old) in [
            (&mut restored.source, &job.source),
            (&mut restored.target, &job.target),
        ] {
            end.presence = old.presence;
            end.server = old.server.clone();
        }
        if restored != *job && !matches!(job.stage, Stage::Ending(_)) {
            return Err(format!(
                "job {id} is restored as {restored:?}, and was {job:?}"
            ));
        }
    }
    Ok(())
}
