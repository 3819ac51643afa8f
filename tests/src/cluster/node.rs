//! One node of a cluster: a server and its agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::DATABASE;
use crate::limits::Limits;
use crate::pg::{Database, Grouping, Server};
use crate::ports::Port;
use crate::process::{Process, READY_LIMIT};

/// A node. Its agent ends before its server.
#[derive(Debug)]
pub struct Node {
    pub(super) name: String,
    pub(super) agent: Option<Process>,
    pub(super) server: Server,
    pub(super) port: Port,
    /// The address announced to other agents, if not the agent's own.
    pub(super) advertise: Option<String>,
    /// The agent's password, if not the right one.
    pub(super) password: Option<String>,
    /// The agent's role, if not the superuser.
    pub(super) role: Option<String>,
    /// The agent's database, if not its own server's.
    pub(super) elsewhere: Option<String>,
    /// The database that other servers are sent to, if not the agent's own.
    pub(super) replicates_from: Option<String>,
    /// Where the agent dials the coordinator, if not at its own address.
    pub(super) coordinator: Option<String>,
    /// The port that other servers are sent to, if not the server's own.
    pub(super) replication_port: Option<u16>,
    pub(super) dials: Dials,
    pub(super) limits: Limits,
    pub(super) has_data_dir: bool,
    pub(super) agent_arguments: Vec<String>,
    pub(super) agent_environment: BTreeMap<String, String>,
    pub(super) dir: PathBuf,
}

/// How an agent connects to its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dials {
    /// By TCP with a password, like other servers.
    #[default]
    Tcp,
    /// By the server's Unix socket.
    Socket,
}

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Its server, mutable: to stop, crash and start it.
    #[must_use]
    pub fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Its replicated database.
    #[must_use]
    pub fn database(&self) -> Database {
        self.server.database(DATABASE)
    }

    /// Its agent, if it runs.
    #[must_use]
    pub fn agent(&self) -> Option<&Process> {
        self.agent.as_ref()
    }

    /// Its agent's address.
    #[must_use]
    pub fn agent_address(&self) -> String {
        self.port.address()
    }

    /// Sets the address announced to other agents from the next start on.
    pub fn set_advertise(&mut self, address: Option<String>) {
        self.advertise = address;
    }

    /// Sets the agent's password from the next start on; `None` for the right one.
    pub fn set_password(&mut self, password: Option<String>) {
        self.password = password;
    }

    /// Sets the agent's role from the next start on: an existing role with the server's own
    /// password.
    pub fn set_role(&mut self, role: &str) {
        self.role = Some(role.to_owned());
    }

    /// Sets how the agent connects from the next start on.
    pub fn set_dials(&mut self, dials: Dials) {
        self.dials = dials;
    }

    /// Sets the limits of the agent's process from the next start on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Sets another node's database for the agent from the next start on.
    pub fn set_elsewhere(&mut self, conninfo: String, password: String) {
        self.elsewhere = Some(conninfo);
        self.password = Some(password);
    }

    /// Sets the database of `--replication-conninfo` from the next start on.
    pub fn set_replication_database(&mut self, database: Option<&str>) {
        self.replicates_from = database.map(str::to_owned);
    }

    /// Sets the port of `--replication-conninfo` from the next start on, such as that of a relay.
    pub fn set_replication_port(&mut self, port: u16) {
        self.replication_port = Some(port);
    }

    /// Sets where the agent dials the coordinator from the next start on, such as at a relay.
    pub fn set_coordinator(&mut self, address: String) {
        self.coordinator = Some(address);
    }

    /// Gives the agent another port from the next start on.
    ///
    /// # Errors
    /// None is free.
    pub fn move_agent(&mut self) -> Result<()> {
        self.port = Port::take()?;
        Ok(())
    }

    /// Sets a variable in the agent's environment from the next start on.
    pub fn set_agent_variable(&mut self, name: &str, value: &str) {
        self.agent_environment
            .insert(name.to_owned(), value.to_owned());
    }

    fn replication_conninfo(&self) -> String {
        // The last of two counts.
        let mut conninfo = self.conninfo();
        if let Some(database) = &self.replicates_from {
            conninfo.push_str(&format!(" dbname={database}"));
        }
        if let Some(port) = self.replication_port {
            conninfo.push_str(&format!(" port={port}"));
        }
        conninfo
    }

    fn conninfo(&self) -> String {
        match (&self.elsewhere, &self.role) {
            (Some(conninfo), _) => conninfo.clone(),
            (None, Some(role)) => self.server.conninfo_as(role, DATABASE),
            (None, None) => self.server.conninfo(DATABASE),
        }
    }

    fn local_conninfo(&self) -> String {
        match self.dials {
            Dials::Tcp => self.conninfo(),
            // The last of two hosts counts.
            Dials::Socket => format!("{} host={}", self.conninfo(), self.server.dir().display()),
        }
    }

    pub(super) fn take_agent(&mut self) -> Result<Process> {
        self.agent
            .take()
            .with_context(|| format!("the agent of {} does not run", self.name))
    }

    pub(super) fn start_agent(
        &mut self,
        binary: &Path,
        coordinator: &str,
        certs: &Path,
        grouping: Grouping,
    ) -> Result<()> {
        let address = self.port.address();
        let advertise = self.advertise.as_deref().unwrap_or(&address);
        let coordinator = self.coordinator.as_deref().unwrap_or(coordinator);
        let password = self.password.as_deref().unwrap_or(self.server.password());
        let mut command = self.limits.command(binary);
        command
            .args(["run", "--log-format", "json", "--node", &self.name])
            .args([
                "--coordinator",
                coordinator,
                "--listen",
                &address,
                "--advertise",
                advertise,
            ])
            .args(["--postgres", &self.local_conninfo()])
            .args(["--replication-conninfo", &self.replication_conninfo()])
            .arg("--ca")
            .arg(certs.join("ca.pem"))
            .arg("--cert")
            .arg(certs.join(format!("{}.pem", self.name)))
            .arg("--key")
            .arg(certs.join(format!("{}.key", self.name)))
            .args(["--metrics", &address])
            .args(&self.agent_arguments)
            .envs(&self.agent_environment)
            .env("PGPASSWORD", password)
            .env("PATH", path_with(self.server.installation().bin()))
            .env("HOME", &self.dir)
            .current_dir(&self.dir);
        if self.has_data_dir {
            let directory = self.dir.join(format!("agent-{}", self.name));
            command.arg("--data-dir").arg(directory);
        }
        let log = self.dir.join(format!("agent-{}.log", self.name));
        let name = format!("agent of {}", self.name);
        let mut process = Process::spawn(&name, &mut command, &log, grouping)?;
        process.wait_for_event("ready", READY_LIMIT)?;
        self.agent = Some(process);
        Ok(())
    }

    pub(super) fn release(&mut self) -> Vec<(String, u32)> {
        let agent = self
            .agent
            .as_mut()
            .map(|agent| (format!("agent of {}", self.name), agent.release()));
        let server = self.server.release().map(|pid| (self.name.clone(), pid));
        agent.into_iter().chain(server).collect()
    }
}

/// The agent finds `pg_dump` beside its own PostgreSQL first, like on a machine with only one.
fn path_with(bin: &Path) -> std::ffi::OsString {
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(bin.to_path_buf()).chain(std::env::split_paths(&usual));
    std::env::join_paths(dirs).unwrap_or(usual)
}
