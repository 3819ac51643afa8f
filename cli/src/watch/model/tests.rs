//! What is kept of what the coordinator says.

use steep_protocol::FaultKind;

use super::*;
use crate::render::samples::{at, event, id, node, progress};
use crate::watch::samples::{cluster, opened, screen};

#[test]
fn events_are_kept_once_in_order_and_in_bounds() {
    let mut model = Model::new("host:7400", at(0));
    for seq in (1..3_000u64).rev().chain(1..3_000) {
        let mut event = event();
        event.seq = seq;
        model.apply(Update::Event(event), at(0));
    }
    let seqs: Vec<_> = model.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (2_000..3_000).collect::<Vec<_>>());
}

#[test]
fn a_node_that_is_removed_is_shown_no_longer() {
    let mut model = cluster();
    let mut removed = event();
    removed.seq = 9_999;
    removed.event = "node.removed".to_owned();
    removed.node_id = Some(id("node_b"));
    model.apply(Update::Event(removed), at(41));
    assert!(!model.nodes.contains_key(&id("node_b")));
    assert!(model.nodes.contains_key(&id("node_a")));
}

#[test]
fn a_node_that_was_removed_comes_back_without_its_old_job() {
    let removed = || {
        let mut removed = event();
        removed.seq = 9_999;
        removed.event = "node.removed".to_owned();
        removed.node_id = Some(id("node_b"));
        Update::Event(removed)
    };
    let mut model = opened();
    assert!(model.detail.as_ref().is_some_and(|d| d.job.is_some()));
    model.apply(removed(), at(41));
    let back = vec![node("node_b", NodeState::Uninitialized)];
    model.apply(Update::Nodes(back), at(42));
    assert_eq!(model.detail.and_then(|detail| detail.job), None);
}

#[test]
fn rates_are_sampled_once_a_second_and_bounded() {
    let mut model = cluster();
    let before = model.nodes[&id("node_b")].rates.len();
    for millis in 0..600_000i64 {
        if millis % 250 == 0 {
            let now = Timestamp::from_millisecond(at(100).as_millisecond() + millis).unwrap();
            model.apply(Update::Progress(Box::new(progress())), now);
        }
    }
    let rates = &model.nodes[&id("node_b")].rates;
    assert_eq!(before, 9);
    assert_eq!(rates.len(), 400);
    assert!(rates.iter().all(|rate| *rate == 85_200_000));
}

#[test]
fn a_new_job_begins_with_no_rates_of_the_old_one() {
    let mut model = cluster();
    let mut next = progress();
    next.job_id = Some(JobId(7));
    model.apply(Update::Progress(Box::new(next)), at(40));
    assert_eq!(model.nodes[&id("node_b")].rates.len(), 1);
}
#[test]
fn a_lost_coordinator_is_said_and_the_last_that_is_known_stays() {
    let mut model = cluster();
    let lost = || Fault::new(FaultKind::Unreachable, "cannot connect to the coordinator");
    model.apply(Update::Lost(lost()), at(31));
    model.apply(Update::Lost(lost()), at(36));
    let text = screen(&model, 80, 24);
    assert!(text.contains("reconnecting, away for 5s"), "{text}");
    assert!(text.contains("cannot connect to the coordinator"), "{text}");
    assert!(text.contains("node_b"), "{text}");
    model.apply(Update::Connected, at(40));
    assert_eq!(model.link, Link::Live);
    assert!(!screen(&model, 80, 24).contains("reconnecting"));
}

#[test]
fn another_coordinator_shows_its_own_nodes_and_events_and_none_of_the_old() {
    let mut model = cluster();
    model.apply(
        Update::Lost(Fault::new(FaultKind::Unreachable, "it is away")),
        at(31),
    );
    model.apply(Update::Connected, at(40));
    let text = screen(&model, 80, 24);
    assert!(text.contains("node_b"), "old nodes are better than none");
    // Its store is new, so that its events begin at one.
    let mut first = event();
    first.seq = 1;
    first.message = "the first of a new store".to_owned();
    first.timestamp = at(39);
    model.apply(Update::Event(first), at(41));
    let views = vec![node("node_b", NodeState::Uninitialized)];
    model.apply(Update::Nodes(views), at(41));
    assert_eq!(model.events.len(), 1);
    assert_eq!(model.nodes.len(), 1);
    let text = screen(&model, 80, 24);
    assert!(text.contains("the first of a new store"), "{text}");
    assert!(!text.contains("berlin-replica-2"), "{text}");
    assert!(!text.contains("38.2%"), "{text}");
    // What changes then is no reason to forget the rest.
    let views = vec![node("node_c", NodeState::Uninitialized)];
    model.apply(Update::Nodes(views), at(42));
    assert_eq!((model.nodes.len(), model.events.len()), (2, 1));
}

#[test]
fn a_coordinator_without_nodes_and_events_shows_none() {
    let mut model = cluster();
    model.apply(Update::Connected, at(40));
    model.apply(Update::Nodes(Vec::new()), at(40));
    assert!(model.nodes.is_empty() && model.events.is_empty());
}

#[test]
fn a_node_in_detail_that_is_gone_is_said_to_be() {
    let mut model = opened();
    model.apply(Update::Connected, at(40));
    model.apply(Update::Nodes(Vec::new()), at(40));
    let text = screen(&model, 80, 24);
    assert!(text.contains("does not know node_b"), "{text}");
}
