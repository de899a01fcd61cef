//! The one scan of a data directory, and what is done to all files of a kind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nimbus_manifests::TenantId;

use super::durable::sync_dir;
use super::names::{Derived, Kind, Role, derived};

/// A file in a data directory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it is, by its name.
    pub(crate) role: Role,
    entry: fs::DirEntry,
}

impl Entry {
    /// Its name; empty where it is not UTF-8, which every name of Nimbus is.
    pub(crate) fn name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }

    /// Whose it is and what, where its name derives from a tenant.
    pub(crate) fn derived(&self) -> Option<Derived> {
        derived(self.name())
    }

    /// Whether it is a directory, which never belongs to Nimbus, whatever its name.
    pub(crate) fn is_dir(&self) -> io::Result<bool> {
        Ok(self.entry.file_type()?.is_dir())
    }

    /// Its length; 0 where it is gone meanwhile.
    pub(crate) fn len(&self) -> u64 {
        self.entry.metadata().map_or(0, |file| file.len())
    }
}

/// Every file in `dir`, in no order. Whoever lists or classifies a data directory begins here.
///
/// # Errors
///
/// Whatever the operating system says of the directory.
pub(crate) fn scan(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<Entry>> + use<>> {
    Ok(fs::read_dir(dir)?.map(|entry| {
        let entry = entry?;
        let path = entry.path();
        let role = Role::of(&path);
        Ok(Entry { path, role, entry })
    }))
}

/// As [`scan`], of what can be read.
pub(crate) fn scan_readable(dir: &Path) -> impl Iterator<Item = Entry> + use<> {
    scan(dir).into_iter().flatten().flatten()
}

/// All files of `tenant` in `dir`, by their names: manifests first, then what may be plaintext.
///
/// # Errors
///
/// Whatever the operating system says of the directory.
pub(crate) fn of_tenant(dir: &Path, tenant: &TenantId) -> io::Result<Vec<(Kind, PathBuf)>> {
    let mut found = Vec::new();
    for entry in scan(dir)? {
        let entry = entry?;
        if let Some(derived) = entry.derived()
            && derived.tenant == *tenant
        {
            found.push((derived.kind, entry.path));
        }
    }
    found.sort();
    Ok(found)
}

/// A file that could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .path.display())]
pub(crate) struct Left {
    path: PathBuf,
    source: io::Error,
}

/// Removes all files of `tenant` in `dir`, in the order of [`of_tenant`], and makes their absence
/// durable. What cannot be removed does not keep the others; it is the answer.
///
/// # Errors
///
/// What the operating system says of the directory.
pub(crate) fn remove_all(dir: &Path, tenant: &TenantId) -> io::Result<Vec<Left>> {
    let mut left = Vec::new();
    for (_kind, path) in of_tenant(dir, tenant)? {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => left.push(Left { path, source }),
        }
    }
    sync_dir(dir)?;
    Ok(left)
}

/// Removes the temporary files that a crash left in `dir`. Call under the data directory's lock.
///
/// # Errors
///
/// Whatever the operating system says.
pub(crate) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in scan(dir)? {
        let entry = entry?;
        if entry.role == Role::Temporary && !entry.is_dir()? {
            fs::remove_file(&entry.path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_all_of_one_tenant_and_names_what_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "a.sqlite3",
            "a.sqlite3.plaintext",
            "a.sqlite3.nimbus-enc.set-aside-1",
            "a-b.sqlite3",
            "a.sqlite3.bak",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("a.sqlite3.encrypted")).unwrap();
        let left = remove_all(dir.path(), &"a".parse().unwrap()).unwrap();
        assert_eq!(left.len(), 1);
        assert!(left[0].to_string().contains("a.sqlite3.encrypted"));
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["a-b.sqlite3", "a.sqlite3.bak", "a.sqlite3.encrypted"]
        );
    }
}
