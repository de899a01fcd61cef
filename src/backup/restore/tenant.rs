//! One tenant of a snapshot becomes a tenant again, beside those that are there, while they are
//! served.
//!
//! | step | on disk after it | a kill here leaves |
//! | --- | --- | --- |
//! | 1. its pages as they were stored, in a temporary file | that file | no tenant; the next start removes the file |
//! | 2. adopted: a copy under a fresh key, proven and published as a creation is (`sqlcipher::adopt`) | the same, then the tenant | no tenant, or the whole tenant |
//! | 3. the temporary file removed; `restore` recorded | the tenant | the tenant; the audit log has the beginning of the restoration, and the creation |
//!
//! A tenant whose database is gone keeps its name from nobody who restores it: before step 2 the
//! copy is proven, and what is known of the lost one deleted. A kill in between leaves no tenant;
//! the audit log has the deletion, and the beginning of the restoration.
//!
//! What the repository holds of the tenant opens by its old data key, which is in manifests
//! elsewhere. So the restored tenant has another one, and another file id: its later snapshots are
//! another line of time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};

use crate::audit::{self, Line};
use crate::backup::catalogue::{Catalogue, StoredFile};
use crate::backup::chain::Above;
use crate::backup::repository::said;
use crate::backup::timeline::{Found, how_to_choose};
use crate::backup::{BackupError, Repository};
use crate::clock;
use crate::data_dir::{self, TEMPORARY_PREFIX, side_files};
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::process::free_bytes;
use crate::runtime::{Progress, blocking};
use crate::sqlcipher::open_as_it_is;
use crate::tenants::{StoreError, TenantProvider};

/// Which tenant is to be restored, and as what.
#[derive(Debug, Clone)]
pub struct RestoreTenant {
    /// The tenant of the snapshot.
    pub tenant: TenantId,
    /// What it is to be called; `None` for its own name.
    pub new_id: Option<TenantId>,
    /// The snapshot; `None` for the newest that holds it.
    pub snapshot: Option<u64>,
    /// The instant, in milliseconds since 1970; `None` for the newest that holds it.
    pub at_ms: Option<i64>,
    /// Whether a tenant that was shredded after the snapshot is restored all the same.
    pub as_it_was: bool,
    /// Whether nothing is to be written.
    pub dry_run: bool,
}

/// A tenant that was restored, or would be.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = TenantRestored)]
pub struct RestoredTenant {
    /// The repository.
    pub repository: String,
    /// The snapshot.
    pub snapshot: u64,
    /// Its moment, or the instant to which packs lead from it.
    pub taken: String,
    /// How many packs lead to it.
    pub packs: u64,
    /// The tenant of the snapshot.
    pub tenant: String,
    /// What it is called now.
    pub restored_as: String,
    /// The id of the file that it was; its file has another one now.
    pub file_id: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// Objects that are read.
    #[schema(value_type = u64)]
    pub objects: usize,
    /// Bytes that are read.
    pub read_bytes: u64,
    /// What the audit log tells of the tenant after the snapshot.
    pub later: Vec<String>,
    /// What is not right between the snapshot and the newest one.
    pub faults: Vec<String>,
}

/// Into what it is restored.
#[derive(Debug, Clone)]
pub struct Beside {
    /// The core, which keeps copies of manifests and records events.
    pub envelope: Envelope,
    /// The tenants that are there.
    pub tenants: Arc<dyn TenantProvider>,
    /// Their directory.
    pub data_dir: PathBuf,
    /// The directory of the audit log.
    pub control_dir: PathBuf,
}

impl RestoreTenant {
    /// Restores it: finds it, proves it, and makes it a tenant under a fresh data key.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; there is no such tenant then.
    pub async fn run(
        self,
        repository: &Repository,
        beside: &Beside,
        progress: Progress,
    ) -> Result<RestoredTenant, BackupError> {
        let new_id = self.new_id.clone().unwrap_or_else(|| self.tenant.clone());
        let exists = beside.tenants.list_tenants().await?.contains(&new_id);
        let is_lost = exists && is_lost(&beside.data_dir, &new_id);
        if exists && !is_lost {
            return Err(BackupError::TenantExists { tenant: new_id });
        }
        for tenant in [&self.tenant, &new_id] {
            if beside.envelope.is_locked(tenant) {
                return Err(BackupError::TenantLocked(tenant.clone()));
            }
        }
        let (found, file, above) = self.choose(repository, &beside.envelope).await?;
        let claims = found.catalogue;
        let later = self.later(beside, &claims.taken).await?;
        let restored = RestoredTenant {
            repository: repository.shown(),
            snapshot: claims.number,
            taken: claims.taken,
            packs: found.packs,
            tenant: self.tenant.to_string(),
            restored_as: new_id.to_string(),
            file_id: file.file_id.clone(),
            bytes: file.bytes,
            objects: spans(&file).count() + 1,
            read_bytes: spans(&file).sum(),
            later,
            faults: above.faults(),
        };
        // Before anything is fetched: whether the keys at hand open it.
        drop(repository.keyed(&beside.envelope, &file).await?);
        if self.dry_run {
            return Ok(restored);
        }
        let event = Event::new(EventKind::Restore, EventOutcome::Begun)
            .about(&data_dir::subject(&new_id))
            .saying(format!(
                "tenant {} of {} in {}",
                restored.tenant,
                super::instant(restored.snapshot, &restored.taken, restored.packs),
                restored.repository
            ));
        beside.envelope.record(event.clone()).await?;
        let to = (&new_id, is_lost);
        let made = fetch_and_adopt(repository, beside, &file, to, progress).await;
        let ended = match &made {
            Ok(()) => Event {
                outcome: EventOutcome::Done,
                ..event
            },
            Err(_) => event.ended(&made),
        };
        let recorded = beside.envelope.record(ended).await;
        made?;
        recorded?;
        Ok(restored)
    }

    /// What is restored, and what was found of the entries behind it. What somebody put there is
    /// passed over, unless it was named.
    async fn choose(
        &self,
        repository: &Repository,
        envelope: &Envelope,
    ) -> Result<(Found, StoredFile, Above), BackupError> {
        let (mut passed, mut damage) = (BTreeSet::new(), Vec::new());
        loop {
            let which = (self.snapshot, self.at_ms, &passed);
            let chosen = repository.tenant_at(envelope, &self.tenant, which).await;
            let (mut found, file) = chosen.map_err(|error| error.besides(&damage))?;
            let number = found.catalogue.number;
            let mut above = repository.above(envelope, number).await?;
            match above.first.take() {
                None => {
                    if let Some(withheld) = found.withheld.take() {
                        return Err(withheld);
                    }
                    above.damage.extend(damage);
                    above.damage.extend(found.faults.iter().cloned());
                    let newest = above.newest.as_ref().unwrap_or(&found.catalogue);
                    let key = &newest.control.dek_id;
                    let exchanged = repository.check_exchanged(envelope, &found.read, key);
                    above.damage.extend(exchanged.await?);
                    return Ok((found, file, above));
                }
                Some(error) if error.is_damage() && self.snapshot.is_none() => {
                    damage.push(said(&error));
                    let _new = passed.insert(number);
                }
                Some(error) => return Err(error),
            }
        }
    }

    /// What the deployment's own audit log tells of the tenant after the moment `taken`. One that
    /// was shredded is refused.
    async fn later(&self, beside: &Beside, taken: &str) -> Result<Vec<String>, BackupError> {
        let (dir, since) = (beside.control_dir.clone(), taken.parse().ok());
        let lines = blocking(move || audit::lines(&dir, since)).await;
        let lines = lines.map_err(BackupError::io(
            "read the audit log in",
            &beside.control_dir,
        ))?;
        let subject = data_dir::subject(&self.tenant);
        let about = |line: &&Line| {
            line.subject.as_deref() == Some(subject.as_str()) && super::log::tells(line)
        };
        let later: Vec<_> = lines.iter().filter(about).collect();
        let shredded = later.iter().find(|line| line.event == "shred");
        match shredded {
            Some(line) if !self.as_it_was => Err(BackupError::Shredded {
                tenant: self.tenant.clone(),
                time: line.time.clone(),
                actor: line.actor.clone(),
            }),
            _ => Ok(later.into_iter().map(super::log::described).collect()),
        }
    }
}

impl Repository {
    /// A snapshot or an instant, proven, and a tenant in it; of the newest instant and of the
    /// newest snapshot that hold it, the later. What is none, and what is in `passed`, is
    /// passed over, unless it was named; what may be newer is told (`withheld`).
    ///
    /// # Errors
    ///
    /// [`BackupError::NotHeld`] and [`BackupError::WithoutKeys`], among others.
    pub(in crate::backup) async fn tenant_at(
        &self,
        envelope: &Envelope,
        tenant: &TenantId,
        (snapshot, at_ms, passed): (Option<u64>, Option<i64>, &BTreeSet<u64>),
    ) -> Result<(Found, StoredFile), BackupError> {
        let instant = match snapshot {
            None => {
                self.tenant_in_packs(envelope, tenant, (at_ms, passed))
                    .await?
            }
            Some(_) => None,
        };
        let numbers = match (snapshot, at_ms) {
            (Some(number), _) => vec![number],
            (None, Some(_)) => Vec::new(),
            (None, None) => self.numbers().await?.0,
        };
        let mut newest = instant;
        let mut withheld = None;
        let numbers = numbers.into_iter().rev();
        for number in numbers.filter(|number| !passed.contains(number)) {
            let sealed = match self.catalogue(number).await {
                Ok(Some((sealed, _))) => sealed,
                Ok(None) => continue,
                Err(error) if error.is_damage() && snapshot.is_none() => continue,
                Err(error) => return Err(error),
            };
            let Some(file) = held(&sealed.claims, tenant) else {
                continue;
            };
            let is_later = |(found, _): &(Found, _)| found.catalogue.taken < sealed.claims.taken;
            if newest.as_ref().is_none_or(is_later) {
                match self.prove(envelope, &sealed).await {
                    Ok(()) => {}
                    Err(error) if error.is_damage() && snapshot.is_none() => continue,
                    Err(error) if error.proves_nothing() && snapshot.is_none() => {
                        withheld = withheld.or(Some((number, error)));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                newest = Some((Found::of(sealed.claims), file));
            }
            break;
        }
        match (withheld, &mut newest) {
            (None, _) => {}
            (Some((number, error)), None) => return Err(self.withheld(number, error, None)),
            (Some((number, error)), Some((found, _))) => {
                let flag = Some(how_to_choose(found));
                found.withheld = Some(self.withheld(number, error, flag));
            }
        }
        let Some((found, file)) = newest else {
            let among = match (snapshot, at_ms) {
                (Some(number), _) => format!("no snapshot {number}"),
                (None, Some(at_ms)) => format!("no instant {}", clock::stamp_of(at_ms)),
                (None, None) => "no snapshot".to_owned(),
            };
            return Err(BackupError::NotHeld {
                tenant: tenant.clone(),
                among,
                location: self.shown(),
            });
        };
        if self.manifests(&file).await?.is_empty() {
            return Err(BackupError::WithoutKeys {
                location: self.shown(),
                tenant: tenant.clone(),
                snapshot: found.catalogue.number,
            });
        }
        Ok((found, file))
    }

    async fn tenant_in_packs(
        &self,
        envelope: &Envelope,
        tenant: &TenantId,
        (at_ms, passed): (Option<i64>, &BTreeSet<u64>),
    ) -> Result<Option<(Found, StoredFile)>, BackupError> {
        match self.instant(Some(envelope), at_ms, passed).await {
            Ok(found) => Ok(held(&found.catalogue, tenant).map(|file| (found, file))),
            // There are snapshots of one tenant alone.
            Err(BackupError::NoSnapshot(_)) if at_ms.is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the control file knows a tenant and its database is gone.
fn is_lost(data_dir: &Path, tenant: &TenantId) -> bool {
    let path = data_dir.join(data_dir::database_name(tenant));
    let found = path.symlink_metadata();
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// The file of a tenant, where the catalogue holds it.
fn held(catalogue: &Catalogue, tenant: &TenantId) -> Option<StoredFile> {
    let ours =
        |file: &&StoredFile| file.missing.is_none() && file.tenant().as_ref() == Some(tenant);
    catalogue.tenants.iter().find(ours).cloned()
}

/// The lengths of all that is read of a file.
fn spans(file: &StoredFile) -> impl Iterator<Item = u64> + '_ {
    let over = file.over.iter().flat_map(|over| &over.segments);
    let runs = file.runs.iter().map(|run| run.bytes);
    runs.chain(over.map(|(piece, _)| piece.bytes))
}

async fn fetch_and_adopt(
    repository: &Repository,
    beside: &Beside,
    file: &StoredFile,
    (new_id, is_lost): (&TenantId, bool),
    progress: Progress,
) -> Result<(), BackupError> {
    let dir = &beside.data_dir;
    let free = free_bytes(dir).map_err(BackupError::io("look at the disk of", dir))?;
    // What was stored, and the copy under the fresh key.
    let needed = 2 * file.bytes + file.bytes / 20 + SLACK;
    if free < needed {
        return Err(BackupError::NoSpace {
            dir: dir.clone(),
            needed,
            free,
        });
    }
    let stored = Stored(dir.join(format!("{TEMPORARY_PREFIX}{}", clock::uuid())));
    let read: u64 = spans(file).sum();
    let total = read + 2 * file.bytes;
    let done = std::sync::atomic::AtomicU64::new(0);
    let tell = |bytes: u64| {
        let before = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        match progress(before + bytes, total) {
            true => Ok(()),
            false => Err(BackupError::Stopped),
        }
    };
    repository.restore_pages(file, &stored.0, &tell).await?;
    crash_point!("restore::tenant-fetched");
    let source = repository
        .keyed_at(&beside.envelope, file, &stored.0)
        .await?;
    if is_lost {
        // What is known of the lost one goes before: not for what would not be adopted then.
        let subject = file.subject.clone();
        let checked = source.share();
        let checked = blocking(move || open_as_it_is(checked)?.verify_pages()).await;
        checked.map_err(|error| {
            BackupError::Unproven(format!("{subject}: {}", error_chain(&error)))
        })?;
    }
    let adopting: Progress = {
        let progress = Arc::clone(&progress);
        Arc::new(move |copied, _of| progress(read + copied, total))
    };
    let adopted = beside.tenants.adopt_tenant(new_id, source, adopting).await;
    blocking(move || drop(stored)).await;
    crash_point!("restore::tenant-adopted");
    adopted.map_err(|error| match error {
        StoreError::TenantExists { tenant } => BackupError::TenantExists { tenant },
        error => error.into(),
    })
}

/// A tenant's database as it was stored, and what SQLite keeps beside it; removed with this value.
struct Stored(PathBuf);

impl Drop for Stored {
    fn drop(&mut self) {
        for path in side_files(&self.0).iter().chain([&self.0]) {
            // What cannot be removed now goes at the next start.
            drop(std::fs::remove_file::<&Path>(path));
        }
    }
}

/// What stays free beside what is restored: 64 MiB.
const SLACK: u64 = 64 << 20;
