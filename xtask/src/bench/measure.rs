//! What a run cost: processor time and memory, from outside.

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::usage;

/// One run of one way.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// When it had what.
    pub(super) times: Times,
    /// What it cost.
    pub(super) costs: Costs,
}

/// Seconds from the command to the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Until all rows were there.
    pub(super) copied: f64,
    /// Until keys were there, and changes followed where the way has that.
    pub(super) ready: f64,
    /// What the product tells of itself.
    pub(super) ours: Option<Ours>,
}

/// What an init says it has done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ours {
    /// COPY bytes.
    pub(super) bytes: u64,
    /// Seconds of each phase.
    pub(super) phases: [(&'static str, f64); 4],
}

/// Processor seconds so far, and peaks of memory in bytes. Nothing of ours where none of it runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Costs {
    /// Source's agent, target's agent, coordinator.
    pub(super) ours: Option<[Process; 3]>,
    /// Both servers, all their processes.
    pub(super) postgres: f64,
}

/// What one process cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Process {
    /// Processor seconds.
    pub(super) cpu: f64,
    /// The most memory it had, in bytes.
    pub(super) peak: u64,
}

impl Costs {
    /// Costs until now.
    pub(super) fn of(cluster: &Cluster, target: &str) -> Result<Self> {
        let agent = |node: &str| {
            cluster
                .node(node)
                .agent()
                .map(steep_tests::process::Process::pid)
        };
        let coordinator = cluster
            .coordinator()
            .map(steep_tests::process::Process::pid);
        let ours = match (agent("node_a"), agent(target), coordinator) {
            (Some(source), Some(target), Some(coordinator)) => Some([
                Process::of(source)?,
                Process::of(target)?,
                Process::of(coordinator)?,
            ]),
            _ => None,
        };
        let server = |node: &str| -> Result<f64> {
            let pid = cluster
                .node(node)
                .server()
                .pid()
                .context("the server does not run")?;
            usage::tree_cpu_seconds(pid)
        };
        Ok(Self {
            ours,
            postgres: server("node_a")? + server(target)?,
        })
    }

    /// Processor seconds since `before`; peaks as they are.
    pub(super) fn since(&self, before: &Self) -> Self {
        let ours = self.ours.zip(before.ours).map(|(now, then)| {
            std::array::from_fn(|at| Process {
                cpu: now[at].cpu - then[at].cpu,
                peak: now[at].peak,
            })
        });
        Self {
            ours,
            postgres: self.postgres - before.postgres,
        }
    }
}

impl Process {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            cpu: usage::cpu_seconds(pid)?,
            peak: usage::peak_memory(pid)?,
        })
    }
}
