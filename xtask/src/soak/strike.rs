//! Applies a fault to the running processes, and takes it back.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use steep_tests::pg::{Database, Server};
use steep_tests::relay::Condition;
use steep_tests::{process, wait};

use super::fault::{Fault, Process, Session, Side};
use super::world::World;

/// How long a session is looked for: phases are short.
const LOOK_FOR: Duration = Duration::from_millis(1_500);

/// Whether a fault found what it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hit {
    Struck,
    Missed,
}

impl World {
    /// Applies the fault.
    pub(super) fn strike(&mut self, fault: Fault) -> Result<Hit> {
        match fault {
            Fault::Kill(process) => self.kill(process),
            Fault::Pause(process) => self.signal(process, Signal::STOP),
            Fault::Stop(process) => self.stop(process),
            Fault::KillBoth(side) => {
                self.cluster.kill_coordinator()?;
                self.cluster.kill_agent(side.node())?;
                Ok(Hit::Struck)
            }
            Fault::LoseStore => {
                self.cluster.kill_coordinator()?;
                fs::remove_dir_all(self.cluster.dir().join("coordinator"))?;
                Ok(Hit::Struck)
            }
            Fault::Move(side) => {
                self.cluster.kill_agent(side.node())?;
                Ok(Hit::Struck)
            }
            Fault::Terminate(session) => self.terminate(session),
            Fault::Shutdown(side) => self.server(side, Server::stop),
            Fault::Crash(side) => self.server(side, Server::crash),
            Fault::KillBackend(side) => Ok(self.kill_backend(side)),
            Fault::Cut(path) => {
                self.set(path, Condition::Cut);
                Ok(Hit::Struck)
            }
            Fault::Disturb(path) => {
                self.set(path, Condition::Poor);
                Ok(Hit::Struck)
            }
            Fault::Reset => {
                self.reset_subscription();
                Ok(Hit::Struck)
            }
        }
    }

    /// Brings back what the fault has taken away.
    pub(super) fn restore(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(process) | Fault::Stop(process) => self.start_process(process),
            Fault::Pause(process) => self.signal(process, Signal::CONT).map(drop),
            Fault::KillBoth(side) => {
                self.cluster.start_coordinator()?;
                self.cluster.start_agent(side.node())
            }
            Fault::LoseStore => self.cluster.start_coordinator(),
            Fault::Move(side) => {
                self.move_agent(side)?;
                self.cluster.start_agent(side.node())
            }
            Fault::Shutdown(side) | Fault::Crash(side) => {
                self.cluster.node_mut(side.node()).server_mut().restart()
            }
            Fault::Cut(path) | Fault::Disturb(path) => {
                self.set(path, Condition::Clear);
                Ok(())
            }
            Fault::Terminate(_) | Fault::KillBackend(_) | Fault::Reset => Ok(()),
        }
    }

    fn kill(&mut self, process: Process) -> Result<Hit> {
        match process {
            Process::Coordinator => self.cluster.kill_coordinator()?,
            Process::SourceAgent => self.cluster.kill_agent(Side::Source.node())?,
            Process::TargetAgent => self.cluster.kill_agent(Side::Target.node())?,
            Process::Follower => match self.follower.take() {
                Some(follower) => follower.kill()?,
                None => return Ok(Hit::Missed),
            },
        }
        Ok(Hit::Struck)
    }

    fn stop(&mut self, process: Process) -> Result<Hit> {
        let ended = match process {
            Process::Coordinator => self.cluster.stop_coordinator()?,
            Process::SourceAgent => self.cluster.stop_agent(Side::Source.node())?,
            Process::TargetAgent => self.cluster.stop_agent(Side::Target.node())?,
            Process::Follower => {
                let Some(follower) = self.follower.take() else {
                    return Ok(Hit::Missed);
                };
                follower.signal(Signal::TERM);
                // How it ends depends on whether the job has ended.
                follower.finish(Duration::from_secs(20))?;
                return Ok(Hit::Struck);
            }
        };
        anyhow::ensure!(ended.success(), "{process} ended on SIGTERM with {ended}");
        Ok(Hit::Struck)
    }

    fn start_process(&mut self, process: Process) -> Result<()> {
        match process {
            Process::Coordinator => self.cluster.start_coordinator(),
            Process::SourceAgent => self.cluster.start_agent(Side::Source.node()),
            Process::TargetAgent => self.cluster.start_agent(Side::Target.node()),
            Process::Follower => Ok(()),
        }
    }

    fn signal(&mut self, process: Process, signal: Signal) -> Result<Hit> {
        let agent = |side: Side| self.cluster.node(side.node()).agent();
        let running: Option<&process::Process> = match process {
            Process::Coordinator => self.cluster.coordinator(),
            Process::SourceAgent => agent(Side::Source),
            Process::TargetAgent => agent(Side::Target),
            Process::Follower => {
                let Some(follower) = &self.follower else {
                    return Ok(Hit::Missed);
                };
                follower.signal(signal);
                return Ok(Hit::Struck);
            }
        };
        running.context("it does not run")?.signal(signal);
        Ok(Hit::Struck)
    }

    fn server(&mut self, side: Side, end: impl FnOnce(&mut Server) -> Result<()>) -> Result<Hit> {
        end(self.cluster.node_mut(side.node()).server_mut())?;
        Ok(Hit::Struck)
    }

    /// Ends one session of that kind.
    fn terminate(&self, session: Session) -> Result<Hit> {
        let database = self.cluster.database(session.side().node());
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM ({} LIMIT 1) AS session",
            session.pids()
        );
        let begun = Instant::now();
        while begun.elapsed() < LOOK_FOR {
            if database.sql(&sql).is_ok_and(|done| done == "t") {
                return Ok(Hit::Struck);
            }
            anyhow::ensure!(!wait::interrupted(), "interrupted");
        }
        Ok(Hit::Missed)
    }

    /// Kills one backend, of ours if there is one.
    fn kill_backend(&self, side: Side) -> Hit {
        let database: Database = self.cluster.database(side.node());
        let pid = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                   AND backend_type IN ('client backend', 'walsender', 'logical replication apply worker')
                   ORDER BY application_name NOT LIKE 'steep-repl%', random() LIMIT 1";
        let pid = database.value::<i32>(pid).ok().and_then(Pid::from_raw);
        match pid.map(|pid| kill_process(pid, Signal::KILL)) {
            Some(Ok(())) => Hit::Struck,
            Some(Err(_)) | None => Hit::Missed,
        }
    }

    /// Waits until every server accepts connections again after a crash of one of its backends.
    pub(super) fn wait_servers(&self) -> Result<()> {
        wait::until_true("the servers to recover", Duration::from_secs(60), || {
            let nodes = self.cluster.nodes().iter();
            Ok(nodes
                .filter(|n| n.database().sql("SELECT").is_err())
                .count()
                == 0)
        })
    }
}

impl Session {
    fn side(self) -> Side {
        match self {
            Self::CopyOut | Self::Snapshot | Self::Walsender => Side::Source,
            Self::CopyIn | Self::IndexBuild | Self::ApplyWorker => Side::Target,
        }
    }

    /// A query for the process ids of its kind.
    fn pids(self) -> &'static str {
        match self {
            Self::CopyOut | Self::CopyIn => "SELECT pid FROM pg_stat_progress_copy",
            Self::Snapshot => {
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'steep-repl snapshot%'"
            }
            Self::IndexBuild => "SELECT pid FROM pg_stat_progress_create_index",
            Self::Walsender => {
                "SELECT active_pid AS pid FROM pg_replication_slots WHERE active_pid IS NOT NULL"
            }
            Self::ApplyWorker => {
                "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL AND relid IS NULL"
            }
        }
    }
}
