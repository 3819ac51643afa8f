//! The pure half: values and bytes, no IO.
//!
//! In the order a connection uses them: [`hello`], [`message`] (control), [`frame`] (data),
//! [`close`]. Besides these, [`report_interval`] is how often agents report, [`stored`] is the compression of stored
//! snapshots and [`encryption`] who can read them, and [`units`] parses sizes and durations.

pub mod address;
pub mod close;
pub mod codec;
pub mod encryption;
pub mod frame;
pub mod hello;
pub mod limits;
pub mod message;
pub mod report_interval;
pub mod stored;
pub mod trace;
pub mod units;

mod fault;
mod id;
mod name;
mod state;
mod sum;

pub use fault::{Fault, FaultKind, Retry};
pub use id::{
    ByteCount, CommandId, Epoch, InvalidId, JobId, Lsn, NodeId, PartNo, RowCount, SnapshotId,
    TableNo,
};
pub use name::{Identifier, InvalidName, TableName};
pub use state::{NodeState, Phase};
pub use sum::{InvalidSum, Sum};
