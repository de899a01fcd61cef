//! A snapshot becomes a deployment again, in an empty directory.
//!
//! | step | on disk after it | a kill here leaves |
//! | --- | --- | --- |
//! | 1. directory made and locked, `nimbus-restore-unfinished` written and flushed | the mark | a directory that nothing starts on |
//! | 2. tenants, then the audit log, then the control file, each with its manifest, flushed | the mark, files | the same |
//! | 3. every page proven under its key; the older control file brought up to the newest audit log; `restore` recorded | the same | the same |
//! | 4. the mark removed | the deployment | the deployment |
//!
//! Whoever takes a data directory refuses one with the mark; a restoration into it begins afresh.
//!
//! | module | does |
//! | --- | --- |
//! | `plan` | which snapshot, and what it takes |
//! | `log` | the audit log of a snapshot, and what a newer one tells |
//! | `dirs` | the directories, and their mark |
//! | `file` | one protected file, written to a path |
//! | `proof` | whether it is what it must be |
//! | `tenant` | one tenant, beside those that are there |

mod dirs;
mod file;
mod log;
mod plan;
mod proof;
mod tenant;

pub use dirs::Dirs;
pub use tenant::{Beside, RestoreTenant, RestoredTenant};

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::ValueEnum;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::Serialize;

use self::file::{Tell, write_new};
use self::log::log_part;
use self::proof::prove;
use super::catalogue::{Catalogue, StoredFile, StoredPart};
use super::{BackupError, Repository};
use crate::config::ProviderChoice;
use crate::control;
use crate::deployment::{Deployment, OlderControl};
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;
use crate::pluralize::pluralize;
use crate::runtime::{Progress, blocking};

/// How much is proven of what is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Proof {
    /// Nothing but hashes: needs no key
    None,
    /// The catalogue's MAC, and by it every byte
    Chain,
    /// Every page under its key besides, and each database's structure
    Pages,
}

/// What is to be restored, and how.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The snapshot; `None` for an instant.
    pub snapshot: Option<u64>,
    /// The instant, in milliseconds since 1970; `None` for the newest of the whole deployment.
    pub at_ms: Option<i64>,
    /// How much is proven.
    pub proof: Proof,
    /// Whether what happened after the snapshot is left as it was then: keys revoked since count again, for one.
    pub as_it_was: bool,
}

/// What a restoration takes and makes.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The repository.
    pub repository: String,
    /// The snapshot.
    pub snapshot: u64,
    /// Its moment, or the instant to which packs lead from it.
    pub taken: String,
    /// How many packs lead to it.
    pub packs: u64,
    /// How many tenants.
    pub tenants: usize,
    /// Bytes of the files that are made.
    pub bytes: u64,
    /// Objects that are read.
    pub objects: usize,
    /// Bytes that are read.
    pub read_bytes: u64,
    /// Tenants that the snapshot could not hold, with the reason.
    pub missing: Vec<String>,
    /// Tenants whose manifests are not in the repository (any more): they were shredded, or the repository is damaged.
    pub without_keys: Vec<String>,
    /// What happened after the snapshot, by the newest audit log of the repository.
    pub later: Vec<String>,
    /// Whether that is done again.
    pub done_again: bool,
    /// Tenants whose key is not at hand, so that their pages could not be proven.
    pub unproven: Vec<String>,
}

impl Plan {
    /// Which instant it is.
    #[must_use]
    pub fn shown(&self) -> String {
        instant(self.snapshot, &self.taken, self.packs)
    }
}

/// An instant, for people.
#[must_use]
pub fn instant(snapshot: u64, taken: &str, packs: u64) -> String {
    match packs {
        0 => format!("snapshot {snapshot} of {taken}"),
        packs => format!(
            "the instant {taken} (snapshot {snapshot} and {})",
            pluralize(usize::try_from(packs).unwrap_or(usize::MAX), "pack")
        ),
    }
}

/// A snapshot that was chosen, and what is known of it.
#[derive(Debug)]
pub struct Chosen {
    repository: Repository,
    catalogue: Catalogue,
    log: Vec<StoredPart>,
    restore: Restore,
    envelope: Option<Envelope>,
    /// What it takes.
    pub plan: Plan,
}

impl Chosen {
    /// Restores into directories that are new or empty. What there is of it after an error is removed, or stays marked.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn restore(
        mut self,
        dirs: Dirs,
        provider: &ProviderChoice,
        progress: Progress,
    ) -> Result<Plan, BackupError> {
        let made = dirs.clone();
        let lock = blocking(move || made.prepare()).await?;
        crash_point!("restore::marked");
        let filled = self.fill(&dirs, provider, progress).await;
        let finished = blocking(move || match filled {
            Ok(()) => {
                dirs.unmark()?;
                crash_point!("restore::finished");
                Ok(())
            }
            Err(error) => {
                // The mark stays where something cannot be removed.
                dirs.clear().and_then(|()| dirs.unmark())?;
                Err(error)
            }
        })
        .await;
        drop(lock);
        finished.map(|()| self.plan)
    }

    async fn fill(
        &mut self,
        dirs: &Dirs,
        provider: &ProviderChoice,
        progress: Progress,
    ) -> Result<(), BackupError> {
        let total = self.plan.read_bytes;
        let done = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let tell = |bytes: u64| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            match progress(done, total) && !failed.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(BackupError::Stopped),
            }
        };
        let tenants = self.catalogue.tenants.iter().filter(|file| {
            let tenant = file
                .tenant()
                .map(|tenant| tenant.to_string())
                .unwrap_or_default();
            file.missing.is_none() && !self.plan.without_keys.contains(&tenant)
        });
        // None is dropped before its end: what it has a thread write would come after the removal.
        let restoring = tenants.map(|file| {
            let restored = self.file(&dirs.data, file, &tell);
            let failed = &failed;
            async move {
                let restored = restored.await;
                restored.inspect_err(|_| failed.store(true, Ordering::Relaxed))
            }
            .boxed()
        });
        let restoring: Vec<_> = restoring.collect();
        let restored: Vec<_> = stream::iter(restoring)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        first_error(restored)?;
        crash_point!("restore::tenants-written");
        for part in &self.log {
            let text = log_part(&self.repository, part).await?;
            tell(part.pieces.iter().map(|piece| piece.bytes).sum())?;
            let path = dirs.control.join(&part.name);
            blocking(move || write_new(&path, &text)).await?;
        }
        self.file(&dirs.control, &self.catalogue.control, &tell)
            .await?;
        let flushed = dirs.clone();
        blocking(move || flushed.flush()).await?;
        crash_point!("restore::written");
        let (Some(envelope), true) = (self.envelope.clone(), self.restore.proof != Proof::None)
        else {
            return Ok(());
        };
        if self.restore.proof == Proof::Pages {
            self.plan.unproven = prove(dirs, &envelope, provider).await?;
        }
        crash_point!("restore::proven");
        self.go_on(dirs, envelope).await
    }

    /// Brings the restored control file up to the log beside it, and records the restoration.
    async fn go_on(&self, dirs: &Dirs, envelope: Envelope) -> Result<(), BackupError> {
        let deployment =
            Deployment::open(envelope, &dirs.data, &dirs.control, OlderControl::Accept).await?;
        let again = match (self.plan.later.len(), self.plan.done_again) {
            (0, _) => String::new(),
            (_, true) => {
                "; what the newest audit log tells of the time after it was done again".to_owned()
            }
            (_, false) => "; what happened after it was left out, as --as-it-was says".to_owned(),
        };
        let event = Event::new(EventKind::Restore, EventOutcome::Done)
            .about(&control::subject())
            .saying(format!(
                "the deployment was restored from {} in {}{again}",
                self.plan.shown(),
                self.plan.repository
            ));
        deployment.envelope.record(event).await?;
        // The log's thread has the control file, too.
        blocking(move || drop(deployment)).await;
        crash_point!("restore::recorded");
        Ok(())
    }

    async fn file(&self, dir: &Path, file: &StoredFile, tell: Tell<'_>) -> Result<(), BackupError> {
        let subject = file
            .subject()
            .map_err(|why| self.repository.damaged(&file.subject, why))?;
        let path = dir.join(subject.file_name());
        self.repository.restore_file(file, &path, tell).await
    }
}

/// The error that made the others stop, where there is one.
fn first_error(restored: Vec<Result<(), BackupError>>) -> Result<(), BackupError> {
    let (stopped, failed): (Vec<_>, Vec<_>) = restored
        .into_iter()
        .filter_map(Result::err)
        .partition(|error| matches!(error, BackupError::Stopped));
    failed.into_iter().chain(stopped).next().map_or(Ok(()), Err)
}

/// Files that are restored at a time.
const AT_ONCE: usize = 3;
