//! Who watches hears of everything, in full and once.

use super::*;
use steep_protocol::Phase;
use steep_protocol::message::api::{EventView, InitRequest, JobView, NodeView, Order, Query};

/// The longest a watcher waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Replies until one is what is looked for.
async fn until<T>(receiver: &mut Receiver, mut wanted: impl FnMut(ApiReply) -> Option<T>) -> T {
    let found = async {
        loop {
            let reply = receiver.recv::<ApiReply>().await.unwrap().unwrap();
            if let Some(found) = wanted(reply) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap()
}

fn changed(reply: ApiReply, state: NodeState) -> Option<NodeView> {
    let ApiReply::Nodes(nodes) = reply else {
        return None;
    };
    nodes.into_iter().find(|node| node.state == state)
}

fn in_phase(reply: ApiReply, phase: Phase) -> Option<JobView> {
    match reply {
        ApiReply::Job(view) if view.current_phase.is_some_and(|(p, _)| p == phase) => Some(*view),
        _ => None,
    }
}

fn event(reply: ApiReply, kind: &str) -> Option<EventView> {
    match reply {
        ApiReply::Event(event) if event.event == kind => Some(event),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_of_nodes_jobs_events_and_ends_from_any_moment_on() {
    let mut cluster = Cluster::start().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let mut early = ask(&dba, &ApiRequest::Watch).await;
    // No agent has ever registered: that is said too.
    let none = until(&mut early, |reply| match reply {
        ApiReply::Nodes(nodes) => Some(nodes),
        _ => None,
    });
    assert!(none.await.is_empty());

    let mut agents = JoinSet::new();
    let (_a, a) = cluster.dial("node_a").await;
    agents.spawn(good_agent(a, holds_nothing));
    let (_b, b) = cluster.dial("node_b").await;
    agents.spawn(good_agent(b, holds_copy));
    await_online(&dba, 2).await;
    let mut init = ask(
        &dba,
        &ApiRequest::Order(Order::Init(InitRequest::Copy(vec![spec()]))),
    )
    .await;
    until(&mut early, |reply| changed(reply, NodeState::Copying)).await;

    // One who comes later hears of what happened before, in order, and of the job at work.
    let mut late = ask(&dba, &ApiRequest::Watch).await;
    until(&mut late, |reply| event(reply, "init.started")).await;
    let all = until(&mut late, |reply| match reply {
        ApiReply::Nodes(nodes) => Some(nodes),
        _ => None,
    });
    assert_eq!(all.await.len(), 2);
    let view = until(&mut late, |reply| match reply {
        ApiReply::Progress(view) => Some(view),
        _ => None,
    });
    assert_eq!(view.await.phase, Some(Phase::Copy));

    let node = NodeId::parse("node_b").unwrap();
    let follow = ApiRequest::Job {
        node: node.clone(),
        follow: true,
    };
    let mut job = ask(&dba, &follow).await;
    until(&mut job, |reply| event(reply, "init.started")).await;
    let view = until(&mut job, |reply| in_phase(reply, Phase::Copy)).await;
    assert_eq!((view.operator.as_str(), view.spec), ("dba", spec()));
    assert!(view.phase_times.iter().any(|t| t.phase == Phase::Preflight));
    assert_eq!(view.tables.len(), 1);

    let data = CancelledData::Remove;
    let cancel = ApiRequest::Order(Order::Cancel {
        node: node.clone(),
        data,
    });
    ask_all(&dba, &cancel).await;
    for watcher in [&mut early, &mut late] {
        let ended = until(watcher, |reply| match reply {
            ApiReply::Ended(end) => Some(end),
            _ => None,
        });
        assert_eq!(ended.await.fault.unwrap().kind, FaultKind::Cancelled);
    }
    let over = until(&mut job, |reply| match reply {
        ApiReply::Job(view) => view.end.clone().map(|end| (view, end)),
        _ => None,
    });
    let (view, end) = over.await;
    assert_eq!(view.job_id, end.job_id);
    while init.recv::<ApiReply>().await.unwrap().is_some() {}
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_there_is_no_node_is_said_once() {
    /// A look is never further away.
    const TWO_LOOKS: Duration = Duration::from_millis(2_500);
    let mut cluster = Cluster::start().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let mut watcher = ask(&dba, &ApiRequest::Watch).await;
    let first = watcher.recv::<ApiReply>().await.unwrap();
    assert_eq!(first, Some(ApiReply::Nodes(Vec::new())));
    let next = tokio::time::timeout(TWO_LOOKS, watcher.recv::<ApiReply>()).await;
    assert!(next.is_err(), "{next:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_report_is_kept_over_a_restart_and_while_the_next_job_runs() {
    let mut cluster = Cluster::start().await;
    let node = NodeId::parse("node_b").unwrap();
    let ask_report = ApiRequest::Query(Query::Report { node: node.clone() });
    let mut agents = JoinSet::new();
    let report = {
        let (_dba, dba) = cluster.dial("dba").await;
        let (_a, a) = cluster.dial("node_a").await;
        agents.spawn(good_agent(a, holds_nothing));
        let (_b, b) = cluster.dial("node_b").await;
        agents.spawn(good_agent(b, holds_copy));
        await_online(&dba, 2).await;
        let none = ask_all(&dba, &ask_report).await;
        assert!(
            matches!(&none[..], [ApiReply::Fault(fault)] if fault.message.contains("no report")),
            "{none:?}"
        );
        let mut init = ask(
            &dba,
            &ApiRequest::Order(Order::Init(InitRequest::Copy(vec![spec()]))),
        )
        .await;
        until(&mut init, |reply| match reply {
            ApiReply::Progress(view) if view.phase == Some(Phase::Copy) => Some(()),
            _ => None,
        })
        .await;
        let data = CancelledData::Remove;
        let cancel = ApiRequest::Order(Order::Cancel {
            node: node.clone(),
            data,
        });
        ask_all(&dba, &cancel).await;
        let replies = ask_all(&dba, &ask_report).await;
        let end = end_of(&replies).clone();
        assert_eq!(end.fault.as_ref().unwrap().kind, FaultKind::Cancelled);
        let times = &end.report.phase_times;
        assert!(times.iter().any(|time| time.phase == Phase::Preflight));
        assert!(end.report.ended_at >= end.report.started_at);
        // Another job of the node is at work: the last that is over is still the answer.
        let mut again = ask(
            &dba,
            &ApiRequest::Order(Order::Init(InitRequest::Copy(vec![spec()]))),
        )
        .await;
        until(&mut again, |reply| match reply {
            ApiReply::Progress(view) if view.phase == Some(Phase::Copy) => Some(()),
            _ => None,
        })
        .await;
        assert_eq!(*end_of(&ask_all(&dba, &ask_report).await), end);
        end
    };
    cluster.stop().await;
    cluster.serve().await;
    let (_dba, dba) = cluster.dial("dba").await;
    assert_eq!(*end_of(&ask_all(&dba, &ask_report).await), report);
    let unknown = ApiRequest::Query(Query::Report {
        node: NodeId::parse("nowhere").unwrap(),
    });
    let replies = ask_all(&dba, &unknown).await;
    assert!(matches!(&replies[..], [ApiReply::Fault(_)]), "{replies:?}");
    cluster.stop().await;
}
