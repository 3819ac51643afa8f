//! `init --dry-run` and `doctor`: the preflight alone, without a job or any change. Each target and its
//! source are one query (`query`). The operator is answered when all have ended, or with the first
//! fault.

use jiff::Timestamp;
use steep_protocol::message::agent::{NodeCommand, SlotOrigin, SourceCommand, TargetCommand};
use steep_protocol::message::api::{ApiReply, InitRequest};
use steep_protocol::message::facts::{Finding, SourceFacts, TargetFacts};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::JobSpec;
use steep_protocol::{Fault, FaultKind, NodeId, Retry};

use super::orders::Start;
use super::query::Purpose;
use super::stored_check::Then;
use super::{Answer, Driver, Ticket};
use crate::job::handover::{Handover, StoredRows};
use crate::job::preflight::{self, Case};
use crate::registry::Agent;
use crate::store::Store;

/// Maximum number of concurrent doctors.
const DOCTORS_MAX: usize = 32;

/// A request for the preflight of one or more targets.
pub(super) struct Doctor {
    ticket: Ticket,
    /// The findings of each target, once known.
    found: Vec<(NodeId, Option<Vec<Finding>>)>,
}

/// The preflight of one target and its source.
pub(super) struct Look {
    /// The number of its doctor.
    pub(super) doctor: u64,
    pub(super) wanted: Wanted,
}

/// What would be done.
pub(super) struct Wanted {
    pub(super) spec: JobSpec,
    /// The slot that it would start from.
    handover: Option<Handover>,
    /// The stored snapshot that it would load.
    stored: Option<StoredRows>,
}

impl Look {
    /// The command that looks at the files of the stored snapshot that would be loaded, and who reads them.
    pub(super) fn look_at_stored(&self) -> Option<(NodeCommand, NodeId)> {
        let stored = self.wanted.stored.as_ref()?;
        let place = stored.place();
        let reader = stored.reader.node(&self.wanted.spec);
        Some((NodeCommand::CheckStored { place }, reader.clone()))
    }
}

impl<S: Store> Driver<S> {
    /// Checks whether another doctor may start.
    pub(super) fn room_for_doctor(&self) -> Result<(), Fault> {
        if self.doctors.len() < DOCTORS_MAX {
            return Ok(());
        }
        let text = "too many preflights are running";
        Err(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
    }

    /// Starts the preflight of a request.
    pub(super) fn doctor(
        &mut self,
        request: InitRequest,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_doctor(request.specs())?;
        let live = |spec| Wanted {
            spec,
            handover: None,
            stored: None,
        };
        let wanted = match request {
            InitRequest::Copy(specs) => specs.into_iter().map(live).collect(),
            InitRequest::Resume(specs) => {
                return self
                    .resume_checked(specs, Then::Show, ticket, now)
                    .map(drop);
            }
            InitRequest::Complete(spec) => {
                let (spec, handover) = self.resolve(*spec)?;
                vec![Wanted {
                    handover: Some(handover),
                    ..live(spec)
                }]
            }
            InitRequest::Apply(spec) => {
                let jobs = self.resolve_snapshot(*spec)?.into_iter();
                jobs.map(|(spec, start)| match start {
                    Start::Stored(stored) => Wanted {
                        handover: spec.method.follows().then(|| stored.template()),
                        stored: Some(stored),
                        spec,
                    },
                    Start::Live
                    | Start::Backup(_)
                    | Start::Shared(_)
                    | Start::Joined(_)
                    | Start::Merge(_) => live(spec),
                })
                .collect()
            }
        };
        self.begin_doctor(wanted, ticket, now);
        Ok(())
    }

    fn begin_doctor(&mut self, wanted: Vec<Wanted>, ticket: Ticket, now: Timestamp) {
        let doctor = self.take_commands(1);
        let found = wanted
            .iter()
            .map(|wanted| (wanted.spec.target.clone(), None))
            .collect();
        self.doctors.insert(doctor, Doctor { ticket, found });
        for wanted in wanted {
            let (spec, handover) = (&wanted.spec, &wanted.handover);
            let job = self.new_job_id();
            let prepared = handover.as_ref().map(|h| h.replication.clone());
            let replication = prepared.unwrap_or_else(|| Replication::of(job));
            let command = SourceCommand::Gather {
                target: spec.target.clone(),
                filter: spec.filter.clone(),
                slot: SlotOrigin::of(&replication),
            };
            let source = spec.source.clone();
            let purpose = Purpose::LookAtSource(Look { doctor, wanted });
            self.begin_query_as(job, &source, replication, (command.into(), purpose), now);
        }
    }

    /// The next command, and the node that it is for.
    pub(super) fn look_at_target(&self, look: &Look) -> (TargetCommand, NodeId) {
        let spec = &look.wanted.spec;
        let (source, filter) = (self.peer(&spec.source), spec.filter.clone());
        let command = TargetCommand::Gather { source, filter };
        (command, spec.target.clone())
    }

    /// Judges the facts of both ends, and why its snapshot cannot be loaded, if so; after the last target, answers.
    pub(super) fn looked(
        &mut self,
        look: &Look,
        source: &SourceFacts,
        target: &TargetFacts,
        not_loadable: Option<&Fault>,
    ) {
        let around = self.around();
        let wanted = &look.wanted;
        let case = Case {
            spec: &wanted.spec,
            source,
            target,
            handover: wanted.handover.as_ref().zip(source.slot.as_ref()),
            stored: wanted.stored.as_ref(),
            around: &around,
        };
        let mut findings = (self.rules.judge)(&case);
        // The facts have told of a missing key.
        let files = not_loadable.filter(|fault| fault.kind != FaultKind::KeyMissing);
        let files = files.map(|fault| preflight::not_loadable(&wanted.spec, fault));
        findings.splice(0..0, files);
        let agent = self.registry.get(&wanted.spec.source);
        let waiting = agent.into_iter().flat_map(Agent::waiting_slots);
        let (source, bounds) = (&wanted.spec.source, self.rules.bounds);
        findings.extend(preflight::standing(source, waiting, bounds));
        findings.extend(preflight::copy_size(&case));
        let Some(doctor) = self.doctors.get_mut(&look.doctor) else {
            return;
        };
        let mut places = doctor.found.iter_mut();
        if let Some((_, found)) = places.find(|(node, _)| *node == wanted.spec.target) {
            *found = Some(findings);
        }
        if doctor.found.iter().all(|(_, found)| found.is_some())
            && let Some(Doctor { ticket, found }) = self.doctors.remove(&look.doctor)
        {
            let replies = found.into_iter().map(|(target, found)| ApiReply::Findings {
                target,
                findings: found.unwrap_or_default(),
            });
            self.answer(ticket, Ok(Answer::Replies(replies.collect())));
        }
    }

    /// A target's preflight failed, so its doctor ends and the others are aborted.
    pub(super) fn doctor_failed(&mut self, doctor: u64, fault: Fault, now: Timestamp) {
        let Some(Doctor { ticket, .. }) = self.doctors.remove(&doctor) else {
            return;
        };
        self.answer(ticket, Err(fault));
        let other = Fault::new(
            FaultKind::Cancelled,
            "the preflight of another target failed",
        );
        self.end_queries(|query| query.is_look_of(doctor).then(|| other.clone()), now);
    }
}
