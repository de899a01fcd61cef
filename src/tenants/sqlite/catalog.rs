//! Which tenants a data directory holds, read from its entries and manifests alone.

use std::{
    collections::BTreeSet,
    fs, io,
    num::NonZero,
    panic::resume_unwind,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
    thread,
};

use nimbus_manifests::{SUFFIX, State, TenantId};

use crate::{
    envelope::{ReadError, manifest_path, read_manifest, sync_dir},
    tenants::StoreError,
};

/// What a tenant's file is called: `<tenant>.sqlite3`.
pub(super) fn file_name(tenant: &TenantId) -> String {
    format!("{tenant}{EXTENSION}")
}

/// The tenants in `dir`, and those that are `known` to exist, whatever is left of their files. A manifest that says `new` is
/// otherwise one of a creation that never came to its end, so no tenant; a manifest that cannot be read is a tenant in
/// trouble, and a tenant still. Other files are none of ours.
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
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let manifest_of = name.strip_suffix(SUFFIX);
        let file = manifest_of.unwrap_or(name);
        let tenant = file.strip_suffix(EXTENSION).map(TenantId::from_str);
        let Some(Ok(tenant)) = tenant else { continue };
        if manifest_of.is_some() {
            protected.push((tenant, entry.path()));
        } else if !entry.file_type().map_err(unreadable)?.is_dir() {
            let _new = tenants.insert(tenant);
        }
    }
    tenants.extend(protected.iter().map(|(tenant, _)| tenant.clone()));
    for tenant in unfinished(&protected) {
        let _was_there = tenants.remove(tenant);
    }
    tenants.extend(known);
    Ok(tenants)
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

/// Those whose manifest says `new`. A start reads all manifests, so a few threads share what the disk takes for each.
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

/// Removes what is left of a tenant whose manifest is gone: the database and what SQLite keeps beside it, an
/// unfinished copy of a key rotation too. Makes their absence durable.
pub(super) fn remove_files(database: &Path) -> Result<(), StoreError> {
    for suffix in LEFT_BEHIND {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let path = PathBuf::from(path);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Io {
                    action: "remove",
                    path,
                    source: Arc::new(source),
                });
            }
            Ok(()) | Err(_) => {}
        }
    }
    let dir = database.parent().unwrap_or(database);
    sync_dir(dir).map_err(|source| StoreError::Io {
        action: "flush",
        path: dir.into(),
        source: Arc::new(source),
    })
}

/// Whether anything of a tenant's file is there.
#[cfg(test)]
pub(super) fn leftovers(database: &Path) -> Vec<PathBuf> {
    let mut paths = vec![manifest_path(database)];
    paths.extend(LEFT_BEHIND.map(|suffix| {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    }));
    paths.retain(|path| path.exists());
    paths
}

const EXTENSION: &str = ".sqlite3";
/// Threads that read manifests at the start.
const MAX_SCANNERS: usize = 8;
const LEFT_BEHIND: [&str; 6] = ["", "-wal", "-shm", ".rekey", ".rekey-wal", ".rekey-shm"];
