//! That backups restore is proven again and again: one tenant after the other is restored into a
//! scratch directory, opened, and checked page by page.
//!
//! What was proven, and when, is kept in the repository (`proofs/<number>`), so that whoever lists
//! it sees that; each such object says all that is known, and the newest counts. It has no MAC:
//! nothing is decided by it but which tenant is next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};

use super::catalogue::StoredFile;
use super::store::Created;
use super::{BackupError, Location, Repository, S3Settings};
use crate::clock;
use crate::envelope::Envelope;
use crate::error_chain::error_chain;
use crate::metrics;
use crate::runtime::{Progress, blocking};
use crate::sqlcipher::open_as_it_is;
use crate::tenants::TenantProvider;

/// When each tenant was restored last, and proven.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs {
    /// By the tenant.
    pub tenants: BTreeMap<String, Proof>,
}

/// A tenant that was restored and proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ProvenRestore)]
pub struct Proof {
    /// The id of its file: another one of the name has another.
    pub file_id: String,
    /// The snapshot that it was restored from.
    pub snapshot: u64,
    /// Its moment, or the instant to which packs lead from it.
    pub taken: String,
    /// When it was restored, RFC 3339, UTC.
    pub at: String,
}

impl Repository {
    /// Restores a tenant, as it was last, into a scratch directory in `TMPDIR`; opens it, proves
    /// every page and its structure, and removes it again.
    ///
    /// # Errors
    ///
    /// [`BackupError`]: it is not restorable, or not by the keys at hand.
    pub async fn prove_tenant(
        &self,
        envelope: &Envelope,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Proof, BackupError> {
        let newest = (None, None, &BTreeSet::new());
        let (mut found, file) = self.tenant_at(envelope, tenant, newest).await?;
        if let Some(withheld) = found.withheld.take() {
            return Err(withheld);
        }
        let scratch = tempfile::Builder::new().prefix("nimbus-verify-").tempdir();
        let scratch =
            scratch.map_err(BackupError::io("make a directory in", std::env::temp_dir()))?;
        let path = scratch.path().join(crate::data_dir::database_name(tenant));
        let checked = self.check_file(envelope, &file, path, progress).await;
        blocking(move || drop(scratch)).await;
        checked?;
        Ok(Proof {
            file_id: file.file_id,
            snapshot: found.catalogue.number,
            taken: found.catalogue.taken,
            at: clock::stamp(),
        })
    }

    async fn check_file(
        &self,
        envelope: &Envelope,
        file: &StoredFile,
        path: PathBuf,
        progress: &Progress,
    ) -> Result<(), BackupError> {
        let tell = |_read: u64| match progress(0, 0) {
            true => Ok(()),
            false => Err(BackupError::Stopped),
        };
        self.restore_pages(file, &path, &tell).await?;
        let keyed = self.keyed_at(envelope, file, &path).await?;
        let subject = file.subject.clone();
        let checked = blocking(move || open_as_it_is(keyed)?.verify_pages()).await;
        checked
            .map_err(|error| BackupError::Unproven(format!("{subject}: {}", error_chain(&error))))
    }

    /// What was proven last, as the repository says.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub async fn proofs(&self) -> Result<Proofs, BackupError> {
        let newest = self.newest_proofs().await?;
        // Where nothing can be read nothing is known: all is proven again.
        Ok(newest.map(|(_, proofs)| proofs).unwrap_or_default())
    }

    /// Keeps what was proven.
    async fn keep_proofs(&self, proofs: &Proofs) -> Result<(), BackupError> {
        let text = serde_json::to_vec(proofs).expect("strings and numbers are JSON");
        let text = Bytes::from(text);
        let newest = self.newest_proofs().await?;
        let mut number = newest.map_or(0, |(number, _)| number);
        loop {
            number += 1;
            let name = proofs_name(number);
            if self.store.create(&name, text.clone()).await? == Created::Done {
                return Ok(());
            }
        }
    }

    /// The newest that can be read, and its number.
    async fn newest_proofs(&self) -> Result<Option<(u64, Proofs)>, BackupError> {
        for number in self
            .numbered("proofs", proofs_name)
            .await?
            .into_iter()
            .rev()
        {
            let text = match self.store.get(&proofs_name(number)).await {
                Err(BackupError::Damaged { .. }) => None,
                read => read?,
            };
            let read = text.and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(read) = read {
                return Ok(Some((number, read)));
            }
        }
        Ok(None)
    }
}

fn proofs_name(number: u64) -> String {
    format!("proofs/{number:010}")
}

/// Proves each tenant once in a while.
#[derive(Debug, Clone)]
pub struct ProofKeeper {
    /// The repository.
    pub from: Location,
    /// How buckets are reached.
    pub s3: S3Settings,
    /// The core.
    pub envelope: Envelope,
    /// The tenants.
    pub tenants: Arc<dyn TenantProvider>,
    /// What is known.
    pub report: Arc<ProofReport>,
}

/// What is known of proofs.
#[derive(Debug)]
pub struct ProofReport {
    every: Duration,
    known: Mutex<ProofState>,
}

#[derive(Debug, Default)]
struct ProofState {
    /// `None` until the repository was asked.
    proofs: Option<Proofs>,
    /// By the tenant: when it was tried last, in seconds since 1970, and why it was not proven.
    failed: BTreeMap<String, (i64, String)>,
    /// When the repository was last written to, in seconds since 1970.
    kept: i64,
}

/// How proofs stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofStanding {
    /// How many tenants were proven within twice the time in which each is to be.
    pub proven: usize,
    /// When the one that was proven the longest ago was, and the last one.
    pub times: Option<(String, String)>,
    /// Those that were not, although they were restorable once.
    pub late: Vec<String>,
    /// Those that could not be restored at the last try, and why.
    pub failed: Vec<String>,
}

impl ProofReport {
    /// Nothing is known yet; each tenant is to be proven in that time.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        Self {
            every,
            known: Mutex::default(),
        }
    }

    /// How proofs stand.
    #[must_use]
    pub fn standing(&self) -> ProofStanding {
        let known = self.known();
        let limit = now() - 2 * seconds(self.every);
        let proofs = known.proofs.iter().flat_map(|proofs| &proofs.tenants);
        let (proven, late): (Vec<_>, Vec<_>) = proofs.partition(|(_, proof)| at(proof) >= limit);
        let times = || proven.iter().map(|(_, proof)| &proof.at);
        ProofStanding {
            proven: proven.len(),
            times: times().min().cloned().zip(times().max().cloned()),
            late: late.into_iter().map(|(tenant, _)| tenant.clone()).collect(),
            failed: known
                .failed
                .iter()
                .map(|(tenant, (_, why))| format!("{tenant}: {why}"))
                .collect(),
        }
    }

    /// When the file with this id was last restored and proven.
    #[must_use]
    pub fn of(&self, file_id: &str) -> Option<String> {
        let known = self.known();
        let mut proofs = known
            .proofs
            .iter()
            .flat_map(|proofs| proofs.tenants.values());
        let proof = proofs.find(|proof| proof.file_id == file_id);
        proof.map(|proof| proof.at.clone())
    }

    fn known(&self) -> MutexGuard<'_, ProofState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProofKeeper {
    /// Proves the tenant whose turn it is, if one is due. Answers how long to wait before the next.
    pub async fn step(&self, progress: Progress) -> Duration {
        match self.prove_next(&progress).await {
            Ok(pause) => pause,
            Err(BackupError::Stopped) => SHORTEST,
            Err(error) => {
                let why = error_chain(&error);
                tracing::warn!(why, "the repository cannot be asked what restores from it");
                metrics::PROOFS_FAILED.increment(1);
                (self.report.every / 10).clamp(SHORTEST, LONGEST)
            }
        }
    }

    async fn prove_next(&self, progress: &Progress) -> Result<Duration, BackupError> {
        let repository = match Repository::open(&self.from, &self.s3).await {
            Ok(repository) => repository,
            // Nothing was saved yet.
            Err(BackupError::NoRepository { .. } | BackupError::Io { .. }) => {
                return Ok((self.report.every / 10).clamp(SHORTEST, LONGEST));
            }
            Err(error) => return Err(error),
        };
        if self.report.known().proofs.is_none() {
            let proofs = repository.proofs().await?;
            self.report.known().proofs = Some(proofs);
        }
        let tenants = self.tenants.list_tenants().await?;
        let pause = self.report.every / u32::try_from(tenants.len() + 1).unwrap_or(u32::MAX);
        let pause = pause.clamp(SHORTEST, LONGEST);
        let next = self.next(&tenants, pause);
        let mut changed = false;
        if let Some(tenant) = &next {
            let proven = repository
                .prove_tenant(&self.envelope, tenant, progress)
                .await;
            changed = self.note(tenant, proven)?;
        }
        self.count();
        self.keep(&repository, changed && next.is_some()).await?;
        Ok(pause)
    }

    /// The tenant that was not looked at for the longest time, where that is long enough.
    fn next(&self, tenants: &[TenantId], pause: Duration) -> Option<TenantId> {
        let mut known = self.report.known();
        let names: Vec<String> = tenants.iter().map(TenantId::to_string).collect();
        known.failed.retain(|tenant, _| names.contains(tenant));
        if let Some(proofs) = &mut known.proofs {
            proofs.tenants.retain(|tenant, _| names.contains(tenant));
        }
        let looked = |tenant: &TenantId| {
            let proof = known.proofs.as_ref()?.tenants.get(tenant.as_str());
            let failed = known.failed.get(tenant.as_str()).map(|(at, _)| *at);
            failed.max(proof.map(at))
        };
        let due = now() - seconds(self.report.every.saturating_sub(pause));
        let next = tenants.iter().min_by_key(|tenant| looked(tenant))?;
        looked(next)
            .is_none_or(|at| at <= due)
            .then(|| next.clone())
    }

    /// Notes what came of a proof. Answers whether the tenant is proven.
    fn note(
        &self,
        tenant: &TenantId,
        proven: Result<Proof, BackupError>,
    ) -> Result<bool, BackupError> {
        let mut known = self.report.known();
        let name = tenant.to_string();
        match proven {
            Ok(proof) => {
                let _failed = known.failed.remove(&name);
                let proofs = known.proofs.get_or_insert_default();
                let _before = proofs.tenants.insert(name, proof);
                metrics::PROOFS.increment(1);
                Ok(true)
            }
            Err(BackupError::Stopped) => Err(BackupError::Stopped),
            Err(error) => {
                let why = error_chain(&error);
                // A tenant that no snapshot holds yet is no fault, and its turn comes again.
                if !matches!(
                    error,
                    BackupError::NotHeld { .. } | BackupError::NoSnapshot(_)
                ) {
                    tracing::error!(%tenant, why, "a tenant does not restore from its backup");
                    metrics::PROOFS_FAILED.increment(1);
                }
                let _before = known.failed.insert(name, (now(), why));
                Ok(false)
            }
        }
    }

    fn count(&self) {
        let standing = self.report.standing();
        let known = self.report.known();
        let proofs = known
            .proofs
            .iter()
            .flat_map(|proofs| proofs.tenants.values());
        let oldest = proofs.map(at).min().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
        metrics::OLDEST_PROOF.set(oldest as f64);
        #[expect(clippy::cast_precision_loss, reason = "a count of tenants")]
        metrics::UNPROVEN.set((standing.late.len() + standing.failed.len()) as f64);
    }

    /// Tells the repository now and then, and not after each tenant: objects are never changed.
    async fn keep(&self, repository: &Repository, changed: bool) -> Result<(), BackupError> {
        let (proofs, kept) = {
            let known = self.report.known();
            (known.proofs.clone(), known.kept)
        };
        let Some(proofs) = proofs.filter(|_| changed && now() - kept >= self.between()) else {
            return Ok(());
        };
        repository.keep_proofs(&proofs).await?;
        self.report.known().kept = now();
        Ok(())
    }

    fn between(&self) -> i64 {
        seconds(self.report.every / 4).min(3600)
    }
}

fn now() -> i64 {
    clock::now().as_second()
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 4)
}

/// When it was proven, in seconds since 1970.
fn at(proof: &Proof) -> i64 {
    clock::ms_of(&proof.at).unwrap_or(0) / 1000
}

/// Between two looks.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(600);
