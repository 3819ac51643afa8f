//! `steep-coordinator`: starts what the library builds, and stops it when told to.

use std::process::ExitCode;

// One worker: each message crosses several tasks, and handing each to another thread costs more than
// they do. What waits for the disk leaves the worker (`block_in_place`).
#[tokio::main(worker_threads = 1)]
async fn main() -> ExitCode {
    steep_daemon::main(steep_coordinator::run::run).await
}
