//! Makes Ctrl-C and SIGTERM end every wait with an error, so that everything started is stopped.

use anyhow::Result;
use steep_tests::wait;
use tokio::signal::unix::{SignalKind, signal};

/// Starts watching for signals on its own thread.
///
/// # Errors
/// Signals cannot be watched.
pub(crate) fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => wait::interrupt(),
                    _ = terminate.recv() => wait::interrupt(),
                }
            }
        });
    });
    Ok(())
}
