//! A store without room: the loop stands still until its last writes are stored, since agents must not learn
//! of anything that a restarted coordinator would not know. Rows flow without it.

use std::time::{Duration, Instant};

use steep_protocol::{Fault, FaultKind};
use tokio_util::sync::CancellationToken;

use super::Driver;
use super::handle::Ask;
use crate::store::{Store, StoreError};

/// How often the writes are tried again, and operators get an answer.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// How often that is logged.
const SAID_EVERY: Duration = Duration::from_secs(60);

impl<S: Store> Driver<S> {
    /// Tries again until there is room. Meanwhile agents' messages stay in their bounded queue, and
    /// operators are told.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails in another way, or on `shutdown`: what was not stored was not sent
    /// either, so agents repeat it.
    pub(super) async fn wait_for_room(
        &mut self,
        mut full: StoreError,
        shutdown: &CancellationToken,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut said: Option<Instant> = None;
        loop {
            if said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
                tracing::error!(event = "store.full", error = %full, "the store has no room: the coordinator stands still until there is some on the disk of its --data-dir");
                said = Some(Instant::now());
            }
            let until = tokio::time::Instant::now() + TRY_EVERY;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    Some(Ask { reply, .. }) = self.asks.recv() => {
                        // The operator may have left.
                        let _ = reply.send(Err(told(&full)));
                    }
                    () = shutdown.cancelled() => return Err(full),
                }
            }
            match self.flush(self.clock.now()) {
                Err(error) if error.is_full() => full = error,
                Err(error) => return Err(error),
                Ok(()) => {
                    let duration_ms =
                        u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(
                        event = "store.writable",
                        duration_ms,
                        "the store has room again"
                    );
                    return Ok(());
                }
            }
        }
    }
}

fn told(full: &StoreError) -> Fault {
    let text = format!("the coordinator can store nothing: {full}");
    Fault::new(FaultKind::Failed, text).hint(
        "make room on the disk of its --data-dir: it goes on by itself. Rows that are being copied flow on",
    )
}
