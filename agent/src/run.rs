//! An agent's life: settings, certificates, tasks, and the way down.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use steep_certs::{Credentials, Role};
use steep_protocol::close::CloseCode;
use steep_protocol::message::agent::Observed;
use steep_protocol::quic::Endpoint;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{Config, Given, LogFormat};
use crate::health;
use crate::peer::serve::{Server, SourceJobs};
use crate::pg::Conninfo;
use crate::session::{Agent, Control, Observer, Reports};

/// Mirror rows waiting for PostgreSQL; they replace one another.
const MIRROR_QUEUE: usize = 16;

/// How long peers get to hear that we are going.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where settings, certificates or addresses cannot be used; the message names which and why.
pub async fn run(given: Given) -> anyhow::Result<()> {
    let given = given.with_file()?;
    if given.print_config {
        let redact = |text: &str| {
            Conninfo::parse(text).map_or_else(|_| "(unreadable)".to_owned(), |c| c.redacted())
        };
        print!("{}", given.shown(redact));
        return Ok(());
    }
    let config = Config::try_from(given)?;
    start_logging(config.log_format);
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
    let conninfo = Arc::new(Conninfo::parse(&config.postgres).context("--postgres")?);
    let replication_conninfo =
        Arc::new(Conninfo::parse(&config.replication_conninfo).context("--replication-conninfo")?);
    let endpoint = Arc::new(Endpoint::listen(
        config.listen,
        &credentials,
        config.tuning,
    )?);
    let advertise = config
        .advertise
        .clone()
        .unwrap_or_else(|| reachable(endpoint.local_addr()));

    let stop = CancellationToken::new();
    let jobs = Arc::new(SourceJobs::default());
    let reports = Arc::new(Reports::default());
    let (seen_sender, seen) = watch::channel(Observed::default());
    let (mirror_sender, mirror) = mpsc::channel(MIRROR_QUEUE);
    let mut tasks = JoinSet::new();
    let server = Server {
        node: config.node.clone(),
        conninfo: Arc::clone(&conninfo),
        replication_conninfo,
        jobs: Arc::clone(&jobs),
    };
    tasks.spawn(server.run(Arc::clone(&endpoint), stop.clone()));
    let observer = Observer {
        node: config.node.clone(),
        conninfo: Arc::clone(&conninfo),
        seen: seen_sender,
        mirror,
    };
    tasks.spawn(observer.run(stop.clone()));
    if let Some(address) = config.metrics {
        tasks.spawn(health::serve(health::bind(address).await?, stop.clone()));
    }
    let agent = Arc::new(Agent {
        node: config.node.clone(),
        conninfo,
        jobs,
        reports: Arc::clone(&reports),
        endpoint: Arc::clone(&endpoint),
    });
    let control = Control::new(
        agent,
        reports,
        seen,
        mirror_sender,
        crate::session::Coordinator {
            address: config.coordinator.clone(),
            endpoint: Arc::clone(&endpoint),
            advertise: advertise.clone(),
            max_workers: config.max_workers,
        },
    );
    tasks.spawn(control.run(stop.clone()));

    info!(event = "ready", node_id = %config.node, listen = %endpoint.local_addr(), %advertise, "agent ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let outcome = until_stopped(&mut tasks).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    endpoint
        .close(CloseCode::ShuttingDown, CLOSE_DEADLINE)
        .await;
    outcome
}

/// Until a signal, or until a task ends that should not.
async fn until_stopped(tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => info!(event = "stopping", "told to stop"),
        _ = interrupt.recv() => info!(event = "stopping", "interrupted"),
        ended = tasks.join_next() => bail!("a part of the agent ended by itself: {ended:?}"),
    }
    Ok(())
}

fn start_logging(format: Option<LogFormat>) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("STEEP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Below warnings, tokio-postgres logs whole statements, and CREATE SUBSCRIPTION has a password.
    let quiet = "tokio_postgres=warn".parse().expect("a directive");
    let filter = filter.add_directive(quiet);
    let terminal = std::io::stderr().is_terminal();
    let chosen = format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match chosen {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).init(),
    }
}

/// Where an agent that listens everywhere is reached when nobody says: by its host's name.
fn reachable(listen: SocketAddr) -> String {
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
