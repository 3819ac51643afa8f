//! Whether a job at work can still end well, judged from what agents observe, about every second.
//!
//! Commands notice what they do themselves; hours may lie between a slot that is lost during the copy
//! and the command that would need it, and nobody's command fails when a subscription does. Owns the
//! counts from one observation to the next, in memory only: a restarted coordinator begins to count
//! anew. Says what is wrong; what becomes of the job is [`super::machine`]'s. A server that does not
//! answer is no danger by itself: the machine waits for it.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Carried, EnumLabels, Observed, SlotStatus, SubscriptionStatus, SubscriptionWiring,
};
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, Fault, FaultKind};

use super::applying::{ABSENT, Applying, Fares};
use super::membership;
use super::preflight::text::bytes;
use super::{Job, Side, Stage, Step};

/// WAL that a job's slot may hold back unless told otherwise. A day, which is the default time limit
/// of a job, of 3 MB of WAL a second: more than most copies hold, and less than a disk that nobody
/// watches can lose.
pub const WAL_HELD_MAX: ByteCount = ByteCount(256 << 30);

/// How old a job's snapshot may be unless told otherwise: twice the default time limit of a job, so
/// that it ends only those that were given longer. Vacuum removes nothing that is younger.
pub const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(48 * 3600);

/// Observations in a row that must miss a slot or a subscription: one may have been on its way while
/// it was made.
const SUSPICIONS: u8 = 3;

/// What a job may cost its source before it is stopped (G5). `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// WAL that its slot holds back.
    pub wal_held: Option<ByteCount>,
    /// Age of its snapshot.
    pub snapshot_age: Option<Duration>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            wal_held: Some(WAL_HELD_MAX),
            snapshot_age: Some(SNAPSHOT_AGE_MAX),
        }
    }
}

/// What has been seen of one job so far.
#[derive(Debug, Clone, Default)]
pub struct JobHealth {
    /// Observations in a row without the slot.
    slot_missed: u8,
    /// Observations in a row without the subscription, or with one that is disabled.
    subscription_missed: u8,
    /// Observations in a row without the publication.
    publication_missed: u8,
    /// Enum types that the source publishes.
    labels: Vec<EnumLabels>,
    applying: Applying,
}

impl JobHealth {
    /// Takes what the agent on that side sees. The fault that the job is to end with, if it cannot go
    /// on.
    pub fn observe(
        &mut self,
        job: &Job,
        side: Side,
        seen: &Observed,
        bounds: Bounds,
        now: Timestamp,
    ) -> Option<Fault> {
        let step = match &job.stage {
            Stage::Working(step) => *step,
            // Its slot holds back WAL on the source; what becomes of the target is for who resumes it.
            Stage::Kept(kept) if side == Side::Source => kept.step,
            Stage::Kept(_) | Stage::Ending(_) | Stage::Closed(_) => return None,
        };
        let fault = match (side, seen.postgres.as_ref()?) {
            (Side::Source, Err(_)) => {
                self.applying.excuse();
                None
            }
            (Side::Target, Err(_)) => None,
            (Side::Source, Ok(_)) if has_slot(job.spec.method, step) => {
                let slot = seen.slots.iter().find(|s| s.job == job.replication().id);
                let fault = self.slot(job, slot, bounds);
                fault.or_else(|| self.publication(job, seen).filter(|_| slot.is_some()))
            }
            (Side::Target, Ok(_)) if step >= Step::Converge => {
                let mut own = seen.subscriptions.iter();
                let own = own.find(|s| s.job == job.replication().id);
                self.subscription(job, own, &seen.carried, now)
            }
            (Side::Source | Side::Target, Ok(_)) => None,
        };
        fault.map(|fault| fault.on(side.node(&job.spec)))
    }

    /// The slot, on the source.
    fn slot(&mut self, job: &Job, slot: Option<&SlotStatus>, bounds: Bounds) -> Option<Fault> {
        let name = job.replication().slot;
        let Some(slot) = slot else {
            self.slot_missed = self.slot_missed.saturating_add(1);
            return (self.slot_missed >= SUSPICIONS).then(|| {
                let text = format!("the replication slot {name} does not exist any more");
                Fault::new(FaultKind::Failed, text).hint(
                    "what was written since the snapshot is gone with it: find out who dropped \
                     it, then run init again",
                )
            });
        };
        self.slot_missed = 0;
        if slot.wal_status == "lost" {
            let text = format!(
                "the replication slot {name} has lost WAL that it needs (wal_status is lost)"
            );
            return Some(Fault::new(FaultKind::Failed, text).hint(
                "what was written since the snapshot is gone with it: raise \
                 max_slot_wal_keep_size, or idle_replication_slot_timeout (PostgreSQL 18), on the \
                 source, then run init again",
            ));
        }
        let limit = bounds.wal_held?;
        (slot.wal_held > limit).then(|| {
            let text = format!(
                "the replication slot {name} holds back {} of WAL, over the limit of {}",
                bytes(slot.wal_held),
                bytes(limit)
            );
            Fault::new(FaultKind::Failed, text).hint(
                "run init again when less is written, or with more --parallel workers; where the \
                 source's disk has the room, raise --max-wal-held of the coordinator",
            )
        })
    }

    /// The publication, on the source. The slot goes on whether or not it is there.
    fn publication(&mut self, job: &Job, seen: &Observed) -> Option<Fault> {
        let id = job.replication().id;
        let status = seen.publications.iter().find(|p| p.job == id);
        let Some(what) = membership::publication(status) else {
            self.publication_missed = 0;
            let mark = status.map(|status| status.mark);
            let mut looked = seen.carried.published.iter();
            let looked = looked.find(|p| p.job == id && Some(p.mark) == mark)?;
            self.labels.clone_from(&looked.enums);
            // From a backup it may have entered before its slot was taken; the proof looks again.
            let proved_later = job.spec.method == Method::Backup;
            let tables = looked.joined.iter().map(|j| j.table.to_string()).take(5);
            let tables: Vec<String> = tables.filter(|_| !proved_later).collect();
            return (!tables.is_empty()).then(|| {
                let text = format!(
                    "tables entered the publication {} while the job worked: {}",
                    job.replication().name(),
                    tables.join(", ")
                );
                changes_missing(text)
            });
        };
        self.publication_missed = self.publication_missed.saturating_add(1);
        (self.publication_missed >= SUSPICIONS).then(|| {
            let name = job.replication().name();
            changes_missing(format!("the publication {name} {what}"))
        })
    }

    /// The subscription, on the target.
    fn subscription(
        &mut self,
        job: &Job,
        subscription: Option<&SubscriptionStatus>,
        carried: &Carried,
        now: Timestamp,
    ) -> Option<Fault> {
        let name = job.replication().name();
        let missed = match subscription {
            None => Some("is not there any more"),
            Some(own) if own.wiring == SubscriptionWiring::Skipping => {
                Some("was told to skip a transaction")
            }
            Some(own) if own.wiring == SubscriptionWiring::Changed => {
                Some("was given another slot or other publications")
            }
            Some(own) if !own.enabled => Some("is disabled"),
            Some(_) => None,
        };
        let log = format!(
            "the reason is in the log of PostgreSQL on {}: see the target's log (logical \
             replication worker), then run init again",
            job.spec.target
        );
        if let Some(what) = missed {
            self.subscription_missed = self.subscription_missed.saturating_add(1);
            return (self.subscription_missed >= SUSPICIONS).then(|| {
                Fault::new(FaultKind::Failed, format!("the subscription {name} {what}")).hint(log)
            });
        }
        self.subscription_missed = 0;
        let own = subscription?;
        let what = match self.applying.observe(own, now) {
            Fares::Unseen | Fares::Well | Fares::Wavering => return None,
            Fares::KeepsFailing { errors } => format!("keeps failing ({errors} errors)"),
            Fares::Absent => format!("has had no worker for {} s", ABSENT.as_secs()),
        };
        let mut here = carried.subscribed.iter();
        let here = here.find(|s| s.job == own.job && s.mark == own.mark);
        let labels =
            here.and_then(|s| membership::missing_labels(&self.labels, &s.enums, &job.spec.target));
        let known: Vec<&str> = labels
            .iter()
            .map(String::as_str)
            .chain(own.trouble.as_deref())
            .collect();
        if known.is_empty() {
            let text = format!("the subscription {name} {what}; see the target's log");
            return Some(Fault::new(FaultKind::Failed, text).hint(log));
        }
        let text = format!("the subscription {name} {what}: {}", known.join("; "));
        Some(Fault::new(FaultKind::Failed, text).hint("mend that, then run init again"))
    }
}

fn changes_missing(text: String) -> Fault {
    Fault::new(FaultKind::Failed, text).hint(
        "changes may be missing on the target: leave the publication alone and attach no partitions \
         while a job works, and run init again",
    )
}

/// Whether the job's slot must be there: from the end of the step that makes it on. Natively nothing
/// hangs on it before the subscription does, which fails by itself without it.
fn has_slot(method: Method, step: Step) -> bool {
    match method {
        Method::Snapshot | Method::TwoPhase => step > Step::OpenSource,
        Method::Native => step > Step::Subscribe,
        Method::Backup => step > Step::TakeSlot,
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use steep_protocol::JobId;
    use steep_protocol::TableName;
    use steep_protocol::message::agent::{
        JoinedTable, Made, PublicationState, PublicationStatus, Published, RowsThere, Subscribed,
    };

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

        /// Seconds until the job is seen to be in danger, and the fault; at most `limit`.
        fn danger(&mut self, side: Side, seen: &Observed, limit: u32) -> Option<(u32, Fault)> {
            (1..=limit).find_map(|second| Some((second, self.see(side, seen)?)))
        }
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
    fn a_slot_that_is_gone_is_noticed_at_the_third_look_and_one_that_is_lost_at_the_first() {
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
    fn a_publication_that_is_not_what_it_was_ends_the_job_though_its_slot_goes_on() {
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

        // An error now and then, with a calm between them, is what servers that restart cause.
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
}
