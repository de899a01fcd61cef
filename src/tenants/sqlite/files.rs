//! Whether the files that an open tenant writes are those that its next opening finds.
//!
//! What is written to a file that was removed or replaced is gone with it, and must not be
//! acknowledged. Nothing is opened for the answer: it is two `lstat` a commit.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::data_dir::{WAL, beside};

/// The database and the WAL that a connection has open, as they stood at their paths when it was
/// opened.
#[derive(Debug)]
pub(super) struct Files {
    database: File,
    wal: File,
}

/// A file that is not where it was opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} was removed or replaced while the tenant was open", .path.display())]
pub(super) struct Replaced {
    pub(super) path: PathBuf,
    /// Whether it is the WAL. The database is then the one that it was.
    pub(super) wal: bool,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    identity: Option<Identity>,
}

/// Device and number. A number is not given to another file as long as one of its own is open.
type Identity = (u64, u64);

impl Files {
    /// Those of a connection to the database at `path` that was opened just now.
    pub(super) fn opened(path: &Path) -> Self {
        Self {
            database: File::at(path.to_owned()),
            wal: File::at(beside(path, WAL)),
        }
    }

    /// The first that is not where it was.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        let Self { database, wal } = self;
        let gone = |file: &File, wal| Replaced {
            path: file.path.clone(),
            wal,
        };
        if !database.is_there() {
            return Some(gone(database, false));
        }
        (!wal.is_there()).then(|| gone(wal, true))
    }
}

impl File {
    fn at(path: PathBuf) -> Self {
        let identity = identity(&path);
        Self { path, identity }
    }

    fn is_there(&self) -> bool {
        self.identity.is_some() && self.identity == identity(&self.path)
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tells_a_file_that_was_removed_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (database, wal) = (dir.path().join("a"), dir.path().join("a-wal"));
        fs::write(&database, "").unwrap();
        fs::write(&wal, "").unwrap();
        let open = [
            fs::File::open(&database).unwrap(),
            fs::File::open(&wal).unwrap(),
        ];
        let files = Files::opened(&database);
        assert_eq!(files.replaced(), None);
        for (path, is_wal) in [(&wal, true), (&database, false)] {
            fs::remove_file(path).unwrap();
            let gone = files.replaced().unwrap();
            assert_eq!((&gone.path, gone.wal), (path, is_wal));
            fs::write(path, "").unwrap();
            assert_eq!(files.replaced().unwrap(), gone);
        }
        drop(open);
    }
}
