//! Tests of durability, retention and access.

use jiff::Timestamp;
use steep_protocol::NodeState;
use steep_protocol::message::api::{PhaseSeconds, Report};

use super::super::{EVENTS_KEPT, JOBS_KEPT, NodeRecord};
use super::write::PRUNE_EVERY;
use super::*;
use crate::job::{COMMANDS_PER_JOB, Closed, Job, Stage, Step};
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

pub(super) fn event(seq: u64, node: &str) -> EventView {
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
        report: Report::default(),
    }
}

const FIRST_EVENTS: EventQuery = EventQuery {
    node: None,
    after: 0,
    limit: 9,
};

fn new_store() -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path()).unwrap();
    (directory, store)
}

#[test]
fn applied_writes_survive_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = NodeRecord::new(testing::node("b"));
    node.state = NodeState::Copying;
    node.job = Some(JobId(u64::MAX));
    let mut open = job(u64::MAX);
    open.stage = Stage::Working(Step::Copy);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    store
        .apply(&[
            Write::Node(Box::new(node.clone())),
            Write::Job(Box::new(open.clone())),
            Write::NextCommand(1 << 60),
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
    // The handle is dropped without closing the store, as by a crash.
    drop(store);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.nodes, [node]);
    assert_eq!(loaded.open_jobs, [open.clone()]);
    assert_eq!((loaded.next_command, loaded.next_event), (1 << 60, 2));
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
fn writes_are_atomic() {
    let (_directory, mut store) = new_store();
    store.apply(&[Write::Event(event(1, "b"))]).unwrap();
    let twice = [
        Write::Node(Box::new(NodeRecord::new(testing::node("b")))),
        Write::Event(event(1, "b")),
    ];
    assert!(store.apply(&twice).is_err());
    assert!(store.load().unwrap().nodes.is_empty());
}

#[test]
fn a_sealed_job_keeps_its_tables_until_the_next_of_its_target() {
    let (_directory, mut store) = new_store();
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
    let (_directory, mut store) = new_store();
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
    let (_directory, mut store) = new_store();
    store.apply(&[Write::Event(event(1, "b"))]).unwrap();
    let late = EVENTS_KEPT + PRUNE_EVERY;
    store.apply(&[Write::Event(event(late, "b"))]).unwrap();
    assert_eq!(store.load().unwrap().next_event, late + 1);
    assert_eq!(store.events(&FIRST_EVENTS).unwrap().len(), 1);
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
fn others_cannot_read_the_store() {
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
fn a_directory_that_others_write_to_and_a_file_that_is_elsewhere_are_refused() {
    use std::fs::{self, Permissions};

    let directory = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (directory.path().join("data"), directory.path().join("else"));
    drop(SqliteStore::open(&path).unwrap());
    let refused = |path: &Path| {
        let error = SqliteStore::open(path).unwrap_err();
        assert!(matches!(error, StoreError::Place { .. }), "{error}");
        error.to_string()
    };
    for mode in [0o770, 0o707, 0o1777] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert!(refused(&path).contains("chmod"), "{mode:o}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    let file = path.join(FILE);
    fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    assert!(refused(&path).contains("link"));
    fs::remove_file(&file).unwrap();
    fs::hard_link(&elsewhere, &file).unwrap();
    assert!(refused(&path).contains("another name"));
    fs::remove_file(&elsewhere).unwrap();
    assert!(SqliteStore::open(&path).is_ok());
}

#[test]
fn an_unreadable_record_does_not_affect_others() {
    let (_directory, mut store) = new_store();
    let writes: Vec<Write> = (1..=3).map(|i| Write::Event(event(i, "b"))).collect();
    store.apply(&writes).unwrap();
    let jobs = [1, 2].map(|i| Write::Job(Box::new(job(i))));
    store.apply(&jobs).unwrap();
    let damage = [
        "UPDATE events SET record = '{\"seq\": 2}' WHERE seq = 2",
        "UPDATE jobs SET record = 'x' WHERE job = '0000000000000001'",
        "INSERT INTO nodes (node, record) VALUES ('damaged', '{')",
        "INSERT INTO nodes (node, record) VALUES ('no_text', x'00ff')",
        "INSERT INTO snapshots (snapshot, record) VALUES ('1', x'00ff')",
    ];
    for sql in damage {
        assert_eq!(store.connection.execute(sql, []).unwrap(), 1, "{sql}");
    }
    let seen = |events: Vec<EventView>| events.iter().map(|e| e.seq).collect::<Vec<_>>();
    assert_eq!(seen(store.events(&FIRST_EVENTS).unwrap()), [1, 3]);
    assert_eq!(seen(store.recent_events(None, 9).unwrap()), [1, 3]);
    let loaded = store.load().unwrap();
    assert_eq!(loaded.open_jobs, [job(2)]);
    for name in ["damaged", "no_text"] {
        let fresh = NodeRecord::new(testing::node(name));
        assert!(loaded.nodes.contains(&fresh), "{name}");
    }
    assert!(loaded.snapshots.is_empty());
    assert!(matches!(
        store.job(job(1).id),
        Err(StoreError::Corrupt { .. })
    ));
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

#[test]
fn old_samples_are_thinned_and_the_next_job_drops_them() {
    let (_directory, mut store) = new_store();
    let mut first = job(1);
    first.stage = Stage::Closed(Closed::Synchronized);
    let sample = |second: i64| ProgressSample {
        at: Timestamp::from_second(second).unwrap(),
        overall_percent: 0.5,
        rows_copied: 1,
        bytes_copied: 2,
        wire_bytes: 3,
        retries: 0,
    };
    let job_id = first.id;
    let mut writes = vec![Write::Job(Box::new(first))];
    let count = 3 * SAMPLES_MAX as i64;
    writes.extend((0..count).map(|second| Write::Sample {
        job: job_id,
        mark: Mark {
            sample: sample(second),
            retries_before: 7,
        },
    }));
    store.apply(&writes).unwrap();
    let last = store.last_mark(job_id).unwrap().unwrap();
    assert_eq!((last.sample, last.retries_before), (sample(count - 1), 7));
    let kept = store.samples(job_id).unwrap();
    assert!(kept.len() <= SAMPLES_MAX && kept.len() > SAMPLES_MAX / 2);
    assert_eq!(
        (kept[0], kept.last().copied()),
        (sample(0), Some(sample(count - 1)))
    );
    let recent = &kept[kept.len() - SAMPLES_MAX / 2..];
    assert_eq!(recent[0], sample(count - SAMPLES_MAX as i64 / 2));
    store.apply(&[Write::Job(Box::new(job(2)))]).unwrap();
    assert!(store.samples(job_id).unwrap().is_empty());
}

#[test]
fn an_audit_entry_is_due_until_each_node_has_it() {
    let (directory, mut store) = new_store();
    let view = AuditView {
        seq: 1,
        timestamp: Timestamp::UNIX_EPOCH,
        operator: "op".to_owned(),
        certificate: "01".to_owned(),
        address: "192.0.2.1".to_owned(),
        action: "init".to_owned(),
        node_id: testing::node("b"),
        source_node: Some(testing::node("a")),
        job_id: Some(JobId(1)),
        arguments: Vec::new(),
        refused: None,
    };
    let due = vec![testing::node("a"), testing::node("b")];
    let write = Write::Audit {
        view: Box::new(view.clone()),
        due,
    };
    store.apply(&[write]).unwrap();
    let audited = |node: &str| Write::Audited {
        node: testing::node(node),
        seq: 1,
    };
    store.apply(&[audited("a")]).unwrap();
    drop(store);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let loaded = store.load().unwrap();
    let left = AuditDue {
        node: testing::node("b"),
        view: view.clone(),
    };
    assert_eq!((loaded.next_audit, loaded.audit_due), (2, vec![left]));
    let mut query = EventQuery {
        node: Some(testing::node("a")),
        after: 0,
        limit: 10,
    };
    assert_eq!(store.audit(&query).unwrap(), [view]);
    query.node = Some(testing::node("c"));
    assert!(store.audit(&query).unwrap().is_empty());
}

/// Writes of a job of `b` that ended at that second.
fn ended(id: u64, second: i64) -> [Write; 2] {
    let mut closed = job(id);
    closed.stage = Stage::Closed(Closed::Synchronized);
    let mut end = end(id);
    end.report.ended_at = Some(Timestamp::from_second(second).unwrap());
    let seal = Write::Seal {
        end: Box::new(end),
        tables: Vec::new(),
    };
    [Write::Job(Box::new(closed)), seal]
}

#[test]
fn the_last_report_is_that_of_the_job_which_ended_last_and_survives_the_next_one() {
    let (directory, mut store) = new_store();
    assert_eq!(store.last_end(&testing::node("b")).unwrap(), None);
    // Ids are random: the older job has the greater one.
    store.apply(&ended(9, 1_000)).unwrap();
    store.apply(&ended(3, 2_000)).unwrap();
    store.apply(&[Write::Job(Box::new(job(5)))]).unwrap();
    drop(store);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let last = store.last_end(&testing::node("b")).unwrap().unwrap();
    assert_eq!(last.job_id, JobId(3));
    assert_eq!(store.last_end(&testing::node("a")).unwrap(), None);
}

#[test]
fn the_newest_finished_jobs_are_kept() {
    let (_directory, mut store) = new_store();
    let count = u64::from(JOBS_KEPT) + 5;
    for id in 1..=count {
        store.apply(&ended(id, id.cast_signed())).unwrap();
    }
    let kept = (1..=count).filter(|id| store.job(JobId(*id)).unwrap().is_some());
    assert_eq!(kept.collect::<Vec<_>>(), (6..=count).collect::<Vec<_>>());
}

#[test]
fn a_store_of_the_first_version_has_its_last_report() {
    let directory = tempfile::tempdir().unwrap();
    let old = Connection::open(directory.path().join(FILE)).unwrap();
    old.execute_batch(schema::MIGRATIONS[0]).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    for (id, at) in [
        (9u64, "2026-01-01T00:00:00Z"),
        (3, "2026-01-02T00:00:00.5Z"),
    ] {
        let mut ending = serde_json::to_value(end(id)).unwrap();
        ending.as_object_mut().unwrap().remove("report");
        let record = format!("{{\"ended_at\":\"{at}\"}}");
        old.execute(
            "INSERT INTO jobs VALUES (?1, 'b', 0, ?2, ?3)",
            params![JobId(id).to_string(), record, ending.to_string()],
        )
        .unwrap();
    }
    drop(old);
    let mut store = SqliteStore::open(directory.path()).unwrap();
    let last = store.last_end(&testing::node("b")).unwrap().unwrap();
    assert_eq!(last.job_id, JobId(3));
    assert_eq!(last.report, Report::default());
}

#[test]
fn recent_events_are_the_newest_in_order() {
    let (_directory, mut store) = new_store();
    let writes: Vec<_> = (1..=9u64)
        .map(|seq| Write::Event(event(seq, if seq % 2 == 0 { "a" } else { "b" })))
        .collect();
    store.apply(&writes).unwrap();
    let mut seqs = |node: Option<&str>, limit| {
        let node = node.map(testing::node);
        let events = store.recent_events(node.as_ref(), limit).unwrap();
        events.iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(None, 3), [7, 8, 9]);
    assert_eq!(seqs(Some("a"), 2), [6, 8]);
    assert_eq!(seqs(Some("a"), 99), [2, 4, 6, 8]);
}

#[test]
fn a_store_made_anew_counts_on_from_the_time_so_that_no_command_of_a_lost_one_is_given_out_again() {
    let before = Timestamp::now().as_second();
    let (_directory, mut store) = new_store();
    let next = store.load().unwrap().next_command;
    let jobs = i64::try_from(next / COMMANDS_PER_JOB).unwrap();
    assert!((before..before + 60).contains(&(jobs + 1_600_000_000)));
}
