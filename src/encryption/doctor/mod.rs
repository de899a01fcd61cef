//! `doctor`: everything around the files that an operator or an auditor asks about, looked at and
//! reported with what to do next.

mod keys;
mod machine;
mod records;

use std::path::PathBuf;

use nimbus_keyproviders::same_key;
use nimbus_manifests::{KeyId, ProviderKind, Subject};
use serde::{Deserialize, Serialize};

use super::status::{EncryptionStatus, Health, StatusError, StatusReader, Verify};
use crate::audit::{LogError, Verified};
use crate::backup::proofs::ProofStanding;
use crate::process::Limits;
use crate::runtime::blocking;
use keys::{data_key_age, files, key_modes, key_place, newest_key, pending, provider, recovery};
use machine::{clock, core_dumps, directory_modes, disk, leftovers, memory_lock, tenant_size};
use records::{audit_log, backup_proofs};

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and could be safer, or will not work for long.
    Warning,
    /// It needs an operator.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Examined)]
pub struct Check {
    /// What it is about; the name stays the same.
    pub name: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub remedy: Option<String>,
}

/// The answer of `nimbus doctor --format json`; `docs/doctor.md` documents it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Examination)]
pub struct Diagnosis {
    /// Each thing, always the same ones in the same order.
    pub checks: Vec<Check>,
    /// How many of them could be better.
    #[schema(value_type = u64)]
    pub warnings: usize,
    /// How many need an operator.
    #[schema(value_type = u64)]
    pub problems: usize,
}

/// What to look at.
#[derive(Debug)]
pub struct Doctor {
    /// Looks at the files.
    pub status_reader: StatusReader,
    /// How many tenants may be open: each needs locked memory for its keys.
    pub max_open_tenants: usize,
    /// How much may be written.
    pub limits: Limits,
    /// How proofs of restores stand; `None` where they are not asked for, or no server runs.
    pub proofs: Option<ProofStanding>,
}

impl Doctor {
    /// Looks at everything. `audit` is what a look at the whole audit log found.
    ///
    /// # Errors
    ///
    /// [`StatusError`] when the data directory cannot be read.
    pub async fn run(self, audit: Result<Verified, LogError>) -> Result<Diagnosis, StatusError> {
        let status = self.status_reader.clone().run(Some(Verify::None)).await?;
        let (behind, stuck) = self.behind(&status).await;
        let (data_dir, control_dir) = (
            self.status_reader.data_dir.clone(),
            self.status_reader.control_dir.clone(),
        );
        let key = status
            .provider
            .as_ref()
            .and_then(|provider| provider.path.as_deref())
            .map(PathBuf::from);
        let mut checks = vec![
            provider(&status),
            files(&status),
            newest_key(&status, &behind, &stuck),
            data_key_age(&status),
            pending(&status),
            recovery(&status, self.recipients()),
        ];
        let (max_open, limits) = (self.max_open_tenants, self.limits);
        let future = clock(&status);
        checks.extend(
            blocking(move || {
                vec![
                    key_place(key.as_deref(), &data_dir),
                    key_modes(key.as_deref()),
                    directory_modes(&[&data_dir, &control_dir]),
                    leftovers(&[&data_dir, &control_dir]),
                    disk(&data_dir, limits.reserve),
                    tenant_size(&data_dir, limits.tenant),
                    future,
                    memory_lock(max_open),
                    core_dumps(),
                ]
            })
            .await,
        );
        checks.push(audit_log(audit));
        checks.push(backup_proofs(self.proofs.as_ref()));
        let sum = |verdict| {
            checks
                .iter()
                .filter(|check| check.verdict == verdict)
                .count()
        };
        Ok(Diagnosis {
            warnings: sum(Verdict::Warning),
            problems: sum(Verdict::Problem),
            checks,
        })
    }

    fn recipients(&self) -> usize {
        let keys = self
            .status_reader
            .envelope
            .as_ref()
            .ok()
            .and_then(|envelope| envelope.keys());
        keys.map_or(0, |keys| keys.recipients().len())
    }

    /// Files that the key which wraps now does not wrap: those that a rotation moves, and those
    /// whose key cannot be had, which it does not.
    async fn behind(&self, status: &EncryptionStatus) -> (Vec<String>, Vec<String>) {
        let keys = self
            .status_reader
            .envelope
            .as_ref()
            .ok()
            .and_then(|envelope| envelope.keys());
        let Some(keys) = keys else {
            return (Vec::new(), Vec::new());
        };
        let current = keys.current();
        // A key directory has a key a file; the others have one for all.
        let shared = match current.kind() {
            ProviderKind::KeyDir => None,
            _ => current.key_id(&crate::control::subject()).await.ok(),
        };
        let (mut behind, mut stuck) = (Vec::new(), Vec::new());
        for file in &status.files {
            let Some(subject) = file
                .subject
                .as_ref()
                .and_then(|text| text.parse::<Subject>().ok())
            else {
                continue;
            };
            // Nothing of it is wrapped: what is wrong is reported by the check of the files.
            if file.wraps.is_empty() {
                continue;
            }
            let by = keys.wraps_for(&subject);
            let wanted = match &shared {
                Some(id) if !by.is_mapped(&subject) => Some(id.clone()),
                _ => by.key_id(&subject).await.ok(),
            };
            let kind = by.kind().to_string();
            let mut wraps = file.wraps.iter().filter(|wrap| wrap.provider == kind);
            // A file whose own key cannot be had is reported by the check of the files.
            let there = wraps.any(|wrap| {
                let found = KeyId::new(wrap.key_id.as_str());
                let is_it = |id| found.is_ok_and(|found| same_key(&found, id));
                wanted.as_ref().is_none_or(is_it)
            });
            if !there {
                let movable = file.health != Health::KeyUnavailable;
                if movable { &mut behind } else { &mut stuck }.push(file.path.clone());
            }
        }
        (behind, stuck)
    }
}

fn check(name: &str, verdict: Verdict, found: impl Into<String>, remedy: Option<&str>) -> Check {
    Check {
        name: name.to_owned(),
        verdict,
        found: found.into(),
        remedy: remedy.map(str::to_owned),
    }
}

fn fine(name: &str, found: impl Into<String>) -> Check {
    check(name, Verdict::Ok, found, None)
}
