//! The entry point of `steep-coordinator`.

use std::process::ExitCode;

// One worker thread: a message crosses several tasks, and moving it between threads costs more than
// handling it. Disk writes use `block_in_place`.
#[tokio::main(worker_threads = 1)]
async fn main() -> ExitCode {
    steep_daemon::main(steep_coordinator::run::run).await
}
