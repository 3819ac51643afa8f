//! Claims about the audit trail, the history of progress, and metrics.

use steep_protocol::message::agent::{AgentMessage, PartProgress, ProgressReport};
use steep_protocol::message::api::{ApiReply, EventView, Order, Query};
use steep_protocol::report_interval::ReportInterval;
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeState, PartNo, Phase, TableName};

use super::super::{Answer, Interest, Question};
use super::world::{World, done, replies};
use crate::store::{EventQuery, Store};
use crate::testing::{node, spec};

use super::*;

fn everything() -> EventQuery {
    EventQuery {
        node: None,
        after: 0,
        limit: 100,
    }
}

#[test]
fn every_audit_entry_is_kept_with_who_and_what_and_reaches_both_nodes_until_they_have_it() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.init(vec![spec("c", "b")]).unwrap_err();
    drop(world.cancel("c"));
    let trail = world.driver.store.audit(&everything()).unwrap();
    let said: Vec<_> = trail
        .iter()
        .map(|w| (w.action.as_str(), w.node_id.as_str(), w.refused.is_some()))
        .collect();
    assert_eq!(
        said,
        [
            ("init", "b", false),
            ("init", "b", true),
            ("cancel", "c", true)
        ]
    );
    let first = &trail[0];
    assert_eq!(
        (first.operator.as_str(), first.address.as_str()),
        ("dba", "192.0.2.7")
    );
    assert!(first.job_id.is_some() && first.source_node == Some(node("a")));
    assert!(
        first
            .arguments
            .contains(&("parallel".to_owned(), "4".to_owned()))
    );
    for name in ["a", "b"] {
        assert_eq!(
            world.agent(name).audited,
            std::slice::from_ref(first),
            "{name}"
        );
    }
    assert!(world.agent("c").audited.is_empty());

    // One confirms; the other gets it again in its next session and after the coordinator's restart.
    world.say("a", AgentMessage::Audited { seq: first.seq });
    world.join("a");
    world.join("b");
    world.listen();
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.listen();
    assert_eq!(world.agent("a").audited.len(), 1);
    assert_eq!(world.agent("b").audited.len(), 3);
    world.say("b", AgentMessage::Audited { seq: first.seq });
    assert!(world.driver.audit_due.is_empty());
    assert!(world.driver.store.load().unwrap().audit_due.is_empty());
    assert_eq!(world.driver.next_audit, 4);
}

#[test]
fn history_and_retries_outlive_the_coordinator() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    let parts = vec![done(0), done(1)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    world.say("b", AgentMessage::Progress(copying(job, 2, 3)));
    for _ in 0..3 {
        world.skip(11);
    }
    let (before, _) = world.progress("b");
    assert_eq!(before.detail.retries, 3);
    assert!(before.detail.history.len() >= 3, "{:?}", before.detail);
    let mut world = world.restart(directory.path());
    let (after, _) = world.progress("b");
    let kept = after.detail.history.starts_with(&before.detail.history);
    assert!(kept, "{:?}", after.detail.history);
    assert_eq!(
        (after.detail.retries, after.rows_copied),
        (3, before.rows_copied)
    );
    assert!(after.overall_percent >= before.overall_percent);
}

#[test]
fn audit_entries_that_cannot_be_written_do_not_block_others() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    for _ in 0..60 {
        let question = Order::Capture {
            node: node("b"),
            peer: None,
        };
        drop(world.ask_later(question));
        world.run_on();
    }
    // Its agent writes none of them and starts several sessions.
    world.agent("b").audited.clear();
    for _ in 0..2 {
        world.leave("b");
        world.join("b");
    }
    let told = &world.agent("b").audited;
    let told: std::collections::BTreeSet<u64> = told.iter().map(|entry| entry.seq).collect();
    assert_eq!(told.len(), 60);
}

#[test]
fn who_cancelled_is_known_after_a_restart() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    drop(world.cancel("b"));
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    let events = world.events("b");
    let cancelled = events.iter().find(|e| e.event == "init.cancelled");
    let cancelled = cancelled.unwrap();
    assert!(
        cancelled.message.starts_with("cancelled by dba;"),
        "{cancelled:?}"
    );
    assert_eq!(field(cancelled, "operator"), Some("dba"));
    assert_eq!(field(cancelled, "phase"), Some("copy"));
}

fn field<'a>(event: &'a EventView, name: &str) -> Option<&'a str> {
    let found = event.fields.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

#[test]
fn all_events_of_a_job_have_its_progress_and_a_fault_names_its_table() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    world.say("b", AgentMessage::Progress(copying(job, 2, 0)));
    let parts = vec![done(0), done(1)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    let table = TableName::new("public", "t1").unwrap();
    let fault = Fault::new(FaultKind::Failed, "it is all wrong").at(&table);
    world.end_one("b", Some(fault));
    world.run_on();
    let events = world.events("b");
    for event in events.iter().filter(|e| e.job_id == Some(job)) {
        for name in ["overall_progress", "rows_copied", "bytes_copied"] {
            assert!(field(event, name).is_some(), "{name} in {event:?}");
        }
        let begun = event.event != "init.started" && field(event, "to") != Some("preparing");
        assert!(!begun || field(event, "phase").is_some(), "{event:?}");
    }
    let failed = events.iter().find(|e| e.event == "init.table_failed");
    let failed = failed.unwrap();
    assert_eq!(field(failed, "table"), Some("public.t1"));
    assert_eq!(field(failed, "phase"), Some("copy"));
    let failed = events.iter().find(|e| e.event == "init.failed").unwrap();
    assert_eq!(field(failed, "phase"), Some("copy"));
    assert_eq!(field(failed, "rows_copied"), Some("20"));
}

fn copying(job: JobId, part: u32, retries: u64) -> ProgressReport {
    ProgressReport {
        job,
        phase: Phase::Copy,
        active: vec![PartProgress {
            part: PartNo(part),
            bytes: ByteCount(5),
            wire: ByteCount(2),
        }],
        work: None,
        retries,
    }
}

#[test]
fn retries_are_counted_once_over_restarts_of_both() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    // Three of the agent's first process, two of a second; then the coordinator restarts.
    for retries in [3, 1, 2] {
        let report = AgentMessage::Progress(copying(job, 2, retries));
        world.say("b", report);
    }
    world.skip(11);
    assert_eq!(world.progress("b").0.detail.retries, 5);
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    assert_eq!(world.progress("b").0.detail.retries, 5);
    // The same process reports the same, then more; then comes a third process.
    for (retries, sum) in [(2, 5), (4, 7), (1, 8)] {
        let report = AgentMessage::Progress(copying(job, 2, retries));
        world.say("b", report);
        assert_eq!(world.progress("b").0.detail.retries, sum);
    }
}

#[test]
fn after_a_restart_no_table_is_missing_from_the_report_or_logged_twice() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    world.say("b", AgentMessage::Progress(copying(job, 0, 0)));
    world.skip(20);
    let parts = vec![done(0), done(1)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    world.say("b", AgentMessage::Progress(copying(job, 2, 0)));
    world.skip(2);
    let shown = world.progress("b").0.overall_percent;
    world.driver.last_turn().unwrap();

    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    assert!(world.progress("b").0.overall_percent >= shown);
    world.say("b", AgentMessage::Progress(copying(job, 2, 0)));
    world.skip(30);
    let parts = vec![done(0), done(1), done(2), done(3)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let started = world.events("b");
    let started = started.iter().filter(|e| e.event == "init.table_started");
    assert_eq!(started.count(), 3);
    let replies = replies(world.ask(Query::Report { node: node("b") }));
    let [ApiReply::Ended(end)] = &replies[..] else {
        panic!("{replies:?}");
    };
    let slowest = &end.report.slowest_tables;
    assert_eq!(slowest.len(), 3, "{slowest:?}");
    assert_eq!(
        (slowest[0].table.as_str(), slowest[1].table.as_str()),
        ("t1", "t0")
    );
    assert!(
        slowest[0].seconds >= 32.0 && slowest[1].seconds >= 20.0,
        "{slowest:?}"
    );
    assert_eq!(slowest[1].rows, 20);
}

#[test]
fn a_table_never_reported_as_active_took_no_longer_than_since_the_last_report() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    world.skip(5);
    world.say("b", AgentMessage::Progress(copying(job, 2, 0)));
    world.skip(3);
    let parts = vec![done(0), done(1)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    let events = world.events("b");
    let complete = events.iter().find(|e| e.event == "init.table_complete");
    let fields = &complete.unwrap().fields;
    let millis = fields.iter().find(|(name, _)| name == "duration_ms");
    let millis: i64 = millis.unwrap().1.parse().unwrap();
    assert!((3_000..4_000).contains(&millis), "{millis}");
}

#[test]
fn a_follower_that_comes_late_sees_the_present() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    let parts = vec![done(0)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    let question = Question::Progress {
        node: node("b"),
        interest: Interest::Ongoing,
    };
    let Ok(Answer::Progress { follow, .. }) = world.ask(question) else {
        panic!("no progress");
    };
    let mut feed = follow.unwrap().feed;
    assert!(feed.borrow_and_update().view.rows_copied > 0);
    // Later changes are published without waiting for a tick.
    let parts = vec![done(1)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    assert!(feed.has_changed().unwrap());
}

#[test]
fn watchers_are_woken_by_a_changed_lag_and_not_by_the_same_one() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.run_on();
    let mut pulse = world.driver.pulse.subscribe();
    for (lag, news) in [(5, true), (5, false), (6, true)] {
        let mut seen = slot(job, "reserved");
        seen.lag = ByteCount(lag);
        world.observe("a", Some(seen), None);
        assert_eq!(pulse.has_changed().unwrap(), news, "{lag}");
        pulse.mark_unchanged();
    }
}

#[test]
fn metrics_tell_jobs_by_phase_and_what_was_copied() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    let parts = vec![done(0), done(0)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    let gauges = |world: &mut World| match world.ask(Question::Gauges) {
        Ok(Answer::Gauges(gauges)) => gauges,
        other => panic!("{other:?}"),
    };
    let seen = gauges(&mut world);
    assert_eq!((seen.nodes.len(), seen.jobs.len()), (3, 1));
    assert_eq!(seen.jobs[0].phase, Some(Phase::Copy));
    assert_eq!(seen.jobs[0].state, NodeState::Copying);
    assert!(seen.jobs[0].still < 1.0);
    world.skip(1);
    world.skip(700);
    assert!(gauges(&mut world).jobs[0].still >= 700.0);
    assert_eq!(seen.copied.len(), 1);
    assert_eq!(seen.copied[0].1.parts, 1);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let seen = gauges(&mut world);
    assert_eq!((seen.jobs.len(), seen.ended.completed), (0, 1));
    assert!(seen.turns > 0 && seen.events.contains(&("init.completed", 1)));
}

#[test]
fn only_agents_of_a_watched_job_are_told_to_report_often() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c", "d"]);
    drop(world.init(vec![spec("a", "b")]).unwrap());
    drop(world.init(vec![spec("c", "d")]).unwrap());
    world.until("b", is_copy);
    world.skip(1);
    let told = |world: &mut World, name: &str| std::mem::take(&mut world.agent(name).intervals);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(
            told(&mut world, name).last(),
            Some(&ReportInterval::Calm),
            "{name}"
        );
    }
    let ask = |world: &mut World, interest| {
        let node = node("b");
        match world.ask(Question::Progress { node, interest }) {
            Ok(Answer::Progress { follow, .. }) => follow,
            other => panic!("{other:?}"),
        }
    };
    assert!(ask(&mut world, Interest::Once).is_none());
    assert!(told(&mut world, "b").is_empty(), "nobody watches");
    let follow = ask(&mut world, Interest::Ongoing);
    assert_eq!(told(&mut world, "a"), [ReportInterval::Watched], "at once");
    assert_eq!(told(&mut world, "b"), [ReportInterval::Watched]);
    // A new session knows nothing of it.
    world.leave("b");
    world.join("b");
    assert_eq!(told(&mut world, "b"), [ReportInterval::Watched]);
    drop(follow);
    world.skip(1);
    assert_eq!(told(&mut world, "a"), [ReportInterval::Calm]);
    assert_eq!(told(&mut world, "b"), [ReportInterval::Calm]);
    assert!(told(&mut world, "c").is_empty() && told(&mut world, "d").is_empty());
    world.ask(Question::Overview { known: Vec::new() }).unwrap();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(told(&mut world, name), [ReportInterval::Watched], "{name}");
    }
    world.skip(4);
    assert_eq!(
        told(&mut world, "d"),
        [ReportInterval::Calm],
        "the watcher is gone"
    );
}
