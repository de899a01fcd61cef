//! A new file that has a name only once it is whole: what is cut short leaves nothing behind, which
//! matters where it is plaintext.
//!
//! On Linux it is opened with `O_TMPFILE` and named by `linkat` at the end. Until then it is the
//! process's alone, and the kernel frees it with the process. Where the file system has no such
//! files (NFS, FAT), and on other systems, it stands under a temporary name instead.
#![expect(
    clippy::disallowed_methods,
    reason = "a file without a name is nobody else's"
)]

use std::fs::File;
use std::io;
use std::path::Path;

use tempfile::TempPath;

use crate::data_dir::{parent, sync_dir};
use crate::failpoints::crash_point;

/// A file of mode 0600 that nobody finds yet.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    /// Where it must have a name; removed with this value.
    temporary: Option<TempPath>,
}

impl NewFile {
    /// A file in `dir`, for reading and writing. Where it must have a name, that begins with
    /// `prefix`.
    ///
    /// # Errors
    ///
    /// Whatever the operating system says.
    pub(crate) fn in_dir(dir: &Path, prefix: &str) -> io::Result<Self> {
        match nameless(dir)? {
            Some(file) => Ok(Self {
                file,
                temporary: None,
            }),
            None => Self::named(dir, prefix),
        }
    }

    fn named(dir: &Path, prefix: &str) -> io::Result<Self> {
        let named = tempfile::Builder::new().prefix(prefix).tempfile_in(dir)?;
        let (file, temporary) = named.into_parts();
        Ok(Self {
            file,
            temporary: Some(temporary),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Flushes it, gives it the name `path` in the same directory, where nothing may stand, and
    /// flushes the directory.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] when something stands there; whatever else the operating
    /// system says.
    pub(crate) fn publish(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        crash_point!("export::flushed");
        match self.temporary {
            Some(temporary) => temporary
                .persist_noclobber(path)
                .map_err(|error| error.error)?,
            None => name(&self.file, path)?,
        }
        crash_point!("export::named");
        sync_dir(parent(path))
    }
}

/// A file of mode 0600 in `dir` for reading and writing, which has no name and goes with this
/// process. Where there are no such files, it has one that begins with `prefix` until this returns.
///
/// # Errors
///
/// Whatever the operating system says.
pub(crate) fn nameless_file(dir: &Path, prefix: &str) -> io::Result<File> {
    if let Some(file) = unnamed(dir)? {
        return Ok(file);
    }
    let named = tempfile::Builder::new().prefix(prefix).tempfile_in(dir)?;
    let (file, name) = named.into_parts();
    name.close()?;
    Ok(file)
}

/// An open file without a name; `None` where there are none such, or where none could be named.
#[cfg(target_os = "linux")]
fn nameless(dir: &Path) -> io::Result<Option<File>> {
    // Without /proc it could not be named at the end, when all the work is done.
    let nameable = |file: &File| std::fs::metadata(in_proc(file)).is_ok();
    Ok(unnamed(dir)?.filter(nameable))
}

/// An open file without a name; `None` where there are none such.
#[cfg(target_os = "linux")]
fn unnamed(dir: &Path) -> io::Result<Option<File>> {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::io::Errno;

    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(Some(File::from(file))),
        // A kernel that does not know the flag sees a directory opened for writing.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(target_os = "linux")]
fn name(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};

    Ok(linkat(
        CWD,
        in_proc(file),
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

#[cfg(target_os = "linux")]
fn in_proc(file: &File) -> String {
    use std::os::fd::AsRawFd as _;

    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(not(target_os = "linux"))]
fn nameless(dir: &Path) -> io::Result<Option<File>> {
    unnamed(dir)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_dir: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

#[cfg(not(target_os = "linux"))]
fn name(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect()
    }

    /// Both kinds, each in a directory of its own, and how many names there are before one is
    /// published.
    fn both(test: impl Fn(&Path, NewFile, usize)) {
        let dir = tempfile::tempdir().unwrap();
        test(dir.path(), NewFile::in_dir(dir.path(), "t-").unwrap(), 0);
        let dir = tempfile::tempdir().unwrap();
        test(dir.path(), NewFile::named(dir.path(), "t-").unwrap(), 1);
    }

    #[test]
    fn has_its_name_at_the_end_and_only_its_owner_reads_it() {
        both(|dir, new, before| {
            new.file().write_all(b"whole").unwrap();
            assert_eq!(names(dir).len(), before);
            let path = dir.join("target");
            new.publish(&path).unwrap();
            assert_eq!(names(dir), ["target"]);
            assert_eq!(fs::read(&path).unwrap(), b"whole");
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        });
    }

    #[test]
    fn replaces_nothing_and_leaves_nothing_when_it_is_given_up() {
        both(|dir, new, _before| {
            let path = dir.join("target");
            // Not even a name that leads nowhere.
            std::os::unix::fs::symlink("nowhere", &path).unwrap();
            let error = new.publish(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(names(dir), ["target"]);
            assert!(!dir.join("nowhere").exists());
        });
    }

    #[test]
    fn says_that_the_directory_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let error = NewFile::in_dir(&dir.path().join("none"), "t-").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
