//! A snapshot becomes a deployment again, in an empty directory.
//!
//! | step | on disk after it | a kill here leaves |
//! | --- | --- | --- |
//! | 1. directory made and locked, `nimbus-restore-unfinished` written and flushed | the mark | a directory that nothing starts on |
//! | 2. the control file, then tenants, each with its manifest, flushed, and proven page by page under its key while others are written; tenants that are damaged removed; the audit log, flushed | the mark, files | the same |
//! | 3. the older control file brought up to the newest audit log; `restore` recorded; a line begun | the same | the same |
//! | 4. the mark removed | the deployment | the deployment |
//!
//! A tenant that is damaged is left out and named: the control file knows it, so the deployment
//! misses it until it is restored from another snapshot, or deleted.
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

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::ValueEnum;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use nimbus_manifests::TenantId;
use serde::Serialize;

use self::file::{Tell, write_new};
use self::log::log_part;
use self::proof::{PageProver, Proven};
use super::catalogue::{Catalogue, StoredFile, StoredPart};
use super::room::{AT_ONCE, Room};
use super::{BackupError, Repository};
use crate::clock;
use crate::config::ProviderChoice;
use crate::control::{self, Control, MirrorSeen};
use crate::data_dir;
use crate::deployment::{Deployment, OlderControl};
use crate::envelope::{Copies, Envelope, Event, EventKind, EventOutcome};
use crate::error_chain::error_chain;
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
    /// Whether what happened after the snapshot is left as it was then: keys revoked since count
    /// again, for one.
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
    /// Tenants whose manifests are not in the repository (any more): they were shredded, or the
    /// repository is damaged.
    pub without_keys: Vec<String>,
    /// What happened after the snapshot, by the newest audit log of the repository.
    pub later: Vec<String>,
    /// Whether that is done again.
    pub done_again: bool,
    /// What was done again in the restored deployment because of that.
    pub again: Vec<String>,
    /// Tenants whose key is not at hand, so that their pages could not be proven.
    pub unproven: Vec<String>,
    /// Tenants that are damaged in the repository, and were not restored, each with the reason.
    pub damaged: Vec<String>,
    /// What is not right between this snapshot and the newest one.
    pub faults: Vec<String>,
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
    /// Whether the data key of its control file was replaced by the newest snapshot.
    is_key_replaced: bool,
    /// What it takes.
    pub plan: Plan,
}

impl Chosen {
    /// Restores into directories that are new or empty. What there is of it after an error is
    /// removed, or stays marked.
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
        let prover = self.prover();
        let pages = prover
            .as_ref()
            .filter(|_| self.restore.proof == Proof::Pages);
        let pages = pages.map(|envelope| PageProver::new(dirs, envelope, provider));
        let copies = Copies::default();
        let path = self
            .file(&dirs.control, &self.catalogue.control, &copies, &tell)
            .await?;
        if let Some(pages) = &pages {
            pages.control(&path).await?;
        }
        let copies = match &prover {
            None => None,
            Some(envelope) => Some(self.copies(envelope, dirs).await?),
        };
        let this = &*self;
        let tenants = this.catalogue.tenants.iter().filter(|file| {
            let tenant = file
                .tenant()
                .map(|tenant| tenant.to_string())
                .unwrap_or_default();
            file.missing.is_none() && !this.plan.without_keys.contains(&tenant)
        });
        // A large one that comes last would keep one core busy, and the others idle.
        let mut tenants: Vec<_> = tenants.collect();
        tenants.sort_by_key(|file| std::cmp::Reverse(file.bytes));
        // None is dropped before its end: what it has a thread write would come after the removal.
        let room = Room::default();
        let restoring = tenants.into_iter().map(|file| {
            let (copies, failed, tell) = (copies.as_ref(), &failed, &tell);
            let (room, pages) = (&room, pages.as_ref());
            async move {
                let taken = room.take(file.bytes).await;
                let subject = file.subject().ok();
                let copies = subject.and_then(|subject| Some(copies?.of_subject(&subject)));
                let copies = copies.unwrap_or_default();
                let restored = this.file(&dirs.data, file, &copies, tell).await;
                drop(taken);
                match (restored, file.tenant()) {
                    (Ok(path), Some(tenant)) => {
                        crash_point!("restore::tenant-written");
                        match pages {
                            Some(pages) => Ok(pages.tenant(tenant, &path).await),
                            None => Ok(Proven::Whole),
                        }
                    }
                    // It keeps no other from being restored.
                    (Err(error), Some(tenant)) if error.is_damage() => {
                        Ok(Proven::Damaged(tenant, error_chain(&error)))
                    }
                    (Ok(_), None) => Ok(Proven::Whole),
                    (Err(error), _) => {
                        failed.store(true, Ordering::Relaxed);
                        Err(error)
                    }
                }
            }
            .boxed()
        });
        let restoring: Vec<_> = restoring.collect();
        let restored: Vec<_> = stream::iter(restoring)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut damaged = Vec::new();
        for proven in first_error(restored)? {
            match proven {
                Proven::Whole => {}
                Proven::NoKey(said) => self.plan.unproven.push(said),
                Proven::Damaged(tenant, why) => damaged.push((tenant, why)),
            }
        }
        self.plan.unproven.sort();
        self.leave_out(dirs, damaged).await?;
        crash_point!("restore::tenants-written");
        for part in &self.log {
            let text = log_part(&self.repository, part).await?;
            tell(part.pieces.iter().map(|piece| piece.bytes).sum())?;
            let path = dirs.control.join(&part.name);
            blocking(move || write_new(&path, &text)).await?;
        }
        let flushed = dirs.clone();
        blocking(move || flushed.flush()).await?;
        crash_point!("restore::written");
        let Some(envelope) = prover else {
            return Ok(());
        };
        self.go_on(dirs, envelope).await
    }

    /// What proves, where something is to be proven.
    fn prover(&self) -> Option<Envelope> {
        let prover = self.envelope.as_ref();
        prover
            .filter(|_| self.restore.proof != Proof::None)
            .cloned()
    }

    /// The copies of manifests in the restored control file.
    async fn copies(&self, envelope: &Envelope, dirs: &Dirs) -> Result<MirrorSeen, BackupError> {
        let path = Control::path_in(&dirs.control);
        let control = &self.catalogue.control;
        let keyed = self.repository.keyed_at(envelope, control, &path).await?;
        Ok(blocking(move || MirrorSeen::of(&keyed)).await?)
    }

    /// Removes what there is of tenants that are damaged, and names them.
    async fn leave_out(
        &mut self,
        dirs: &Dirs,
        damaged: Vec<(TenantId, String)>,
    ) -> Result<(), BackupError> {
        for (tenant, why) in damaged {
            self.plan.tenants -= 1;
            self.plan.damaged.push(format!("{tenant}: {why}"));
            let dir = dirs.data.clone();
            let removed = blocking(move || {
                for (_kind, path) in data_dir::of_tenant(&dir, &tenant)? {
                    std::fs::remove_file(path)?;
                }
                data_dir::sync_dir(&dir)
            });
            removed
                .await
                .map_err(BackupError::io("remove a damaged tenant from", &dirs.data))?;
        }
        self.plan.damaged.sort();
        Ok(())
    }

    /// Brings the restored control file up to the log beside it, and records the restoration.
    async fn go_on(&mut self, dirs: &Dirs, envelope: Envelope) -> Result<(), BackupError> {
        let deployment =
            Deployment::open(envelope, &dirs.data, &dirs.control, OlderControl::Accept).await?;
        let again = match (self.plan.later.len(), self.plan.done_again) {
            (0, _) => String::new(),
            (_, true) => {
                "; what the newest audit log tells of the time after it was done again".to_owned()
            }
            (_, false) => "; what happened after it was left out, as --as-it-was says".to_owned(),
        };
        let without: Vec<_> = self.plan.damaged.iter().map(|one| name_in(one)).collect();
        let without = match without.is_empty() {
            true => String::new(),
            false => format!("; damaged there, and not restored: {}", without.join(", ")),
        };
        let event = Event::new(EventKind::Restore, EventOutcome::Done)
            .about(&control::subject())
            .saying(format!(
                "the deployment was restored from {} in {}{again}{without}",
                self.plan.shown(),
                self.plan.repository
            ));
        deployment.envelope.record(event).await?;
        let control = std::sync::Arc::clone(&deployment.control);
        blocking(move || control.begin_line(clock::uuid())).await?;
        self.plan.again.clone_from(&deployment.done_again);
        if self.is_key_replaced
            && let Err(error) = deployment.control.rotate_dek(&deployment.envelope).await
        {
            let why = error_chain(&error);
            self.plan.faults.push(format!(
                "the control file keeps a data key that the newest snapshot replaced, and makes no snapshot in this repository before \
                 `nimbus encryption rotate-dek` gives it another: {why}"
            ));
        }
        // The log's thread has the control file, too.
        blocking(move || drop(deployment)).await;
        crash_point!("restore::recorded");
        Ok(())
    }

    async fn file(
        &self,
        dir: &Path,
        file: &StoredFile,
        copies: &Copies,
        tell: Tell<'_>,
    ) -> Result<PathBuf, BackupError> {
        let subject = file
            .subject()
            .map_err(|why| self.repository.damaged(&file.subject, why))?;
        let path = dir.join(subject.file_name());
        // Whether a manifest opens is asked where its pages are to be opened, too.
        let envelope = self.envelope.as_ref();
        let envelope = envelope.filter(|_| self.restore.proof == Proof::Pages);
        let repository = &self.repository;
        let restored = repository.restore_file(envelope, file, copies, &path, tell);
        restored.await?;
        Ok(path)
    }
}

/// The error that made the others stop, where there is one.
fn first_error<T>(restored: Vec<Result<T, BackupError>>) -> Result<Vec<T>, BackupError> {
    let (mut done, mut stopped) = (Vec::new(), None);
    for one in restored {
        match one {
            Ok(one) => done.push(one),
            Err(error @ BackupError::Stopped) => stopped = Some(error),
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(done), Err)
}

/// The tenant of a line of [`Plan::damaged`].
fn name_in(line: &str) -> &str {
    line.split(':').next().unwrap_or(line)
}
