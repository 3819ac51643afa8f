//! What the agent and the coordinator have in common as processes.
//!
//! In the order of a life: [`config`] puts settings together, [`logging`] starts the log, [`life`]
//! runs the program until it is told to stop, [`http`] answers whoever supervises it, with what
//! [`metrics`] knows of the process itself. [`traces`] sends spans to who collects them, [`throttle`]
//! keeps others from filling the log.
//!
//! Knows nothing of nodes, jobs or PostgreSQL, and nothing of QUIC: what is served on the one HTTP
//! address is for supervisors of the same machine, unless somebody says otherwise.

pub mod config;
pub mod http;
pub mod life;
pub mod logging;
pub mod metrics;
pub mod throttle;
pub mod traces;

pub use config::{ConfigError, Settings};
pub use life::{Stop, main, ready, say_panic};
pub use throttle::Throttle;
