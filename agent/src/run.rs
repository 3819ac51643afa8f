//! An agent's life: settings, certificates, tasks, and the shutdown.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use steep_archive::Keys;
use steep_certs::{Credentials, Role};
use steep_daemon::{Stop, http};
use steep_protocol::Fault;
use steep_protocol::close::CloseCode;
use steep_protocol::message::agent::{MirrorRow, Observed};
use steep_protocol::message::api::AuditView;
use steep_protocol::quic::Endpoint;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::budget::Budget;
use crate::config::{Config, Given};
use crate::kept::{self, Store};
use crate::locks::LockWatch;
use crate::metrics::{Budgets, Metrics, Sources};
use crate::peer::serve::Server;
use crate::pg::Conninfo;
use crate::seat::seat;
use crate::session::{
    Agent, ChangeWatch, Control, Coordinator, DigestWatcher, Looked, Observer, PreparedWatch,
    Queues, Readings, Seen, overdue,
};
use crate::shutdown::Shutdown;
use crate::stored::carried::Carried;
use crate::switchover::Guard;
use crate::verify::remove_origin;

/// Mirror rows waiting for PostgreSQL; they replace one another.
const MIRROR_QUEUE: usize = 16;

/// Audit entries waiting for PostgreSQL; the coordinator repeats those that find no room.
const AUDIT_QUEUE: usize = 64;

/// How long peers have to hear that we are going.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// How long tasks that hold nothing of value have to end by themselves.
const TASKS_DEADLINE: Duration = Duration::from_secs(1);

/// Runs until `stop`, and then until what is under way has ended, within the bounds of
/// [`crate::session::overdue`].
///
/// # Errors
/// Where settings, certificates or addresses cannot be used; the message names which and why.
pub async fn run(given: Given, stop: Stop) -> anyhow::Result<()> {
    let config = Config::try_from(given)?;
    let credentials = credentials(&config)?;
    let keys = snapshot_keys(&config)?;
    let conninfo = Arc::new(Conninfo::parse(&config.postgres).context("--postgres")?);
    let replication_conninfo =
        Arc::new(Conninfo::parse(&config.replication_conninfo).context("--replication-conninfo")?);
    let endpoint = Arc::new(Endpoint::listen(
        config.listen,
        &credentials,
        config.tuning,
    )?);
    let advertise = advertised(&config, endpoint.local_addr());

    let (mirror_sender, mirror) = mpsc::channel(MIRROR_QUEUE);
    let (audit_sender, audit) = mpsc::channel(AUDIT_QUEUE);
    let budgets = Budgets {
        sent: Budget::half_of(config.memory_mib),
        received: Budget::half_of(config.memory_mib),
    };
    let shutdown = Shutdown::default();
    let halt = &shutdown.halt;
    let agent = Arc::new(Agent {
        node: config.node.clone(),
        conninfo,
        jobs: Arc::default(),
        carried: Carried::default(),
        keys,
        reports: Arc::default(),
        endpoint: Arc::clone(&endpoint),
        budget: budgets.received.clone(),
        kept: kept(&config),
        index_memory: config.index_memory,
        spool: config.spool.as_ref().map(Into::into),
        telemetry: Arc::default(),
        readings: Readings::default(),
        switchover_steps: Arc::default(),
        drain: shutdown.drain.clone(),
    });
    let mut tasks = JoinSet::new();
    let server = Server {
        node: config.node.clone(),
        conninfo: Arc::clone(&agent.conninfo),
        replication_conninfo,
        jobs: Arc::clone(&agent.jobs),
        budget: budgets.sent.clone(),
        kept: Arc::clone(&agent.kept),
        telemetry: Arc::clone(&agent.telemetry),
        shutdown: shutdown.clone(),
        throttle: Arc::default(),
    };
    tasks.spawn(server.run(Arc::clone(&endpoint)));
    let store = Arc::clone(&agent.kept);
    tasks.spawn(Arc::clone(&store).run(halt.clone()));
    let steps = Arc::clone(&agent.switchover_steps);
    let guard = Guard::new(&config.node, &agent.conninfo, steps);
    tasks.spawn(guard.run(halt.clone()));
    let conninfo = Arc::clone(&agent.conninfo);
    tasks.spawn(remove_origin(conninfo, halt.clone()));
    let seen = observe(&mut tasks, &agent, &config, (mirror, audit), halt);
    if let Some(address) = config.metrics {
        let sources = Sources {
            node: config.node.clone(),
            telemetry: Arc::clone(&agent.telemetry),
            jobs: Arc::clone(&agent.jobs),
            reports: Arc::clone(&agent.reports),
            seen: seen.observed.clone(),
            mirror: mirror_sender.clone(),
            kept: Arc::clone(&store),
            budgets,
        };
        let metrics = Metrics::new(sources, shutdown.drain.clone());
        let listener = http::bind(address).await?;
        tasks.spawn(http::serve(listener, metrics, halt.clone()));
    }
    let coordinator = Coordinator {
        address: config.coordinator.clone(),
        advertise: advertise.clone(),
        max_workers: config.max_workers,
        spool: config.spool.clone(),
        seat: seat(endpoint.local_addr().port()),
        sequence_interval_seconds: config.sequence_interval_seconds,
        snapshot_grace: config.snapshot_grace,
    };
    let queues = Queues {
        mirror: mirror_sender,
        audit: audit_sender,
    };
    let control = Control::new(agent, seen, queues, coordinator);
    let mut controlling = JoinSet::new();
    controlling.spawn(control.run(stop.clone(), shutdown.clone()));

    info!(event = "ready", node_id = %config.node, listen = %endpoint.local_addr(), %advertise, "agent ready");
    steep_daemon::ready();
    let outcome = until_stopped(&mut tasks, &mut controlling, &stop).await;
    halt.cancel();
    end(tasks).await;
    store.close();
    let code = CloseCode::ShuttingDown;
    endpoint.close(code, CLOSE_DEADLINE).await;
    outcome
}

/// This agent's certificates, which must be for this node.
fn credentials(config: &Config) -> anyhow::Result<Credentials> {
    let (ca, cert, key) = &config.credentials;
    let credentials = Credentials::load(ca, cert, key).context("certificates")?;
    let identity = credentials.identity();
    if identity.role != Role::Agent || identity.name != config.node.as_str() {
        bail!(
            "{} is for {} {}, and this is agent {}: issue one with `steep-repl certs issue --role \
             agent --name {}`",
            cert.display(),
            identity.role,
            identity.name,
            config.node,
            config.node
        );
    }
    Ok(credentials)
}

/// The key for stored snapshots, if one is set.
fn snapshot_keys(config: &Config) -> anyhow::Result<Keys> {
    let Some(path) = &config.snapshot_key else {
        return Ok(Keys::default());
    };
    let keys = Keys::load(path).context("--snapshot-key")?;
    if let Some(facts) = keys.facts() {
        info!(recipients = %facts.encrypts.recipients, reads = facts.reads.len(), "stored snapshots can be encrypted");
    }
    Ok(keys)
}

/// Parts kept for other targets; what an earlier process left of them is removed.
fn kept(config: &Config) -> Arc<Store> {
    let parent = config.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let size = config.store_size;
    let limit = size.unwrap_or_else(|| kept::default_size(&parent));
    Arc::new(Store::new(config.node.clone(), parent, limit))
}

/// Watches slots and subscriptions every second, columns now and then, locks while something is at work.
fn observe(
    tasks: &mut JoinSet<()>,
    agent: &Agent,
    config: &Config,
    (mirror, audit): (mpsc::Receiver<MirrorRow>, mpsc::Receiver<AuditView>),
    halt: &CancellationToken,
) -> Seen {
    let (seen, observed) = watch::channel(Observed::default());
    let (prepared_sender, prepared) = watch::channel(None);
    let (lineage_sender, lineage) = watch::channel(None);
    let (recorded_sender, recorded) = watch::channel(None);
    let (looked_sender, looked) = watch::channel(Looked::default());
    let (lock_sender, locks) = watch::channel(Vec::new());
    let look_at_columns = Arc::new(Notify::new());
    let digests = DigestWatcher {
        conninfo: Arc::clone(&agent.conninfo),
        every: config.schema_check_interval,
        seen: looked_sender,
        now: Arc::clone(&look_at_columns),
    };
    tasks.spawn(digests.run(halt.clone()));
    let lock_watch = LockWatch {
        node: agent.node.clone(),
        conninfo: Arc::clone(&agent.conninfo),
        registry: Arc::clone(agent.jobs.locks()),
        seen: lock_sender,
    };
    tasks.spawn(lock_watch.run(halt.clone()));
    let observer = Observer {
        node: agent.node.clone(),
        conninfo: Arc::clone(&agent.conninfo),
        jobs: Arc::clone(&agent.jobs),
        seen,
        prepared: PreparedWatch::new(prepared_sender),
        lineage: ChangeWatch::new(lineage_sender),
        recorded: ChangeWatch::new(recorded_sender),
        mirror,
        audit,
        reports: Arc::clone(&agent.reports),
        looked,
        look_at_columns,
        locks,
    };
    tasks.spawn(observer.run(halt.clone()));
    Seen {
        observed,
        prepared,
        lineage,
        recorded,
    }
}

/// Waits for the end of the shutdown, or for a task that ends unexpectedly.
async fn until_stopped(
    tasks: &mut JoinSet<()>,
    controlling: &mut JoinSet<Result<(), Fault>>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let (asked, task, control) = tokio::select! {
        // Whatever depends on the session ends with it: its own reason counts.
        biased;
        control = controlling.join_next() => (stop.asked().is_cancelled(), None, control),
        () = overdue(stop) => {
            warn!("the coordinator does not answer: the next process reports the rest");
            return Ok(());
        }
        task = tasks.join_next() => {
            let asked = stop.asked().is_cancelled();
            stop.tell();
            stop.tell();
            let control = tokio::select! {
                control = controlling.join_next() => control,
                () = overdue(stop) => None,
            };
            (asked, task, control)
        }
    };
    judge(asked, task, control)
}

/// Whether an agent whose tasks ended so ends well. `asked` says whether it was told to stop before.
fn judge(
    asked: bool,
    task: Option<Result<(), JoinError>>,
    control: Option<Result<Result<(), Fault>, JoinError>>,
) -> anyhow::Result<()> {
    if let Some(Err(error)) = task {
        bail!("a part of the agent failed: {error}; please report it");
    }
    match control {
        Some(Ok(Err(fault))) => bail!("{fault}; {}", fault.hint),
        Some(Err(error)) => bail!("a part of the agent failed: {error}; please report it"),
        Some(Ok(Ok(()))) | None if asked => Ok(()),
        Some(Ok(Ok(()))) | None => {
            bail!("a part of the agent ended although nobody stopped it; please report it")
        }
    }
}

/// Waits for tasks that were told to end, except those that wait for a hanging PostgreSQL.
async fn end(mut tasks: JoinSet<()>) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(TASKS_DEADLINE, ended).await.is_err() {
        tasks.shutdown().await;
    }
}

/// Where others reach this agent: as configured, else where it listens, else by its host name.
fn advertised(config: &Config, listen: SocketAddr) -> String {
    if let Some(address) = &config.advertise {
        return address.clone();
    }
    let unspecified = match listen.ip() {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    if !unspecified {
        return listen.to_string();
    }
    let uname = rustix::system::uname();
    format!("{}:{}", uname.nodename().to_string_lossy(), listen.port())
}

#[cfg(test)]
mod tests {
    use steep_protocol::FaultKind;

    use super::*;

    #[tokio::test]
    async fn an_agent_that_was_told_to_stop_ends_well_whichever_task_ends_first() {
        for asked in [true, false] {
            let ends = [
                judge(asked, None, Some(Ok(Ok(())))),
                judge(asked, Some(Ok(())), Some(Ok(Ok(())))),
                judge(asked, Some(Ok(())), None),
            ];
            for end in ends {
                assert_eq!(end.is_ok(), asked, "{end:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_rejection_and_a_panic_are_named_even_while_stopping() {
        let fault = Fault::new(FaultKind::Unauthorized, "rejected").hint("stop the other one");
        let text = |end: anyhow::Result<()>| end.unwrap_err().to_string();
        let rejected = judge(true, Some(Ok(())), Some(Ok(Err(fault))));
        assert_eq!(text(rejected), "rejected; stop the other one");
        let mut tasks: JoinSet<()> = JoinSet::new();
        tasks.spawn(async { panic!("a mistake of ours") });
        let panicked = text(judge(true, tasks.join_next().await, None));
        assert!(panicked.contains("a mistake of ours"), "{panicked}");
    }
}
