//! Claims about stored snapshots and the slots that they keep.

use steep_protocol::encryption::{Encrypt, Encryption, KeyFacts, Recipient, Recipients};
use steep_protocol::message::agent::{
    AgentMessage, CopyParts, Export, PrepareTarget, SequencesFrom, SlotOrigin,
};
use steep_protocol::message::api::{ApiReply, InitRequest, Order, Query};
use steep_protocol::message::facts::{Severity, SourceFacts};
use steep_protocol::message::handover::{PreparedSlot, PreparedState};
use steep_protocol::message::job::{JobSpec, Method, TableFilter, YieldToDdl};
use steep_protocol::message::snapshot::{
    ApplySpec, CarriedTo, SnapshotSpec, SnapshotState, SnapshotView, StoreSpec, StoredPlace,
};
use steep_protocol::stored::StoredCodec;
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeState, SnapshotId};
use tokio::sync::oneshot;

use super::super::snapshots::orders::judge_generate;
use super::super::{Answer, Question, Ticket};
use super::world::{World, prepared, replies};
use super::*;
use crate::job::preflight::tests::world::healthy_source;
use crate::testing::{node, spec};

pub(super) fn stored_in(location: &str) -> SnapshotSpec {
    SnapshotSpec {
        source: node("a"),
        store: Some(StoreSpec {
            location: location.to_owned(),
            codec: StoredCodec::Zstd(3),
            max_rate: None,
            encrypt: Encrypt::No,
        }),
        filter: TableFilter::default(),
        parallel: 4,
        large_table_threshold: ByteCount(1 << 30),
        yield_to_ddl: YieldToDdl::default(),
        expires_seconds: 3_600,
        keep: None,
    }
}

fn begin_on(
    world: &mut World,
    spec: SnapshotSpec,
    facts: &SourceFacts,
) -> Result<SnapshotId, Fault> {
    let (reply, mut answer) = oneshot::channel();
    let (ticket, now) = (Ticket::new(reply), world.driver.clock.now());
    let (spec, findings) = judge_generate(spec, facts)?;
    let driver = &mut world.driver;
    driver.generate_checked(spec, "dba", (findings, ticket), now);
    world.skip(0);
    let made = replies(Ok(answer.try_recv().unwrap()?));
    let views = made.into_iter().find_map(|reply| match reply {
        ApiReply::Snapshots(views) => Some(views),
        _ => None,
    });
    Ok(views.unwrap().remove(0).snapshot_id)
}

fn begin(world: &mut World, spec: SnapshotSpec) -> SnapshotId {
    begin_on(world, spec, &healthy_source()).unwrap()
}

#[test]
fn a_snapshot_is_encrypted_to_the_key_of_its_sources_agent_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let mut spec = stored_in("/backup/a");
    spec.store.as_mut().unwrap().encrypt = Encrypt::ToAgentsKey;
    let fault = begin_on(&mut world, spec.clone(), &healthy_source()).unwrap_err();
    assert_eq!(
        (fault.kind, fault.node),
        (FaultKind::KeyMissing, Some(node("a")))
    );
    assert!(fault.hint.contains("snapshot keygen"), "{}", fault.hint);
    assert_eq!(list(&mut world), []);
    let recipient: Recipient = format!("age1{}", "q".repeat(58)).parse().unwrap();
    let encrypts = Encryption::age(Recipients::try_from(vec![recipient.clone()]).unwrap());
    let facts = SourceFacts {
        snapshot_key: Some(KeyFacts {
            encrypts: encrypts.clone(),
            reads: vec![recipient],
        }),
        ..healthy_source()
    };
    let id = begin_on(&mut world, spec, &facts).unwrap();
    world.run_on();
    assert_eq!(list(&mut world)[0].encryption, Some(encrypts.clone()));
    // The job knows it, for its preflight.
    world.ask(load(id, &["b"], None)).unwrap();
    let mut jobs = world.driver.jobs.values();
    let encryption = jobs.find_map(|live| live.job.stored.as_ref()?.encryption.clone());
    assert_eq!(encryption, Some(encrypts));
}

pub(super) fn generate(world: &mut World, spec: SnapshotSpec) -> SnapshotId {
    let id = begin(world, spec);
    world.run_on();
    id
}

pub(super) fn list(world: &mut World) -> Vec<SnapshotView> {
    let query = Query::Snapshots {
        snapshot: None,
        source: None,
    };
    match replies(world.ask(query)).remove(0) {
        ApiReply::Snapshots(views) => views,
        other => panic!("{other:?}"),
    }
}

/// What the agent of `a` reports of a template slot.
pub(super) fn template(id: SnapshotId, held: u64, limit: Option<u64>) -> PreparedSlot {
    PreparedSlot {
        replication: Replication::template(id),
        wal_held: ByteCount(held),
        wal_limit: limit.map(ByteCount),
        ..prepared(JobId(id.0))
    }
}

pub(super) fn events(world: &mut World, name: &str) -> usize {
    let events = world.events("a");
    events.iter().filter(|event| event.event == name).count()
}

#[test]
fn a_template_that_holds_half_of_its_limit_is_told_of_once_and_everywhere() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let id = generate(&mut world, stored_in("/backup/a"));
    let say = |world: &mut World, held, limit| {
        let slots = vec![template(id, held, limit)];
        world.say("a", AgentMessage::Prepared(slots));
    };
    say(&mut world, 500_000_000, Some(1_000_000_000));
    assert_eq!(events(&mut world, "snapshot.wal_held"), 0);
    assert!(list(&mut world)[0].warnings.is_empty());

    for held in [501_000_000, 600_000_000] {
        say(&mut world, held, Some(1_000_000_000));
    }
    assert_eq!(events(&mut world, "snapshot.wal_held"), 1);
    let warning = list(&mut world)[0].warnings.join("; ");
    for part in ["600 MB", "60 %", "max_slot_wal_keep_size", "delete"] {
        assert!(warning.contains(part), "{part} is not in {warning}");
    }
    let mut answer = world.ask_later(Query::Doctor(InitRequest::Copy(vec![spec("a", "b")])));
    world.run_on();
    let ApiReply::Findings { findings, .. } = replies(answer.try_recv().unwrap()).remove(0) else {
        panic!("no findings");
    };
    let own = findings.iter().find(|f| f.code == "snapshot_wal_held");
    let own = own.unwrap();
    assert_eq!(own.severity, Severity::Warning);
    assert!(own.what.contains("60 %") && own.fix.contains(&id.to_string()));

    // The limit is raised, and comes near again.
    say(&mut world, 600_000_000, None);
    assert!(list(&mut world)[0].warnings.is_empty());
    say(&mut world, 200_000_000_000, None);
    assert_eq!(events(&mut world, "snapshot.wal_held"), 2);
    let warning = list(&mut world)[0].warnings.join("; ");
    assert!(warning.contains("--max-wal-held"), "{warning}");
}

#[test]
fn a_complete_snapshot_supersedes_the_oldest_which_waits_for_a_job_that_loads_it() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let keeping = |place: &str| SnapshotSpec {
        keep: Some(2),
        ..stored_in(place)
    };
    let first = generate(&mut world, stored_in("/backup/1"));
    world.skip(1);
    let second = generate(&mut world, stored_in("/backup/2"));
    world.skip(1);
    let other = generate(&mut world, stored_in("/elsewhere/1"));
    let apply = ApplySpec {
        jobs: vec![spec("a", "b")],
        snapshot: first,
        carried: None,
        verify: true,
    };
    let order = Order::Init(InitRequest::Apply(Box::new(apply)));
    world.ask(order).unwrap();
    world.until("b", is_copy);
    world.skip(1);
    let third = begin(&mut world, keeping("/backup/3"));
    world.skip(1);
    assert_eq!(list(&mut world).len(), 4, "the new one is not complete");
    while world.end_one("a", None).is_some() {}
    world.skip(1);
    let known = |world: &mut World| -> Vec<SnapshotId> {
        let views = list(world).into_iter();
        views.map(|view| view.snapshot_id).collect()
    };
    assert_eq!(known(&mut world), [first, second, other, third]);
    assert_eq!(events(&mut world, "snapshot.superseded"), 0);

    world.run_on();
    world.skip(1);
    world.run_on();
    assert_eq!(world.state("b"), steep_protocol::NodeState::Synchronized);
    assert_eq!(known(&mut world), [second, other, third]);
    let log = world.events("a").into_iter();
    let told: Vec<_> = log
        .filter(|event| event.event == "snapshot.superseded")
        .collect();
    assert_eq!(told.len(), 1);
    for part in [first.to_string(), third.to_string(), "/backup/1".to_owned()] {
        assert!(told[0].message.contains(&part), "{:?}", told[0]);
    }

    // It is decided anew after a restart.
    world.skip(1);
    let fourth = begin(&mut world, keeping("/backup/4"));
    let mut world = world.restart(directory.path());
    world.join("a");
    world.run_on();
    world.skip(1);
    world.run_on();
    assert_eq!(known(&mut world), [other, third, fourth]);
}

#[test]
fn metrics_say_what_is_kept_of_each_source_and_for_how_long() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a"]);
    let first = generate(&mut world, stored_in("/backup/1"));
    let second = generate(&mut world, stored_in("/backup/2"));
    begin(&mut world, stored_in("/backup/3"));
    world.until("a", |command| {
        matches!(command, Command::Source(SourceCommand::Store(_)))
    });
    let slots = vec![template(first, 70, None), template(second, 50, None)];
    world.say("a", AgentMessage::Prepared(slots));
    world.skip(10);
    let gauges = match world.ask(Question::Gauges).unwrap() {
        Answer::Gauges(gauges) => *gauges,
        other => panic!("{other:?}"),
    };
    let counts: Vec<u64> = gauges.snapshots.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [0, 1, 2, 0, 0]);
    let (source, of) = &gauges.sources[0];
    assert_eq!(
        (source, of.wal_held, of.stored),
        (&node("a"), Some(70), 1_200)
    );
    assert!(of.expires.is_some() && of.live_age >= Some(10.0), "{of:?}");
}

#[test]
fn watchers_see_the_snapshots_of_which_something_is_left() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a"]);
    let id = generate(&mut world, stored_in("/backup/1"));
    let overview = |world: &mut World| {
        let question = Question::Overview { known: Vec::new() };
        match world.ask(question).unwrap() {
            Answer::Overview { snapshots, .. } => snapshots,
            other => panic!("{other:?}"),
        }
    };
    let first = overview(&mut world);
    assert_eq!(first[0].snapshot_id, id);
    world.skip(100);
    assert_eq!(overview(&mut world), first, "nothing has changed");
    world.ask_later(Order::DeleteSnapshot {
        snapshot: id,
        force: false,
    });
    world.run_on();
    assert!(overview(&mut world).is_empty());
}

/// What the target's agent is told to open or to load itself.
fn carried(command: &Command) -> Option<StoredPlace> {
    match command {
        Command::Target(
            TargetCommand::Open { carried }
            | TargetCommand::Prepare(PrepareTarget { carried, .. })
            | TargetCommand::Copy(CopyParts { carried, .. }),
        ) => carried.clone(),
        _ => None,
    }
}

#[test]
fn a_carried_snapshot_is_read_by_the_target_whatever_restarts() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let id = generate(&mut world, stored_in("/backup/1"));
    let apply = ApplySpec {
        jobs: vec![spec("a", "b"), spec("a", "c")],
        snapshot: id,
        carried: Some(CarriedTo {
            location: "/mnt/disk".to_owned(),
            nodes: vec![node("b")],
        }),
        verify: true,
    };
    let order = Order::Init(InitRequest::Apply(Box::new(apply)));
    world.ask(order).unwrap();
    let opens = |command: &Command| matches!(command, Command::Target(TargetCommand::Open { .. }));
    world.until("b", opens);
    // Its new process sends the whole plan again.
    world.kill("b");
    world.join("b");
    let mut asked = Vec::new();
    loop {
        let before = asked.len();
        for name in ["a", "b", "c"] {
            let done = std::iter::from_fn(|| world.end_one(name, None));
            asked.extend(done.map(|command| (name, command)));
        }
        if asked.len() == before {
            break;
        }
    }
    let places = asked.iter().filter_map(|(_, command)| carried(command));
    let places: Vec<StoredPlace> = places.collect();
    assert!(places.len() >= 3 && places.iter().all(|place| place.location == "/mnt/disk"));
    for (_, command) in &asked {
        if let Command::Source(SourceCommand::Open(open)) = command {
            match (open.target.as_str(), &open.export) {
                ("b", Export::Template { snapshot }) => assert_eq!(*snapshot, id),
                ("c", Export::Stored(place)) => assert_eq!(place.location, "/backup/1"),
                other => panic!("{other:?}"),
            }
        }
    }
    let proves = Command::from(SourceCommand::Prove);
    let proved = asked.iter().filter(|(_, command)| *command == proves);
    assert_eq!(proved.count(), 1, "of what the source has sent to c");
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized, "{name}");
    }
}

/// Loads a snapshot without replication.
fn load(snapshot: SnapshotId, targets: &[&str], carried: Option<CarriedTo>) -> Order {
    let job = |target: &&str| JobSpec {
        method: Method::Load,
        ..spec("a", target)
    };
    Order::Init(InitRequest::Apply(Box::new(ApplySpec {
        jobs: targets.iter().map(job).collect(),
        snapshot,
        carried,
        verify: true,
    })))
}

fn is_finish(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Finish { .. }))
}

/// Where the target's sequences were taken from.
fn sequences(world: &mut World, name: &str) -> SequencesFrom {
    let mut history = world.agent(name).history.iter();
    let from = history.find_map(|(_, command)| match command {
        Command::Target(TargetCommand::Finish { sequences, .. }) => Some(sequences.clone()),
        _ => None,
    });
    from.unwrap()
}

#[test]
fn what_a_lost_snapshot_has_is_loaded_without_replication_whatever_restarts() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let id = generate(&mut world, stored_in("/backup/1"));
    let lost = PreparedSlot {
        state: PreparedState::Lost("somebody dropped it".to_owned()),
        ..template(id, 0, None)
    };
    world.say("a", AgentMessage::Prepared(vec![lost]));
    let view = list(&mut world).remove(0);
    assert_eq!(view.state, SnapshotState::Lost);
    assert_eq!(view.holders[0].location, "/backup/1");
    let follow = ApplySpec {
        jobs: vec![spec("a", "b")],
        snapshot: id,
        carried: None,
        verify: true,
    };
    let refused = world.ask(Order::Init(InitRequest::Apply(Box::new(follow))));
    let refused = refused.unwrap_err();
    assert!(refused.hint.contains("--no-subscribe"), "{refused:?}");

    world.ask(load(id, &["b"], None)).unwrap();
    world.until("b", is_copy);
    world.kill("a");
    world.join("a");
    world.until("b", is_finish);
    // Its sequences are still to be read.
    let delete = || Order::DeleteSnapshot {
        snapshot: id,
        force: false,
    };
    let refused = world.ask(delete()).unwrap_err();
    assert!(refused.message.contains("being applied"), "{refused:?}");
    world.kill("a");
    world.join("a");
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();

    let view = world.node("b");
    assert_eq!(
        (view.state, view.source_node),
        (NodeState::Uninitialized, None)
    );
    let loaded = view.loaded.unwrap();
    assert_eq!((loaded.snapshot_id, loaded.rows), (id, 60));
    assert_eq!(loaded.source_node, node("a"));
    assert_eq!(sequences(&mut world, "b"), SequencesFrom::Stored);
    let mut files = 0;
    for (_, command) in &world.agent("a").history {
        match command {
            Command::Source(SourceCommand::Gather { slot, target, .. }) if *target == node("b") => {
                assert_eq!(*slot, SlotOrigin::Made);
            }
            Command::Source(SourceCommand::Open(open)) if open.target == node("b") => {
                assert!(matches!(open.export, Export::Files(_)), "{open:?}");
                files += 1;
            }
            Command::Source(SourceCommand::AwaitFence { .. } | SourceCommand::CloseSnapshot) => {
                panic!("{command:?}")
            }
            _ => {}
        }
    }
    assert_eq!(files, 3, "opened, and again by each new process");
    let subscribes = |(_, command): &(_, Command)| {
        matches!(command, Command::Target(TargetCommand::Subscribe { .. }))
    };
    assert!(!world.agent("b").history.iter().any(subscribes));
    let told = world.events("b").into_iter();
    let told: Vec<_> = told
        .filter(|event| event.event == "snapshot.applied")
        .collect();
    let replication = ("replication".to_owned(), "none".to_owned());
    assert!(told[0].fields.contains(&replication), "{told:?}");
    world.ask_later(delete());
    world.run_on();

    // What comes next replaces the rows.
    world.init(vec![spec("a", "b")]).unwrap();
    assert_eq!(world.node("b").loaded, None);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_snapshot_that_nodes_load_is_not_deleted_and_all_of_them_are_named() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let id = generate(&mut world, stored_in("/backup/1"));
    world.ask(load(id, &["b", "c"], None)).unwrap();
    let delete = Order::DeleteSnapshot {
        snapshot: id,
        force: true,
    };
    let refused = world.ask(delete).unwrap_err();
    assert!(refused.message.ends_with("applied to b, c"), "{refused:?}");
}

#[test]
fn a_carried_snapshot_is_loaded_by_the_target_alone_and_one_that_is_not_complete_by_nobody() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let id = begin(&mut world, stored_in("/backup/1"));
    let refused = world.ask(load(id, &["b"], None)).unwrap_err();
    assert!(refused.hint.contains("wait until"), "{refused:?}");
    world.run_on();
    let carried = CarriedTo {
        location: "/mnt/disk".to_owned(),
        nodes: vec![node("b")],
    };
    world.ask(load(id, &["b"], Some(carried))).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    assert!(world.node("b").loaded.is_some());
    match sequences(&mut world, "b") {
        SequencesFrom::Carried(place) => assert_eq!(place.location, "/mnt/disk"),
        other => panic!("{other:?}"),
    }
    let opened = |(_, command): &(_, Command)| match command {
        Command::Source(SourceCommand::Open(open)) => open.target == node("b"),
        _ => false,
    };
    assert!(!world.agent("a").history.iter().any(opened));
}
