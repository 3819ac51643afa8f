//! Starts the log, always on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The variable that selects what is logged, like `RUST_LOG`.
pub const FILTER: &str = "STEEP_LOG";

/// Below warnings, tokio-postgres logs whole statements, and `CREATE SUBSCRIPTION` contains a
/// password. Added last, so that no filter can override it.
const QUIET: &str = "tokio_postgres=warn";

/// Starts the log of this process; call it once. The default is text on a terminal and JSON
/// elsewhere.
pub fn start(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = filter.add_directive(QUIET.parse().expect("a directive"));
    let terminal = std::io::stderr().is_terminal();
    let default = if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format.unwrap_or(default) {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).init(),
    }
}
