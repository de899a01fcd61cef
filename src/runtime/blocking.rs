//! Blocking work off the async workers.

/// Runs `work` on a thread made for blocking, so that no disk wait stands on an async worker.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // What is logged there belongs to the request that it is for.
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody waits for the answer any more.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}
