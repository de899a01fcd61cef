//! Who can read a file of secrets: its owner alone, or also whoever a platform lets.
//!
//! Platforms hand secrets to a service with modes that an ordinary file must not have: Docker as
//! 0444, Kubernetes with `fsGroup` as 0440, systemd as 0440 with an access list, all of them owned
//! by root. Such a file differs from one that was left open by its place: on memory that
//! is mounted read-only, or in the closed directory that systemd names in `CREDENTIALS_DIRECTORY`.
#![cfg_attr(
    target_os = "linux",
    expect(
        clippy::disallowed_methods,
        reason = "a directory of secrets is none of SQLite's"
    )
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Whether only those can read the open `file` who are meant to. `path` is where it was opened.
///
/// # Errors
/// What the operating system said.
pub fn is_private(path: &Path, file: &File) -> io::Result<bool> {
    let about = file.metadata()?;
    if about.mode() & OTHERS == 0 {
        return Ok(true);
    }
    // Of root, so that no other user put it there; and nobody but root could ever change it.
    let handed_out = about.uid() == 0 && about.mode() & (OTHERS_WRITE | SPECIAL) == 0;
    Ok(handed_out && (platform::on_sealed_memory(file)? || platform::is_credential(path, &about)))
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::Metadata;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::PathBuf;

    use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags};

    use super::{File, OTHERS_READ, OTHERS_WRITE, Path, io};

    /// Whether the file lies on tmpfs or ramfs that is mounted read-only here: no disk and no
    /// shared `/tmp` is.
    pub(super) fn on_sealed_memory(file: &File) -> io::Result<bool> {
        let kind = rustix::fs::fstatfs(file)?.f_type;
        let flags = rustix::fs::fstatvfs(file)?.f_flag;
        Ok((kind == TMPFS || kind == RAMFS) && flags.contains(StatVfsMountFlags::RDONLY))
    }

    /// Whether it is a file of the service's credentials (`LoadCredential=`), which others than the
    /// service's user and root's group cannot reach: neither the file nor its directory has any
    /// permission for others.
    pub(super) fn is_credential(path: &Path, about: &Metadata) -> bool {
        std::env::var_os("CREDENTIALS_DIRECTORY")
            .is_some_and(|dir| is_in(&PathBuf::from(dir), path, about))
    }

    pub(super) fn is_in(dir: &Path, path: &Path, about: &Metadata) -> bool {
        if !dir.is_absolute() || about.mode() & OTHERS_READ != 0 {
            return false;
        }
        let look = || -> Option<bool> {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::open(dir, flags, Mode::empty()).ok()?;
            let of_dir = rustix::fs::fstat(&dir).ok()?;
            let euid = rustix::process::geteuid().as_raw();
            let closed = (of_dir.st_uid == 0 || of_dir.st_uid == euid)
                && of_dir.st_mode & (OTHERS_WRITE | OTHERS_READ) == 0;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let named = rustix::fs::statat(&dir, path.file_name()?, flags).ok()?;
            Some(closed && named.st_dev == about.dev() && named.st_ino == about.ino())
        };
        look().unwrap_or(false)
    }

    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    const RAMFS: rustix::fs::FsWord = 0x8584_58f6;
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::fs::Metadata;

    use super::{File, Path, io};

    pub(super) fn on_sealed_memory(_: &File) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn is_credential(_: &Path, _: &Metadata) -> bool {
        false
    }
}

/// Any permission of group or others.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
/// Any permission of those who are neither owner nor group.
#[cfg(target_os = "linux")]
const OTHERS_READ: u32 = 0o007;
const SPECIAL: u32 = 0o7000;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    #[test]
    fn a_file_with_any_permission_for_others_is_not_private_on_an_ordinary_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "secret").unwrap();
        for (mode, private) in [(0o600, true), (0o400, true), (0o440, false), (0o404, false)] {
            set_mode(&path, mode);
            let file = File::open(&path).unwrap();
            assert_eq!(is_private(&path, &file).unwrap(), private, "{mode:o}");
        }
    }

    #[test]
    fn a_credential_lies_in_a_closed_directory_and_is_closed_to_others_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (credentials, elsewhere) = (dir.path().join("service"), dir.path().join("key"));
        fs::create_dir(&credentials).unwrap();
        let path = credentials.join("key");
        for file in [&path, &elsewhere] {
            fs::write(file, "secret").unwrap();
            set_mode(file, 0o440);
        }
        let is_in = |dir: &Path, path: &Path| {
            platform::is_in(dir, path, &File::open(path).unwrap().metadata().unwrap())
        };
        for (mode, closed) in [(0o550, true), (0o500, true), (0o555, false), (0o770, false)] {
            set_mode(&credentials, mode);
            assert_eq!(is_in(&credentials, &path), closed, "{mode:o}");
        }
        set_mode(&credentials, 0o550);
        // One of the same name elsewhere is none, nor one that others can read, nor a link into the
        // directory.
        assert!(!is_in(&credentials, &elsewhere));
        set_mode(&path, 0o444);
        assert!(!is_in(&credentials, &path));
        set_mode(&path, 0o440);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&credentials, &link).unwrap();
        assert!(!is_in(&link, &path));
        assert!(!is_in(Path::new("service"), &path));
        set_mode(&credentials, 0o700);
    }
}
