//! Looks at this agent's server about every second, on one connection of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use steep_protocol::message::agent::{LockConflict, MirrorRow, Observed, PublicationStatus};
use steep_protocol::message::api::AuditView;
use steep_protocol::message::handover::{PreparedSlot, PreparedState};
use steep_protocol::message::lineage::Lineage;
use steep_protocol::message::snapshot::RecordedSnapshot;
use steep_protocol::report_interval::{LOOK_EVERY, first_look};
use steep_protocol::{ByteCount, JobId, Lsn, NodeId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::digests::Looked;
use super::report::Reports;
use crate::facts;
use crate::node::{own_schema, slot_notes};
use crate::pg::{Conninfo, PgError, Session};
use crate::replication::prepared::{self, Dropped, Unwanted};
use crate::replication::subscription;
use crate::snapshot::{SourceJobs, published, slot};
use crate::stored::record;

/// A slower look counts as a server that does not answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the WAL held by prepared slots is reported where nothing else changes.
const HELD_TOLD_EVERY: Duration = Duration::from_secs(5);

/// How often the node's lineage and its records of snapshots are read where no replication of ours came or went.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Also writes this node's row to its `steep_repl` tables, since both want one quiet connection.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) node: NodeId,
    pub(crate) conninfo: Arc<Conninfo>,
    pub(crate) jobs: Arc<SourceJobs>,
    pub(crate) seen: watch::Sender<Observed>,
    pub(crate) prepared: PreparedWatch,
    pub(crate) lineage: ChangeWatch<Lineage>,
    pub(crate) recorded: ChangeWatch<Vec<RecordedSnapshot>>,
    pub(crate) mirror: mpsc::Receiver<MirrorRow>,
    pub(crate) audit: mpsc::Receiver<AuditView>,
    /// Notified of entries written to the audit log.
    pub(crate) reports: Arc<Reports>,
    /// The last look at replicated columns.
    pub(crate) looked: watch::Receiver<Looked>,
    pub(crate) look_at_columns: Arc<Notify>,
    /// Lock conflicts, which are read more often.
    pub(crate) locks: watch::Receiver<Vec<LockConflict>>,
}

/// What to do besides looking.
enum ObserverTask {
    Nothing,
    Mirror(MirrorRow),
    Audit(AuditView),
}

impl Observer {
    /// Runs until cancelled. Errors become observations.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut session = None;
        // Looks follow the wall clock; a slow one does not shift the next.
        let first = first_look(std::time::Instant::now(), SystemTime::now());
        let mut tick = tokio::time::interval_at(first.into(), LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut complained, mut unwritten) = (false, false);
        let mut kept = true;
        let mut signs = Signs::default();
        loop {
            let task = tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => ObserverTask::Nothing,
                Ok(()) = self.locks.changed() => ObserverTask::Nothing,
                Some(entry) = self.audit.recv() => ObserverTask::Audit(entry),
                // Closed when the session's owner has ended, which is no reason to end before the others.
                Some(row) = self.mirror.recv() => ObserverTask::Mirror(self.newest(row)),
            };
            let look = self.look(&mut session);
            let result = match tokio::time::timeout(LOOK_TIMEOUT, look).await {
                Ok(Ok(observed)) => Ok(observed),
                Ok(Err(error)) => Err(error.to_fault(&self.node).message),
                Err(_) => Err("PostgreSQL did not answer within 5 s".to_owned()),
            };
            let observed = result.unwrap_or_else(|why| {
                session = None;
                if !std::mem::replace(&mut complained, true) {
                    warn!(error = %why, "PostgreSQL cannot be asked");
                }
                Observed {
                    postgres: Some(Err(why)),
                    lost_snapshots: self.jobs.lost_snapshots(),
                    locks: self.locks.borrow().clone(),
                    ..Observed::default()
                }
            });
            if matches!(observed.postgres, Some(Ok(_))) {
                let back = std::mem::take(&mut complained);
                if back {
                    debug!("PostgreSQL answers again");
                }
                // A node that was away counts as synchronized again once its tables have been looked at.
                if signs.replace(&observed) || back {
                    self.look_at_columns.notify_one();
                    self.lineage.read = None;
                    self.recorded.read = None;
                }
            }
            self.seen.send_replace(observed);
            match self.drop_expired(&mut session).await {
                Ok(()) => kept = true,
                Err(why) if std::mem::replace(&mut kept, false) => {
                    warn!(node_id = %self.node, error = %why, "a prepared slot that has expired is not dropped yet");
                }
                Err(_) => {}
            }
            match self.write(&mut session, &task).await {
                None => {}
                Some(Ok(())) if std::mem::take(&mut unwritten) => {
                    debug!("this node's own tables are kept again");
                }
                Some(Ok(())) => {}
                Some(Err(why)) if !std::mem::replace(&mut unwritten, true) => {
                    warn!(event = "mirror.failed", node_id = %self.node, error = %why, "this node's own tables are not kept");
                }
                Some(Err(_)) => {}
            }
        }
    }

    /// Only the last row waiting matters.
    fn newest(&mut self, row: MirrorRow) -> MirrorRow {
        let mut newest = row;
        while let Ok(row) = self.mirror.try_recv() {
            newest = row;
        }
        newest
    }

    async fn look(&mut self, session: &mut Option<Session>) -> Result<Observed, PgError> {
        let session = match session {
            Some(session) => session,
            None => {
                // Whoever locks our own tables is reported, not waited for.
                let fresh = Session::connect_impatient(&self.conninfo, "observer").await?;
                session.insert(fresh)
            }
        };
        match slot_notes::prepared_slots(session, &self.node).await {
            Ok(prepared) => self.prepared.take(prepared),
            // The table of notes is locked: the previous value holds.
            Err(error) if error.sqlstate().is_some() => debug!(%error, "prepared slots not read"),
            Err(error) => return Err(error),
        }
        if self.lineage.is_due() {
            match facts::lineage(session, &self.node).await {
                Ok(lineage) => self.lineage.take(lineage),
                Err(error) if error.sqlstate().is_some() => debug!(%error, "lineage not read"),
                Err(error) => return Err(error),
            }
        }
        if self.recorded.is_due() {
            match record::recorded(session, &self.node).await {
                Ok(recorded) => self.recorded.take(recorded),
                Err(error) if error.sqlstate().is_some() => debug!(%error, "snapshots not read"),
                Err(error) => return Err(error),
            }
        }
        // Slots before publications: the publication of a listed slot exists already.
        let slots = slot::slot_statuses(session, self.prepared.newest()).await?;
        let publications = published::publication_statuses(session).await?;
        let mut subscriptions = subscription::subscription_statuses(session).await?;
        let looked = self.looked.borrow().clone();
        for subscription in &mut subscriptions {
            let own = looked
                .troubles
                .iter()
                .find(|(job, _)| *job == subscription.job);
            subscription.trouble = own.map(|(_, trouble)| trouble.clone());
        }
        Ok(Observed {
            postgres: Some(Ok(session.server_version())),
            slots,
            subscriptions,
            digests: looked.digests,
            lost_snapshots: self.jobs.lost_snapshots(),
            locks: self.locks.borrow_and_update().clone(),
            publications,
            carried: looked.carried,
        })
    }

    /// Drops expired prepared slots, which hold WAL that nobody will ask for (G5).
    async fn drop_expired(&self, session: &mut Option<Session>) -> Result<(), String> {
        for slot in self.prepared.newest() {
            let (Some(open), PreparedState::Expired) = (session.as_ref(), &slot.state) else {
                continue;
            };
            let replication = &slot.replication;
            let dropping = prepared::drop_unused(open, &self.node, replication, Unwanted::Expired);
            match tokio::time::timeout(LOOK_TIMEOUT, dropping).await {
                Ok(Ok(Dropped::Yes)) => {
                    warn!(event = "init.slot_expired", node_id = %self.node, slot = %replication.slot, "an expired prepared slot was dropped: no backup was completed with it");
                    self.reports.slot_expired(replication.slot.clone());
                }
                Ok(Ok(Dropped::No)) => {}
                Ok(Err(error)) => return Err(error.to_fault(&self.node).message),
                Err(_) => {
                    // A late answer would be taken for another query's.
                    *session = None;
                    return Err("PostgreSQL did not answer within 5 s".to_owned());
                }
            }
        }
        Ok(())
    }

    /// Does the task, where there is one and the server answers. A failure for lack of space, rights or a
    /// lock does not mean that the server is down.
    async fn write(
        &self,
        session: &mut Option<Session>,
        task: &ObserverTask,
    ) -> Option<Result<(), String>> {
        let open = session.as_ref()?;
        if matches!(task, ObserverTask::Nothing) {
            return None;
        }
        let written = tokio::time::timeout(LOOK_TIMEOUT, self.run_task(open, task)).await;
        Some(match written {
            Ok(written) => written.map_err(|error| error.to_fault(&self.node).message),
            Err(_) => {
                // A late answer would be taken for another query's.
                *session = None;
                Err("PostgreSQL did not answer within 5 s".to_owned())
            }
        })
    }

    async fn run_task(&self, session: &Session, task: &ObserverTask) -> Result<(), PgError> {
        match task {
            ObserverTask::Nothing => {}
            ObserverTask::Mirror(row) => {
                if self.installed(session).await? {
                    own_schema::mirror(session, &self.node, row).await?;
                }
            }
            ObserverTask::Audit(entry) => {
                // The coordinator repeats what was not written, until the extension is new enough.
                if self.installed(session).await? {
                    own_schema::audit(session, &self.node, entry).await?;
                    self.reports.audited(entry.seq);
                }
            }
        }
        Ok(())
    }

    /// Installs the node's own tables. An older extension only keeps them from being written.
    async fn installed(&self, session: &Session) -> Result<bool, PgError> {
        match own_schema::install(session).await {
            Err(error @ PgError::Extension { .. }) => {
                warn!(node_id = %self.node, %error, "this node's own tables are not kept");
                Ok(false)
            }
            installed => installed.map(|()| true),
        }
    }
}

/// Whether more has changed than numbers that have grown.
pub(super) fn stands_out(told: &Observed, seen: &Observed) -> bool {
    let plain = |observed: &Observed| {
        let mut plain = observed.clone();
        for slot in &mut plain.slots {
            (slot.lag, slot.wal_held) = (ByteCount(0), ByteCount(0));
            slot.confirmed = Lsn(0);
        }
        for conflict in &mut plain.locks {
            (conflict.waited_seconds, conflict.queued) = (0, 0);
        }
        plain
    };
    plain(told) != plain(seen)
}

/// Reports prepared slots: at once where one came, went or changed, and now and then how much WAL they
/// hold.
#[derive(Debug)]
pub(crate) struct PreparedWatch {
    newest: Vec<PreparedSlot>,
    told: Option<Instant>,
    seen: watch::Sender<Option<Vec<PreparedSlot>>>,
}

impl PreparedWatch {
    pub(crate) fn new(seen: watch::Sender<Option<Vec<PreparedSlot>>>) -> Self {
        Self {
            newest: Vec::new(),
            told: None,
            seen,
        }
    }

    fn newest(&self) -> &[PreparedSlot] {
        &self.newest
    }

    fn take(&mut self, newest: Vec<PreparedSlot>) {
        let held = |slot: &PreparedSlot| PreparedSlot {
            wal_held: ByteCount(0),
            ..slot.clone()
        };
        let same = newest.len() == self.newest.len()
            && newest.iter().map(held).eq(self.newest.iter().map(held));
        let told = self.told.is_some_and(|at| at.elapsed() < HELD_TOLD_EVERY);
        let news = newest != self.newest || self.told.is_none();
        self.newest = newest;
        if news && !(same && told) {
            self.told = Some(Instant::now());
            self.seen.send_replace(Some(self.newest.clone()));
        }
    }
}

/// Reports what changes rarely, when it changes.
#[derive(Debug)]
pub(crate) struct ChangeWatch<T> {
    read: Option<Instant>,
    seen: watch::Sender<Option<T>>,
}

impl<T: PartialEq> ChangeWatch<T> {
    pub(crate) fn new(seen: watch::Sender<Option<T>>) -> Self {
        Self { read: None, seen }
    }

    fn is_due(&self) -> bool {
        self.read.is_none_or(|at| at.elapsed() >= READ_EVERY)
    }

    fn take(&mut self, newest: T) {
        self.read = Some(Instant::now());
        self.seen.send_if_modified(|known| {
            let news = known.as_ref() != Some(&newest);
            if news {
                *known = Some(newest);
            }
            news
        });
    }
}

/// What makes a look at columns urgent: a replication that came or went, a changed publication, and errors
/// of a subscription, which changed columns often cause.
#[derive(Debug, Default, PartialEq, Eq)]
struct Signs {
    jobs: BTreeSet<JobId>,
    errors: u64,
    publications: Vec<PublicationStatus>,
}

impl Signs {
    /// Returns whether they differ from the last ones.
    fn replace(&mut self, observed: &Observed) -> bool {
        let slots = observed.slots.iter().map(|slot| slot.job);
        let now = Self {
            jobs: slots
                .chain(observed.subscriptions.iter().map(|s| s.job))
                .collect(),
            errors: observed.subscriptions.iter().map(|s| s.apply_errors).sum(),
            publications: observed.publications.clone(),
        };
        let news = *self != now;
        *self = now;
        news
    }
}
