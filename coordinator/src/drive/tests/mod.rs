//! The loop against a cluster in memory: requests, sessions, restarts, deaths, drift.

mod adjust;
mod adoption;
mod detach;
mod drift;
mod faults;
mod flow;
mod handover;
mod identity;
mod keeping;
mod leftovers;
mod missing;
mod outdated;
mod recorded;
mod repair;
mod requests;
mod scheduled;
mod shared;
mod simulation;
mod spool;
mod stored;
mod stored_check;
mod switchover;
mod verify;
mod watching;
mod world;

use steep_protocol::message::agent::{
    Carried, Command, PublicationState, PublicationStatus, Published, SlotStatus, SourceCommand,
    Subscribed, SubscriptionStatus, SubscriptionWiring, TargetCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::{ByteCount, JobId, Lsn, NodeState};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn is_copy(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Copy(_)))
}

fn is_cleanup(command: &Command) -> bool {
    matches!(
        command,
        Command::Source(SourceCommand::Cleanup { .. })
            | Command::Target(TargetCommand::Cleanup { .. })
    )
}

fn slot(job: JobId, wal_status: &str) -> SlotStatus {
    SlotStatus {
        job,
        slot: match job {
            handover::REPLICATION => world::prepared(job).replication.slot,
            own => Replication::of(own).slot,
        },
        active: true,
        lag: ByteCount(77),
        wal_held: ByteCount(99),
        wal_status: wal_status.to_owned(),
        confirmed: Lsn(1),
    }
}

fn publication(job: JobId) -> PublicationStatus {
    PublicationStatus {
        job,
        state: PublicationState::Sound,
        members: 1,
        newest: 1,
        mark: 7,
    }
}

/// An observation without changes.
fn carried(job: JobId) -> Carried {
    Carried {
        look: 1,
        published: vec![Published {
            job,
            mark: 7,
            joined: Vec::new(),
            joined_total: 0,
            appeared: Vec::new(),
            enums: Vec::new(),
        }],
        subscribed: vec![Subscribed {
            job,
            mark: 7,
            added: Vec::new(),
            added_total: 0,
            enums: Vec::new(),
        }],
    }
}

fn subscription(job: JobId, enabled: bool) -> SubscriptionStatus {
    SubscriptionStatus {
        job,
        enabled,
        running: true,
        apply_errors: 0,
        wiring: SubscriptionWiring::Sound,
        mark: 7,
        altered_by: 1,
        trouble: None,
    }
}

/// A replica of `a`, as its agents see it. Returns the job that made it.
fn synchronized_pair(world: &mut world::World) -> JobId {
    let job = world.init(vec![crate::testing::spec("a", "b")]).unwrap()[0].job;
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    world.observe("a", Some(slot(job, "reserved")), None);
    world.observe("b", None, Some(subscription(job, true)));
    job
}

/// Events of that name about `b`.
fn count(world: &mut world::World, event: &str) -> usize {
    let events = world.events("b").into_iter();
    events.filter(|known| known.event == event).count()
}
