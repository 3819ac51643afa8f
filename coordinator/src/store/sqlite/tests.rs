//! Claims about what survives.

use jiff::Timestamp;
use steep_protocol::NodeState;
use steep_protocol::message::api::PhaseSeconds;

use super::super::NodeRecord;
use super::*;
use crate::job::{Closed, Step};
use crate::testing;

fn job(id: u64) -> Job {
    Job::new(
        JobId(id),
        testing::spec("a", "b"),
        "op",
        1,
        Timestamp::UNIX_EPOCH,
    )
}

fn table(no: u32) -> TableSummary {
    TableSummary {
        no: TableNo(no),
        name: TableName::new("Odd \"schema\"", format!("täble{no}")).unwrap(),
        rows_estimate: RowCount(u64::from(no)),
        bytes_estimate: ByteCount(1 << 40),
        first_part: PartNo(no * 2),
        parts: 2,
    }
}

fn part(no: u32) -> PartDone {
    PartDone {
        part: PartNo(no),
        rows: RowCount(10),
        bytes: ByteCount(100),
        wire: ByteCount(50),
    }
}

fn event(seq: u64, node: &str) -> EventView {
    EventView {
        seq,
        timestamp: Timestamp::UNIX_EPOCH,
        level: "info".to_owned(),
        event: "init.started".to_owned(),
        node_id: Some(testing::node(node)),
        source_node: None,
        job_id: Some(JobId(u64::MAX)),
        message: "text".to_owned(),
        fields: vec![("k".to_owned(), "v".to_owned())],
    }
}

fn end(id: u64) -> EndView {
    EndView {
        node_id: testing::node("b"),
        job_id: JobId(id),
        source_node: testing::node("a"),
        state: NodeState::Synchronized,
        fault: None,
        tables: 2,
        rows_copied: 20,
        bytes_copied: 200,
        wire_bytes: 100,
        duration_seconds: 1.5,
        phases: PhaseSeconds::default(),
        warnings: Vec::new(),
    }
}

#[test]
fn what_was_applied_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = NodeRecord::new(testing::node("b"));
    node.state = NodeState::Copying;
    node.job = Some(JobId(u64::MAX));
    let mut open = job(u64::MAX);
    open.stage = Stage::Working(Step::Copy);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    store
        .apply(&[
            Write::Node(node.clone()),
            Write::Job(Box::new(open.clone())),
            Write::NextCommand(1 << 40),
            Write::Plan {
                job: open.id,
                tables: vec![table(0), table(1)],
            },
            Write::Parts {
                job: open.id,
                parts: vec![part(0), part(3)],
            },
            Write::Parts {
                job: open.id,
                parts: vec![part(3)],
            },
            Write::Event(event(1, "b")),
        ])
        .unwrap();
    // No closing: the handle is dropped as a dying process drops it.
    drop(store);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.nodes, [node]);
    assert_eq!(loaded.open_jobs, [open.clone()]);
    assert_eq!((loaded.next_command, loaded.next_event), (1 << 40, 2));
    let plan: Vec<_> = store
        .plan(open.id)
        .unwrap()
        .into_iter()
        .map(|t| t.summary)
        .collect();
    assert_eq!(plan, [table(0), table(1)]);
    let mut parts = Vec::new();
    store.parts(open.id, &mut |part| parts.push(part)).unwrap();
    assert_eq!(parts, [part(0), part(3)]);
}

#[test]
fn all_writes_or_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(directory.path()).unwrap();
    store.apply(&[Write::Event(event(1, "b"))]).unwrap();
    let twice = [
        Write::Node(NodeRecord::new(testing::node("b"))),
        Write::Event(event(1, "b")),
    ];
    assert!(store.apply(&twice).is_err());
    assert!(store.load().unwrap().nodes.is_empty());
}

#[test]
fn a_sealed_job_keeps_its_tables_until_the_next_of_its_target() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let mut first = job(1);
    first.stage = Stage::Closed(Closed::Synchronized);
    let sum = TableSum {
        no: TableNo(1),
        done: 2,
        rows: RowCount(20),
        bytes: ByteCount(200),
    };
    store
        .apply(&[
            Write::Job(Box::new(first.clone())),
            Write::Plan {
                job: first.id,
                tables: vec![table(0), table(1)],
            },
            Write::Parts {
                job: first.id,
                parts: vec![part(2), part(3)],
            },
            Write::Seal {
                end: Box::new(end(1)),
                tables: vec![sum],
            },
        ])
        .unwrap();
    let stored = store.job(first.id).unwrap().unwrap();
    assert_eq!((stored.job, stored.end), (first.clone(), Some(end(1))));
    assert_eq!(store.plan(first.id).unwrap()[1].sum, sum);
    assert!(store.load().unwrap().open_jobs.is_empty());
    let mut parts = 0;
    store.parts(first.id, &mut |_| parts += 1).unwrap();
    assert_eq!(parts, 0);
    store.apply(&[Write::Job(Box::new(job(2)))]).unwrap();
    assert!(store.plan(first.id).unwrap().is_empty());
    assert!(store.job(first.id).unwrap().is_some());
}

#[test]
fn events_are_found_by_either_node_and_paged() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let mut events: Vec<EventView> = (1..=6)
        .map(|i| event(i, if i % 2 == 0 { "b" } else { "c" }))
        .collect();
    events[5].source_node = Some(testing::node("c"));
    let writes: Vec<Write> = events.iter().cloned().map(Write::Event).collect();
    store.apply(&writes).unwrap();
    let mut numbers = |node: Option<&str>, after, limit| -> Vec<u64> {
        let node = node.map(testing::node);
        let query = EventQuery { node, after, limit };
        store
            .events(&query)
            .unwrap()
            .into_iter()
            .map(|e| e.seq)
            .collect()
    };
    assert_eq!(numbers(None, 0, 2), [1, 2]);
    assert_eq!(numbers(None, 2, 9), [3, 4, 5, 6]);
    assert_eq!(numbers(Some("c"), 0, 9), [1, 3, 5, 6]);
    assert!(numbers(Some("a"), 0, 9).is_empty());
}

#[test]
fn old_events_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(directory.path()).unwrap();
    store.apply(&[Write::Event(event(1, "b"))]).unwrap();
    let late = EVENTS_KEPT + PRUNE_EVERY;
    store.apply(&[Write::Event(event(late, "b"))]).unwrap();
    assert_eq!(store.load().unwrap().next_event, late + 1);
    let query = EventQuery {
        node: None,
        after: 0,
        limit: 9,
    };
    assert_eq!(store.events(&query).unwrap().len(), 1);
}

#[test]
fn two_coordinators_cannot_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let first = SqliteStore::open(directory.path()).unwrap();
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(first);
    assert!(SqliteStore::open(directory.path()).is_ok());
}

#[test]
fn nobody_else_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let mut store = SqliteStore::open(&path).unwrap();
    store.apply(&[Write::NextCommand(2)]).unwrap();
    let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in std::fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry) & 0o077, 0, "{}", entry.display());
    }
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    store
        .connection
        .pragma_update(None, "user_version", 99)
        .unwrap();
    drop(store);
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::TooNew { found: 99, .. }),
        "{error}"
    );
}
