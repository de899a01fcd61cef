//! Files that are exchanged for others of their name, and connections that open them by it.
//!
//! SQLite opens a database first and, with the first read, what lies beside it: WAL and shared
//! memory, by their names. Were the file exchanged in between, an old file would be read and
//! checkpointed with the WAL of the new one, and neither the locks on the file (it is another) nor
//! those on the shared memory (POSIX gives a process its own locks again) would keep them apart. In
//! this process it does not happen: nothing is exchanged while a file of its name is being opened,
//! and whoever has opened one keeps its WAL in its place, which is looked for before.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A database of this name is being opened, until this is dropped. By its name alone, however the
/// way to it is written.
pub(super) struct Opening<'a>(&'a OsStr);

impl<'a> Opening<'a> {
    /// Before the file at `path` is opened. Waits while one is exchanged, which is one rename.
    pub(super) fn of(path: &'a Path) -> Self {
        let name = path.file_name().unwrap_or_default();
        *openings().entry(name.to_owned()).or_default() += 1;
        Self(name)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut openings = openings();
        match openings.get_mut(self.0) {
            Some(others @ 2..) => *others -= 1,
            _ => drop(openings.remove(self.0)),
        }
    }
}

/// Does `exchange`, which puts another file in the place of the one at `path`, while nobody opens
/// any. `None`: somebody is opening this one.
pub(super) fn alone<T>(path: &Path, exchange: impl FnOnce() -> T) -> Option<T> {
    let openings = openings();
    let opened = openings.contains_key(path.file_name().unwrap_or_default());
    (!opened).then(exchange)
}

fn openings() -> MutexGuard<'static, BTreeMap<OsString, usize>> {
    // Each change is one statement: a panic leaves no half of it.
    OPENINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

static OPENINGS: Mutex<BTreeMap<OsString, usize>> = Mutex::new(BTreeMap::new());
