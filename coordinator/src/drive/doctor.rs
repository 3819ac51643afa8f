//! The preflight alone: both ends look, nothing is touched, no job is made and no state changes.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, CoordinatorMessage, Outcome};
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::handover::SlotFacts;
use steep_protocol::message::job::JobSpec;
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry};

use super::compose::addressed;
use super::{Answer, Driver, Reply};
use crate::job::handover::Handover;
use crate::job::preflight::{self, Case};
use crate::job::time::after;
use crate::store::Store;

/// Longer than any catalog query or dial of an agent takes.
const DOCTOR_LIMIT: Duration = Duration::from_secs(60);

/// Questions of this kind at once.
const DOCTORS_MAX: usize = 32;

/// One question: a look at each target.
pub(super) struct Doctor {
    looks: Vec<Look>,
    reply: Option<Reply>,
    give_up: Timestamp,
}

impl Doctor {
    /// Whether commands of a look are that job's.
    pub(super) fn asks_as(&self, job: JobId) -> bool {
        self.looks.iter().any(|look| look.id == job)
    }
}

/// A look at one target and its source.
struct Look {
    id: JobId,
    spec: JobSpec,
    handover: Option<Handover>,
    first: u64,
    stage: Stage,
}

enum Stage {
    Source,
    Target(Box<SourceFacts>, Option<Box<SlotFacts>>),
    Done(Vec<Finding>),
}

impl Look {
    /// The command it waits for, and who does it.
    fn waits_for(&self) -> Option<(CommandId, &NodeId)> {
        match self.stage {
            Stage::Source => Some((CommandId(self.first), &self.spec.source)),
            Stage::Target(..) => Some((CommandId(self.first + 1), &self.spec.target)),
            Stage::Done(_) => None,
        }
    }
}

/// Ids one look uses: source, target, and taking back the permission at the source.
const COMMANDS: u64 = 3;

impl<S: Store> Driver<S> {
    /// Whether one more can be asked.
    pub(super) fn room_for_doctor(&self) -> Result<(), Fault> {
        if self.doctors.len() < DOCTORS_MAX {
            return Ok(());
        }
        let text = "too many preflights are being asked for at once";
        Err(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
    }

    /// Begins to look.
    pub(super) fn begin_doctor(
        &mut self,
        wanted: Vec<(JobSpec, Option<Handover>)>,
        reply: Reply,
        now: Timestamp,
    ) {
        let mut looks = Vec::with_capacity(wanted.len());
        for (spec, handover) in wanted {
            let look = Look {
                id: self.new_job_id(),
                first: self.take_commands(COMMANDS),
                spec,
                handover,
                stage: Stage::Source,
            };
            let (target, filter) = (look.spec.target.clone(), look.spec.filter.clone());
            let command = match look.handover {
                None => Command::GatherSource { target, filter },
                Some(_) => Command::GatherHandover { target, filter },
            };
            let replication = look.handover.as_ref().map(|h| h.replication.clone());
            let message = addressed(CommandId(look.first), look.id, replication, command);
            self.send(&look.spec.source, message);
            looks.push(look);
        }
        self.doctors.push(Doctor {
            looks,
            reply: Some(reply),
            give_up: after(now, DOCTOR_LIMIT),
        });
    }

    fn doctor_send(&mut self, job: JobId, id: u64, node: &NodeId, command: Command) {
        let id = CommandId(id);
        self.send(node, CoordinatorMessage::Command { id, job, command });
    }

    /// A command ended that no job waits for.
    pub(super) fn doctor_finished(
        &mut self,
        node: &NodeId,
        command: CommandId,
        outcome: Result<Outcome, Fault>,
    ) {
        let own = |look: &Look| look.waits_for() == Some((command, node));
        let mut doctors = std::mem::take(&mut self.doctors);
        for doctor in &mut doctors {
            if let Some(look) = doctor.looks.iter_mut().find(|look| own(look)) {
                match self.doctor_step(look, outcome) {
                    Ok(()) => self.finish_if_complete(doctor),
                    Err(fault) => self.finish(doctor, Err(fault)),
                }
                break;
            }
        }
        doctors.retain(|doctor| doctor.reply.is_some());
        self.doctors = doctors;
    }

    fn doctor_step(
        &mut self,
        look: &mut Look,
        outcome: Result<Outcome, Fault>,
    ) -> Result<(), Fault> {
        let stage = std::mem::replace(&mut look.stage, Stage::Done(Vec::new()));
        let asked = match (stage, outcome?) {
            (Stage::Source, Outcome::SourceFacts(facts)) if look.handover.is_none() => {
                Ok((facts, None))
            }
            (Stage::Source, Outcome::HandoverFacts(facts)) if look.handover.is_some() => {
                Ok((Box::new(facts.source), Some(Box::new(facts.slot))))
            }
            (stage, outcome) => Err((stage, outcome)),
        };
        let (fresh, node) = match asked {
            Ok((facts, slot)) => {
                let command = Command::GatherTarget {
                    source: self.peer(&look.spec.source),
                    filter: look.spec.filter.clone(),
                };
                self.doctor_send(look.id, look.first + 1, &look.spec.target, command);
                look.stage = Stage::Target(facts, slot);
                return Ok(());
            }
            Err((Stage::Target(source, slot), Outcome::TargetFacts(target))) => {
                let around = self.around();
                let case = Case {
                    spec: &look.spec,
                    source: &source,
                    target: &target,
                    handover: look.handover.as_ref().zip(slot.as_deref()),
                    around: &around,
                };
                let mut findings = (self.rules.judge)(&case);
                let source = self.registry.get(&look.spec.source);
                let prepared = source.and_then(|agent| agent.prepared.as_deref());
                findings.extend(preflight::standing(
                    &look.spec.source,
                    prepared.unwrap_or_default(),
                ));
                findings.extend(preflight::copy_size(&case));
                look.stage = Stage::Done(findings);
                return Ok(());
            }
            Err((Stage::Source, _)) => (Stage::Source, &look.spec.source),
            Err((stage, _)) => (stage, &look.spec.target),
        };
        look.stage = fresh;
        let text = "the agent gave an answer that does not fit to looking at its server";
        let hint = "run the same version on the coordinator and on all agents";
        Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint))
    }

    fn finish_if_complete(&mut self, doctor: &mut Doctor) {
        if doctor.looks.iter().any(|look| look.waits_for().is_some()) {
            return;
        }
        let findings = doctor.looks.iter_mut().map(|look| {
            let found = match std::mem::replace(&mut look.stage, Stage::Done(Vec::new())) {
                Stage::Done(found) => found,
                Stage::Source | Stage::Target(..) => Vec::new(),
            };
            (look.spec.target.clone(), found)
        });
        let findings = findings.collect();
        self.finish(doctor, Ok(Answer::Findings(findings)));
    }

    /// Answers, and takes back what the sources were told to allow (G7).
    fn finish(&mut self, doctor: &mut Doctor, answer: Result<Answer, Fault>) {
        if let Some(reply) = doctor.reply.take() {
            self.answer(reply, answer);
        }
        for look in &doctor.looks {
            if let Some((id, node)) = look.waits_for() {
                let node = node.clone();
                self.send(&node, CoordinatorMessage::Abort { id });
            }
            let source = look.spec.source.clone();
            self.release_permission(look.id, look.first + 2, &source);
        }
    }

    /// Gives up what takes too long.
    pub(super) fn tick_doctors(&mut self, now: Timestamp) {
        let text = format!(
            "looking at the servers took longer than {} s",
            DOCTOR_LIMIT.as_secs()
        );
        self.end_doctors(|doctor| {
            (doctor.give_up <= now).then(|| Fault::new(FaultKind::Timeout, text.clone()))
        });
    }

    /// An agent's session ended: whoever waits for it waits in vain.
    pub(super) fn doctors_lost(&mut self, node: &NodeId) {
        self.end_doctors(|doctor| {
            let waits = doctor.looks.iter().any(|look| {
                look.waits_for().is_some()
                    && (look.spec.source == *node || look.spec.target == *node)
            });
            let text = "the agent went away while it looked at its server";
            waits.then(|| Fault::new(FaultKind::Unreachable, text).on(node))
        });
    }

    fn end_doctors(&mut self, mut why: impl FnMut(&Doctor) -> Option<Fault>) {
        let mut doctors = std::mem::take(&mut self.doctors);
        for doctor in &mut doctors {
            if let Some(fault) = why(doctor) {
                self.finish(doctor, Err(fault));
            }
        }
        doctors.retain(|doctor| doctor.reply.is_some());
        self.doctors = doctors;
    }
}
