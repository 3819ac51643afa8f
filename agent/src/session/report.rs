//! Progress between two sends: the newest of each kind, and every part done.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use steep_protocol::message::agent::{
    AgentMessage, PartDone, PartProgress, ProgressReport, WorkProgress,
};
use steep_protocol::message::handover::SlotName;
use steep_protocol::message::verify::TableReport;
use steep_protocol::report_interval::News;
use steep_protocol::{ByteCount, JobId, PartNo, Phase};
use tokio::sync::watch;

use crate::mutex::lock;
use crate::task::ProgressSink;
use crate::telemetry::Flow;

/// More parts follow in the next message.
const PARTS_PER_MESSAGE: usize = 10_000;

/// Collects what tasks report until the session sends it.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    jobs: Mutex<HashMap<JobId, JobReport>>,
    /// Rows received and committed here, over all jobs.
    pub(crate) received: Flow,
    retries: AtomicU64,
    /// Operators' requests written to the audit log since the last [`Reports::take`].
    audited: Mutex<Vec<u64>>,
    /// Prepared slots that expired since then.
    expired: Mutex<Vec<SlotName>>,
    /// The most urgent of what waits.
    news: watch::Sender<News>,
}

#[derive(Debug, Default)]
struct JobReport {
    changed: bool,
    phase: Option<Phase>,
    work: Option<WorkProgress>,
    active: BTreeMap<PartNo, PartProgress>,
    /// Parts done, in commit order; those before `told` were sent in this session.
    done: Vec<PartDone>,
    told: usize,
    retries: u64,
    waiting: usize,
    /// Tables that a comparison has compared, and that were not told yet.
    compared: Vec<TableReport>,
}

/// What waits, over all jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Depths {
    pub(crate) loading: u64,
    pub(crate) waiting: u64,
    /// Parts done that were not reported.
    pub(crate) untold: u64,
}

impl Reports {
    /// Changes when something more urgent waits than before.
    pub(crate) fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// What has changed since the last call, as messages.
    pub(crate) fn take(&self) -> Vec<AgentMessage> {
        // Reset before anything is taken: what arrives meanwhile is taken now or raises it again.
        self.news.send_if_modified(|news| {
            *news = News::None;
            false
        });
        let mut messages = Vec::new();
        let audited = std::mem::take(&mut *lock(&self.audited)).into_iter();
        messages.extend(audited.map(|seq| AgentMessage::Audited { seq }));
        let expired = std::mem::take(&mut *lock(&self.expired)).into_iter();
        messages.extend(expired.map(|slot| AgentMessage::SlotExpired { slot }));
        for (job, report) in self.lock().iter_mut() {
            for parts in report.done[report.told..].chunks(PARTS_PER_MESSAGE) {
                messages.push(AgentMessage::PartsDone {
                    job: *job,
                    parts: parts.to_vec(),
                });
            }
            report.told = report.done.len();
            let compared = report.compared.drain(..).map(Box::new);
            messages
                .extend(compared.map(|report| AgentMessage::TableCompared { job: *job, report }));
            if std::mem::take(&mut report.changed)
                && let Some(phase) = report.phase
            {
                messages.push(AgentMessage::Progress(ProgressReport {
                    job: *job,
                    phase,
                    active: report.active.values().cloned().collect(),
                    work: report.work.clone(),
                    retries: report.retries,
                }));
            }
        }
        messages
    }

    /// A new session: the coordinator may have missed anything.
    pub(crate) fn tell_again(&self) {
        for report in self.lock().values_mut() {
            report.told = 0;
            report.changed = true;
        }
        self.tell(News::Event);
    }

    /// If this is lost with its session, the coordinator repeats the request.
    pub(crate) fn audited(&self, seq: u64) {
        lock(&self.audited).push(seq);
        self.tell(News::Event);
    }

    /// Reported once, in this session or the next.
    pub(crate) fn slot_expired(&self, slot: SlotName) {
        lock(&self.expired).push(slot);
        self.tell(News::Event);
    }

    /// Parts begun again since the process started.
    pub(crate) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    pub(crate) fn depths(&self) -> Depths {
        let mut depths = Depths::default();
        for report in self.lock().values() {
            depths.loading += report.active.len() as u64;
            depths.waiting += report.waiting as u64;
            depths.untold += (report.done.len() - report.told) as u64;
        }
        depths
    }

    pub(crate) fn forget(&self, job: JobId) {
        self.lock().remove(&job);
    }

    fn with(&self, job: JobId, change: impl FnOnce(&mut JobReport) -> News) {
        let news = {
            let mut jobs = self.lock();
            let report = jobs.entry(job).or_default();
            report.changed = true;
            change(report)
        };
        self.tell(news);
    }

    fn tell(&self, news: News) {
        self.news.send_if_modified(|known| {
            let more = news > *known;
            if more {
                *known = news;
            }
            more
        });
    }

    /// Counts the bytes of a part since its last report; a part that shrank was begun again.
    fn count(&self, before: Option<&PartProgress>, bytes: ByteCount, wire: ByteCount) {
        let known = before.filter(|b| b.bytes <= bytes && b.wire <= wire);
        let (old_bytes, old_wire) = known.map_or_else(Default::default, |b| (b.bytes, b.wire));
        self.received.moved(bytes - old_bytes, wire - old_wire);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, JobReport>> {
        lock(&self.jobs)
    }
}

impl ProgressSink for Reports {
    fn work(&self, job: JobId, phase: Phase, work: WorkProgress) {
        self.with(job, |report| {
            let begun = report.phase != Some(phase);
            if begun {
                report.active.clear();
            }
            report.phase = Some(phase);
            let before = report.work.replace(work.clone());
            let whole = |work: &WorkProgress| work.done >= work.total;
            if begun || (whole(&work) && !before.is_some_and(|before| whole(&before))) {
                News::Event
            } else {
                News::Growth
            }
        });
    }

    fn part(&self, job: JobId, progress: PartProgress) {
        self.with(job, |report| {
            report.phase = Some(Phase::Copy);
            report.work = None;
            let before = report.active.get(&progress.part);
            self.count(before, progress.bytes, progress.wire);
            report.active.insert(progress.part, progress);
            News::Growth
        });
    }

    fn loaded(&self, job: JobId, loaded: &PartDone) {
        self.with(job, |report| {
            let before = report.active.remove(&loaded.part);
            self.count(before.as_ref(), loaded.bytes, loaded.wire);
            self.received.completed(loaded.rows);
            News::Growth
        });
    }

    fn done(&self, job: JobId, done: PartDone) {
        self.with(job, |report| {
            report.phase = Some(Phase::Copy);
            report.work = None;
            report.active.remove(&done.part);
            report.done.push(done);
            News::Growth
        });
    }

    fn retried(&self, job: JobId) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        self.with(job, |report| {
            report.retries += 1;
            News::Event
        });
    }

    fn waiting(&self, job: JobId, parts: usize) {
        self.with(job, |report| {
            report.waiting = parts;
            News::Growth
        });
    }

    fn compared(&self, job: JobId, table: TableReport) {
        self.with(job, |report| {
            report.compared.push(table);
            News::Event
        });
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::RowCount;
    use steep_protocol::message::agent::WorkUnit;

    use super::*;

    fn done(part: u32) -> PartDone {
        PartDone {
            part: PartNo(part),
            rows: RowCount(1),
            bytes: ByteCount(2),
            wire: ByteCount(3),
        }
    }

    fn parts(messages: &[AgentMessage]) -> Vec<u32> {
        messages
            .iter()
            .filter_map(|m| match m {
                AgentMessage::PartsDone { parts, .. } => Some(parts),
                _ => None,
            })
            .flatten()
            .map(|d| d.part.0)
            .collect()
    }

    #[test]
    fn every_part_is_told_once_a_session_and_again_on_the_next() {
        let reports = Reports::default();
        let job = JobId(1);
        reports.done(job, done(1));
        reports.done(job, done(2));
        assert_eq!(parts(&reports.take()), [1, 2]);
        reports.done(job, done(3));
        assert_eq!(parts(&reports.take()), [3]);
        reports.tell_again();
        assert_eq!(parts(&reports.take()), [1, 2, 3]);
    }

    #[test]
    fn bytes_are_counted_once_and_again_only_where_they_came_again() {
        let reports = Reports::default();
        let job = JobId(1);
        let part = |bytes| PartProgress {
            part: PartNo(1),
            bytes: ByteCount(bytes),
            wire: ByteCount(bytes / 2),
        };
        reports.part(job, part(10));
        reports.part(job, part(30));
        assert_eq!(reports.received.sum().bytes, 30);
        reports.retried(job);
        reports.part(job, part(8));
        assert_eq!(reports.received.sum().bytes, 38);
        let whole = PartDone {
            bytes: ByteCount(40),
            wire: ByteCount(20),
            ..done(1)
        };
        reports.loaded(job, &whole);
        assert_eq!(parts(&reports.take()), [0u32; 0], "a crash may undo it");
        reports.done(job, whole);
        let sum = reports.received.sum();
        assert_eq!((sum.bytes, sum.wire, sum.parts), (70, 35, 1));
        // Found in the ledger, from an earlier attempt.
        reports.done(job, done(2));
        assert_eq!(reports.received.sum(), sum);
        assert_eq!((reports.retries(), reports.depths().untold), (1, 2));
    }

    #[test]
    fn news_is_told_once_and_the_weightiest_counts() {
        let reports = Reports::default();
        let job = JobId(1);
        let mut news = reports.news();
        let part = || PartProgress {
            part: PartNo(1),
            bytes: ByteCount(1),
            wire: ByteCount(1),
        };
        reports.part(job, part());
        assert!(news.has_changed().unwrap());
        assert_eq!(*news.borrow_and_update(), News::Growth);
        reports.part(job, part());
        assert!(!news.has_changed().unwrap(), "it is known");
        reports.retried(job);
        assert_eq!(*news.borrow_and_update(), News::Event);
        reports.part(job, part());
        assert_eq!(*news.borrow(), News::Event);
        reports.take();
        assert!(!news.has_changed().unwrap());
        assert_eq!(*news.borrow(), News::None);
    }

    #[test]
    fn what_begins_and_what_is_whole_is_an_event_and_what_grows_is_not() {
        let reports = Reports::default();
        let mut news = reports.news();
        let mut said = |phase, done| {
            let work = WorkProgress {
                done,
                total: 10,
                unit: WorkUnit::Items,
                current: None,
                workers: 1,
            };
            reports.work(JobId(1), phase, work);
            let told = *news.borrow_and_update();
            reports.take();
            told
        };
        assert_eq!(said(Phase::Indexes, 1), News::Event, "it began");
        assert_eq!(said(Phase::Indexes, 2), News::Growth);
        assert_eq!(said(Phase::Indexes, 10), News::Event);
        assert_eq!(said(Phase::Indexes, 10), News::Growth);
        assert_eq!(said(Phase::Constraints, 1), News::Event);
    }

    #[test]
    fn nothing_is_said_where_nothing_changed() {
        let reports = Reports::default();
        let job = JobId(1);
        let bytes = ByteCount(10);
        reports.part(
            job,
            PartProgress {
                part: PartNo(1),
                bytes,
                wire: bytes,
            },
        );
        assert_eq!(reports.take().len(), 1);
        assert!(reports.take().is_empty());
    }
}
