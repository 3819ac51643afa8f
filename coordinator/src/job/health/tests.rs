//! Tests of which observations end a job.

use jiff::SignedDuration;
use steep_protocol::JobId;
use steep_protocol::TableName;
use steep_protocol::message::agent::{
    JoinedTable, Made, PublicationState, PublicationStatus, Published, RowsThere, Subscribed,
};
use steep_protocol::message::handover::Replication;

use super::*;
use crate::job::{Running, Work};
use crate::testing;

const BOUNDS: Bounds = Bounds {
    wal_held: Some(ByteCount(1_000)),
    snapshot_age: None,
};

/// A job in one step with one command, watched second by second.
struct Watched {
    job: Job,
    health: JobHealth,
    now: Timestamp,
}

impl Watched {
    fn at(method: Method, step: Step, running: Option<Work>) -> Self {
        let mut spec = testing::spec("a", "b");
        spec.method = method;
        let now = Timestamp::UNIX_EPOCH;
        let mut job = Job::new(JobId(7), spec, "op", 1_000, now);
        job.stage = Stage::Working(step);
        job.running = running
            .map(|work| Running {
                id: steep_protocol::CommandId(1),
                work,
            })
            .into_iter()
            .collect();
        Self {
            job,
            health: JobHealth::default(),
            now,
        }
    }

    fn copying() -> Self {
        Self::at(Method::Snapshot, Step::Copy, Some(Work::Copy))
    }

    fn catching_up() -> Self {
        Self::at(Method::Snapshot, Step::Converge, Some(Work::AwaitFence))
    }

    fn see(&mut self, side: Side, seen: &Observed) -> Option<Fault> {
        self.now += SignedDuration::from_secs(1);
        self.health.observe(&self.job, side, seen, BOUNDS, self.now)
    }

    /// Seconds until a fault ends the job, and the fault; at most `limit`.
    fn danger(&mut self, side: Side, seen: &Observed, limit: u32) -> Option<(u32, Fault)> {
        (1..=limit).find_map(|second| Some((second, self.see(side, seen)?)))
    }
}

#[test]
fn a_job_says_that_it_waits_for_a_subscription_without_worker_and_why() {
    let mut watched = Watched::catching_up();
    let mut seen = subscription(true, false, 0);
    let why = "PostgreSQL says: could not start WAL streaming";
    seen.subscriptions[0].trouble = Some(why.to_owned());
    watched.see(Side::Target, &seen);
    assert_eq!(watched.health.waiting(&watched.job, watched.now), None);
    for _ in 0..10 {
        watched.see(Side::Target, &seen);
    }
    let waits = watched.health.waiting(&watched.job, watched.now).unwrap();
    assert_eq!(
        (waits.what, waits.for_seconds),
        (WaitsFor::Subscription, 10)
    );
    assert_eq!(waits.gives_up_seconds, 50);
    assert!(waits.reason.ends_with(why), "{}", waits.reason);
    watched.see(Side::Target, &subscription(true, true, 0));
    assert_eq!(watched.health.waiting(&watched.job, watched.now), None);
}

fn answering() -> Observed {
    Observed {
        postgres: Some(Ok(180_000)),
        ..Observed::default()
    }
}

fn silent() -> Observed {
    Observed {
        postgres: Some(Err("connection refused".to_owned())),
        ..Observed::default()
    }
}

fn slot(wal_held: u64, wal_status: &str) -> Observed {
    let slot = SlotStatus {
        job: JobId(7),
        slot: Replication::of(JobId(7)).slot,
        active: false,
        lag: ByteCount(0),
        wal_held: ByteCount(wal_held),
        wal_status: wal_status.to_owned(),
        confirmed: steep_protocol::Lsn(1),
    };
    Observed {
        publications: vec![publication(PublicationState::Sound)],
        slots: vec![slot],
        ..answering()
    }
}

fn publication(state: PublicationState) -> PublicationStatus {
    PublicationStatus {
        job: JobId(7),
        state,
        members: 1,
        newest: 1,
        mark: 1,
    }
}

fn subscription(enabled: bool, running: bool, apply_errors: u64) -> Observed {
    let subscription = SubscriptionStatus {
        job: JobId(7),
        enabled,
        running,
        apply_errors,
        wiring: SubscriptionWiring::Sound,
        mark: 1,
        altered_by: 1,
        trouble: None,
    };
    Observed {
        subscriptions: vec![subscription],
        ..answering()
    }
}

#[test]
fn a_missing_slot_ends_the_job_at_the_third_observation_and_a_lost_one_at_the_first() {
    let mut watched = Watched::copying();
    let (seconds, fault) = watched.danger(Side::Source, &answering(), 9).unwrap();
    assert_eq!(seconds, 3);
    assert_eq!(fault.node, Some(testing::node("a")));
    assert!(fault.message.contains("does not exist"), "{fault}");

    let mut watched = Watched::copying();
    assert_eq!(watched.see(Side::Source, &answering()), None);
    assert_eq!(watched.see(Side::Source, &answering()), None);
    assert_eq!(watched.see(Side::Source, &slot(0, "reserved")), None);
    assert_eq!(
        watched.see(Side::Source, &answering()),
        None,
        "not in a row"
    );
    let fault = watched.see(Side::Source, &slot(0, "lost")).unwrap();
    assert!(
        fault.hint.contains("max_slot_wal_keep_size"),
        "{}",
        fault.hint
    );
}

#[test]
fn an_altered_publication_ends_the_job_although_its_slot_is_healthy() {
    for state in [
        None,
        Some(PublicationState::Altered),
        Some(PublicationState::Unmarked),
    ] {
        let mut seen = slot(0, "reserved");
        seen.publications = state.into_iter().map(publication).collect();
        let mut watched = Watched::copying();
        let (seconds, fault) = watched.danger(Side::Source, &seen, 9).unwrap();
        assert_eq!(seconds, 3, "{state:?}");
        assert!(fault.message.contains("the publication"), "{fault}");
    }
    let joined = JoinedTable {
        table: TableName::new("app", "p").unwrap(),
        made: Made::Since,
        rows: RowsThere::None,
        by: 1,
    };
    let mut seen = slot(0, "reserved");
    seen.carried.published = vec![Published {
        job: JobId(7),
        mark: 1,
        joined: vec![joined],
        joined_total: 1,
        appeared: Vec::new(),
        enums: Vec::new(),
    }];
    let fault = Watched::copying().see(Side::Source, &seen).unwrap();
    assert!(fault.message.contains("app.p"), "{fault}");
    seen.publications[0].mark = 2;
    let old = Watched::copying().see(Side::Source, &seen);
    assert_eq!(old, None, "what was seen before the mark says nothing");
}

#[test]
fn a_failing_subscription_says_what_is_known_of_it() {
    let labels = |labels: &[&str]| EnumLabels {
        name: TableName::new("post", "state").unwrap(),
        labels: labels.iter().map(|&l| l.to_owned()).collect(),
    };
    let mut watched = Watched::catching_up();
    let mut source = slot(0, "reserved");
    source.carried.published = vec![Published {
        job: JobId(7),
        mark: 1,
        joined: Vec::new(),
        joined_total: 0,
        appeared: Vec::new(),
        enums: vec![labels(&["kept", "lost"])],
    }];
    assert_eq!(watched.see(Side::Source, &source), None);
    let fault = (0..9).find_map(|errors| {
        let mut target = subscription(true, false, errors);
        target.subscriptions[0].trouble = Some("PostgreSQL says so".to_owned());
        target.carried.subscribed = vec![Subscribed {
            job: JobId(7),
            mark: 1,
            added: Vec::new(),
            added_total: 0,
            enums: vec![labels(&["kept"])],
        }];
        watched.see(Side::Target, &target)
    });
    let fault = fault.unwrap();
    for word in ["post.state", "lost", "PostgreSQL says so"] {
        assert!(fault.message.contains(word), "{fault}");
    }
}

#[test]
fn a_slot_is_missed_only_once_the_job_must_have_one() {
    for (method, step) in [
        (Method::Snapshot, Step::GatherTarget),
        (Method::Snapshot, Step::OpenSource),
        (Method::Native, Step::PrepareTarget),
        (Method::Native, Step::Subscribe),
    ] {
        let mut watched = Watched::at(method, step, None);
        assert_eq!(
            watched.danger(Side::Source, &answering(), 20),
            None,
            "{step:?}"
        );
    }
    for step in [Step::NativeCopy, Step::Converge] {
        let mut watched = Watched::at(Method::Native, step, None);
        assert!(
            watched.danger(Side::Source, &answering(), 3).is_some(),
            "{step:?}"
        );
    }
}

#[test]
fn more_wal_than_the_limit_ends_the_job_with_what_to_change() {
    let mut watched = Watched::copying();
    assert_eq!(watched.see(Side::Source, &slot(1_000, "extended")), None);
    let fault = watched.see(Side::Source, &slot(1_001, "extended")).unwrap();
    assert!(fault.message.contains("1.0 kB of WAL"), "{fault}");
    assert!(fault.hint.contains("--max-wal-held"), "{}", fault.hint);
    let seen = slot(u64::MAX, "extended");
    let none = Bounds {
        wal_held: None,
        ..BOUNDS
    };
    let (health, job) = (&mut watched.health, &watched.job);
    assert_eq!(
        health.observe(job, Side::Source, &seen, none, watched.now),
        None
    );
}

#[test]
fn a_subscription_that_keeps_failing_ends_the_catch_up_and_one_error_does_not() {
    let mut watched = Watched::catching_up();
    for errors in [7, 8, 8, 9, 9] {
        let seen = subscription(true, false, errors);
        assert_eq!(watched.see(Side::Target, &seen), None, "{errors}");
    }
    let fault = watched.see(Side::Target, &subscription(true, false, 10));
    let fault = fault.unwrap();
    assert_eq!(fault.node, Some(testing::node("b")));
    assert!(fault.message.contains("see the target's log"), "{fault}");

    // Restarting servers cause an error now and then, with a calm between them.
    let mut watched = Watched::catching_up();
    for errors in 0..10 {
        let seen = subscription(true, true, errors);
        assert_eq!(watched.danger(Side::Target, &seen, 17), None, "{errors}");
    }
}

#[test]
fn a_subscription_that_is_gone_disabled_or_without_a_worker_ends_the_catch_up() {
    for (seen, seconds) in [
        (answering(), 3),
        (subscription(false, false, 0), 3),
        (subscription(true, false, 0), 61),
    ] {
        let danger = Watched::catching_up().danger(Side::Target, &seen, 100);
        assert_eq!(danger.map(|(after, _)| after), Some(seconds), "{seen:?}");
        let danger = Watched::copying().danger(Side::Target, &seen, 100);
        assert_eq!(danger, None, "there need be none yet");
    }
}

#[test]
fn a_worker_is_not_missed_while_the_source_itself_is_away() {
    let mut watched = Watched::catching_up();
    for _ in 0..25 {
        assert_eq!(watched.see(Side::Source, &silent()), None);
        assert_eq!(
            watched.see(Side::Target, &subscription(true, false, 1)),
            None
        );
    }
}

#[test]
fn a_server_that_does_not_answer_is_waited_for_and_its_subscription_not_blamed() {
    for side in [Side::Source, Side::Target] {
        assert_eq!(Watched::copying().danger(side, &silent(), 200), None);
        assert_eq!(Watched::catching_up().danger(side, &silent(), 200), None);
    }
    // Each try to reach a source that is away may count as an error of the worker.
    let mut watched = Watched::catching_up();
    for errors in 0..30 {
        assert_eq!(watched.see(Side::Source, &silent()), None);
        let seen = subscription(true, false, errors);
        assert_eq!(watched.see(Side::Target, &seen), None, "{errors}");
    }
}

#[test]
fn a_slot_is_watched_while_a_failed_job_keeps_it() {
    let mut watched = Watched::at(Method::Snapshot, Step::Indexes, None);
    watched.job.stage = Stage::Kept(crate::job::Kept {
        fault: Fault::new(FaultKind::Failed, "disk full"),
        step: Step::Indexes,
        until: Timestamp::MAX,
        stop_by: Timestamp::UNIX_EPOCH,
    });
    assert_eq!(watched.see(Side::Source, &slot(1_000, "extended")), None);
    assert_eq!(watched.danger(Side::Target, &answering(), 9), None);
    assert!(
        watched
            .see(Side::Source, &slot(1_001, "extended"))
            .is_some()
    );
}
