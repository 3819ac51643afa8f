//! The agent: runs beside one PostgreSQL server, the only process that talks to it.
//!
//! In the order rows flow:
//!
//! ```text
//! part/copy_out → chunk/ (cut, pack, digest) → peer/ ══QUIC══▶ peer/ → chunk/ → part/copy_in
//! ```
//! and the rooms, each of which imports only those below it:
//!
//! ```text
//! run, metrics/            the process
//! session/                 the coordinator's commands, and what it is told
//! peer/      stored/       agent to agent; snapshots into a store
//! verify/    switchover/   the rows of two nodes, compared; who may write
//! facts/     target/       what a server is like; the steps of a job on its target
//! replication/             subscription, fence, sequences, prepared slots
//! part/                    one part, read and written
//! snapshot/  deferred/     the source's consistent point; indexes and constraints, dropped and rebuilt
//! dump/      schema/       pg_dump; statements, missing objects, comparison
//! node/                    a job's connections, and the schema steep_repl
//! kept/                    parts kept for other targets of a snapshot
//! locks/  task  telemetry/ who waits for whom; one command at work; counters
//! pg/        chunk/        PostgreSQL; COPY data in pieces
//! ```
//!
//! The agent never decides what a job does next: it does what it is told, idempotently, and says
//! what it sees.

mod budget;
pub mod chunk;
pub mod config;
mod deferred;
mod dump;
mod facts;
mod kept;
mod locks;
mod metrics;
mod mutex;
mod node;
mod part;
pub mod peer;
mod pg;
pub mod rate;
mod replication;
pub mod run;
mod schema;
mod seat;
mod session;
mod shutdown;
mod snapshot;
mod stored;
mod switchover;
mod target;
mod task;
pub mod telemetry;
mod verify;
