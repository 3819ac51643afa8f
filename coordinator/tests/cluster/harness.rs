//! A coordinator over real QUIC and real certificates, and questions to it.

use std::net::SocketAddr;
use std::path::PathBuf;

use steep_certs::{Credentials, Role};
use steep_coordinator::config::Config;
use steep_coordinator::job::health::Bounds;
use steep_coordinator::job::retry::Patience;
use steep_coordinator::server::Server;
use steep_protocol::NodeId;
use steep_protocol::close::CloseCode;
use steep_protocol::message::agent::{Command, TargetCommand};
use steep_protocol::message::api::{
    ApiReply, ApiRequest, EndView, InitRequest, NodeView, Order, Query,
};
use steep_protocol::message::job::{CancelledData, Confirmation, JobSpec};
use steep_protocol::quic::{ConnectError, Connection, Endpoint, Expect, Receiver, Tuning};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::agent::good_agent;

/// A cluster's files and its running coordinator.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    address: SocketAddr,
    shutdown: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    pub(crate) metrics: Option<SocketAddr>,
    agents: JoinSet<()>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
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
            agents: JoinSet::new(),
        };
        cluster.serve().await;
        cluster
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config(&self) -> Config {
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

    pub(crate) async fn serve(&mut self) {
        // Any port: the kernel may hold the previous port for a moment.
        self.address.set_port(0);
        let server = Server::bind(&self.config()).await.unwrap();
        self.address = server.address();
        self.metrics = server.metrics_address();
        self.shutdown = CancellationToken::new();
        self.tasks.spawn(server.run(self.shutdown.clone()));
    }

    /// Stops the coordinator and waits until it has ended.
    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
    }

    /// Waits until the coordinator has failed and returns why.
    pub(crate) async fn failure(&mut self) -> String {
        let ended = self.tasks.join_next().await.unwrap().unwrap();
        format!("{:#}", ended.unwrap_err())
    }

    pub(crate) fn credentials(&self, name: &str) -> Credentials {
        let (cert, key) = (
            self.file(&format!("{name}.pem")),
            self.file(&format!("{name}.key")),
        );
        Credentials::load(&self.file("ca.pem"), &cert, &key).unwrap()
    }

    pub(crate) async fn dial(&self, name: &str) -> (Endpoint, Connection) {
        let endpoint = Endpoint::dialer(&self.credentials(name), Tuning::CONTROL).unwrap();
        let address = self.address.to_string();
        let connection = endpoint.dial(&address, &Expect::Coordinator).await.unwrap();
        (endpoint, connection)
    }

    /// Starts an agent that performs every command at once, except those that it holds back.
    pub(crate) async fn start_agent(&mut self, name: &str, holds: fn(&Command) -> bool) {
        let (endpoint, connection) = self.dial(name).await;
        self.agents.spawn(async move {
            let _endpoint = endpoint;
            good_agent(connection, holds).await;
        });
    }

    /// Why the coordinator refuses that certificate, during the handshake or after it.
    pub(crate) async fn refusal(&self, name: &str) -> Option<CloseCode> {
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

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub(crate) fn spec() -> JobSpec {
    JobSpec {
        parallel: 2,
        confirmation: Confirmation::Given,
        ..JobSpec::new(node("node_a"), node("node_b"))
    }
}

/// Initialises `node_b` from `node_a`.
pub(crate) fn init() -> ApiRequest {
    ApiRequest::Order(Order::Init(InitRequest::Copy(vec![spec()])))
}

/// Cancels the job of `node_b` and removes its rows.
pub(crate) fn cancel() -> ApiRequest {
    ApiRequest::Order(Order::Cancel {
        node: node("node_b"),
        data: CancelledData::Remove,
    })
}

pub(crate) async fn ask(connection: &Connection, request: &ApiRequest) -> Receiver {
    let (mut sender, receiver) = connection.open().await.unwrap();
    sender.send(request).await.unwrap();
    sender.finish();
    receiver
}

pub(crate) async fn ask_all(connection: &Connection, request: &ApiRequest) -> Vec<ApiReply> {
    let mut receiver = ask(connection, request).await;
    let mut replies = Vec::new();
    while let Some(reply) = receiver.recv::<ApiReply>().await.unwrap() {
        replies.push(reply);
    }
    replies
}

pub(crate) async fn nodes(connection: &Connection) -> Vec<NodeView> {
    let replies = ask_all(connection, &ApiRequest::Query(Query::Nodes { node: None })).await;
    match <[ApiReply; 2]>::try_from(replies) {
        Ok([ApiReply::Nodes(nodes), ApiReply::End]) => nodes,
        other => panic!("{other:?}"),
    }
}

/// Waits until that many agents are online.
pub(crate) async fn await_online(connection: &Connection, wanted: usize) {
    loop {
        let nodes = nodes(connection).await;
        if nodes.iter().filter(|n| n.agent_online).count() == wanted {
            return;
        }
        tokio::task::yield_now().await;
    }
}

pub(crate) fn holds_nothing(_: &Command) -> bool {
    false
}

pub(crate) fn holds_copy(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Copy(_)))
}

pub(crate) fn end_of(replies: &[ApiReply]) -> &EndView {
    let end = replies.iter().find_map(|reply| match reply {
        ApiReply::Ended(end) => Some(end),
        _ => None,
    });
    end.unwrap_or_else(|| panic!("no end in {replies:?}"))
}
