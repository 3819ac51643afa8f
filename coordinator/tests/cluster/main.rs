//! The coordinator over real QUIC and real certificates, with agents that pretend to have a server.

#![expect(
    clippy::unwrap_used,
    reason = "the whole file is a test, helpers included"
)]

mod healthy;
mod watching;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use steep_certs::{Credentials, Role};
use steep_coordinator::config::Config;
use steep_coordinator::job::health::Bounds;
use steep_coordinator::job::retry::Patience;
use steep_coordinator::server::Server;
use steep_protocol::close::CloseCode;
use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, Observed, Outcome, PartDone, Registration, Seat,
    SourceCommand, TableSummary, TargetCommand,
};
use steep_protocol::message::api::{ApiReply, ApiRequest, EndView, InitRequest, Order, Query};
use steep_protocol::message::facts::{SourceFacts, TargetFacts};
use steep_protocol::message::job::{CancelledData, Confirmation, JobSpec};
use steep_protocol::quic::{ConnectError, Connection, Endpoint, Expect, Receiver, Sender, Tuning};
use steep_protocol::{
    ByteCount, CommandId, FaultKind, JobId, Lsn, NodeId, NodeState, PartNo, Retry, RowCount,
    TableName, TableNo,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use healthy::server;

/// A cluster's files and its running coordinator.
struct Cluster {
    directory: tempfile::TempDir,
    address: SocketAddr,
    shutdown: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    metrics: Option<SocketAddr>,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        steep_certs::init_ca(directory.path()).unwrap();
        for (role, name) in [
            (Role::Coordinator, "c"),
            (Role::Operator, "dba"),
            (Role::Agent, "node_a"),
            (Role::Agent, "node_b"),
        ] {
            steep_certs::issue(directory.path(), role, name, &[], None).unwrap();
        }
        let mut cluster = Self {
            directory,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            shutdown: CancellationToken::new(),
            tasks: JoinSet::new(),
            metrics: None,
        };
        cluster.serve().await;
        cluster
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> Config {
        Config {
            listen: self.address,
            data_dir: self.file("data"),
            ca: self.file("ca.pem"),
            cert: self.file("c.pem"),
            key: self.file("c.key"),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            bounds: Bounds::default(),
            patience: Patience::default(),
            drift_grace: steep_coordinator::drive::DRIFT_GRACE,
            unseen_grace: steep_coordinator::drive::UNSEEN_GRACE,
        }
    }

    async fn serve(&mut self) {
        // Any port: the kernel may keep the last one's socket for a moment.
        self.address.set_port(0);
        let server = Server::bind(&self.config()).await.unwrap();
        self.address = server.address();
        self.metrics = server.metrics_address();
        self.shutdown = CancellationToken::new();
        self.tasks.spawn(server.run(self.shutdown.clone()));
    }

    /// Stops the coordinator and waits until it is gone.
    async fn stop(&mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
    }

    fn credentials(&self, name: &str) -> Credentials {
        let (cert, key) = (
            self.file(&format!("{name}.pem")),
            self.file(&format!("{name}.key")),
        );
        Credentials::load(&self.file("ca.pem"), &cert, &key).unwrap()
    }

    async fn dial(&self, name: &str) -> (Endpoint, Connection) {
        let endpoint = Endpoint::dialer(&self.credentials(name), Tuning::CONTROL).unwrap();
        let address = self.address.to_string();
        let connection = endpoint.dial(&address, &Expect::Coordinator).await.unwrap();
        (endpoint, connection)
    }

    /// Why the coordinator does not serve that certificate, while dialling or after.
    async fn refusal(&self, name: &str) -> Option<CloseCode> {
        let endpoint = Endpoint::dialer(&self.credentials(name), Tuning::CONTROL).unwrap();
        match endpoint
            .dial(&self.address.to_string(), &Expect::Coordinator)
            .await
        {
            Ok(connection) => connection.closed().await,
            Err(ConnectError::Refused { code, .. }) => Some(code),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What an agent says first.
fn registration() -> AgentMessage {
    AgentMessage::Register(Registration {
        advertise: "127.0.0.1:7401".to_owned(),
        version: "0.1.0".to_owned(),
        incarnation: 1,
        open_snapshots: Vec::new(),
        admitted: Vec::new(),
        max_workers: 4,
        seat: Seat(1),
    })
}

/// An agent that does everything well and at once, but the commands it is told to hold.
async fn good_agent(connection: Connection, holds: fn(&Command) -> bool) {
    let (mut sender, mut receiver) = connection.open().await.unwrap();
    sender.send(&registration()).await.unwrap();
    let observed = Observed {
        postgres: Some(Ok(180_000)),
        ..Observed::default()
    };
    sender
        .send(&AgentMessage::Observed(observed))
        .await
        .unwrap();
    while let Ok(Some(message)) = receiver.recv::<CoordinatorMessage>().await {
        let answered = match message {
            CoordinatorMessage::Command {
                id, job, command, ..
            } if !holds(&command) => perform(&mut sender, id, job, command).await,
            CoordinatorMessage::Abort { id } => {
                let fault = steep_protocol::Fault::new(FaultKind::Cancelled, "aborted");
                let outcome = Err(fault);
                sender
                    .send(&AgentMessage::Finished {
                        command: id,
                        outcome,
                    })
                    .await
            }
            CoordinatorMessage::Command { .. }
            | CoordinatorMessage::Welcome { .. }
            | CoordinatorMessage::Forget { .. }
            | CoordinatorMessage::Audit(_)
            | CoordinatorMessage::Mirror(_)
            | CoordinatorMessage::Pace(_) => Ok(()),
            CoordinatorMessage::Rejected(_) => return,
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn perform(
    sender: &mut Sender,
    id: CommandId,
    job: JobId,
    command: Command,
) -> Result<(), steep_protocol::quic::StreamError> {
    let outcome = match command {
        Command::Source(SourceCommand::Gather { .. }) => {
            Outcome::SourceFacts(Box::new(source_facts()))
        }
        Command::Target(TargetCommand::Gather { .. }) => {
            Outcome::TargetFacts(Box::new(target_facts()))
        }
        Command::Source(SourceCommand::Open(_)) => {
            let table = TableSummary {
                no: TableNo(0),
                name: TableName::new("public", "t").unwrap(),
                rows_estimate: RowCount(5),
                bytes_estimate: ByteCount(500),
                first_part: PartNo(0),
                parts: 1,
            };
            sender
                .send(&AgentMessage::PlanPage {
                    job,
                    tables: vec![table],
                })
                .await?;
            Outcome::SourceOpened {
                lsn: Lsn(1),
                tables: 1,
                parts: 1,
            }
        }
        Command::Target(TargetCommand::Copy(_)) => {
            let part = PartDone {
                part: PartNo(0),
                rows: RowCount(5),
                bytes: ByteCount(400),
                wire: ByteCount(90),
            };
            sender
                .send(&AgentMessage::PartsDone {
                    job,
                    parts: vec![part],
                })
                .await?;
            Outcome::Done
        }
        Command::Source(SourceCommand::Prove) | Command::Target(TargetCommand::Prove) => {
            Outcome::Totals {
                parts: 1,
                rows: RowCount(5),
                bytes: ByteCount(400),
            }
        }
        _ => Outcome::Done,
    };
    let outcome = Ok(outcome);
    sender
        .send(&AgentMessage::Finished {
            command: id,
            outcome,
        })
        .await
}

fn source_facts() -> SourceFacts {
    SourceFacts {
        server: server(1),
        tables: 1,
        total_bytes: ByteCount(500),
        replication_link: Some(Ok(())),
        pg_dump: Some(Ok(18)),
        ..SourceFacts::default()
    }
}

fn target_facts() -> TargetFacts {
    TargetFacts {
        server: server(2),
        disk_free: Some(ByteCount(1 << 40)),
        agent_link: Some(Ok(300)),
        server_link: Some(Ok(())),
        ..TargetFacts::default()
    }
}

fn spec() -> JobSpec {
    JobSpec {
        parallel: 2,
        confirmation: Confirmation::Given,
        ..JobSpec::new(
            NodeId::parse("node_a").unwrap(),
            NodeId::parse("node_b").unwrap(),
        )
    }
}

async fn ask(connection: &Connection, request: &ApiRequest) -> Receiver {
    let (mut sender, receiver) = connection.open().await.unwrap();
    sender.send(request).await.unwrap();
    sender.finish();
    receiver
}

/// Every reply to a request.
async fn ask_all(connection: &Connection, request: &ApiRequest) -> Vec<ApiReply> {
    let mut receiver = ask(connection, request).await;
    let mut replies = Vec::new();
    while let Some(reply) = receiver.recv::<ApiReply>().await.unwrap() {
        replies.push(reply);
    }
    replies
}

/// Asks for the nodes until that many are online.
async fn await_online(connection: &Connection, wanted: usize) {
    loop {
        let replies = ask_all(connection, &ApiRequest::Query(Query::Nodes { node: None })).await;
        let Some(ApiReply::Nodes(nodes)) = replies.first() else {
            panic!("{replies:?}");
        };
        if nodes.iter().filter(|n| n.agent_online).count() == wanted {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn holds_nothing(_: &Command) -> bool {
    false
}

fn holds_copy(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Copy(_)))
}

fn end_of(replies: &[ApiReply]) -> &EndView {
    let end = replies.iter().find_map(|reply| match reply {
        ApiReply::Ended(end) => Some(end),
        _ => None,
    });
    end.unwrap_or_else(|| panic!("no end in {replies:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_is_accepted_followed_and_ended() {
    let mut cluster = Cluster::start().await;
    let mut agents = JoinSet::new();
    let (_a, a) = cluster.dial("node_a").await;
    let (_b, b) = cluster.dial("node_b").await;
    agents.spawn(good_agent(a, holds_nothing));
    agents.spawn(good_agent(b, holds_nothing));
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 2).await;
    let replies = ask_all(
        &dba,
        &ApiRequest::Order(Order::Init(InitRequest::Copy(vec![spec()]))),
    )
    .await;
    assert!(matches!(replies.first(), Some(ApiReply::Accepted { jobs }) if jobs.len() == 1));
    assert!(
        matches!(replies.last(), Some(ApiReply::End)),
        "{:?}",
        replies.last()
    );
    let end = end_of(&replies);
    assert_eq!((end.state, &end.fault), (NodeState::Synchronized, &None));
    assert_eq!((end.rows_copied, end.wire_bytes), (5, 90));
    let events: Vec<&str> = replies
        .iter()
        .filter_map(|reply| match reply {
            ApiReply::Event(event) => Some(event.event.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(events.first(), Some(&"init.started"));
    assert!(events.contains(&"init.completed"), "{events:?}");
    let node = NodeId::parse("node_b").unwrap();
    let request = ApiRequest::Progress { node, follow: true };
    let replies = ask_all(&dba, &request).await;
    let [ApiReply::Progress(view), ApiReply::Ended(_), ApiReply::End] = &replies[..] else {
        panic!("{replies:?}");
    };
    assert_eq!((view.overall_percent, view.tables.len()), (100.0, 1));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_init_that_someone_follows() {
    let mut cluster = Cluster::start().await;
    let mut agents = JoinSet::new();
    let (_a, a) = cluster.dial("node_a").await;
    let (_b, b) = cluster.dial("node_b").await;
    agents.spawn(good_agent(a, holds_nothing));
    agents.spawn(good_agent(b, holds_copy));
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 2).await;
    let mut init = ask(
        &dba,
        &ApiRequest::Order(Order::Init(InitRequest::Copy(vec![spec()]))),
    )
    .await;
    let mut replies = Vec::new();
    let node = NodeId::parse("node_b").unwrap();
    while let Some(reply) = init.recv::<ApiReply>().await.unwrap() {
        let copying =
            matches!(&reply, ApiReply::Event(e) if e.message.contains("phase copy began"));
        replies.push(reply);
        if copying {
            let data = CancelledData::Remove;
            let request = ApiRequest::Order(Order::Cancel {
                node: node.clone(),
                data,
            });
            let cancelled = ask_all(&dba, &request).await;
            assert!(matches!(cancelled[..], [ApiReply::End]), "{cancelled:?}");
        }
    }
    let end = end_of(&replies);
    assert_eq!(end.state, NodeState::Uninitialized);
    assert_eq!(end.fault.as_ref().unwrap().kind, FaultKind::Cancelled);
    let data = CancelledData::Remove;
    let replies = ask_all(&dba, &ApiRequest::Order(Order::Cancel { node, data })).await;
    let [ApiReply::Fault(fault)] = &replies[..] else {
        panic!("{replies:?}");
    };
    assert!(fault.message.contains("nothing to cancel"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_events_hear_of_new_ones_and_of_the_end() {
    let mut cluster = Cluster::start().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let request = ApiRequest::Events {
        node: None,
        follow: true,
        after: 0,
    };
    let mut events = ask(&dba, &request).await;
    let (_a, a) = cluster.dial("node_a").await;
    let mut agents = JoinSet::new();
    agents.spawn(good_agent(a, holds_copy));
    let Ok(Some(ApiReply::Event(event))) = events.recv::<ApiReply>().await else {
        panic!("no event");
    };
    assert_eq!(event.event, "agent.connected");
    cluster.stop().await;
    let said = events.recv::<ApiReply>().await;
    let Ok(Some(ApiReply::Fault(fault))) = said else {
        panic!("nobody said why: {said:?}");
    };
    assert_eq!(fault.message, "the coordinator is stopping");
    assert_eq!(fault.retry, Retry::NewConnection);
    assert_eq!(dba.closed().await, Some(CloseCode::ShuttingDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_an_answer_is_told_that_the_coordinator_stops() {
    let mut cluster = Cluster::start().await;
    let (_a, a) = cluster.dial("node_a").await;
    let mut agents = JoinSet::new();
    let (asked, mut hears) = tokio::sync::mpsc::channel(1);
    agents.spawn(async move {
        let (mut sender, mut receiver) = a.open().await.unwrap();
        sender.send(&registration()).await.unwrap();
        while let Ok(Some(message)) = receiver.recv::<CoordinatorMessage>().await {
            if let CoordinatorMessage::Command { .. } = message {
                let _ = asked.send(()).await;
            }
        }
    });
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 1).await;
    let request = ApiRequest::Schema {
        node: NodeId::parse("node_a").unwrap(),
        filter: steep_protocol::message::job::TableFilter::default(),
    };
    let mut answer = ask(&dba, &request).await;
    hears.recv().await.unwrap();
    cluster.stop().await;
    let Ok(Some(ApiReply::Fault(fault))) = answer.recv::<ApiReply>().await else {
        panic!("nobody said why");
    };
    assert_eq!(fault.message, "the coordinator is stopping");
    assert_eq!(dba.closed().await, Some(CloseCode::ShuttingDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_decides_what_its_bearer_may_do() {
    let mut cluster = Cluster::start().await;
    // An operator that talks like an agent is not understood, and no node comes of it.
    let (_dba, dba) = cluster.dial("dba").await;
    let (mut sender, mut receiver) = dba.open().await.unwrap();
    let register = AgentMessage::Register(Registration {
        advertise: "127.0.0.1:1".to_owned(),
        version: "0".to_owned(),
        incarnation: 1,
        open_snapshots: Vec::new(),
        admitted: Vec::new(),
        max_workers: 1,
        seat: Seat(1),
    });
    sender.send(&register).await.unwrap();
    sender.finish();
    assert!(!matches!(
        receiver.recv::<ApiReply>().await,
        Ok(Some(ApiReply::Nodes(_)))
    ));
    let replies = ask_all(&dba, &ApiRequest::Query(Query::Nodes { node: None })).await;
    assert!(matches!(&replies[..], [ApiReply::Nodes(nodes), ApiReply::End] if nodes.is_empty()));
    // An agent that talks like an operator is closed.
    let (_a, a) = cluster.dial("node_a").await;
    let (mut sender, _receiver) = a.open().await.unwrap();
    sender
        .send(&ApiRequest::Query(Query::Nodes { node: None }))
        .await
        .unwrap();
    assert_eq!(a.closed().await, Some(CloseCode::Malformed));
    // Another coordinator has nothing to do here.
    assert_eq!(cluster.refusal("c").await, Some(CloseCode::Forbidden));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_of_a_node_takes_the_place_of_the_older() {
    let mut cluster = Cluster::start().await;
    let mut agents = JoinSet::new();
    let (_first, first) = cluster.dial("node_a").await;
    agents.spawn(good_agent(first.clone(), holds_nothing));
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 1).await;
    let (_second, second) = cluster.dial("node_a").await;
    agents.spawn(good_agent(second.clone(), holds_nothing));
    assert_eq!(first.closed().await, Some(CloseCode::Superseded));
    await_online(&dba, 1).await;
    assert!(!second.is_closed());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_coordinator_knew_it_knows_when_it_is_started_again() {
    let mut cluster = Cluster::start().await;
    let (_a, a) = cluster.dial("node_a").await;
    let mut agents = JoinSet::new();
    agents.spawn(good_agent(a, holds_nothing));
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 1).await;
    cluster.stop().await;
    cluster.serve().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let replies = ask_all(&dba, &ApiRequest::Query(Query::Nodes { node: None })).await;
    let Some(ApiReply::Nodes(nodes)) = replies.first() else {
        panic!("{replies:?}");
    };
    assert_eq!(nodes[0].node_id.as_str(), "node_a");
    assert!(!nodes[0].agent_online);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_coordinators_on_one_directory_and_a_wrong_certificate_are_refused() {
    let mut cluster = Cluster::start().await;
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..cluster.config()
    };
    let error = Server::bind(&config)
        .await
        .err()
        .expect("the directory is in use")
        .to_string();
    assert!(error.contains("another coordinator is using"), "{error}");
    let config = Config {
        cert: cluster.file("dba.pem"),
        key: cluster.file("dba.key"),
        data_dir: cluster.file("other"),
        ..config
    };
    let error = Server::bind(&config)
        .await
        .err()
        .expect("an operator's certificate")
        .to_string();
    assert!(error.contains("not of a coordinator"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_answered_where_it_is_wanted() {
    let mut cluster = Cluster::start().await;
    let metrics = cluster.metrics.unwrap();
    let mut stream = tokio::net::TcpStream::connect(metrics).await.unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    cluster.stop().await;
}
