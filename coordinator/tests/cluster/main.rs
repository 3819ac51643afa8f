//! The coordinator over real QUIC and real certificates, with agents that pretend to have a server.

#![expect(
    clippy::unwrap_used,
    reason = "the whole file is a test, helpers included"
)]

mod agent;
mod harness;
mod healthy;
mod watching;

use std::net::SocketAddr;
use std::time::Duration;

use steep_coordinator::config::Config;
use steep_coordinator::server::Server;
use steep_protocol::close::CloseCode;
use steep_protocol::message::agent::CoordinatorMessage;
use steep_protocol::message::api::{ApiReply, ApiRequest, Query};
use steep_protocol::{FaultKind, NodeState, Retry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use agent::{good_agent, registration};
use harness::{
    Cluster, ask, ask_all, await_online, cancel, end_of, holds_copy, holds_nothing, init, node,
    nodes,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_is_accepted_followed_and_ended() {
    let mut cluster = Cluster::start().await;
    cluster.start_agent("node_a", holds_nothing).await;
    cluster.start_agent("node_b", holds_nothing).await;
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 2).await;
    let replies = ask_all(&dba, &init()).await;
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
    let node = node("node_b");
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
    cluster.start_agent("node_a", holds_nothing).await;
    cluster.start_agent("node_b", holds_copy).await;
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 2).await;
    let mut first = ask(&dba, &init()).await;
    let mut replies = Vec::new();
    while let Some(reply) = first.recv::<ApiReply>().await.unwrap() {
        let copying =
            matches!(&reply, ApiReply::Event(e) if e.message.contains("phase copy began"));
        replies.push(reply);
        if copying {
            let cancelled = ask_all(&dba, &cancel()).await;
            assert!(matches!(cancelled[..], [ApiReply::End]), "{cancelled:?}");
        }
    }
    let end = end_of(&replies);
    assert_eq!(end.state, NodeState::Uninitialized);
    assert_eq!(end.fault.as_ref().unwrap().kind, FaultKind::Cancelled);
    let replies = ask_all(&dba, &cancel()).await;
    let [ApiReply::Fault(fault)] = &replies[..] else {
        panic!("{replies:?}");
    };
    assert!(fault.message.contains("nothing to cancel"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_is_named_to_whoever_is_connected() {
    let mut cluster = Cluster::start().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let request = ApiRequest::Events {
        node: None,
        follow: true,
        after: 0,
    };
    let mut events = ask(&dba, &request).await;
    cluster.start_agent("node_a", holds_nothing).await;
    let first = events.recv::<ApiReply>().await;
    assert!(matches!(first, Ok(Some(ApiReply::Event(_)))), "{first:?}");
    let store = rusqlite::Connection::open(cluster.file("data").join("coordinator.db")).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON events
        BEGIN SELECT RAISE(FAIL, 'the disk is full'); END";
    store.execute_batch(full).unwrap();
    cluster.start_agent("node_b", holds_nothing).await;
    let said = events.recv::<ApiReply>().await;
    let Ok(Some(ApiReply::Fault(fault))) = said else {
        panic!("no reason was given: {said:?}");
    };
    assert!(
        fault.message.starts_with("the coordinator is stopping: ")
            && fault.message.contains("the disk is full"),
        "{fault}"
    );
    let error = cluster.failure().await;
    assert!(error.contains("the disk is full"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_events_gets_new_ones_and_the_shutdown() {
    let mut cluster = Cluster::start().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let request = ApiRequest::Events {
        node: None,
        follow: true,
        after: 0,
    };
    let mut events = ask(&dba, &request).await;
    cluster.start_agent("node_a", holds_copy).await;
    let Ok(Some(ApiReply::Event(event))) = events.recv::<ApiReply>().await else {
        panic!("no event");
    };
    assert_eq!(event.event, "agent.connected");
    cluster.stop().await;
    let said = events.recv::<ApiReply>().await;
    let Ok(Some(ApiReply::Fault(fault))) = said else {
        panic!("no reason was given: {said:?}");
    };
    assert_eq!(fault.message, "the coordinator is stopping");
    assert_eq!(fault.retry, Retry::NewConnection);
    assert_eq!(dba.closed().await, Some(CloseCode::ShuttingDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_request_is_answered_when_the_coordinator_stops() {
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
        node: node("node_a"),
        filter: steep_protocol::message::job::TableFilter::default(),
    };
    let mut answer = ask(&dba, &request).await;
    hears.recv().await.unwrap();
    cluster.stop().await;
    let Ok(Some(ApiReply::Fault(fault))) = answer.recv::<ApiReply>().await else {
        panic!("no reason was given");
    };
    assert_eq!(fault.message, "the coordinator is stopping");
    assert_eq!(dba.closed().await, Some(CloseCode::ShuttingDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_decides_what_its_owner_may_do() {
    let mut cluster = Cluster::start().await;
    // An operator that sends an agent's messages is not understood and creates no node.
    let (_dba, dba) = cluster.dial("dba").await;
    let (mut sender, mut receiver) = dba.open().await.unwrap();
    sender.send(&registration()).await.unwrap();
    sender.finish();
    assert!(!matches!(
        receiver.recv::<ApiReply>().await,
        Ok(Some(ApiReply::Nodes(_)))
    ));
    assert!(nodes(&dba).await.is_empty());
    // The session of an agent that sends an operator's messages is closed.
    let (_a, a) = cluster.dial("node_a").await;
    let (mut sender, _receiver) = a.open().await.unwrap();
    sender
        .send(&ApiRequest::Query(Query::Nodes { node: None }))
        .await
        .unwrap();
    assert_eq!(a.closed().await, Some(CloseCode::Malformed));
    // Another coordinator is refused.
    assert_eq!(cluster.refusal("c").await, Some(CloseCode::Forbidden));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_of_a_node_supersedes_the_old_one() {
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
async fn a_restarted_coordinator_still_knows_its_nodes() {
    let mut cluster = Cluster::start().await;
    cluster.start_agent("node_a", holds_nothing).await;
    let (_dba, dba) = cluster.dial("dba").await;
    await_online(&dba, 1).await;
    cluster.stop().await;
    cluster.serve().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let nodes = nodes(&dba).await;
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
async fn the_metrics_listener_answers_health_checks() {
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
