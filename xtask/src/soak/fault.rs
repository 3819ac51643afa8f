//! What can happen to a job: the faults, and the phases in which each can strike. Values only.

use std::fmt;
use std::time::Duration;

/// A process of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Process {
    SourceAgent,
    TargetAgent,
    Coordinator,
    /// The command line that follows the job.
    Follower,
}

/// One end of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Source,
    Target,
}

/// A session on one of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Session {
    /// Reads a part on the source.
    CopyOut,
    /// Writes a part on the target.
    CopyIn,
    /// Holds the snapshot on the source.
    Snapshot,
    /// Builds an index on the target.
    IndexBuild,
    /// Sends changes from the source.
    Walsender,
    /// Applies changes on the target.
    ApplyWorker,
}

/// A network between two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Path {
    /// From agent to agent.
    Peers,
    /// From the source's agent to the coordinator.
    SourceControl,
    /// From the target's agent to the coordinator.
    TargetControl,
    /// From the target's PostgreSQL to the source's.
    Subscription,
}

/// A fault, without its duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL, and a new process once its time is over.
    Kill(Process),
    /// SIGSTOP, and SIGCONT once its time is over.
    Pause(Process),
    /// SIGTERM, and a new process once its time is over.
    Stop(Process),
    /// SIGKILL of the coordinator and that side's agent.
    KillBoth(Side),
    /// SIGKILL of the coordinator, and a new process without its store once its time is over.
    LoseStore,
    /// A new process at another address.
    Move(Side),
    /// `pg_terminate_backend`.
    Terminate(Session),
    /// A fast shutdown of PostgreSQL, and a start once its time is over.
    Shutdown(Side),
    /// An immediate shutdown of PostgreSQL, and a start once its time is over.
    Crash(Side),
    /// SIGKILL of one backend: PostgreSQL ends all others and recovers.
    KillBackend(Side),
    /// Nothing arrives for its time.
    Cut(Path),
    /// Datagrams are lost, doubled and reordered for its time.
    Disturb(Path),
    /// All connections of the subscription break.
    Reset,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// A snapshot is stored.
    Storing,
    /// A first job is being cancelled.
    Cancelling,
    /// The snapshot is opened.
    Preparing,
    Schema,
    CopyingEarly,
    CopyingLate,
    Indexing,
    Subscribing,
    CatchingUp,
    /// Epochs become one subscription.
    Folding,
    /// Just after the job has ended.
    Synchronized,
}

impl Phase {
    pub(super) const ALL: [Self; 11] = [
        Self::Storing,
        Self::Cancelling,
        Self::Preparing,
        Self::Schema,
        Self::CopyingEarly,
        Self::CopyingLate,
        Self::Indexing,
        Self::Subscribing,
        Self::CatchingUp,
        Self::Folding,
        Self::Synchronized,
    ];

    /// The longest useful delay between its beginning and a fault: short phases are over soon.
    pub(super) fn delay_max(self) -> Duration {
        Duration::from_millis(match self {
            Self::CopyingEarly | Self::Indexing | Self::Synchronized => 2_000,
            Self::Storing | Self::CatchingUp => 1_000,
            Self::CopyingLate | Self::Folding => 500,
            Self::Cancelling | Self::Preparing | Self::Schema | Self::Subscribing => 200,
        })
    }

    /// Whether rows are read from the source.
    fn reads(self) -> bool {
        matches!(
            self,
            Self::Storing | Self::Cancelling | Self::CopyingEarly | Self::CopyingLate
        )
    }

    /// Whether a subscription exists.
    fn follows(self) -> bool {
        matches!(self, Self::CatchingUp | Self::Folding | Self::Synchronized)
    }
}

impl Fault {
    /// Every fault.
    pub(super) fn all() -> Vec<Self> {
        use Process::{Coordinator, Follower, SourceAgent, TargetAgent};
        let processes = [SourceAgent, TargetAgent, Coordinator, Follower];
        let sides = [Side::Source, Side::Target];
        let sessions = [
            Session::CopyOut,
            Session::CopyIn,
            Session::Snapshot,
            Session::IndexBuild,
            Session::Walsender,
            Session::ApplyWorker,
        ];
        let datagrams = [Path::Peers, Path::SourceControl, Path::TargetControl];
        let mut all = vec![Self::Cut(Path::Subscription), Self::Reset, Self::LoseStore];
        all.extend(processes.iter().flat_map(|process| {
            [
                Self::Kill(*process),
                Self::Pause(*process),
                Self::Stop(*process),
            ]
        }));
        all.extend(sides.iter().flat_map(|side| {
            [
                Self::KillBoth(*side),
                Self::Move(*side),
                Self::Shutdown(*side),
                Self::Crash(*side),
                Self::KillBackend(*side),
            ]
        }));
        all.extend(sessions.map(Self::Terminate));
        all.extend(
            datagrams
                .iter()
                .flat_map(|path| [Self::Cut(*path), Self::Disturb(*path)]),
        );
        all
    }

    /// Whether there is something to strike in that phase.
    pub(super) fn fits(self, phase: Phase) -> bool {
        match self {
            Self::Terminate(Session::CopyOut) => phase.reads(),
            Self::Terminate(Session::CopyIn) => phase.reads() && phase != Phase::Storing,
            Self::Terminate(Session::Snapshot) => phase.reads() || phase == Phase::Schema,
            Self::Terminate(Session::IndexBuild) => phase == Phase::Indexing,
            Self::Terminate(Session::Walsender | Session::ApplyWorker)
            | Self::Cut(Path::Subscription)
            | Self::Reset => phase.follows(),
            // Before, not every job is known again.
            Self::LoseStore => phase >= Phase::Indexing,
            Self::Kill(Process::Follower)
            | Self::Pause(Process::Follower)
            | Self::Stop(Process::Follower) => !matches!(
                phase,
                Phase::Synchronized | Phase::Cancelling | Phase::Storing
            ),
            Self::Cut(Path::Peers) | Self::Disturb(Path::Peers) => {
                !phase.follows() && phase != Phase::Storing
            }
            // Only the source takes part in storing.
            Self::Kill(Process::TargetAgent)
            | Self::Pause(Process::TargetAgent)
            | Self::Stop(Process::TargetAgent)
            | Self::KillBoth(Side::Target)
            | Self::Move(Side::Target)
            | Self::Shutdown(Side::Target)
            | Self::Crash(Side::Target)
            | Self::KillBackend(Side::Target)
            | Self::Cut(Path::TargetControl)
            | Self::Disturb(Path::TargetControl) => phase != Phase::Storing,
            _ => true,
        }
    }

    /// Whether it lasts: others are over at once.
    pub(super) fn lasts(self) -> bool {
        !matches!(
            self,
            Self::Terminate(_)
                | Self::KillBackend(_)
                | Self::Reset
                | Self::Kill(Process::Follower)
                | Self::Stop(Process::Follower)
        )
    }

    /// Whether the coordinator cannot be asked meanwhile.
    pub(super) fn hides_status(self) -> bool {
        matches!(
            self,
            Self::Kill(Process::Coordinator)
                | Self::Pause(Process::Coordinator)
                | Self::Stop(Process::Coordinator)
                | Self::KillBoth(_)
                | Self::LoseStore
        )
    }

    /// Whether the job may have to wait for its end.
    pub(super) fn holds_up(self) -> bool {
        !matches!(
            self,
            Self::Disturb(_)
                | Self::Kill(Process::Follower)
                | Self::Pause(Process::Follower)
                | Self::Stop(Process::Follower)
        ) && self.lasts()
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceAgent => "source agent",
            Self::TargetAgent => "target agent",
            Self::Coordinator => "coordinator",
            Self::Follower => "command line",
        })
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CopyOut => "COPY on source",
            Self::CopyIn => "COPY on target",
            Self::Snapshot => "snapshot session",
            Self::IndexBuild => "index build",
            Self::Walsender => "walsender",
            Self::ApplyWorker => "apply worker",
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peers => "agent to agent",
            Self::SourceControl => "source to coordinator",
            Self::TargetControl => "target to coordinator",
            Self::Subscription => "subscription",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(process) => write!(f, "kill {process}"),
            Self::Pause(process) => write!(f, "pause {process}"),
            Self::Stop(process) => write!(f, "stop {process}"),
            Self::KillBoth(side) => write!(f, "kill coordinator and {side} agent"),
            Self::LoseStore => f.write_str("lose the coordinator's store"),
            Self::Move(side) => write!(f, "move {side} agent"),
            Self::Terminate(session) => write!(f, "terminate {session}"),
            Self::Shutdown(side) => write!(f, "restart {side} PostgreSQL, fast"),
            Self::Crash(side) => write!(f, "restart {side} PostgreSQL, immediate"),
            Self::KillBackend(side) => write!(f, "kill a {side} backend"),
            Self::Cut(path) => write!(f, "cut {path}"),
            Self::Disturb(path) => write!(f, "disturb {path}"),
            Self::Reset => write!(f, "reset subscription"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Storing => "storing",
            Self::Cancelling => "cancelling",
            Self::Preparing => "preparing",
            Self::Schema => "schema",
            Self::CopyingEarly => "copying, early",
            Self::CopyingLate => "copying, late",
            Self::Indexing => "indexing",
            Self::Subscribing => "subscribing",
            Self::CatchingUp => "catching up",
            Self::Folding => "folding",
            Self::Synchronized => "synchronized",
        })
    }
}
