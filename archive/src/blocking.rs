//! Work that would hold up an event loop: system calls and digests.

/// Runs work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down; nobody waits for this.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Runs work on a state there. If it is cancelled, the state is lost: a default one stays.
pub(crate) async fn offload<S, T>(
    state: &mut S,
    work: impl FnOnce(&mut S) -> T + Send + 'static,
) -> T
where
    S: Default + Send + 'static,
    T: Send + 'static,
{
    let mut taken = std::mem::take(state);
    let (taken, result) = blocking(move || {
        let result = work(&mut taken);
        (taken, result)
    })
    .await;
    *state = taken;
    result
}
