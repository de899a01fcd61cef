//! A server that ships prunes the repository that it ships to, now and then: snapshots that no rule
//! keeps go, packs are put together and go after their time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::keep::Keep;
use super::ship::Report;
use super::shipped::Shipped;
use super::{BackupError, Location, Repository, S3Settings};
use crate::clock;
use crate::envelope::Envelope;
use crate::error_chain::error_chain;
use crate::metrics;
use crate::runtime::Progress;

/// Prunes what is shipped to.
#[derive(Debug, Clone)]
pub struct Retention {
    /// The repository.
    pub from: Location,
    /// How buckets are reached.
    pub s3: S3Settings,
    /// The core.
    pub envelope: Envelope,
    /// What is kept.
    pub keep: Keep,
    /// How shipping and pruning stand.
    pub report: Arc<Report>,
    /// What packs say that were looked at, so that each is read once; and how often something had
    /// been shipped by then.
    looked: Arc<Mutex<(Shipped, u64)>>,
}

impl Retention {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(
        (from, s3): (Location, S3Settings),
        envelope: Envelope,
        keep: Keep,
        report: Arc<Report>,
    ) -> Self {
        Self {
            from,
            s3,
            envelope,
            keep,
            report,
            looked: Arc::default(),
        }
    }

    /// Prunes, where this server ships. Answers how long to wait before the next time.
    pub async fn step(&self, progress: Progress) -> Duration {
        let (is_shipping, packs) = (self.report.standing().ok, self.report.packs());
        let mut looked = self.looked.lock().await;
        // Whoever was replaced leaves the repository to who ships. Where nothing was shipped but
        // what the audit log says of the last time, nothing is asked: an idle server would
        // go on for ever.
        if !is_shipping || packs - looked.1 <= OWN_PACKS {
            return first_pause();
        }
        match self.prune(&mut looked.0, progress).await {
            Ok(damage) => {
                looked.1 = packs;
                metrics::LAST_PRUNED.set(clock::now().as_second() as f64);
                self.report.pruned(damage);
                pause()
            }
            Err(BackupError::Stopped) => first_pause(),
            Err(error) => {
                let why = error_chain(&error);
                tracing::warn!(why, "the repository is not pruned");
                metrics::PRUNING_FAILED.increment(1);
                self.report.not_pruned(why);
                pause()
            }
        }
    }

    async fn prune(
        &self,
        known: &mut Shipped,
        progress: Progress,
    ) -> Result<Vec<String>, BackupError> {
        let repository = Repository::open(&self.from, &self.s3).await?;
        let by = (&mut *known, &progress);
        let pruned = repository
            .prune_from(&self.envelope, self.keep, false, by)
            .await;
        if !matches!(pruned, Ok(_) | Err(BackupError::Stopped)) {
            *known = Shipped::default();
        }
        let pruned = pruned?;
        if !(pruned.removed.is_empty() && pruned.packs == 0) {
            tracing::info!(
                snapshots = ?pruned.removed,
                packs = pruned.packs,
                objects = pruned.objects,
                "the repository was pruned"
            );
        }
        Ok(pruned.damage)
    }
}

/// Before the first time.
#[must_use]
pub fn first_pause() -> Duration {
    pause().min(SOON)
}

/// Packs that pruning causes itself, at most.
const OWN_PACKS: u64 = 3;
/// Where something else is under way, or there is nothing to do.
const SOON: Duration = Duration::from_secs(300);

/// Between two times.
fn pause() -> Duration {
    ::fail::fail_point!("retention::often", |_| Duration::from_millis(500));
    Duration::from_secs(3600)
}
