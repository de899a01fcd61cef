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
#![expect(
    clippy::disallowed_methods,
    reason = "nobody has a file open that is being restored: the directory was empty, and is locked"
)]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::ValueEnum;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::catalogue::{Catalogue, Piece, StoredFile, StoredPart};
use super::run::pages;
use super::{BackupError, Repository, sha256};
use crate::audit::Line;
use crate::config::ProviderChoice;
use crate::control;
use crate::data_dir::{DEPLOYED, LOCK, RESTORING, derived};
use crate::deployment::{Deployment, OlderControl};
use crate::encryption::status::{Health, StatusReader, Verify};
use crate::envelope::{
    Envelope, Event, EventKind, EventOutcome, blocking, manifest_path, sync_dir,
};
use crate::failpoints::crash_point;
use crate::process::DataDirLock;
use crate::sqlcipher::{Progress, UNIT};

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
    /// The snapshot; `None` for the newest of the whole deployment.
    pub snapshot: Option<u64>,
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
    /// Its moment.
    pub taken: String,
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

impl Restore {
    /// Chooses the snapshot, proves its catalogue, and finds out what it takes. Nothing is written.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn choose(
        self,
        repository: Repository,
        envelope: Option<Envelope>,
    ) -> Result<Chosen, BackupError> {
        let (numbers, _others) = repository.numbers().await?;
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            let none = format!("the repository {} has no snapshot yet", repository.shown());
            return Err(BackupError::NoSnapshot(none));
        };
        let candidates: Vec<u64> = match self.snapshot {
            Some(number) => vec![number],
            None => numbers.iter().rev().copied().collect(),
        };
        let mut found = None;
        for number in candidates {
            let Some((read, _)) = repository.catalogue(number).await? else {
                return Err(BackupError::NoSnapshot(format!(
                    "the repository {} has no snapshot {number}; it has {first} to {last}",
                    repository.shown()
                )));
            };
            match &read.claims.tenant {
                Some(tenant) if self.snapshot.is_some() => {
                    return Err(BackupError::NoSnapshot(format!(
                        "snapshot {number} holds the tenant {tenant} alone: a deployment is restored from a snapshot of all"
                    )));
                }
                Some(_) => {}
                None => {
                    found = Some(read);
                    break;
                }
            }
        }
        let Some(read) = found else {
            return Err(BackupError::NoSnapshot(format!(
                "no snapshot in the repository {} holds the whole deployment",
                repository.shown()
            )));
        };
        let newest = match repository.catalogue(*last).await? {
            Some((newest, _)) if newest.claims.number > read.claims.number => Some(newest),
            _ => None,
        };
        if let (true, Some(envelope)) = (self.proof != Proof::None, &envelope) {
            repository.prove(envelope, &read).await?;
            if let Some(newest) = &newest {
                repository.prove(envelope, newest).await?;
            }
        }
        let catalogue = read.claims;
        let newest_log =
            newest.map_or_else(|| catalogue.audit.clone(), |newest| newest.claims.audit);
        let later = later(&repository, &catalogue.audit, &newest_log).await?;
        let mut without_keys = Vec::new();
        for file in catalogue.files().filter(|file| file.missing.is_none()) {
            if repository.manifests(file).await?.is_empty() {
                match file.tenant() {
                    Some(tenant) => without_keys.push(tenant.to_string()),
                    None => {
                        return Err(repository
                            .damaged(&file.manifests(), "the control file's manifest is missing"));
                    }
                }
            }
        }
        let log = if self.as_it_was {
            catalogue.audit.clone()
        } else {
            newest_log
        };
        let restored = |file: &&StoredFile| {
            file.missing.is_none()
                && file
                    .tenant()
                    .is_none_or(|tenant| !without_keys.contains(&tenant.to_string()))
        };
        let files: Vec<_> = catalogue.files().filter(restored).collect();
        let runs = files.iter().flat_map(|file| &file.runs);
        let pieces = log.iter().flat_map(|part| &part.pieces);
        let plan = Plan {
            repository: repository.shown(),
            snapshot: catalogue.number,
            taken: catalogue.taken.clone(),
            tenants: files.len() - 1,
            bytes: files.iter().map(|file| file.bytes).sum::<u64>()
                + log.iter().map(|part| part.bytes).sum::<u64>(),
            objects: runs.clone().count() + pieces.clone().count() + files.len(),
            read_bytes: runs.map(|run| run.bytes).sum::<u64>()
                + pieces.map(|piece| piece.bytes).sum::<u64>(),
            missing: catalogue
                .tenants
                .iter()
                .filter_map(|file| Some(format!("{}: {}", file.tenant()?, file.missing.as_ref()?)))
                .collect(),
            later,
            done_again: !self.as_it_was,
            unproven: Vec::new(),
            without_keys: without_keys.clone(),
        };
        Ok(Chosen {
            repository,
            log,
            restore: self,
            envelope,
            plan,
            catalogue,
        })
    }
}

/// What the newest log tells of the time after the snapshot, and that the restored control file does not know.
async fn later(
    repository: &Repository,
    at: &[StoredPart],
    newest: &[StoredPart],
) -> Result<Vec<String>, BackupError> {
    if at == newest {
        return Ok(Vec::new());
    }
    let seq = lines(repository, at)
        .await?
        .last()
        .map_or(0, |line| line.seq);
    let newest = lines(repository, newest).await?;
    let tells = |line: &&Line| {
        matches!(
            (line.event.as_str(), line.outcome.as_str()),
            (
                "access-key-revoked" | "lock" | "unlock" | "delete" | "shred",
                "done"
            )
        )
    };
    let after = newest.iter().filter(|line| line.seq > seq).filter(tells);
    Ok(after
        .map(|line| {
            let subject = line.subject.as_deref().unwrap_or_default();
            let detail = line
                .detail
                .as_deref()
                .map_or(String::new(), |said| format!(": {said}"));
            format!(
                "{} {} {subject} by {}{detail}",
                line.time, line.event, line.actor
            )
        })
        .collect())
}

async fn lines(repository: &Repository, parts: &[StoredPart]) -> Result<Vec<Line>, BackupError> {
    let mut lines = Vec::new();
    for part in parts {
        let text = log_part(repository, part).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        lines.extend(
            text.lines()
                .filter_map(|line| serde_json::from_str::<Line>(line).ok()),
        );
    }
    Ok(lines)
}

/// A part of the audit log, whole.
async fn log_part(repository: &Repository, part: &StoredPart) -> Result<Vec<u8>, BackupError> {
    let mut text = Vec::new();
    for piece in &part.pieces {
        text.extend(repository.span(piece).await?);
    }
    match text.len() as u64 == part.bytes && sha256(&text) == part.sha256 {
        true => Ok(text),
        false => Err(repository.damaged(
            &part.name,
            "its pieces do not make the part of the audit log that was saved",
        )),
    }
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
        let restoring = tenants.map(async |file| {
            let restored = self.file(&dirs.data, file, &tell).await;
            restored.inspect_err(|_| failed.store(true, Ordering::Relaxed))
        });
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
                "the deployment was restored from snapshot {} of {} in {}{again}",
                self.plan.snapshot, self.plan.taken, self.plan.repository
            ));
        deployment.envelope.record(event).await?;
        // The log's thread has the control file, too.
        blocking(move || drop(deployment)).await;
        crash_point!("restore::recorded");
        Ok(())
    }

    /// One protected file, with its manifest.
    async fn file(
        &self,
        dir: &Path,
        file: &StoredFile,
        tell: &(dyn Fn(u64) -> Result<(), BackupError> + Sync),
    ) -> Result<(), BackupError> {
        let subject = file
            .subject()
            .map_err(|why| self.repository.damaged(&file.subject, why))?;
        let manifests = self.repository.manifests(file).await?;
        let Some(manifest) = manifests.into_iter().next() else {
            return Err(self
                .repository
                .damaged(&file.manifests(), "there is no manifest"));
        };
        let path = dir.join(subject.file_name());
        let target = Arc::new(Target::create(&path, file.bytes)?);
        let spans = file.runs.iter().map(|run| {
            let span = Piece {
                object: run.object.clone(),
                offset: run.offset,
                bytes: run.bytes,
                sha256: run.sha256.clone(),
            };
            async move { self.repository.span(&span).await.map(|found| (run, found)) }
        });
        let mut there = vec![false; usize::try_from(target.count).unwrap_or(0) + 1];
        let mut reading = stream::iter(spans).buffered(AHEAD);
        while let Some(found) = reading.next().await {
            let (run, object) = found?;
            let target = Arc::clone(&target);
            let written = blocking(move || {
                let written = target.write(&object);
                written.map(|written| (written, object))
            })
            .await;
            let (written, object) = written.map_err(BackupError::io("write", &path))?;
            let Some(numbers) = written else {
                return Err(self
                    .repository
                    .damaged(&run.object, "it does not hold pages"));
            };
            drop(object);
            for number in numbers {
                if let Some(page) = there.get_mut(number as usize) {
                    *page = true;
                }
            }
            tell(run.bytes)?;
        }
        if let Some(hole) = there.iter().skip(1).position(|there| !there) {
            let why = format!("no object holds page {} of {subject}", hole + 1);
            return Err(self.repository.damaged("the snapshot", why));
        }
        let sidecar = manifest_path(&path);
        blocking(move || {
            target
                .file
                .sync_all()
                .map_err(BackupError::io("flush", &path))?;
            write_new(&sidecar, manifest.as_bytes())
        })
        .await
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

/// Proves every page of what stands in `dirs`. Answers the tenants whose keys are not at hand.
async fn prove(
    dirs: &Dirs,
    envelope: &Envelope,
    provider: &ProviderChoice,
) -> Result<Vec<String>, BackupError> {
    let reader = StatusReader {
        data_dir: dirs.data.clone(),
        control_dir: dirs.control.clone(),
        provider: provider.clone(),
        envelope: Ok(envelope.clone()),
        dek_max_age: None,
        holds_control: false,
        rolled_back: None,
    };
    let status = reader.run(Some(Verify::Pages)).await?;
    let mut unproven = Vec::new();
    for file in status.files {
        let said = file.detail.unwrap_or_default();
        match file.health {
            Health::Ok | Health::Rekeying => {}
            Health::KeyUnavailable => unproven.push(format!("{}: {said}", file.path)),
            health => {
                return Err(BackupError::Unproven(format!(
                    "{}: {} {said}",
                    file.path,
                    health.as_str()
                )));
            }
        }
    }
    Ok(unproven)
}

/// A file that is being restored.
#[derive(Debug)]
struct Target {
    file: File,
    bytes: u64,
    count: u64,
}

impl Target {
    fn create(path: &Path, bytes: u64) -> Result<Self, BackupError> {
        let file = new_file(path).and_then(|file| file.set_len(bytes).map(|()| file));
        Ok(Self {
            file: file.map_err(BackupError::io("create", path))?,
            bytes,
            count: bytes.div_ceil(UNIT as u64),
        })
    }

    /// Writes the pages of an object, but for those behind the end; which they are, or `None` when it holds none.
    fn write(&self, object: &[u8]) -> io::Result<Option<Vec<u32>>> {
        let Some(pages) = pages(object) else {
            return Ok(None);
        };
        let mut numbers = Vec::new();
        for (number, page) in pages {
            let at = (u64::from(number) - 1) * UNIT as u64;
            if at >= self.bytes {
                continue;
            }
            let page = match self.bytes - at {
                rest if rest < UNIT as u64 => &page[..usize::try_from(rest).unwrap_or(UNIT)],
                _ => page,
            };
            self.file.write_all_at(page, at)?;
            numbers.push(number);
        }
        Ok(Some(numbers))
    }
}

/// The directories of a deployment that is being restored.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// The tenants' directory.
    pub data: PathBuf,
    /// The control file's directory.
    pub control: PathBuf,
}

impl Dirs {
    fn each(&self) -> Vec<&PathBuf> {
        match self.data == self.control {
            true => vec![&self.data],
            false => vec![&self.data, &self.control],
        }
    }

    /// Makes, locks and marks them. What an unfinished restoration left is removed.
    fn prepare(&self) -> Result<DataDirLock, BackupError> {
        let mark = self.data.join(RESTORING);
        let resumed = mark.symlink_metadata().is_ok();
        for dir in self.each() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(BackupError::io("make the directory", dir))?;
            if !resumed {
                reject_used(dir)?;
            }
        }
        let lock = DataDirLock::acquire_to_restore(&self.data)?;
        if resumed {
            self.clear()?;
        } else {
            // Somebody may have been faster.
            self.each()
                .into_iter()
                .try_for_each(|dir| reject_used(dir))?;
            write_new(&mark, MARK.as_bytes())?;
        }
        self.flush()?;
        Ok(lock)
    }

    fn flush(&self) -> Result<(), BackupError> {
        for dir in self.each() {
            sync_dir(dir).map_err(BackupError::io("flush", dir))?;
        }
        Ok(())
    }

    /// Removes all that a restoration writes, but for the mark.
    fn clear(&self) -> Result<(), BackupError> {
        for dir in self.each() {
            let entries = std::fs::read_dir(dir).map_err(BackupError::io("read", dir))?;
            for entry in entries {
                let path = entry.map_err(BackupError::io("read", dir))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let ours = derived(&name).is_some()
                    || name == DEPLOYED
                    || name.starts_with(control::FILE_NAME)
                    || name.starts_with("nimbus-audit.")
                    || name.starts_with(crate::data_dir::TEMPORARY_PREFIX);
                if ours {
                    std::fs::remove_file(&path).map_err(BackupError::io("remove", &path))?;
                }
            }
        }
        self.flush()
    }

    fn unmark(&self) -> Result<(), BackupError> {
        let mark = self.data.join(RESTORING);
        std::fs::remove_file(&mark).map_err(BackupError::io("remove", &mark))?;
        self.flush()
    }
}

/// Refuses a directory that holds anything but a lock file.
fn reject_used(dir: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(dir).map_err(BackupError::io("read", dir))? {
        let name = entry.map_err(BackupError::io("read", dir))?.file_name();
        if name != LOCK {
            return Err(BackupError::TargetNotEmpty {
                dir: dir.to_owned(),
                example: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), BackupError> {
    let written = new_file(path).and_then(|file| {
        file.write_all_at(content, 0)?;
        file.sync_all()
    });
    written.map_err(BackupError::io("create", path))
}

/// What stands in the mark, for people.
const MARK: &str = "A restoration into this directory is under way, or was cut short. Run `nimbus backup restore` again: it begins afresh.\n";
/// Files that are restored at a time, and objects that are fetched ahead of each.
const AT_ONCE: usize = 3;
const AHEAD: usize = 2;
