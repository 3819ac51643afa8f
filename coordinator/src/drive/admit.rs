//! Checks requests: their form, and the current state of the nodes. Faults say what prevents a request
//! and what to do about it. Changes nothing.

use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::{Fault, FaultKind, NodeId, NodeState, Retry, limits};

use super::Driver;
use crate::job::Side;
use crate::store::Store;

/// Maximum number of targets in a request.
const TARGETS_MAX: usize = 64;

impl<S: Store> Driver<S> {
    /// Refuses a node whose agent has never registered.
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

    /// Checks a request's form, and that its nodes are known.
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
                return bad("the timeout must be longer than zero".to_owned());
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

    /// Checks whether a job that copies from its source may start.
    pub(super) fn check_copy(&self, spec: &JobSpec) -> Result<(), Fault> {
        let instead = match spec.method {
            Method::Backup => "use init complete for rows that come from a backup",
            Method::Stored | Method::Load => {
                "use snapshot apply for rows that come from a stored snapshot"
            }
            Method::Reinit => "use reinit to copy tables of a node again",
            Method::Merge => "use init --mode bidirectional-merge for nodes that both have rows",
            Method::Add | Method::Drop => "use tables add or tables drop to change a node's tables",
            Method::Snapshot | Method::TwoPhase | Method::Native => return self.check_init(spec),
        };
        Err(Fault::new(FaultKind::BadRequest, instead))
    }

    /// Refuses a source without a directory for its spool.
    pub(super) fn check_spool(&self, specs: &[JobSpec]) -> Result<(), Fault> {
        let spools = |spec: &&JobSpec| spec.method == Method::TwoPhase;
        let Some(spec) = specs.iter().find(spools) else {
            return Ok(());
        };
        let agent = self.registry.get(&spec.source);
        if agent.is_some_and(|agent| agent.registration.spool.is_some()) {
            return Ok(());
        }
        let text = "its agent has no directory for the spool of two-phase";
        Err(Fault::new(FaultKind::Failed, text)
            .on(&spec.source)
            .hint("start it with --data-dir on a disk with room, or use --method snapshot"))
    }

    /// Checks whether a job may start, by the state of its nodes. Preflight examines the servers later.
    pub(super) fn check_init(&self, spec: &JobSpec) -> Result<(), Fault> {
        self.check_target(&spec.target, &spec.source)?;
        self.check_rebuilding(&spec.target)?;
        let source = &spec.source;
        if !self.may_be_source(source) {
            let text = format!("it is {} and cannot be a source", self.state_of(source));
            let hint = "a source must be synchronized, or not a replica";
            return Err(Fault::new(FaultKind::Failed, text).on(source).hint(hint));
        }
        if self.follows(source, &spec.target) {
            let text = format!("it follows {}, so this would be a cycle", spec.target);
            let hint = "choose a source that does not replicate from this target";
            return Err(Fault::new(FaultKind::BadRequest, text)
                .on(source)
                .hint(hint));
        }
        self.check_online(source)?;
        self.check_online(&spec.target)
    }

    pub(super) fn check_target(&self, target: &NodeId, source: &NodeId) -> Result<(), Fault> {
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
            let text = format!("it is the source of job {other}, which is still running");
            return fault(text, "wait for that job, or cancel it".to_owned());
        }
        match state {
            NodeState::Synchronized => fault(
                "it is already synchronized".to_owned(),
                format!(
                    "nothing needs to be done. To start over, drop its subscription on the target, \
                     wait until the node is diverged, and run steep-repl init cancel --node {target} \
                     before init"
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

    /// Refuses while a failed job's cleanup is open on the target, or on the same source.
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
        let text = format!("the failed job {} has not been cleaned up yet", job.id);
        let hint = if self.registry.is_online(on) {
            format!(
                "it is being removed: try again in a moment, or run steep-repl init cancel --node {target}"
            )
        } else {
            format!(
                "start the agent of {on}, which then removes it at once, or run steep-repl init cancel --node {target}"
            )
        };
        Err(Fault::new(FaultKind::Failed, text)
            .on(on)
            .hint(hint)
            .retry(Retry::Backoff))
    }

    /// Whether `node` replicates from `upstream`, directly or over other nodes.
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
