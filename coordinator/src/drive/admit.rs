//! What may be asked for: the request's own form, and what the nodes are at this moment. Refusals say
//! what stands in the way and what to do about it; nothing is changed here.

use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::{Fault, FaultKind, NodeId, NodeState, Retry, limits};

use super::Driver;
use crate::job::Side;
use crate::store::Store;

/// Targets of one request.
const TARGETS_MAX: usize = 64;

impl<S: Store> Driver<S> {
    /// Whether the node has ever registered.
    pub(super) fn known(&self, node: &NodeId) -> Result<(), Fault> {
        if self.nodes.contains_key(node) {
            return Ok(());
        }
        let names: Vec<&str> = self.nodes.keys().take(20).map(NodeId::as_str).collect();
        let hint = if names.is_empty() {
            "no agent has registered yet: start one with steep-agent run".to_owned()
        } else {
            format!("known nodes: {}", names.join(", "))
        };
        let text = format!("no node is called {node}");
        Err(Fault::new(FaultKind::BadRequest, text).hint(hint))
    }

    /// What can be said about a request without looking at any state.
    pub(super) fn check_shape(&self, specs: &[JobSpec]) -> Result<(), Fault> {
        let bad = |text: String| Err(Fault::new(FaultKind::BadRequest, text));
        if specs.is_empty() || specs.len() > TARGETS_MAX {
            return bad(format!(
                "name 1 to {TARGETS_MAX} targets, not {}",
                specs.len()
            ));
        }
        for (at, spec) in specs.iter().enumerate() {
            if specs[..at].iter().any(|other| other.target == spec.target) {
                return bad(format!("{} is named twice", spec.target));
            }
            if spec.source == spec.target {
                return bad(format!("{} cannot be initialised from itself", spec.target));
            }
            if !(1..=limits::WORKERS_MAX).contains(&spec.parallel) {
                return bad(format!("use 1 to {} parallel workers", limits::WORKERS_MAX));
            }
            if spec.timeout_seconds == 0 {
                return bad("a timeout of nothing leaves no time for the job".to_owned());
            }
            if spec.method == Method::TwoPhase {
                return bad("the method two-phase is not yet available".to_owned())
                    .map_err(|f: Fault| f.hint("use --method snapshot"));
            }
            self.known(&spec.source)?;
            self.known(&spec.target)?;
        }
        Ok(())
    }

    pub(super) fn check_doctor(&self, specs: &[JobSpec]) -> Result<(), Fault> {
        self.check_shape(specs)?;
        for spec in specs {
            self.check_online(&spec.source)?;
            self.check_online(&spec.target)?;
        }
        self.room_for_doctor()
    }

    pub(super) fn check_online(&self, node: &NodeId) -> Result<(), Fault> {
        if self.registry.is_online(node) {
            return Ok(());
        }
        Err(Fault::new(FaultKind::Unreachable, "the agent is offline")
            .on(node)
            .hint("start the agent on that node, or look at its log")
            .retry(Retry::Backoff))
    }

    /// Whether a job may begin that copies from its source.
    pub(super) fn check_copy(&self, spec: &JobSpec) -> Result<(), Fault> {
        if spec.method == Method::Backup {
            let text = "rows that come from a backup are taken by init complete";
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        self.check_init(spec)
    }

    /// Whether a job may begin, from what the nodes are. Preflight looks at the servers later.
    pub(super) fn check_init(&self, spec: &JobSpec) -> Result<(), Fault> {
        self.check_target(&spec.target, &spec.source)?;
        self.check_rebuilding(&spec.target)?;
        let source = &spec.source;
        if !self.may_be_source(source) {
            let text = format!("it is {} and cannot be a source", self.state_of(source));
            let hint = "a source is synchronized, or no replica at all";
            return Err(Fault::new(FaultKind::Failed, text).on(source).hint(hint));
        }
        if self.follows(source, &spec.target) {
            let text = format!("it follows {}: they would replace each other", spec.target);
            let hint = "choose a source that does not get its rows from this target";
            return Err(Fault::new(FaultKind::BadRequest, text)
                .on(source)
                .hint(hint));
        }
        self.check_online(source)?;
        self.check_online(&spec.target)
    }

    fn check_target(&self, target: &NodeId, source: &NodeId) -> Result<(), Fault> {
        let state = self.state_of(target);
        let fault = |text: String, hint: String| {
            Err(Fault::new(FaultKind::Failed, text).on(target).hint(hint))
        };
        let job = self.nodes.get(target).and_then(|record| record.job);
        let job = job.map_or_else(String::new, |id| format!(", job {id}"));
        if state.is_active() {
            let text = format!("it is already being initialised ({state}{job})");
            let hint = format!(
                "follow it with steep-repl init progress --node {target} --follow, or stop it with \
                 steep-repl init cancel --node {target}"
            );
            return fault(text, hint);
        }
        if let Some(other) = self.serves(target) {
            let text = format!("it is the source of job {other}, which is still at work");
            return fault(text, "wait for that job, or cancel it".to_owned());
        }
        match state {
            NodeState::Synchronized => fault(
                "it is already synchronized".to_owned(),
                format!(
                    "nothing needs to be done. To start over, drop its subscription on the target: \
                     it is then seen to have diverged, and steep-repl init cancel --node {target} \
                     makes it ready for another init"
                ),
            ),
            NodeState::Diverged => fault(
                "it has diverged and still has its old subscription".to_owned(),
                format!(
                    "remove it with steep-repl init cancel --node {target}, then run init again"
                ),
            ),
            NodeState::Failed => {
                self.check_kept(target)?;
                self.check_leftovers(target, source)
            }
            NodeState::Uninitialized
            | NodeState::Preparing
            | NodeState::Copying
            | NodeState::CatchingUp
            | NodeState::Reinitializing => Ok(()),
        }
    }

    /// A failed job's leavings stand in the way on the target, and on the same source.
    fn check_leftovers(&self, target: &NodeId, source: &NodeId) -> Result<(), Fault> {
        let Some(live) = self.live_job(target).and_then(|id| self.jobs.get(&id)) else {
            return Ok(());
        };
        let job = &live.job;
        let on = match (job.owes(Side::Target), job.owes(Side::Source)) {
            (true, _) => target,
            (false, true) if job.spec.source == *source => source,
            _ => return Ok(()),
        };
        let text = format!(
            "what the failed job {} made has not been removed yet",
            job.id
        );
        let hint = if self.registry.is_online(on) {
            format!(
                "it is being removed; try again in a moment, or run steep-repl init cancel --node {target}"
            )
        } else {
            format!(
                "bring the agent of {on} back: the removal is done at once then; or run steep-repl init cancel --node {target}"
            )
        };
        Err(Fault::new(FaultKind::Failed, text)
            .on(on)
            .hint(hint)
            .retry(Retry::Backoff))
    }

    /// Whether `node` gets its rows, over however many hops, from `upstream`.
    fn follows(&self, node: &NodeId, upstream: &NodeId) -> bool {
        let mut at = node;
        for _ in 0..self.nodes.len() {
            let Some(source) = self.nodes.get(at).and_then(|record| record.source.as_ref()) else {
                return false;
            };
            if source == upstream {
                return true;
            }
            at = source;
        }
        false
    }
}
