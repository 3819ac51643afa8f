//! Whether a running job can still succeed, judged from the agents' observations, about every second.
//!
//! Commands notice only their own failures: a slot may be lost hours before a command needs it, and no
//! command fails when a subscription does. Owns the counts across observations, in memory only: a
//! restarted coordinator counts again from zero. Reports what is wrong; [`super::machine`] decides what
//! happens to the job. A server that does not answer is no fault here: the machine waits for it.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Carried, EnumLabels, Observed, SlotStatus, SubscriptionStatus, SubscriptionWiring,
};
use steep_protocol::message::api::{WaitingView, WaitsFor};
use steep_protocol::message::handover::SlotName;
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, Fault, FaultKind};

use super::apply_health::{ABSENT, ApplyHealth, ApplyWatch};
use super::change::Joining;
use super::membership;
use super::preflight::text::bytes;
use super::retry::seconds;
use super::standing::{Health, Part, Word};
use super::time::after;
use super::{Job, Side, Stage, Step};

pub mod wal_held;

/// The default limit on the WAL that a job's slot holds back: 3 MB of WAL a second for a day, the default
/// time limit of a job. More than most copies hold, and less than fills a disk that nobody watches.
pub const WAL_HELD_MAX: ByteCount = ByteCount(256 << 30);

/// The default limit on the age of a job's snapshot: twice the default time limit of a job, so it ends only
/// jobs with a longer one. Vacuum cannot remove rows that died after the snapshot.
pub const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(48 * 3600);

/// Most tables named in one fault.
const TABLES_NAMED: usize = 5;

/// A subscription without a worker is mentioned after this long: a worker that ended is started again within
/// five seconds (`wal_retrieve_retry_interval`).
const ABSENT_SHOWN: Duration = Duration::from_secs(6);

/// What a job may cost its source before it is stopped (G5). `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most WAL that its slot may hold back.
    pub wal_held: Option<ByteCount>,
    /// Highest age of its snapshot.
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

/// The observed health of one job.
#[derive(Debug, Clone, Default)]
pub struct JobHealth {
    slot: Part<Fault>,
    publication: Part<Fault>,
    subscription: Part<Fault>,
    /// Enum types that the source publishes.
    labels: Vec<EnumLabels>,
    apply: ApplyWatch,
    /// What is known of the subscription's errors.
    trouble: Option<String>,
}

impl JobHealth {
    /// Takes an observation of the agent on that side. Returns the fault to end the job with, if it
    /// cannot succeed.
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
            // Its slot still holds back WAL on the source; the target is judged when it is resumed.
            Stage::Kept(kept) if side == Side::Source => kept.step,
            Stage::Kept(_) | Stage::Ending(_) | Stage::Closed(_) => return None,
        };
        // Its replication ends with joining the other, which the fence after that finds to work.
        let joins = job.spec.method != Method::Reinit && job.joining() != Joining::NotYet;
        if matches!(step, Step::Join | Step::Leave) || joins || job.joining() == Joining::Done {
            self.apply.excuse();
            return None;
        }
        let fault = match (side, seen.postgres.as_ref()?) {
            (Side::Source, Err(_)) => {
                self.apply.excuse();
                None
            }
            (Side::Target, Err(_)) => None,
            (Side::Source, Ok(_)) => {
                self.slot
                    .take(slots_health(job, step, seen, bounds), Word::News);
                let slot = job.replication().slot;
                let own =
                    has_slot(job.spec.method, step) && seen.slots.iter().any(|s| s.slot == slot);
                // Tables enter it while epochs are folded.
                if own && step != Step::Fold {
                    let publication = self.publication_health(job, seen);
                    self.publication.take(publication, Word::News);
                }
                self.slot.cause().or(self.publication.cause()).cloned()
            }
            // It stands still, and is made anew, while epochs are folded.
            (Side::Target, Ok(_)) if step == Step::Fold => {
                self.apply.excuse();
                None
            }
            (Side::Target, Ok(_)) if job.follows() && step >= Step::Converge => {
                let own = seen
                    .subscriptions
                    .iter()
                    .find(|s| s.job == job.replication().id);
                let subscription = self.subscription_health(job, own, &seen.carried, now);
                self.subscription.take(subscription, Word::News);
                // Rows that both sides have inserted stop it until somebody settles that.
                let cause = self.subscription.cause().cloned();
                cause.filter(|_| job.merge.is_none())
            }
            (Side::Target, Ok(_)) => None,
        };
        fault.map(|fault| fault.on(side.node(&job.spec)))
    }

    /// The job waits for its subscription, which has no worker: none can be started, or none stays.
    #[must_use]
    pub fn waiting(&self, job: &Job, now: Timestamp) -> Option<WaitingView> {
        let since = self.apply.absent_since()?;
        match &job.stage {
            Stage::Working(step) if *step >= Step::Converge => {}
            _ => return None,
        }
        if now < after(since, ABSENT_SHOWN) {
            return None;
        }
        let target = &job.spec.target;
        let why = match &self.trouble {
            Some(trouble) => trouble.clone(),
            None => format!("the reason is in the log of PostgreSQL on {target}"),
        };
        Some(WaitingView {
            node_id: target.clone(),
            what: WaitsFor::Subscription,
            for_seconds: seconds(since, now),
            tries: 0,
            next_try_seconds: None,
            gives_up_seconds: seconds(now, after(since, ABSENT)),
            reason: format!(
                "the subscription {} has no worker; {why}",
                job.replication().name()
            ),
        })
    }

    /// The publication, on the source. The slot outlives it, so it is judged separately.
    fn publication_health(&mut self, job: &Job, seen: &Observed) -> Health<Fault> {
        let replication = job.replication();
        let status = seen.publications.iter().find(|p| p.job == replication.id);
        if let Some(what) = membership::publication(status) {
            let text = format!("the publication {} {what}", replication.name());
            return Health::Suspect(changes_missing(text));
        }
        let mark = status.map(|status| status.mark);
        let published = seen
            .carried
            .published
            .iter()
            .find(|p| p.job == replication.id && Some(p.mark) == mark);
        let Some(published) = published else {
            return Health::Good;
        };
        self.labels.clone_from(&published.enums);
        // From a backup, a table may have entered before the slot was taken; the proof checks again.
        if published.joined.is_empty() || job.spec.method == Method::Backup {
            return Health::Good;
        }
        let joined = published.joined.iter().take(TABLES_NAMED);
        let tables: Vec<String> = joined.map(|j| j.table.to_string()).collect();
        Health::Bad(changes_missing(format!(
            "tables entered the publication {} while the job worked: {}",
            replication.name(),
            tables.join(", ")
        )))
    }

    /// The subscription, on the target.
    fn subscription_health(
        &mut self,
        job: &Job,
        subscription: Option<&SubscriptionStatus>,
        carried: &Carried,
        now: Timestamp,
    ) -> Health<Fault> {
        let name = job.replication().name();
        let log = format!(
            "the reason is in the log of PostgreSQL on {}: see the target's log (logical \
             replication worker), then run init again",
            job.spec.target
        );
        let fault =
            |what: &str| Fault::new(FaultKind::Failed, format!("the subscription {name} {what}"));
        let suspect = |what: &str| Health::Suspect(fault(what).hint(log.clone()));
        let Some(own) = subscription else {
            return suspect("no longer exists");
        };
        match own.wiring {
            SubscriptionWiring::Skipping => return suspect("was set to skip a transaction"),
            SubscriptionWiring::Changed => {
                return suspect("was given another slot or other publications");
            }
            SubscriptionWiring::Sound | SubscriptionWiring::Unmarked if !own.enabled => {
                return suspect("is disabled");
            }
            SubscriptionWiring::Sound | SubscriptionWiring::Unmarked => {}
        }
        self.trouble.clone_from(&own.trouble);
        let what = match self.apply.observe(own, now) {
            ApplyHealth::Well => return Health::Good,
            ApplyHealth::Unseen | ApplyHealth::Wavering => return Health::Unknown,
            ApplyHealth::KeepsFailing { errors } => format!("keeps failing ({errors} errors)"),
            ApplyHealth::Absent => format!("has had no worker for {} s", ABSENT.as_secs()),
        };
        let labels = carried
            .subscribed
            .iter()
            .find(|s| s.job == own.job && s.mark == own.mark)
            .and_then(|s| membership::missing_labels(&self.labels, &s.enums, &job.spec.target));
        let known: Vec<&str> = labels
            .iter()
            .map(String::as_str)
            .chain(own.trouble.as_deref())
            .collect();
        Health::Bad(if known.is_empty() {
            fault(&format!("{what}; see the target's log")).hint(log)
        } else {
            fault(&format!("{what}: {}", known.join("; "))).hint("fix that, then run init again")
        })
    }
}

/// The slots of all epochs, on the source: the first that is not as it should be.
fn slots_health(job: &Job, step: Step, seen: &Observed, bounds: Bounds) -> Health<Fault> {
    let own = has_slot(job.spec.method, step).then(|| job.replication().slot);
    // Each is dropped as soon as it is folded.
    let folding = step == Step::Fold;
    let earlier = job.earlier.iter().filter(|_| !folding);
    let names = earlier
        .map(|epoch| epoch.replication.slot.clone())
        .chain(own);
    let judged = names.map(|name| {
        let slot = seen.slots.iter().find(|slot| slot.slot == name);
        slot_health(&name, slot, bounds)
    });
    let mut bad = judged.filter(|health| *health != Health::Good);
    bad.next().unwrap_or(Health::Good)
}

fn slot_health(name: &SlotName, slot: Option<&SlotStatus>, bounds: Bounds) -> Health<Fault> {
    let fault = |what: &str| {
        Fault::new(
            FaultKind::Failed,
            format!("the replication slot {name} {what}"),
        )
    };
    let Some(slot) = slot else {
        return Health::Suspect(fault("does not exist any more").hint(
            "changes since the snapshot are lost with it: find out who dropped it, then run \
             init again",
        ));
    };
    if slot.wal_status == "lost" {
        return Health::Bad(
            fault("has lost WAL that it needs (wal_status is lost)").hint(
                "changes since the snapshot are lost with it: raise \
                 max_slot_wal_keep_size, or idle_replication_slot_timeout (PostgreSQL 18), on the \
                 source, then run init again",
            ),
        );
    }
    match bounds.wal_held {
        Some(limit) if slot.wal_held > limit => {
            let (held, limit) = (bytes(slot.wal_held), bytes(limit));
            let what = format!("holds back {held} of WAL, over the limit of {limit}");
            Health::Bad(fault(&what).hint(
                "run init again when fewer changes are written, or with more --parallel workers; if the \
                 source's disk has room, raise --max-wal-held of the coordinator",
            ))
        }
        _ => Health::Good,
    }
}

fn changes_missing(text: String) -> Fault {
    Fault::new(FaultKind::Failed, text).hint(
        "changes may be missing on the target: do not change the publication or attach partitions \
         while a job runs, and run init again",
    )
}

/// Whether the job's slot must exist: after the step that makes it. Natively the subscription is the
/// first to need it, and fails by itself without it.
fn has_slot(method: Method, step: Step) -> bool {
    match method {
        Method::Snapshot
        | Method::TwoPhase
        | Method::Stored
        | Method::Add
        | Method::Reinit
        | Method::Merge => step > Step::OpenSource,
        Method::Load | Method::Drop => false,
        Method::Native => step > Step::Subscribe,
        Method::Backup => step > Step::TakeSlot,
    }
}

#[cfg(test)]
mod tests;
