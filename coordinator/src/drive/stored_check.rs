//! Before a failed job is resumed that loads a stored snapshot: whether all its files are there and can be read, as
//! `snapshot apply` checks before it begins. Where the target's agent cannot, because its copy or its key is gone, the
//! source's takes its place if it can.

use jiff::Timestamp;
use steep_protocol::message::agent::NodeCommand;
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::job::JobSpec;
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, Retry};

use super::log::Note;
use super::query::Purpose;
use super::{Answer, Driver, Ticket};
use crate::job::handover::{Reader, StoredRows};
use crate::job::{Stage, Step, preflight};
use crate::store::{Store, Write};

/// A request to resume jobs, whose snapshots are being looked at.
pub(super) struct Resuming {
    ticket: Ticket,
    then: Then,
    /// Each target's job, and whether its snapshot can be read, once that is known.
    checks: Vec<(JobSpec, Option<Checked>)>,
}

/// What follows.
pub(super) enum Then {
    /// The jobs are resumed, for that operator.
    Resume(String),
    /// Findings are shown.
    Show,
}

/// What a check showed.
enum Checked {
    /// Nothing is in the way.
    Loadable,
    /// The target's agent cannot load it, and the source's can.
    BySource(Box<Fault>, Box<StoredRows>),
    /// Nobody can.
    Not(Box<Fault>),
}

/// The check of one target's snapshot, on one agent.
pub(super) struct StoredLook {
    /// The number of its [`Resuming`].
    request: u64,
    target: NodeId,
    /// Why the target's agent cannot load it, where the source's is asked.
    unreadable: Option<(Box<Fault>, Box<StoredRows>)>,
}

impl<S: Store> Driver<S> {
    /// Resumes the failed jobs of all targets, or shows what that would do, once their snapshots have been looked at.
    pub(super) fn resume_checked(
        &mut self,
        specs: Vec<JobSpec>,
        then: Then,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Vec<JobId>, Fault> {
        let mut ids = Vec::new();
        let mut looks = Vec::new();
        let mut checks = Vec::new();
        for spec in specs {
            let id = self.check_resume(&spec)?;
            ids.push(id);
            let place = self.place_to_check(id);
            if let Some((reader, place)) = &place {
                self.check_query(reader)?;
                looks.push((reader.clone(), spec.target.clone(), place.clone()));
            }
            checks.push((spec, place.is_none().then_some(Checked::Loadable)));
        }
        let resuming = Resuming {
            ticket,
            then,
            checks,
        };
        if looks.is_empty() {
            self.resume_looked_at(resuming, now);
            return Ok(ids);
        }
        let request = self.take_commands(1);
        self.resuming.insert(request, resuming);
        for (reader, target, place) in looks {
            let look = StoredLook {
                request,
                target,
                unreadable: None,
            };
            self.look_at_stored(&reader, place, look, now);
        }
        Ok(ids)
    }

    fn look_at_stored(
        &mut self,
        reader: &NodeId,
        place: StoredPlace,
        look: StoredLook,
        now: Timestamp,
    ) {
        let command = NodeCommand::CheckStored { place };
        self.begin_query(reader, command, Purpose::CheckStored(look), now);
    }

    /// Who reads a job's stored snapshot and where, if it goes on reading one.
    fn place_to_check(&self, id: JobId) -> Option<(NodeId, StoredPlace)> {
        let job = &self.jobs.get(&id)?.job;
        let (Stage::Kept(kept), Some(stored)) = (&job.stage, &job.stored) else {
            return None;
        };
        if !kept.step.reads_snapshot(job.spec.method) {
            return None;
        }
        let mut place = stored.place();
        // What follows the rows reads the sequences alone.
        place.verify &= kept.step <= Step::Copy;
        Some((stored.reader.node(&job.spec).clone(), place))
    }

    /// An agent has looked at a snapshot.
    pub(super) fn stored_checked(
        &mut self,
        mut look: StoredLook,
        outcome: Result<(), Fault>,
        now: Timestamp,
    ) {
        let checked = match (outcome, look.unreadable.take()) {
            (Ok(()), None) => Checked::Loadable,
            (Ok(()), Some((fault, rows))) => Checked::BySource(fault, rows),
            (Err(_), Some((fault, _))) => Checked::Not(fault),
            (Err(fault), None) if was_not_looked_at(&fault) => Checked::Not(Box::new(fault)),
            // The job itself waits for what may pass.
            (Err(fault), None) if fault.retry != Retry::Never => Checked::Loadable,
            (Err(fault), None) => match self.other_reader(&look) {
                Some((source, place, rows)) => {
                    look.unreadable = Some((Box::new(fault), Box::new(rows)));
                    return self.look_at_stored(&source, place, look, now);
                }
                None => Checked::Not(Box::new(fault)),
            },
        };
        let Some(resuming) = self.resuming.get_mut(&look.request) else {
            return;
        };
        let mut checks = resuming.checks.iter_mut();
        if let Some((_, found)) = checks.find(|(spec, _)| spec.target == look.target) {
            *found = Some(checked);
        }
        if resuming.checks.iter().all(|(_, found)| found.is_some())
            && let Some(resuming) = self.resuming.remove(&look.request)
        {
            self.resume_looked_at(resuming, now);
        }
    }

    /// The source, and where it has the snapshot that the target's agent cannot load.
    fn other_reader(&self, look: &StoredLook) -> Option<(NodeId, StoredPlace, StoredRows)> {
        let resuming = self.resuming.get(&look.request)?;
        let mut specs = resuming.checks.iter().map(|(spec, _)| spec);
        let spec = specs.find(|spec| spec.target == look.target)?;
        let job = &self.jobs.get(&self.check_resume(spec).ok()?)?.job;
        let stored = job.stored.as_ref()?;
        if stored.reader == Reader::Source {
            return None;
        }
        let snapshot = &self.snapshots.get(&stored.snapshot)?.snapshot;
        let rows = StoredRows {
            reader: Reader::Source,
            location: snapshot.location()?.to_owned(),
            ..stored.clone()
        };
        Some((job.spec.source.clone(), rows.place(), rows))
    }

    /// All snapshots have been looked at.
    fn resume_looked_at(&mut self, resuming: Resuming, now: Timestamp) {
        let Resuming {
            ticket,
            then,
            checks,
        } = resuming;
        let answer = match then {
            Then::Show => self.resume_shown(&checks),
            Then::Resume(operator) => self.resume_now(checks, &operator, now),
        };
        self.answer(ticket, answer);
    }

    fn resume_shown(&self, checks: &[(JobSpec, Option<Checked>)]) -> Result<Answer, Fault> {
        let mut replies = Vec::new();
        for (spec, checked) in checks {
            let mut findings = self.what_is_kept(spec)?;
            match checked {
                None | Some(Checked::Loadable) => {}
                Some(Checked::BySource(fault, _)) => {
                    findings.insert(0, preflight::read_by_source(spec, fault));
                }
                Some(Checked::Not(fault)) => {
                    findings.insert(0, preflight::not_loadable(spec, fault));
                }
            }
            replies.push(ApiReply::Findings {
                target: spec.target.clone(),
                findings,
            });
        }
        Ok(Answer::Replies(replies))
    }

    fn resume_now(
        &mut self,
        checks: Vec<(JobSpec, Option<Checked>)>,
        operator: &str,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        let after = self.next_event - 1;
        let mut specs = Vec::new();
        let mut moved = Vec::new();
        for (spec, checked) in checks {
            let id = self.check_resume(&spec)?;
            match checked {
                None | Some(Checked::Loadable) => {}
                Some(Checked::BySource(fault, rows)) => moved.push((id, fault, rows)),
                Some(Checked::Not(fault)) => return Err(*fault),
            }
            specs.push(spec);
        }
        for (id, fault, rows) in moved {
            self.read_by_source(id, &fault, *rows, now);
        }
        let ids = self.resume_failed(&specs, operator, now)?;
        let jobs = ids.iter().filter_map(|id| self.follow(*id, now)).collect();
        Ok(Answer::Accepted { jobs, after })
    }

    /// The source's agent reads a job's snapshot from now on.
    fn read_by_source(&mut self, id: JobId, fault: &Fault, rows: StoredRows, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        live.job.stored = Some(rows);
        let job = live.job.clone();
        let text = format!(
            "the agent of {} reads the snapshot for {}, whose own agent cannot: {fault}",
            job.spec.source, job.spec.target
        );
        let note = Note::warn("snapshot.reader_changed", text).job(&job);
        let note = note.field("hint", &fault.hint);
        self.out.writes.push(Write::Job(Box::new(job)));
        self.log(note, now);
    }
}

/// Whether an agent did not answer, so that nothing is known of the files.
pub(super) fn was_not_looked_at(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::Unreachable | FaultKind::Timeout | FaultKind::Cancelled
    )
}
