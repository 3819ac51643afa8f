//! Tests of what people are shown.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use steep_protocol::message::agent::{PartDone, PartProgress, TableSummary};
use steep_protocol::message::api::TableState;
use steep_protocol::{ByteCount, JobId, Lsn, PartNo, RowCount, TableName, TableNo};

use super::super::{Plan, Step};
use super::*;
use crate::testing;

const MB: u64 = 1_000_000;

fn copying(tables: &[(u32, u64)]) -> (Job, CopyProgress) {
    let now = Timestamp::UNIX_EPOCH;
    let mut copied = CopyProgress::default();
    for (i, (parts, bytes)) in tables.iter().enumerate() {
        let table = TableSummary {
            no: TableNo(i as u32),
            name: TableName::new("public", format!("t{i}")).unwrap(),
            rows_estimate: RowCount(0),
            bytes_estimate: ByteCount(*bytes),
            first_part: PartNo(copied.counted().planned),
            parts: *parts,
        };
        copied.add_page(&[table]).unwrap();
    }
    let mut job = Job::new(JobId(1), testing::spec("a", "b"), "op", 0, now);
    job.stage = Stage::Working(Step::Copy);
    job.attempt.plan = Some(Plan {
        lsn: Lsn(1),
        tables: tables.len() as u32,
        parts: copied.counted().planned,
    });
    job.clock.start(Phase::Copy, now);
    (job, copied)
}

fn at(millis: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_millis(millis)
}

fn done(part: u32, bytes: u64) -> PartDone {
    PartDone {
        part: PartNo(part),
        rows: RowCount(bytes / 100),
        bytes: ByteCount(bytes),
        wire: ByteCount(bytes / 3),
    }
}

#[test]
fn a_steady_copy_shows_its_rate_and_its_end() {
    let (job, mut copied) = copying(&[(100, 1_000 * MB)]);
    let mut meter = Meter::default();
    for second in 0..50u32 {
        copied.note(&done(second, 10 * MB)).unwrap();
        meter.observe(&job, &copied, at(i64::from(second) * 1_000));
    }
    let view = meter.view(
        &job,
        NodeState::Copying,
        &copied,
        Detail::Active,
        at(49_000),
    );
    assert!(
        (view.throughput_bytes_sec - 10e6).abs() < 1e3,
        "{}",
        view.throughput_bytes_sec
    );
    assert!(
        (view.throughput_rows_sec - 1e5).abs() < 1e2,
        "{}",
        view.throughput_rows_sec
    );
    assert_eq!(view.eta_seconds, Some(50));
    assert_eq!(view.phase_percent, Some(50.0));
    assert_eq!(view.overall_percent, 4.0 + 35.0);
    assert_eq!(
        (view.bytes_copied, view.bytes_total),
        (500 * MB, 1_000 * MB)
    );
}

#[test]
fn a_stalled_copy_shows_so_within_seconds() {
    let (job, mut copied) = copying(&[(10, 100 * MB)]);
    let mut meter = Meter::default();
    meter.observe(&job, &copied, at(0));
    copied.note(&done(0, 10 * MB)).unwrap();
    meter.observe(&job, &copied, at(1_000));
    for tick in 0..80 {
        meter.observe(&job, &copied, at(1_250 + tick * 250));
    }
    let view = meter.view(
        &job,
        NodeState::Copying,
        &copied,
        Detail::Active,
        at(21_000),
    );
    assert!(
        view.throughput_bytes_sec < 100e3,
        "{}",
        view.throughput_bytes_sec
    );
}

#[test]
fn a_stalled_job_shows_for_how_long_and_no_rate() {
    let (mut job, mut copied) = copying(&[(100, 1_000 * MB)]);
    let mut meter = Meter::default();
    for second in 0..20u32 {
        copied.note(&done(second, 10 * MB)).unwrap();
        meter.observe(&job, &copied, at(i64::from(second) * 1_000));
        assert_eq!(meter.seconds_still(at(i64::from(second) * 1_000)), 0.0);
    }
    for second in 20..=619 {
        meter.observe(&job, &copied, at(second * 1_000));
    }
    assert_eq!(meter.seconds_still(at(619_000)), 600.0);
    let view = meter.view(
        &job,
        NodeState::Copying,
        &copied,
        Detail::Active,
        at(619_000),
    );
    assert_eq!(view.throughput_bytes_sec, 0.0);
    assert_eq!(view.detail.phase_bytes_sec, Some(0.0));
    // A new part counts as movement, and so does a new phase.
    copied.set_flight(&[PartProgress {
        part: PartNo(70),
        bytes: ByteCount(0),
        wire: ByteCount(0),
    }]);
    meter.observe(&job, &copied, at(620_000));
    assert_eq!(meter.seconds_still(at(620_000)), 0.0);
    job.clock.stop(at(630_000));
    job.clock.start(Phase::Constraints, at(630_000));
    job.stage = Stage::Working(Step::Constraints);
    meter.observe(&job, &copied, at(630_000));
    assert_eq!(meter.seconds_still(at(631_000)), 1.0);
}

#[test]
fn finished_work_counts_as_movement_and_added_work_does_not() {
    let (mut job, copied) = copying(&[(1, MB)]);
    job.clock.stop(at(0));
    job.clock.start(Phase::CatchUp, at(0));
    job.stage = Stage::Working(Step::Converge);
    let mut meter = Meter::default();
    let work = |done, total| WorkProgress {
        done,
        total,
        unit: WorkUnit::Bytes,
        current: None,
        workers: 1,
    };
    meter.report(Phase::CatchUp, work(5, 10));
    meter.observe(&job, &copied, at(0));
    for second in 1..=60 {
        meter.report(Phase::CatchUp, work(5, 10 + second as u64));
        meter.observe(&job, &copied, at(second * 1_000));
    }
    assert_eq!(meter.seconds_still(at(60_000)), 60.0);
    meter.report_aside(&work(1, 2));
    meter.observe(&job, &copied, at(61_000));
    assert_eq!(meter.seconds_still(at(61_000)), 0.0);
    meter.report(Phase::CatchUp, work(6, 70));
    meter.observe(&job, &copied, at(70_000));
    assert_eq!(meter.seconds_still(at(70_000)), 0.0);
}

#[test]
fn a_part_in_flight_counts_and_only_finished_parts_complete_the_copy() {
    let (job, mut copied) = copying(&[(1, MB), (2, 2 * MB)]);
    let meter = Meter::default();
    copied.set_flight(&[PartProgress {
        part: PartNo(1),
        bytes: ByteCount(40 * MB),
        wire: ByteCount(MB),
    }]);
    let view = meter.view(&job, NodeState::Copying, &copied, Detail::Active, at(0));
    assert_eq!(view.current_table.as_deref(), Some("public.t1"));
    assert_eq!(view.tables.len(), 1);
    assert_eq!(view.tables[0].state, TableState::Copying);
    assert_eq!(view.phase_percent, Some(ALMOST));
    assert_eq!(
        (view.bytes_copied, view.wire_bytes, view.parallel_workers),
        (40 * MB, MB, 1)
    );
    let view = meter.view(&job, NodeState::Copying, &copied, Detail::All, at(0));
    let states: Vec<TableState> = view.tables.iter().map(|t| t.state).collect();
    assert_eq!(states, [TableState::Pending, TableState::Copying]);
    for part in 0..3 {
        copied.note(&done(part, 40 * MB)).unwrap();
    }
    assert_eq!(meter.phase_percent(&job, &copied), Some(100.0));
}

#[test]
fn an_empty_plan_is_complete_and_divides_by_nothing() {
    let (job, copied) = copying(&[]);
    let meter = Meter::default();
    assert_eq!(meter.phase_percent(&job, &copied), Some(100.0));
    assert_eq!(
        meter
            .view(&job, NodeState::Copying, &copied, Detail::All, at(0))
            .eta_seconds,
        None
    );
}

#[test]
fn native_copy_is_shown_from_what_postgresql_says() {
    let (mut job, copied) = copying(&[(1, MB), (1, MB)]);
    job.spec.method = Method::Native;
    job.stage = Stage::Working(Step::NativeCopy);
    let mut meter = Meter::default();
    let work = |unit, done, total| WorkProgress {
        done,
        total,
        unit,
        current: Some("public.t0".to_owned()),
        workers: 2,
    };
    for tick in 0..=8 {
        meter.report(Phase::Copy, work(WorkUnit::Bytes, 100 + tick * 50, 1_000));
        meter.observe(&job, &copied, at(tick as i64 * 250));
    }
    let view = meter.view(&job, NodeState::Copying, &copied, Detail::Active, at(1_000));
    assert_eq!((view.bytes_copied, view.phase_percent), (500, Some(50.0)));
    assert_eq!((view.eta_seconds, view.parallel_workers), (Some(3), 2));
    meter.report(Phase::Copy, work(WorkUnit::Items, 1, 2));
    assert_eq!(meter.tables(&job, &copied), (2, 1));
}

#[test]
fn every_phase_that_counts_bytes_has_a_pace_and_an_end() {
    let (mut job, copied) = copying(&[(1, MB)]);
    for (phase, step) in [
        (Phase::Indexes, Step::Indexes),
        (Phase::Constraints, Step::Constraints),
        (Phase::CatchUp, Step::Converge),
    ] {
        job.clock.stop(at(0));
        job.clock.start(phase, at(0));
        job.stage = Stage::Working(step);
        let mut meter = Meter::default();
        for tick in 0..=20u64 {
            meter.report(
                phase,
                WorkProgress {
                    done: tick * 25 * MB,
                    total: 1_000 * MB,
                    unit: WorkUnit::Bytes,
                    current: None,
                    workers: 2,
                },
            );
            meter.observe(&job, &copied, at(tick as i64 * 250));
        }
        let view = meter.view(&job, NodeState::Copying, &copied, Detail::Active, at(5_000));
        assert_eq!(
            (view.phase_percent, view.eta_seconds),
            (Some(50.0), Some(5))
        );
        let detail = &view.detail;
        assert_eq!(detail.phase_bytes_done, Some(500 * MB));
        assert_eq!(detail.phase_bytes_total, Some(1_000 * MB));
        let rate = detail.phase_bytes_sec.unwrap();
        assert!((rate - 100e6).abs() < 1e3, "{rate}");
        let last = detail.phase_times.last().unwrap();
        assert_eq!((last.phase, last.seconds), (phase, 5.0));
        // What follows the builds is counted in items, and the bar does not go back for it.
        meter.report(
            phase,
            WorkProgress {
                done: 1,
                total: 10,
                unit: WorkUnit::Items,
                current: None,
                workers: 1,
            },
        );
        meter.observe(&job, &copied, at(5_250));
        let view = meter.view(&job, NodeState::Copying, &copied, Detail::Active, at(5_250));
        assert_eq!((view.phase_percent, view.eta_seconds), (Some(50.0), None));
        assert_eq!(view.detail.phase_bytes_done, None);
    }
}

#[test]
fn compression_covers_what_crossed_the_network_and_retries_outlive_their_agent() {
    let (job, mut copied) = copying(&[(4, 4 * MB)]);
    let mut meter = Meter::default();
    let found = PartDone {
        wire: ByteCount(0),
        ..done(0, MB)
    };
    copied.note(&found).unwrap();
    let view = |meter: &Meter, copied: &CopyProgress| {
        let view = meter.view(&job, NodeState::Copying, copied, Detail::Active, at(0));
        view.detail
    };
    assert_eq!(view(&meter, &copied).compression_ratio, None);
    copied
        .note(&PartDone {
            wire: ByteCount(MB / 4),
            ..done(1, MB)
        })
        .unwrap();
    assert_eq!(view(&meter, &copied).compression_ratio, Some(4.0));
    for count in [1, 3, 0, 2] {
        meter.retried(count);
    }
    assert_eq!(view(&meter, &copied).retries, 5);
}

proptest! {
    #[test]
    fn the_percentage_never_goes_back_and_stays_in_bounds(
        tables in proptest::collection::vec((1u32..5, 0u64..100 * MB), 1..10),
        parts in proptest::collection::vec((any::<proptest::sample::Index>(), 0u64..200 * MB), 0..60),
    ) {
        let (job, mut copied) = copying(&tables);
        let planned = copied.counted().planned as usize;
        let mut meter = Meter::default();
        let mut before = 0.0;
        for (i, (part, bytes)) in parts.into_iter().enumerate() {
            let part = part.index(planned) as u32;
            copied.set_flight(&[PartProgress { part: PartNo(part), bytes: ByteCount(bytes / 2), wire: ByteCount(0) }]);
            meter.observe(&job, &copied, at(i as i64 * 500));
            copied.note(&done(part, bytes)).unwrap();
            meter.observe(&job, &copied, at(i as i64 * 500 + 250));
            let view = meter.view(&job, NodeState::Copying, &copied, Detail::All, at(i as i64 * 500 + 250));
            prop_assert!(view.overall_percent >= before && view.overall_percent <= 74.0);
            prop_assert!(view.throughput_bytes_sec >= 0.0 && view.throughput_bytes_sec.is_finite());
            prop_assert!(view.bytes_total >= view.bytes_copied);
            prop_assert!(view.tables.iter().all(|t| (0.0..=100.0).contains(&t.percent)));
            before = view.overall_percent;
        }
    }

    #[test]
    fn phases_follow_one_another_without_a_gap(at in 0usize..3) {
        let method = [Method::Native, Method::Snapshot, Method::Backup][at];
        let mut phases: Vec<Phase> = Step::path(method).iter().map(|step| step.phase()).collect();
        phases.dedup();
        let mut at = 0.0;
        for phase in phases {
            let (from, to) = span(method, phase);
            prop_assert_eq!(from, at);
            prop_assert!(to > from);
            at = to;
        }
        prop_assert_eq!(at, 100.0);
    }
}
