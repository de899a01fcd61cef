//! Which tenants a data directory holds, read from its entries and manifests alone.

use std::{
    collections::BTreeSet,
    fs,
    num::NonZero,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nimbus_manifests::{State, TenantId};

use crate::data_dir::{self, Role, tenant_of_database};
use crate::envelope::{ReadError, manifest_path, read_manifest};
use crate::tenants::StoreError;

/// The tenants in `dir`, and those that are `known` to exist, whatever is left of their files. A
/// manifest that says `new` is otherwise one of a creation that never came to its end, so no
/// tenant; a manifest that cannot be read is a tenant in trouble, and a tenant still. Other files
/// do not belong to Nimbus.
pub(super) fn scan(
    dir: &Path,
    known: BTreeSet<TenantId>,
) -> Result<BTreeSet<TenantId>, StoreError> {
    let unreadable = |source| StoreError::Io {
        action: "list",
        path: dir.into(),
        source: Arc::new(source),
    };
    let mut tenants = BTreeSet::new();
    let mut protected = Vec::new();
    for entry in data_dir::scan(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let is_dir = entry.is_dir();
        match entry.role {
            Role::Manifest(file) => {
                let name = file.file_name().and_then(|name| name.to_str());
                let tenant = name.and_then(tenant_of_database);
                protected.extend(tenant.map(|tenant| (tenant, entry.path)));
            }
            Role::Database(tenant) if !is_dir.map_err(unreadable)? => {
                tenants.insert(tenant);
            }
            _ => {}
        }
    }
    tenants.extend(protected.iter().map(|(tenant, _)| tenant.clone()));
    for tenant in unfinished(&protected) {
        tenants.remove(tenant);
    }
    tenants.extend(known);
    Ok(tenants)
}

/// Refuses a directory that has tenants in files, for their provider is another one.
pub(crate) fn require_none(dir: &Path) -> Result<(), StoreError> {
    match scan(dir, BTreeSet::new())?.into_iter().next() {
        None => Ok(()),
        Some(tenant) => Err(StoreError::InFiles {
            dir: dir.to_owned(),
            tenant,
        }),
    }
}

/// Whether [`scan`] would list the tenant of this database that is not known otherwise.
pub(super) fn is_tenant(database: &Path) -> bool {
    match read_manifest(&manifest_path(database)) {
        Ok(Some(sealed)) => sealed.claims().state() != State::New,
        Ok(None) => fs::symlink_metadata(database).is_ok_and(|file| !file.is_dir()),
        Err(ReadError::Parse(_)) => true,
        Err(_unreadable) => false,
    }
}

/// Those whose manifest says `new`. A start reads all manifests, so a few threads share what the
/// disk takes for each.
fn unfinished(protected: &[(TenantId, PathBuf)]) -> Vec<&TenantId> {
    let is_new = |manifest: &Path| matches!(read_manifest(manifest), Ok(Some(sealed)) if sealed.claims().state() == State::New);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = protected.len().div_ceil(threads.min(MAX_SCANNERS)).max(1);
    thread::scope(|scope| {
        let scanners: Vec<_> = protected
            .chunks(share)
            .map(|share| {
                scope.spawn(move || {
                    let new = share.iter().filter(|(_, manifest)| is_new(manifest));
                    new.map(|(tenant, _)| tenant).collect::<Vec<_>>()
                })
            })
            .collect();
        let found = scanners.into_iter().map(|scanner| scanner.join());
        found
            .flat_map(|found| found.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// Removes all files of a tenant whose manifest is gone, whatever they are left of, and makes their
/// absence durable.
pub(super) fn remove_files(dir: &Path, tenant: &TenantId) -> Result<(), StoreError> {
    let left = data_dir::remove_all(dir, tenant).map_err(|source| StoreError::Io {
        action: "remove the files of a tenant in",
        path: dir.into(),
        source: Arc::new(source),
    })?;
    if left.is_empty() {
        return Ok(());
    }
    Err(StoreError::LeftBehind {
        tenant: tenant.clone(),
        left: left.iter().map(ToString::to_string).collect(),
    })
}

/// What is there of a tenant's files.
#[cfg(test)]
pub(super) fn leftovers(database: &Path) -> Vec<PathBuf> {
    let name = database.file_name().and_then(|name| name.to_str());
    let tenant = name.and_then(tenant_of_database).unwrap();
    let found = data_dir::of_tenant(crate::data_dir::parent(database), &tenant);
    found.unwrap().into_iter().map(|(_, path)| path).collect()
}

/// Threads that read manifests at the start.
const MAX_SCANNERS: usize = 8;
