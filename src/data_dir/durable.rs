//! Changes of a directory that survive a power cut, and files that are set aside.
#![expect(
    clippy::disallowed_methods,
    reason = "directories are none of SQLite's files"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::names::aside_name;
use crate::together::Together;

/// Renames `path` to `<path>.set-aside-<n>`, for the reason `why`, and answers that name: what is
/// found in the place of something new is kept, never overwritten.
pub(crate) fn set_aside(path: &Path, why: &str) -> io::Result<PathBuf> {
    let target = place_aside(path, why)?;
    fs::rename(path, &target)?;
    Ok(target)
}

/// As [`set_aside`], and leaves the file in its place as well, to be replaced.
pub(crate) fn set_aside_copy(path: &Path, why: &str) -> io::Result<()> {
    fs::hard_link(path, place_aside(path, why)?)
}

/// The next free name for setting `path` aside; says that it is.
fn place_aside(path: &Path, why: &str) -> io::Result<PathBuf> {
    let target = (1..=u32::MAX)
        .map(|n| aside_name(path, n))
        .find(|target| fs::symlink_metadata(target).is_err())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    tracing::warn!(
        from = %path.display(),
        to = %target.display(),
        "a file is set aside: {why}"
    );
    Ok(target)
}

/// Flushes a directory, so that the names in it survive a power cut. Many creations at once share
/// their flushes.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    let flush = |dir: &Path| File::open(dir)?.sync_all();
    let flushed = FLUSHES.ask(dir.to_owned(), |dirs| {
        let dirs: BTreeSet<&PathBuf> = dirs.iter().copied().collect();
        let failed = |dir: &PathBuf| Some((dir.clone(), Arc::new(flush(dir).err()?)));
        Arc::new(dirs.into_iter().filter_map(failed).collect())
    });
    match flushed.get(dir) {
        None => Ok(()),
        Some(error) => Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), Arc::clone(error)),
        }),
    }
}

/// Directories to flush; for all waiting callers, which of them failed.
static FLUSHES: Together<PathBuf, Arc<BTreeMap<PathBuf, Arc<io::Error>>>> = Together::new();
