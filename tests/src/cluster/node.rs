//! One node of a cluster: a server, and an agent beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::DATABASE;
use crate::pg::{Database, Grouping, Server};
use crate::ports::Port;
use crate::process::{Process, READY_LIMIT};

/// A node. Its agent, where one runs, ends before its server.
#[derive(Debug)]
pub struct Node {
    pub(super) name: String,
    pub(super) agent: Option<Process>,
    pub(super) server: Server,
    pub(super) port: Port,
    /// What other agents are told, where it is not the port's own address.
    pub(super) advertise: Option<String>,
    /// What the agent takes for the password, where it is not the right one.
    pub(super) password: Option<String>,
    /// Whom the agent connects as, where it is not the superuser.
    pub(super) role: Option<String>,
    /// Where the agent connects, where it is not the server beside it.
    pub(super) elsewhere: Option<String>,
    pub(super) dials: Dials,
    pub(super) agent_arguments: Vec<String>,
    pub(super) dir: PathBuf,
}

/// How an agent reaches the server beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dials {
    /// By TCP, with a password, as other servers do.
    #[default]
    Tcp,
    /// By the server's socket.
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

    /// Its server, to be stopped, crashed and started.
    #[must_use]
    pub fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Its replicated database.
    #[must_use]
    pub fn database(&self) -> Database {
        self.server.database(DATABASE)
    }

    /// Its agent, where one runs.
    #[must_use]
    pub fn agent(&self) -> Option<&Process> {
        self.agent.as_ref()
    }

    /// Where its agent listens.
    #[must_use]
    pub fn agent_address(&self) -> String {
        self.port.address()
    }

    /// What other agents are told from its agent's next start on.
    pub fn set_advertise(&mut self, address: Option<String>) {
        self.advertise = address;
    }

    /// What its agent takes for the password from its next start on; the right one where `None`.
    pub fn set_password(&mut self, password: Option<String>) {
        self.password = password;
    }

    /// Whom its agent connects as from its next start on: a role that is there, with the server's
    /// own password.
    pub fn set_role(&mut self, role: &str) {
        self.role = Some(role.to_owned());
    }

    /// How its agent reaches the server from its next start on.
    pub fn set_dials(&mut self, dials: Dials) {
        self.dials = dials;
    }

    /// Where the agent connects when it is started next: a database of another node's server.
    pub fn set_elsewhere(&mut self, conninfo: String, password: String) {
        self.elsewhere = Some(conninfo);
        self.password = Some(password);
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
            // Of two hosts the last one counts.
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
        let password = self.password.as_deref().unwrap_or(self.server.password());
        let mut command = Command::new(binary);
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
            .args(["--replication-conninfo", &self.conninfo()])
            .arg("--data-dir")
            .arg(self.dir.join(format!("agent-{}", self.name)))
            .arg("--ca")
            .arg(certs.join("ca.pem"))
            .arg("--cert")
            .arg(certs.join(format!("{}.pem", self.name)))
            .arg("--key")
            .arg(certs.join(format!("{}.key", self.name)))
            .args(["--metrics", &address])
            .args(&self.agent_arguments)
            .env("PGPASSWORD", password)
            .env("PATH", path_with(self.server.installation().bin()))
            .env("HOME", &self.dir)
            .current_dir(&self.dir);
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

/// An agent finds `pg_dump` beside its own PostgreSQL first, as on a machine that has only that one.
fn path_with(bin: &Path) -> std::ffi::OsString {
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(bin.to_path_buf()).chain(std::env::split_paths(&usual));
    std::env::join_paths(dirs).unwrap_or(usual)
}
