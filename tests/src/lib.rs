//! The test harness: real PostgreSQL servers, real steep-repl processes, and checks.
//!
//! In the order a test uses it: [`pg`] finds or installs PostgreSQL and runs servers; [`cluster`]
//! adds certificates, a coordinator and agents; [`bucket`] is one of an S3 server, [`age`] a tool,
//! [`host_image`] a machine in a container, and [`required`] says what happens without them; [`sample`],
//! [`hostile`], [`partitioned`] and [`schema`] fill a database; [`load`] and [`session`] are its
//! other users; [`relay`] is a bad network between its processes; [`compare`] checks that two databases are equal and [`residue`] that nothing is left
//! behind; [`small_disk`] is one that gets full, [`limits`] and [`memory_group`] leave processes little; [`usage`] reads CPU time and memory; [`scrape`], [`collector`] and [`logs`] read metrics,
//! traces and logs.
//!
//! The harness knows the product only from outside, like a user: by its binaries, flags, output and
//! objects in PostgreSQL. It links none of its code.
//!
//! Invariants: everything started is stopped when its value is dropped, also on a panic; nothing
//! waits for time where it can wait for an event ([`wait`]); nothing is skipped silently.

pub mod age;
pub mod application;
pub mod bucket;
pub mod cluster;
pub mod collector;
pub mod command;
pub mod compare;
pub mod damage;
pub mod host_image;
pub mod hostile;
pub mod limits;
pub mod load;
pub mod logs;
pub mod memory_group;
pub mod partitioned;
pub mod paths;
pub mod pg;
mod pip;
pub mod ports;
pub mod process;
pub mod relay;
pub mod required;
pub mod residue;
pub mod sample;
pub mod schema;
pub mod scrape;
pub mod scratch;
pub mod served;
pub mod session;
pub mod small_disk;
pub mod usage;
pub mod wait;
