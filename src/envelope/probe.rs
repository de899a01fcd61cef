//! What kind of file stands at a path, by its first bytes alone.

use std::io;
use std::path::Path;

use crate::sqlite_file;

/// What stands at the path of a protected file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Nothing.
    Absent,
    /// A file of 0 bytes.
    Empty,
    /// An SQLite database in plaintext.
    PlainSqlite,
    /// A redb database in plaintext.
    PlainRedb,
    /// Anything else: ciphertext, or damage.
    Other,
    /// A directory, symbolic link or device: never opened.
    NotAFile,
}

/// Looks at the first bytes of `path`, without following a symbolic link.
///
/// # Errors
///
/// Whatever the operating system says, other than that nothing is there.
pub fn classify(path: &Path) -> io::Result<FileKind> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FileKind::Absent),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() {
        return Ok(FileKind::NotAFile);
    }
    if metadata.len() == 0 {
        return Ok(FileKind::Empty);
    }
    let head = sqlite_file::head(path, SQLITE_MAGIC.len())?;
    Ok(if head == SQLITE_MAGIC {
        FileKind::PlainSqlite
    } else if head.starts_with(REDB_MAGIC) {
        FileKind::PlainRedb
    } else {
        FileKind::Other
    })
}

/// <https://www.sqlite.org/fileformat.html#magic_header_string>
pub(crate) const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// redb's `docs/design.md`, "Super-header".
const REDB_MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_kinds_from_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            classify(&path).unwrap()
        };
        assert_eq!(classify(&dir.path().join("no")).unwrap(), FileKind::Absent);
        assert_eq!(classify(dir.path()).unwrap(), FileKind::NotAFile);
        assert_eq!(at("empty", b""), FileKind::Empty);
        assert_eq!(at("short", b"SQLite format 3"), FileKind::Other);
        assert_eq!(
            at("sqlite", b"SQLite format 3\0more"),
            FileKind::PlainSqlite
        );
        assert_eq!(at("redb", b"redb\x1A\x0A\xA9\x0D\x0A"), FileKind::PlainRedb);
        std::os::unix::fs::symlink(dir.path().join("sqlite"), dir.path().join("link")).unwrap();
        assert_eq!(
            classify(&dir.path().join("link")).unwrap(),
            FileKind::NotAFile
        );
    }
}
