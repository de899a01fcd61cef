//! `--encryption-dek-max-age`: data keys that are older than that are replaced in the background,
//! one file at a time, the oldest first.
//!
//! What is due is read from the manifests each time, never remembered: a restart goes on where the
//! last process ended, tenants that are closed are not forgotten, and a file that failed comes
//! again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nimbus_manifests::{Subject, Timestamp};

use super::rotate_dek::{DekRotator, Request};
use super::{is_overdue, protected_files};
use crate::envelope::{Clock, manifest_path, read_manifest};
use crate::error_chain::error_chain;
use crate::runtime::{Progress, blocking};

/// Keeps data keys from growing old.
#[derive(Debug, Clone)]
pub struct Keeper {
    rotator: DekRotator,
    max_age: Duration,
    clock: Arc<dyn Clock>,
}

/// A file whose data key is too old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The protected file.
    pub path: PathBuf,
    /// Whose it is.
    pub subject: Subject,
    /// When its data key was drawn.
    pub since: Timestamp,
}

impl Keeper {
    /// A keeper for the files of `rotator`.
    #[must_use]
    pub fn new(rotator: DekRotator, max_age: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            rotator,
            max_age,
            clock,
        }
    }

    /// How long to wait between two looks.
    #[must_use]
    pub fn pause(&self) -> Duration {
        (self.max_age / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    /// The files whose data keys are too old now, the oldest first. A manifest that cannot be read
    /// is `status`'s to report, and no reason to pass over the others. Blocks.
    ///
    /// # Errors
    ///
    /// The directory that cannot be read, and why.
    pub fn due(&self) -> Result<Vec<Due>, (PathBuf, std::io::Error)> {
        let now = self.clock.now();
        let DekRotator {
            data_dir,
            control_dir,
            ..
        } = &self.rotator;
        let mut due: Vec<_> = protected_files(data_dir, Some(control_dir))?
            .into_iter()
            .filter_map(|path| {
                let sealed = read_manifest(&manifest_path(&path)).ok()??;
                let claims = sealed.claims();
                let since = claims.deks().first()?.created;
                is_overdue(since, now, self.max_age).then(|| Due {
                    subject: claims.subject().clone(),
                    path,
                    since,
                })
            })
            .collect();
        due.sort_by(|a, b| (a.since, &a.path).cmp(&(b.since, &b.path)));
        Ok(due)
    }

    /// As [`due`](Self::due), with what went wrong in the log and the number in the metric.
    pub async fn look(&self) -> Vec<Due> {
        let this = self.clone();
        match blocking(move || this.due()).await {
            Ok(due) => {
                note(due.len());
                due
            }
            Err((path, error)) => {
                tracing::error!(path = %path.display(), %error, "cannot look for old data keys; tried again later");
                Vec::new()
            }
        }
    }

    /// Gives one file that is due a new data key; whether it has one now. A failure is in the log,
    /// and the file comes again.
    pub async fn renew(&self, due: &Due, progress: Progress) -> bool {
        let request = Request {
            path: due.path.clone(),
            tenant_id: due.subject.tenant().cloned(),
            ..Request::default()
        };
        let stopped = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopped);
        let progress: Progress = Arc::new(move |done, total| {
            let goes_on = progress(done, total);
            told.fetch_or(!goes_on, Ordering::Relaxed);
            goes_on
        });
        match self.rotator.rotate_dek(request, progress).await {
            Ok(_rotated) => {
                tracing::info!(subject = %due.subject, since = %due.since, "an old data key was replaced");
                true
            }
            Err(_interrupted) if stopped.load(Ordering::Relaxed) => {
                tracing::info!(subject = %due.subject, "an old data key is replaced later: other work comes first");
                false
            }
            Err(error) => {
                tracing::error!(
                    subject = %due.subject,
                    since = %due.since,
                    error = error_chain(&error),
                    "a data key is older than --encryption-dek-max-age and was not replaced; tried again later"
                );
                false
            }
        }
    }
}

/// Says how many data keys are older than they may be, for an alert.
pub fn note(overdue: usize) {
    let overdue = u32::try_from(overdue).unwrap_or(u32::MAX);
    crate::metrics::OVERDUE.set(f64::from(overdue));
}

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_key_is_too_old_after_its_age_and_never_before_it_was_drawn() {
        let at = |seconds| Timestamp::from_unix(seconds).unwrap();
        let max_age = Duration::from_secs(90 * 86_400);
        let drawn = 1_700_000_000;
        assert!(!is_overdue(at(drawn), at(drawn + 90 * 86_400), max_age));
        assert!(is_overdue(at(drawn), at(drawn + 90 * 86_400 + 1), max_age));
        // A clock that was set back.
        assert!(!is_overdue(at(drawn), at(drawn - 1000 * 86_400), max_age));
    }
}
