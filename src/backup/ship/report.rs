//! How shipping stands, for `/ready`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::clock;
use crate::metrics;

/// How shipping stands.
#[derive(Debug, Default)]
pub struct Report {
    standing: Mutex<Standing>,
    /// How often something was shipped.
    packs: AtomicU64,
}

/// How shipping stands at one time.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
#[schema(as = Shipped)]
pub struct Standing {
    /// Whether all is in order.
    pub ok: bool,
    /// The newest instant that can be restored.
    #[schema(required)]
    pub shipped: Option<String>,
    /// What is wrong, where something is.
    #[schema(required)]
    pub error: Option<String>,
    /// When this server last pruned the repository; null while it did not.
    #[schema(required)]
    pub pruned: Option<String>,
    /// What kept it from that at the last try, or what it found that is not as it was written.
    #[schema(required)]
    pub not_pruned: Option<String>,
}

impl Report {
    /// How it stands now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to `at_ms` is in the repository.
    pub(super) fn shipped(&self, at_ms: i64) {
        metrics::LAST_SHIPPED.set(at_ms as f64 / 1000.0);
        let _before = self.packs.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.ok = true;
        state.shipped = Some(clock::stamp_of(at_ms));
        state.error = None;
    }

    /// How often something was shipped.
    pub(in crate::backup) fn packs(&self) -> u64 {
        self.packs.load(Ordering::Relaxed)
    }

    /// The repository was pruned, and what was found there that is not as it was written.
    pub(in crate::backup) fn pruned(&self, damage: Vec<String>) {
        let mut state = self.state();
        state.pruned = Some(clock::stamp());
        state.not_pruned = (!damage.is_empty()).then(|| damage.join("; "));
    }

    /// The repository could not be pruned; it is tried again.
    pub(in crate::backup) fn not_pruned(&self, why: String) {
        self.state().not_pruned = Some(why);
    }

    /// It is tried again.
    pub(super) fn fails(&self, why: String) {
        let mut state = self.state();
        (state.ok, state.error) = (false, Some(why));
    }

    /// It is not tried again.
    pub(super) fn ended(&self, why: String) {
        self.fails(format!("{why}; restart the server to ship from here again"));
    }
}
