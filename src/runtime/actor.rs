//! Who acts: named in the audit log by every event.

use std::future::Future;
use std::sync::{Arc, OnceLock};

tokio::task_local! {
    static ACTING: Arc<str>;
}

static PROCESS: OnceLock<Arc<str>> = OnceLock::new();

/// Names who acts wherever nobody else is named: the user of a command, or the server itself. The
/// first one named stays.
pub fn act_as(actor: &str) {
    let _first = PROCESS.get_or_init(|| actor.into());
}

/// Who acts in this task.
#[must_use]
pub fn actor() -> Arc<str> {
    ACTING.try_with(Arc::clone).unwrap_or_else(|_nobody| {
        PROCESS
            .get()
            .map_or_else(|| Arc::from("unknown"), Arc::clone)
    })
}

/// Does something as `actor`.
pub fn acting_as<F: Future>(actor: Arc<str>, work: F) -> impl Future<Output = F::Output> {
    ACTING.scope(actor, work)
}
