//! Every name that Nimbus derives from a tenant or a file, in one place: whoever lists, removes or judges files asks here.
//!
//! An id holds no dot, so a name belongs to one tenant at most: it is `<tenant>.sqlite3`, and any number of the [`ENDINGS`] after it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nimbus_manifests::{SUFFIX, Subject, TenantId};

use crate::envelope::sync_dir;

/// What the name of a tenant's database ends in.
pub(crate) const DATABASE: &str = ".sqlite3";
/// What SQLite keeps beside a database.
pub(crate) const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The copy under the next data key.
pub(crate) const REKEY: &str = ".rekey";
/// The encrypted copy of a migration in place.
pub(crate) const MIGRATING: &str = ".migrating";
/// The plaintext that a migration in place keeps.
pub(crate) const PLAINTEXT: &str = ".plaintext";
/// The encrypted copy of a migration, where no other name was given.
pub(crate) const ENCRYPTED: &str = ".encrypted";
/// What the name of every temporary file begins with.
pub(crate) const TEMPORARY_PREFIX: &str = ".nimbus-tmp-";

/// Which process has the directory.
pub(crate) const LOCK: &str = "nimbus.lock";
/// Empty: the directory belongs to a deployment, which has a control file.
pub(crate) const DEPLOYED: &str = "nimbus.deployed";

/// Says that a restoration into the directory is not finished.
pub(crate) const RESTORING: &str = "nimbus-restore-unfinished";

/// What is put behind the name of a database, or of another derived file.
const ENDINGS: [&str; 8] = [
    SUFFIX,
    SIDE_FILES[0],
    SIDE_FILES[1],
    SIDE_FILES[2],
    REKEY,
    MIGRATING,
    PLAINTEXT,
    ENCRYPTED,
];
const SET_ASIDE: &str = ".set-aside-";

/// The name of a tenant's database.
pub(crate) fn database_name(tenant: &TenantId) -> String {
    format!("{tenant}{DATABASE}")
}

/// Who the database of `tenant` belongs to.
pub(crate) fn subject(tenant: &TenantId) -> Subject {
    Subject::sqlite_tenant(tenant, &database_name(tenant))
        .expect("a tenant id with our extension is a file name")
}

/// The tenant whose database has this name.
pub(crate) fn tenant_of_database(name: &str) -> Option<TenantId> {
    name.strip_suffix(DATABASE)?.parse().ok()
}

/// `<path><ending>`.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// What SQLite keeps beside the database at `path`.
pub(crate) fn side_files(path: &Path) -> [PathBuf; 3] {
    SIDE_FILES.map(|ending| beside(path, ending))
}

/// Whether SQLite keeps a file of this name beside a database.
pub(crate) fn is_side_file(name: &str) -> bool {
    SIDE_FILES.iter().any(|ending| name.ends_with(ending))
}

/// The `n`th name under which what stands at `path` is set aside.
pub(crate) fn set_aside(path: &Path, n: u32) -> PathBuf {
    beside(path, &format!("{SET_ASIDE}{n}"))
}

/// A file of a tenant, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Derived {
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What a derived file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A manifest, in use, of a copy, or set aside: without it what it is of cannot be read.
    Manifest,
    /// Plaintext that a migration kept.
    Plaintext,
    /// Set aside as it was: whatever it holds.
    SetAside,
    /// The database, what SQLite keeps beside it, and encrypted copies of it.
    Data,
}

/// The tenant's file that has this name; `None` for a name that Nimbus does not derive.
pub(crate) fn derived(name: &str) -> Option<Derived> {
    let (tenant, mut rest) = name.split_once('.')?;
    let tenant = tenant.parse().ok()?;
    rest = rest.strip_prefix(&DATABASE[1..])?;
    let mut kind = Kind::Data;
    while !rest.is_empty() {
        if let Some(numbered) = rest.strip_prefix(SET_ASIDE) {
            let digits = numbered.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 {
                return None;
            }
            kind = kind.min(Kind::SetAside);
            rest = &numbered[digits..];
            continue;
        }
        let ending = ENDINGS.iter().find(|ending| rest.starts_with(**ending))?;
        kind = kind.min(match *ending {
            SUFFIX => Kind::Manifest,
            PLAINTEXT => Kind::Plaintext,
            _ => Kind::Data,
        });
        rest = &rest[ending.len()..];
    }
    Some(Derived { tenant, kind })
}

/// All files of `tenant` in `dir`, by their names: manifests first, then what may be plaintext.
///
/// # Errors
///
/// Whatever the operating system says of the directory.
pub(crate) fn of_tenant(dir: &Path, tenant: &TenantId) -> io::Result<Vec<(Kind, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(derived) = name.and_then(derived)
            && derived.tenant == *tenant
        {
            found.push((derived.kind, path));
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

/// Removes all files of `tenant` in `dir`, in the order of [`of_tenant`], and makes their absence durable. What cannot be
/// removed does not keep the others; it is the answer.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Option<(String, Kind)> {
        derived(name).map(|derived| (derived.tenant.to_string(), derived.kind))
    }

    #[test]
    fn knows_whose_a_name_is_and_what() {
        let of = |kind| Some(("a-1_b".to_owned(), kind));
        for (ending, expected) in [
            ("", Kind::Data),
            ("-wal", Kind::Data),
            ("-shm", Kind::Data),
            ("-journal", Kind::Data),
            (".rekey", Kind::Data),
            (".rekey-wal", Kind::Data),
            (".migrating", Kind::Data),
            (".migrating-shm", Kind::Data),
            (".encrypted", Kind::Data),
            (".nimbus-enc", Kind::Manifest),
            (".migrating.nimbus-enc", Kind::Manifest),
            (".encrypted.nimbus-enc", Kind::Manifest),
            (".nimbus-enc.set-aside-12", Kind::Manifest),
            (".plaintext", Kind::Plaintext),
            (".plaintext-wal", Kind::Plaintext),
            (".plaintext-journal", Kind::Plaintext),
            (".set-aside-1", Kind::SetAside),
            ("-wal.set-aside-3", Kind::SetAside),
            // A migration of what was set aside.
            (".set-aside-1.plaintext", Kind::Plaintext),
            (".set-aside-1.encrypted.nimbus-enc", Kind::Manifest),
        ] {
            assert_eq!(
                kind(&format!("a-1_b.sqlite3{ending}")),
                of(expected),
                "{ending}"
            );
        }
    }

    #[test]
    fn takes_no_other_name_for_a_tenants() {
        for name in [
            "",
            ".sqlite3",
            "a",
            "a.sqlite",
            "a.sqlite33",
            "a.sqlite3x",
            "a.sqlite3.bak",
            "a.sqlite3.set-aside-",
            "a.sqlite3.set-aside-x",
            "a.sqlite3.plaintext.old",
            "A.sqlite3",
            "a.b.sqlite3",
            "nimbus-control.db",
            "nimbus-control.db.nimbus-enc",
            "nimbus-audit.log",
            ".nimbus-tmp-a.sqlite3",
        ] {
            assert_eq!(kind(name), None, "{name}");
        }
    }

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
