//! The atomic manifest store: a reader sees the old manifest or the new one, whole.
//!
//! States a crash can leave: a temporary file nobody reads (removed at the next start), or the new
//! manifest in place. The rename is the commit; the directory's flush makes it durable before
//! anything relies on it.
#![expect(
    clippy::disallowed_methods,
    reason = "manifests and directories are none of SQLite's files"
)]

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nimbus_manifests::{MAX_MANIFEST_BYTES, ParseError, SUFFIX, SealedManifest};

use crate::data_dir::{TEMPORARY_PREFIX, beside, parent, sync_dir};
use crate::failpoints::crash_point;

/// Where the manifest of `file` stands: `<file>.nimbus-enc`.
#[must_use]
pub fn manifest_path(file: &Path) -> PathBuf {
    beside(file, SUFFIX)
}

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What stands there is not a canonical manifest.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

/// Reads the manifest at `path`; `None` when there is none. Nothing in it is verified yet.
///
/// # Errors
///
/// [`ReadError`], without the path: the caller knows it.
pub fn read(path: &Path) -> Result<Option<SealedManifest>, ReadError> {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    file.take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_end(&mut text)?;
    Ok(Some(SealedManifest::parse(&text)?))
}

/// Opens `path` without waiting for the writer of a named pipe that somebody put there; reading
/// anything but a file then fails.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("not a regular file; move it away"))
    }
}

/// How [`write`] treats a manifest that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publish {
    /// There must be none: two creators never end with a key that the manifest does not hold.
    New,
    /// It is replaced whole.
    Replace,
}

/// Publishes `manifest` at `path`, durably.
pub(super) fn write(path: &Path, manifest: &SealedManifest, publish: Publish) -> io::Result<()> {
    let dir = parent(path);
    // 0600, `O_EXCL`, a name no one can guess: a planted symlink is not followed.
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(dir)?;
    crash_point!("manifest::temporary-created");
    temporary.write_all(manifest.as_bytes())?;
    crash_point!("manifest::temporary-written");
    temporary.as_file().sync_all()?;
    crash_point!("manifest::temporary-flushed");
    let _file = match publish {
        Publish::New => temporary.persist_noclobber(path),
        Publish::Replace => temporary.persist(path),
    }
    .map_err(|error| error.error)?;
    crash_point!("manifest::renamed");
    sync_dir(dir)?;
    crash_point!("manifest::published");
    Ok(())
}

/// Replaces many manifests, durably, with one flush for all of their contents and one for each
/// directory's names.
///
/// A crash before the renames leaves temporary files, one among them old and new manifests, each
/// whole. When a write fails nothing is replaced; when a rename fails, what came before it is.
pub(super) fn replace_many(manifests: &[(PathBuf, &[u8])]) -> io::Result<()> {
    let mut written = Vec::with_capacity(manifests.len());
    let mut dirs = BTreeSet::new();
    for (path, text) in manifests {
        let dir = parent(path);
        let mut temporary = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(dir)?;
        temporary.write_all(text)?;
        // Closed at once: ten thousand open files would be too many.
        written.push((temporary.into_temp_path(), path));
        dirs.insert(dir);
    }
    crash_point!("manifests::written");
    for dir in &dirs {
        flush_contents(dir, written.iter().map(|(temporary, _)| &**temporary))?;
    }
    crash_point!("manifests::flushed");
    for (temporary, path) in written {
        temporary.persist(path).map_err(|error| error.error)?;
        crash_point!("manifests::renamed");
    }
    for dir in dirs {
        sync_dir(dir)?;
    }
    crash_point!("manifests::published");
    Ok(())
}

/// Flushes what was written to new files in `dir`: the whole file system at once, which is one wait
/// instead of one a file.
#[cfg(target_os = "linux")]
fn flush_contents<'a>(dir: &Path, _files: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

/// Flushes what was written to new files in `dir`.
#[cfg(not(target_os = "linux"))]
fn flush_contents<'a>(dir: &Path, mut files: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    files
        .by_ref()
        .filter(|file| parent(file) == dir)
        .try_for_each(|file| File::open(file)?.sync_all())
}

/// Removes `path` if it is there, and makes its absence durable.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Why a creation sets something aside.
pub(crate) const CUT_SHORT: &str =
    "a creation was cut short here, and what stands there does not open under its key";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_not_wait_for_the_writer_of_a_named_pipe_in_a_manifests_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo.sqlite3.nimbus-enc");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        assert!(matches!(read(&path), Err(ReadError::Io(_))));
    }
}
