//! Watchers get every change, completely and once.

use std::time::Duration;

use steep_protocol::message::api::{ApiReply, ApiRequest, EventView, JobView, NodeView, Query};
use steep_protocol::quic::Receiver;
use steep_protocol::{FaultKind, NodeState, Phase};

use super::harness::{
    Cluster, ask, ask_all, await_online, cancel, end_of, holds_copy, holds_nothing, init, node,
    spec,
};

/// The longest wait for an expected reply.
const PATIENCE: Duration = Duration::from_secs(20);

/// Receives replies up to the first that is wanted.
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

fn copying(reply: ApiReply) -> Option<()> {
    match reply {
        ApiReply::Progress(view) if view.phase == Some(Phase::Copy) => Some(()),
        _ => None,
    }
}

fn all_nodes(reply: ApiReply) -> Option<Vec<NodeView>> {
    match reply {
        ApiReply::Nodes(nodes) => Some(nodes),
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
async fn a_watcher_gets_nodes_jobs_events_and_ends_whenever_it_starts() {
    let mut cluster = Cluster::start().await;
    let (_dba, dba) = cluster.dial("dba").await;
    let mut early = ask(&dba, &ApiRequest::Watch).await;
    // No agent has ever registered: the empty list is sent too.
    assert!(until(&mut early, all_nodes).await.is_empty());

    cluster.start_agent("node_a", holds_nothing).await;
    cluster.start_agent("node_b", holds_copy).await;
    await_online(&dba, 2).await;
    let mut first = ask(&dba, &init()).await;
    until(&mut early, |reply| changed(reply, NodeState::Copying)).await;

    // A late watcher gets the earlier events in order, and the running job.
    let mut late = ask(&dba, &ApiRequest::Watch).await;
    until(&mut late, |reply| event(reply, "init.started")).await;
    assert_eq!(until(&mut late, all_nodes).await.len(), 2);
    let view = until(&mut late, |reply| match reply {
        ApiReply::Progress(view) => Some(view),
        _ => None,
    });
    assert_eq!(view.await.phase, Some(Phase::Copy));

    let follow = ApiRequest::Job {
        node: node("node_b"),
        follow: true,
    };
    let mut job = ask(&dba, &follow).await;
    until(&mut job, |reply| event(reply, "init.started")).await;
    let view = until(&mut job, |reply| in_phase(reply, Phase::Copy)).await;
    assert_eq!((view.operator.as_str(), view.spec), ("dba", spec()));
    assert!(view.phase_times.iter().any(|t| t.phase == Phase::Preflight));
    assert_eq!(view.tables.len(), 1);

    ask_all(&dba, &cancel()).await;
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
    while first.recv::<ApiReply>().await.unwrap().is_some() {}
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_of_nodes_is_sent_once() {
    /// Longer than two intervals between looks at the nodes.
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
    let ask_report = ApiRequest::Query(Query::Report {
        node: node("node_b"),
    });
    let report = {
        let (_dba, dba) = cluster.dial("dba").await;
        cluster.start_agent("node_a", holds_nothing).await;
        cluster.start_agent("node_b", holds_copy).await;
        await_online(&dba, 2).await;
        let none = ask_all(&dba, &ask_report).await;
        assert!(
            matches!(&none[..], [ApiReply::Fault(fault)] if fault.message.contains("no report")),
            "{none:?}"
        );
        let mut first = ask(&dba, &init()).await;
        until(&mut first, copying).await;
        ask_all(&dba, &cancel()).await;
        let replies = ask_all(&dba, &ask_report).await;
        let end = end_of(&replies).clone();
        assert_eq!(end.fault.as_ref().unwrap().kind, FaultKind::Cancelled);
        let times = &end.report.phase_times;
        assert!(times.iter().any(|time| time.phase == Phase::Preflight));
        assert!(end.report.ended_at >= end.report.started_at);
        // While the next job runs, the report is that of the last finished one.
        let mut again = ask(&dba, &init()).await;
        until(&mut again, copying).await;
        assert_eq!(*end_of(&ask_all(&dba, &ask_report).await), end);
        end
    };
    cluster.stop().await;
    cluster.serve().await;
    let (_dba, dba) = cluster.dial("dba").await;
    assert_eq!(*end_of(&ask_all(&dba, &ask_report).await), report);
    let unknown = ApiRequest::Query(Query::Report {
        node: node("nowhere"),
    });
    let replies = ask_all(&dba, &unknown).await;
    assert!(matches!(&replies[..], [ApiReply::Fault(_)]), "{replies:?}");
    cluster.stop().await;
}
