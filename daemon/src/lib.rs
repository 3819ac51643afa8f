//! The common parts of the agent and the coordinator as processes.
//!
//! [`config`] reads settings, [`logging`] starts the log, [`life`] runs the program until it is
//! told to stop, [`http`] serves health and metrics, [`metrics`] adds those of the process itself,
//! [`traces`] exports spans, [`throttle`] limits log lines that callers can cause.
//!
//! It knows nothing of nodes, jobs, PostgreSQL or QUIC. By default, its HTTP address is reachable
//! from the same machine only.

pub mod config;
pub mod http;
mod keys;
pub mod life;
pub mod logging;
pub mod metrics;
pub mod throttle;
pub mod traces;

pub use config::{ConfigError, Settings};
pub use life::{Stop, main, ready, say_panic};
pub use throttle::Throttle;
