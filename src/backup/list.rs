//! The snapshots of a repository.

use std::collections::BTreeSet;

use nimbus_manifests::TenantId;
use serde::Serialize;

use super::catalogue::Run;
use super::repository::said;
use super::{BackupError, Repository};

/// A snapshot, by its catalogue.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = ListedSnapshot)]
pub struct Listed {
    /// Its number.
    pub snapshot: u64,
    /// Its moment.
    pub taken: String,
    /// The one tenant that it holds; null where it holds all.
    #[schema(required)]
    pub tenant: Option<String>,
    /// How many tenants it holds.
    #[schema(value_type = u64)]
    pub tenants: usize,
    /// Bytes of the files, or of the tenant that was asked for.
    pub bytes: u64,
    /// Bytes of pages and log that no earlier snapshot of the list names.
    pub added: u64,
    /// Tenants that it could not hold.
    pub missing: Vec<String>,
    /// The id of the file of the tenant that was asked for: another one of the name has another.
    #[schema(required)]
    pub file_id: Option<String>,
}

impl Repository {
    /// The snapshots in their order; with `tenant`, those that hold it; and what stands among them
    /// and is none. Nothing is proven, and no key is needed.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub async fn snapshots(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<(Vec<Listed>, Vec<String>), BackupError> {
        let mut seen = BTreeSet::new();
        let (mut listed, mut damage) = (Vec::new(), Vec::new());
        for number in self.numbers().await?.0 {
            let sealed = match self.catalogue(number).await {
                Ok(Some((sealed, _))) => sealed,
                Ok(None) => continue,
                Err(error) if error.is_damage() => {
                    damage.push(said(&error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let catalogue = sealed.claims;
            let asked = |file: &&super::catalogue::StoredFile| {
                tenant.is_some_and(|tenant| file.tenant().as_ref() == Some(tenant))
            };
            let one = catalogue.tenants.iter().find(asked);
            if tenant.is_some() && one.is_none() {
                continue;
            }
            let extents: Vec<_> = match one {
                None => catalogue.extents().collect(),
                Some(one) => one.runs.iter().map(Run::extent).collect(),
            };
            let new = extents.into_iter().filter(|one| seen.insert(one.clone()));
            let added = new.map(|one| one.bytes).fold(0, u64::saturating_add);
            let missing = catalogue
                .tenants
                .iter()
                .filter(|file| file.missing.is_some());
            let missing: Vec<_> = missing
                .filter_map(|file| Some(file.tenant()?.to_string()))
                .collect();
            listed.push(Listed {
                snapshot: number,
                taken: catalogue.taken.clone(),
                tenant: catalogue.tenant.clone(),
                tenants: catalogue.tenants.len() - missing.len(),
                bytes: one.map_or_else(
                    || {
                        let bytes = catalogue.files().map(|file| file.bytes);
                        bytes.fold(0, u64::saturating_add)
                    },
                    |one| one.bytes,
                ),
                added,
                missing,
                file_id: one.map(|one| one.file_id.clone()),
            });
        }
        Ok((listed, damage))
    }
}
