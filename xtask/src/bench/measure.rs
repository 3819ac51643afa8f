//! CPU time and memory of a run, measured from outside.

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::usage;

#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// When it reached what.
    pub(super) times: Times,
    /// Its cost.
    pub(super) costs: Costs,
}

/// Seconds from the command to the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Until all rows were copied.
    pub(super) copied: f64,
    /// Until keys were built and, with replication, changes followed.
    pub(super) ready: f64,
    /// What the product itself reports.
    pub(super) ours: Option<Ours>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ours {
    /// COPY bytes.
    pub(super) bytes: u64,
    /// Seconds of each phase.
    pub(super) phases: [(&'static str, f64); 4],
}

impl Ours {
    /// Seconds of that phase.
    pub(super) fn phase(&self, name: &str) -> f64 {
        let phase = self.phases.iter().find(|(phase, _)| *phase == name);
        phase.map_or(0.0, |(_, seconds)| *seconds)
    }
}

/// CPU seconds and peak memory so far. `ours` is `None` if the product does not run.
#[derive(Debug, Clone, Default)]
pub(super) struct Costs {
    /// Source's agent, target's agent, coordinator.
    pub(super) ours: Option<[Process; 3]>,
    /// Both servers, all their processes.
    pub(super) postgres: f64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Process {
    pub(super) cpu: f64,
    /// Peak memory in bytes.
    pub(super) peak: u64,
}

impl Costs {
    /// The cost until now.
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

    /// CPU seconds since `before`, with the peaks unchanged.
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
