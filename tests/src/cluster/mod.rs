//! A whole cluster: PostgreSQL servers, certificates, a coordinator and an agent beside each
//! server, all as separate processes, used through the CLI like a user.

mod builder;
mod cli;
mod node;
mod stored;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;

pub use builder::{Builder, issue_certificates};
pub use cli::{CLI_LIMIT, Output, Running};
pub use node::{Dials, Node};
pub use stored::snapshot_id;

use crate::limits::Limits;
use crate::logs::Documented;
use crate::paths::Binaries;
pub use crate::pg::DATABASE;
use crate::pg::{Database, Grouping, Installation};
use crate::ports::Port;
use crate::process::{Process, READY_LIMIT};
use crate::scratch::Scratch;
use crate::wait;

/// Changes arrive within this time after the last write, or replication has stopped.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// The coordinator sees a running agent within this time.
const ONLINE_LIMIT: Duration = Duration::from_secs(20);

/// A job of a test reaches any phase within this time.
const PHASE_LIMIT: Duration = Duration::from_secs(60);

fn init_arguments<'a>(further: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["init", "node_b", "--from", "node_a", "--yes", "--json"];
    arguments.extend(further);
    arguments
}

/// Everything that runs. When dropped, it ends first processes, then servers, then removes the
/// files.
#[derive(Debug)]
pub struct Cluster {
    coordinator: Option<Process>,
    nodes: Vec<Node>,
    binaries: Binaries,
    grouping: Grouping,
    coordinator_port: Port,
    coordinator_arguments: Vec<String>,
    coordinator_limits: Limits,
    dir: PathBuf,
    _scratch: Option<Scratch>,
}

impl Cluster {
    /// Starts the description of a cluster.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Two nodes, `node_a` and `node_b`, each with an empty database.
    ///
    /// # Errors
    /// What did not start.
    pub fn pair() -> Result<Self> {
        Self::builder().start()
    }

    /// The servers of a pair whose agents are no superusers: each logs in as this role, which owns the database of its
    /// node. `None`, and said so, where PostgreSQL has no other role that creates subscriptions.
    ///
    /// # Errors
    /// As [`Builder::start_servers`].
    pub fn of_owners(role: &'static str) -> Result<Option<Self>> {
        if Installation::preferred()?.major() < 16 {
            println!("NOT TESTED: before PostgreSQL 16 only superusers create subscriptions");
            return Ok(None);
        }
        let mut cluster = Self::builder().start_servers()?;
        for (name, attributes) in [("node_a", "REPLICATION"), ("node_b", "NOREPLICATION")] {
            let node = cluster.node_mut(name);
            node.set_role(role);
            let password = node.server().password().replace('\'', "''");
            node.database().sql(&format!(
                "CREATE ROLE {role} LOGIN {attributes} PASSWORD '{password}'; ALTER DATABASE {DATABASE} OWNER TO {role}"
            ))?;
        }
        Ok(Some(cluster))
    }

    /// A node by name.
    ///
    /// # Panics
    /// There is no such node.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .expect("no node of that name")
    }

    /// A node by name, mutable.
    ///
    /// # Panics
    /// There is no such node.
    #[must_use]
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.name() == name)
            .expect("no node of that name")
    }

    /// Every node.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node's replicated database.
    ///
    /// # Panics
    /// There is no such node.
    #[must_use]
    pub fn database(&self, node: &str) -> Database {
        self.node(node).database()
    }

    /// The directory of all its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The binaries it runs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The coordinator's address.
    #[must_use]
    pub fn coordinator_address(&self) -> String {
        self.coordinator_port.address()
    }

    /// The coordinator's process, if it runs.
    #[must_use]
    pub fn coordinator(&self) -> Option<&Process> {
        self.coordinator.as_ref()
    }

    /// Starts the coordinator and waits until it is ready.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let certs = self.certs();
        let coordinator = self.binaries.coordinator();
        let mut command = self.coordinator_limits.command(&coordinator);
        command
            .args([
                "run",
                "--log-format",
                "json",
                "--listen",
                &self.coordinator_address(),
            ])
            .arg("--data-dir")
            .arg(self.dir.join("coordinator"))
            .arg("--ca")
            .arg(certs.join("ca.pem"))
            .arg("--cert")
            .arg(certs.join("coordinator.pem"))
            .arg("--key")
            .arg(certs.join("coordinator.key"))
            // One port serves both: TCP for metrics and UDP for QUIC.
            .args(["--metrics", &self.coordinator_address()])
            .args(&self.coordinator_arguments)
            .env("HOME", &self.dir)
            .current_dir(&self.dir);
        let log = self.dir.join("coordinator.log");
        let mut process = Process::spawn("coordinator", &mut command, &log, self.grouping)?;
        process.wait_for_event("ready", READY_LIMIT)?;
        self.coordinator = Some(process);
        Ok(())
    }

    /// Kills the coordinator like a crash.
    ///
    /// # Errors
    /// It does not run or cannot be killed.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator
            .take()
            .context("the coordinator does not run")?
            .kill()
    }

    /// Stops the coordinator like its service manager.
    ///
    /// # Errors
    /// It does not run or does not end.
    pub fn stop_coordinator(&mut self) -> Result<std::process::ExitStatus> {
        self.coordinator
            .take()
            .context("the coordinator does not run")?
            .terminate()
    }

    /// Starts a node's agent and waits until it is ready.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let (agent, coordinator) = (self.binaries.agent(), self.coordinator_address());
        let (certs, grouping) = (self.certs(), self.grouping);
        self.node_mut(node)
            .start_agent(&agent, &coordinator, &certs, grouping)
    }

    /// Kills a node's agent like a crash.
    ///
    /// # Errors
    /// It does not run or cannot be killed.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        self.node_mut(node).take_agent()?.kill()
    }

    /// Stops a node's agent like its service manager.
    ///
    /// # Errors
    /// It does not run or does not end.
    pub fn stop_agent(&mut self, node: &str) -> Result<std::process::ExitStatus> {
        self.node_mut(node).take_agent()?.terminate()
    }

    /// Tells a node's agent to stop, and waits until it is draining.
    ///
    /// # Errors
    /// It does not run or does not drain.
    pub fn begin_stop_of_agent(&mut self, node: &str) -> Result<()> {
        let agent = self.node_mut(node).agent.as_mut();
        let agent = agent.context("the agent does not run")?;
        agent.signal(Signal::TERM);
        agent.wait_for_event("draining", READY_LIMIT).map(drop)
    }

    /// Waits for the end of an agent that was told to stop.
    ///
    /// # Errors
    /// It does not run or does not end.
    pub fn end_of_agent(&mut self, node: &str) -> Result<std::process::ExitStatus> {
        self.node_mut(node).take_agent()?.end()
    }

    /// Replaces a node by a physical copy of another one; its agent is stopped meanwhile. Returns
    /// the copy's position in the first one's WAL.
    ///
    /// # Errors
    /// What failed.
    pub fn restore_copy(&mut self, from: &str, to: &str) -> Result<String> {
        self.stop_agent(to)?;
        let (source, password) = (
            self.database(from),
            self.node(from).server().password().to_owned(),
        );
        let server = self.node_mut(to).server_mut();
        let lsn = server.become_copy_of(&source, &password)?;
        self.start_agent(to)?;
        self.wait_online(&[to])?;
        Ok(lsn)
    }

    /// Waits until the coordinator sees these nodes' agents.
    ///
    /// # Errors
    /// Which it does not see.
    pub fn wait_online(&self, nodes: &[&str]) -> Result<()> {
        for node in nodes {
            let what = format!("the coordinator to see the agent of {node}");
            wait::until_true(&what, ONLINE_LIMIT, || {
                Ok(self
                    .node_view(node)?
                    .is_some_and(|view| view["agent_online"] == true))
            })?;
        }
        Ok(())
    }

    /// Code and text of the findings of `doctor`.
    ///
    /// # Errors
    /// The CLI does not list any.
    pub fn findings(&self, arguments: &[&str]) -> Result<Vec<(String, String)>> {
        let all = [&["doctor", "--json"], arguments].concat();
        let found = self.cli(&all)?.last_object()?;
        let found = found["findings"].as_array().context("findings")?;
        let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
        let found = found.iter().map(|of| (text(of, "code"), text(of, "what")));
        Ok(found.collect())
    }

    /// A node's entry in `nodes --json`.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn node_view(&self, node: &str) -> Result<Option<Value>> {
        let output = self.cli(&["nodes", "--json"])?;
        if output.code != 0 {
            anyhow::bail!("nodes --json failed: {output}");
        }
        Ok(output
            .objects()
            .into_iter()
            .find(|view| view["node_id"] == node))
    }

    /// Runs `init node_b --from node_a --yes --json` with more arguments to the end.
    ///
    /// # Errors
    /// As [`Cluster::cli`].
    pub fn init(&self, further: &[&str]) -> Result<Output> {
        self.cli(&init_arguments(further))
    }

    /// Starts [`Cluster::init`] without waiting.
    ///
    /// # Errors
    /// As [`Cluster::cli_spawn`].
    pub fn init_spawn(&self, further: &[&str]) -> Result<Running> {
        self.cli_spawn(&init_arguments(further))
    }

    /// A node's `init progress --json`.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn progress(&self, node: &str) -> Result<Value> {
        self.cli(&["init", "progress", "--node", node, "--json"])?
            .expect(0)?
            .last_object()
    }

    /// Waits until rows of a node's job arrive.
    ///
    /// # Errors
    /// None do.
    pub fn wait_copying(&self, node: &str) -> Result<()> {
        wait::until_true(&format!("rows to arrive at {node}"), PHASE_LIMIT, || {
            let progress = self.progress(node)?;
            Ok(progress["state"] == "copying" && progress["bytes_copied"].as_u64() > Some(0))
        })
    }

    /// Waits until rows of a node's job are committed.
    ///
    /// # Errors
    /// None are within `limit`.
    pub fn wait_committed(&self, node: &str, limit: Duration) -> Result<()> {
        let made = "SELECT count(to_regclass('steep_repl.copy_ledger'))";
        let committed = "SELECT count(*) FROM steep_repl.copy_ledger WHERE rows > 0";
        let target = self.database(node);
        wait::until_true("a part to be committed", limit, || {
            Ok(target.value::<u32>(made)? > 0 && target.value::<u32>(committed)? > 0)
        })
    }

    /// Waits until a node's job is in that phase.
    ///
    /// # Errors
    /// It does not get there.
    pub fn wait_phase(&self, node: &str, phase: &str) -> Result<()> {
        wait::until_true(
            &format!("{node} to be in phase {phase}"),
            PHASE_LIMIT,
            || Ok(self.progress(node)?["phase"] == phase),
        )
    }

    /// A node's state, such as `synchronized`.
    ///
    /// # Errors
    /// The CLI fails or the node is not known.
    pub fn state(&self, node: &str) -> Result<String> {
        let view = self
            .node_view(node)?
            .with_context(|| format!("{node} is not known"))?;
        Ok(view["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a node is in one of these states, and returns it.
    ///
    /// # Errors
    /// It does not get there.
    pub fn wait_state(&self, node: &str, states: &[&str], limit: Duration) -> Result<String> {
        wait::until(
            &format!("{node} to be {}", states.join(" or ")),
            limit,
            || {
                let state = self.state(node)?;
                Ok(states.contains(&state.as_str()).then_some(state))
            },
        )
    }

    /// Waits until all our subscribers have applied everything written on `source`; nobody may
    /// write meanwhile.
    ///
    /// # Errors
    /// There is no slot of ours, or how far behind it stays.
    pub fn wait_drained(&self, source: &str) -> Result<()> {
        let database = self.database(source);
        // A logical message advances the stream past everything before it.
        let fence = database.sql(
            "SELECT pg_logical_emit_message(true, 'steep-tests', 'fence');
             SELECT pg_current_wal_flush_lsn();",
        )?;
        let fence = fence.lines().last().context("no position")?.to_owned();
        let behind = format!(
            "SELECT count(*), count(*) FILTER (WHERE confirmed_flush_lsn >= '{fence}')
             FROM pg_replication_slots WHERE slot_name LIKE 'steep\\_repl\\_%'
                 AND slot_name NOT LIKE '%\\_template'"
        );
        wait::until_true(
            &format!("changes of {source} to be applied"),
            DRAIN_LIMIT,
            || {
                let counts = database.sql(&behind)?;
                let (slots, passed) = counts.split_once('|').context("two counts")?;
                if slots == "0" {
                    anyhow::bail!("{source} has no slot of ours: nothing replicates from it");
                }
                Ok(slots == passed)
            },
        )
    }

    /// Compares every log with docs/logs.md: so each suite also checks what its failures log.
    fn check_logs(&self) -> Result<()> {
        Documented::read()?.check_all(&self.dir)
    }

    fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// Keeps everything running after this value is dropped; returns names and ids of the
    /// processes.
    #[must_use]
    pub fn release(&mut self) -> Vec<(String, u32)> {
        let mut processes = Vec::new();
        if let Some(coordinator) = &mut self.coordinator {
            processes.push(("coordinator".to_owned(), coordinator.release()));
        }
        for node in &mut self.nodes {
            processes.extend(node.release());
        }
        processes
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A failing test has a more important message, and demonstrations are not tests.
        if self.grouping == Grouping::Own || std::thread::panicking() {
            return;
        }
        if let Err(error) = self.check_logs() {
            panic!("a log differs from docs/logs.md: {error:#}");
        }
    }
}
