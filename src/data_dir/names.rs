//! Every name that derives from a tenant or a file.
//!
//! An id holds no dot, so a name belongs to one tenant at most: it is `<tenant>.sqlite3`, and any
//! number of the [`ENDINGS`] after it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nimbus_manifests::{SUFFIX, Subject, TenantId};

/// What the name of a tenant's database ends in.
pub(crate) const DATABASE: &str = ".sqlite3";
/// SQLite's write-ahead log.
pub(crate) const WAL: &str = "-wal";
/// What SQLite keeps beside a database.
const SIDE_FILES: [&str; 3] = [WAL, "-shm", "-journal"];
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

/// The control file.
pub(crate) const CONTROL: &str = "nimbus-control.db";
/// The part of the audit log that grows.
pub(crate) const AUDIT_LOG: &str = "nimbus-audit.log";

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

/// The name of a full part of the audit log, by the number of its first line.
pub(crate) fn audit_part(first: u64) -> String {
    format!("nimbus-audit.{first:012}.log")
}

/// The number of the first line of the full part of the audit log with this name.
pub(crate) fn audit_part_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("nimbus-audit.")?.strip_suffix(".log")?;
    let number = number.parse().ok()?;
    (audit_part(number) == name).then_some(number)
}

/// Whether a part of the audit log may have this name.
pub(crate) fn is_audit_log(name: &str) -> bool {
    name == AUDIT_LOG || audit_part_number(name).is_some()
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
fn is_side_file(name: &str) -> bool {
    SIDE_FILES.iter().any(|ending| name.ends_with(ending))
}

/// The `n`th name under which what stands at `path` is set aside.
pub(super) fn aside_name(path: &Path, n: u32) -> PathBuf {
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

/// The file that is meant by a path to it or to its manifest.
pub(crate) fn protected_by(path: &Path) -> Option<PathBuf> {
    let file = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    Some(path.with_file_name(file))
}

/// Whether a file of this name may be a database, a tenant's, the control file or another
/// application's.
pub(crate) fn may_be_database(name: &str) -> bool {
    name.ends_with(DATABASE) || name.ends_with(".db")
}

/// What a file in a data directory is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// The manifest of the file at this path.
    Manifest(PathBuf),
    /// The database of this tenant.
    Database(TenantId),
    /// What SQLite keeps beside a database.
    SideFile,
    /// A temporary file, which the next start removes.
    Temporary,
    /// The lock file, or the mark of a deployment.
    Mark,
    /// Anything else.
    Other,
}

impl Role {
    /// The role of the file at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Self::Other;
        };
        if let Some(file) = protected_by(path) {
            Self::Manifest(file)
        } else if let Some(tenant) = tenant_of_database(name) {
            Self::Database(tenant)
        } else if is_side_file(name) {
            Self::SideFile
        } else if name.starts_with(TEMPORARY_PREFIX) {
            Self::Temporary
        } else if [LOCK, DEPLOYED].contains(&name) {
            Self::Mark
        } else {
            Self::Other
        }
    }
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
}
