//! The files of the log: `nimbus-audit.log`, and before it the parts that were full,
//! `nimbus-audit.<number of the first line>.log`.
//!
//! Lines are appended, flushed, and then the head of the chain is put into the control file. What a
//! crash can leave, and what the next opening does:
//!
//! | after | on disk | the next opening |
//! | --- | --- | --- |
//! | half of a line written | a line without its end, beyond the head | cuts it off: it was never acknowledged |
//! | lines written and flushed | whole lines beyond the head | checks their chain and MACs, and moves the head |
//! | a full part renamed | no `nimbus-audit.log`; the head is the last line of the last part | begins it with the next line |
//!
//! Anything else was not done by a crash: what does not lead to the head is set aside, and the next
//! line says so. That this is under way is noted in the control file first, until that line is
//! written.
#![expect(
    clippy::disallowed_methods,
    reason = "the audit log's files are none of SQLite's"
)]

mod parts;

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::line::{LineError, Sealer, check};
use crate::control::AuditHead as Head;
use crate::data_dir::{
    AUDIT_LOG, TEMPORARY_PREFIX, audit_part, parent, set_aside, set_aside_copy, sync_dir,
};
use crate::failpoints::crash_point;
use parts::{is_in_full, last_of_full};

pub(super) use parts::{MAX_PART_BYTES, Parts, full_parts, open_to_read, read, read_growing};

/// The part that is written.
pub const FILE_NAME: &str = AUDIT_LOG;

/// The part of the log that grows.
#[derive(Debug)]
pub(super) struct GrowingFile {
    dir: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
    /// The number of its first line, once there is one.
    first: Option<u64>,
    /// From which size on it is full.
    full: u64,
}

/// What was found where the log should go on, when it was not done by a crash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// The chain's head is not in the log.
    #[error("the log ends before line {0}, which was its last: lines were cut off")]
    Truncated(u64),
    /// The chain's head is in a full part, and what comes after it does not go on from it.
    #[error("the lines after number {0} do not go on from it")]
    Beyond(u64),
    /// There is a log, and nothing is known of it.
    #[error("there is a log that this control file does not know")]
    Unknown,
    /// It was being set aside when the process ended.
    #[error("the log was being set aside when a start was cut short")]
    CutShort,
    /// A line beyond the head is wrong.
    #[error("a line after number {after} is wrong: {error}")]
    Line {
        /// The last line that is right.
        after: u64,
        /// What is wrong.
        error: LineError,
    },
}

/// What was found in the part that is written; nothing is changed yet.
#[derive(Debug)]
pub(super) struct Found {
    text: String,
    /// Where the head is that the log goes on behind.
    pub(super) head: Head,
    /// The number of the first line.
    first: Option<u64>,
    /// Bytes of whole lines that the log goes on behind.
    keep: usize,
    /// Why the rest is set aside, if it is.
    pub(super) broken: Option<Broken>,
    /// All of it is the log of another control file.
    foreign: bool,
}

impl Found {
    /// Looks at the log in `dir` for what goes on from `head`.
    pub(super) fn look(
        dir: &Path,
        head: Head,
        sealer: Sealer<'_>,
        foreign: bool,
    ) -> io::Result<Self> {
        let text = read_growing(dir)?;
        let Followed {
            ends,
            head_ends,
            found,
            first,
            mut broken,
        } = follow(&text, head, sealer);
        if found.is_none() && ends > 0 && broken.is_none() {
            broken = Some(if head == Head::START {
                Broken::Unknown
            } else {
                Broken::Truncated(head.seq)
            });
        }
        // Without a line in the part that is written, the head is the last line of the last full
        // one.
        if ends == 0 && head != Head::START && last_of_full(dir)? != Some(head) {
            broken = Some(Broken::Truncated(head.seq));
        }
        if matches!(broken, Some(Broken::Truncated(_))) && is_in_full(dir, head)? {
            broken = Some(Broken::Beyond(head.seq));
        }
        if foreign {
            broken = Some(Broken::Unknown);
        }
        let keep = match broken {
            Some(_) if foreign => 0,
            Some(_) => head_ends.unwrap_or(0),
            None => ends,
        };
        Ok(Self {
            text,
            head: found.filter(|_| broken.is_none()).unwrap_or(head),
            first: first.filter(|_| keep > 0),
            keep,
            broken,
            foreign,
        })
    }

    /// Sets aside what does not go on from the head: the part that is written, and full ones with
    /// lines beyond the head. What is before the head stays. The newest goes first, so that a crash
    /// leaves what would be set aside again.
    fn set_aside(&self, dir: &Path) -> io::Result<()> {
        if !self.text.is_empty() {
            keep_beginning(&dir.join(FILE_NAME), &self.text, self.keep)?;
        }
        for (first, path) in full_parts(dir)?.into_iter().rev() {
            let text = read(&path)?;
            let last = text.lines().next_back().unwrap_or_default();
            let last = check(None, None, last).map_or(0, |(line, ..)| line.seq);
            if !self.foreign && first.max(last) <= self.head.seq {
                continue;
            }
            let keep = match self.foreign {
                true => 0,
                false => end_of(&text, self.head),
            };
            keep_beginning(&path, &text, keep)?;
        }
        sync_dir(dir)
    }
}

impl GrowingFile {
    /// Opens the log in `dir` as it was found, and mends what a crash left.
    pub(super) fn open(dir: &Path, found: &Found, full: u64) -> io::Result<Self> {
        let path = dir.join(FILE_NAME);
        if found.broken.is_some() {
            found.set_aside(dir)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        let len = found.keep as u64;
        if len < file.metadata()?.len() {
            file.set_len(len)?;
        }
        file.sync_all()?;
        sync_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            file,
            len,
            first: found.first,
            full,
        })
    }

    /// Appends whole lines, the first of them number `first`, durably. After an error nothing of
    /// them counts.
    pub(super) fn append(&mut self, lines: &str, first: u64) -> io::Result<()> {
        // Without a first line it has a full part's name already, and the next could not be begun.
        let is_renamed = self.len > 0 && self.first.is_none();
        if !is_renamed {
            self.check_place()?;
        }
        if is_renamed || self.len > 0 && self.len + lines.len() as u64 > self.full {
            self.begin_next()?;
        }
        let written = self
            .file
            .write_all_at(lines.as_bytes(), self.len)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What is left of them beyond `len` is overwritten, or cut off by the next opening.
            drop(self.file.set_len(self.len));
            return Err(error);
        }
        self.len += lines.len() as u64;
        self.first.get_or_insert(first);
        Ok(())
    }

    /// Refuses to write into a file that nobody would read: one that was removed, moved or cut off.
    fn check_place(&self) -> io::Result<()> {
        let (own, there) = (
            self.file.metadata()?,
            self.dir.join(FILE_NAME).symlink_metadata()?,
        );
        if (own.dev(), own.ino()) == (there.dev(), there.ino()) && own.len() >= self.len {
            return Ok(());
        }
        Err(io::Error::other(
            "the file was removed, replaced or cut off while it was in use; put it back, or restart the server, which goes on with a new one and \
             records that",
        ))
    }

    /// Gives the full part a name of its own, and begins the next.
    fn begin_next(&mut self) -> io::Result<()> {
        let path = self.dir.join(FILE_NAME);
        // Each step counts as soon as it is done: one that fails is tried again by the next line,
        // and the others are not.
        if let Some(first) = self.first {
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &path,
                rustix::fs::CWD,
                self.dir.join(audit_part(first)),
                rustix::fs::RenameFlags::NOREPLACE,
            )?;
            self.first = None;
        }
        sync_dir(&self.dir)?;
        crash_point!("audit::renamed");
        self.file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        self.len = 0;
        sync_dir(&self.dir)
    }
}

/// Sets the file at `path` aside whole, and leaves its first `keep` bytes in its place.
fn keep_beginning(path: &Path, text: &str, keep: usize) -> io::Result<()> {
    const WHY: &str = "it does not go on where the audit log had ended";
    if keep == 0 {
        return set_aside(path, WHY).map(drop);
    }
    if keep == text.len() {
        return Ok(());
    }
    let dir = parent(path);
    let mut beginning = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(dir)?;
    beginning.write_all(&text.as_bytes()[..keep])?;
    beginning.as_file().sync_all()?;
    set_aside_copy(path, WHY)?;
    sync_dir(dir)?;
    let _file = beginning.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Where the line ends in `text` that is the last before the head; 0 where it is not there.
fn end_of(text: &str, head: Head) -> usize {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.len();
        let line = line.strip_suffix('\n').unwrap_or(line);
        if <[u8; 32]>::from(Sha256::digest(line)) == head.hash {
            return end;
        }
    }
    0
}

/// What lies along the lines of the part that is written.
struct Followed {
    /// Where the whole lines end.
    ends: usize,
    /// Where the line of the head ends, if it is among them.
    head_ends: Option<usize>,
    /// The head there; none when it is not among them.
    found: Option<Head>,
    /// The number of the first line.
    first: Option<u64>,
    broken: Option<Broken>,
}

/// Goes along the lines of the part that is written.
fn follow(text: &str, head: Head, sealer: Sealer<'_>) -> Followed {
    let mut followed = Followed {
        ends: 0,
        head_ends: None,
        found: None,
        first: None,
        broken: None,
    };
    let mut before: Option<Head> = None;
    for line in text.split_inclusive('\n') {
        let Some(whole) = line.strip_suffix('\n') else {
            // Cut short by a crash.
            break;
        };
        // Up to the head, the control file vouches for the chain; beyond it, the MAC does. The
        // first line may be the one after the head.
        let after_head = before.is_none() && check(Some(sealer), Some(head), whole).is_ok();
        let expected = before.or((after_head || head == Head::START).then_some(head));
        let after = before.map_or(0, |head| head.seq);
        match check(Some(sealer), expected, whole) {
            Ok((line, here, sealed)) => {
                if followed.found.is_some() || after_head {
                    if !sealed {
                        let error = LineError::Forged;
                        followed.broken = Some(Broken::Line { after, error });
                        break;
                    }
                    followed.found = Some(here);
                }
                if here == head {
                    followed.found = Some(here);
                    followed.head_ends = Some(followed.ends + whole.len() + 1);
                }
                let _first = followed.first.get_or_insert(line.seq);
                before = Some(here);
            }
            Err(error) if followed.found.is_some() || head == Head::START => {
                followed.broken = Some(Broken::Line { after, error });
                break;
            }
            // `--verify` tells about lines before the head; what matters here is that the head is
            // found.
            Err(_) => before = None,
        }
        followed.ends += line.len();
    }
    followed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of three bytes, of at most five.
    fn part(dir: &Path) -> GrowingFile {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.join(FILE_NAME))
            .unwrap();
        let mut part = GrowingFile {
            dir: dir.to_owned(),
            file,
            len: 0,
            first: None,
            full: 5,
        };
        part.append("aa\n", 1).unwrap();
        part
    }

    #[test]
    fn a_file_that_took_its_place_is_neither_written_nor_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = part(dir.path());
        let path = dir.path().join(FILE_NAME);
        std::fs::rename(&path, dir.path().join("kept")).unwrap();
        std::fs::write(&path, "other").unwrap();
        for lines in ["b\n", "bbbb\n"] {
            assert!(part.append(lines, 2).is_err());
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        std::fs::rename(dir.path().join("kept"), &path).unwrap();
        part.append("b\n", 2).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"aa\nb\n");
        // Cut off, it is not filled up with a hole.
        part.file.set_len(1).unwrap();
        assert!(part.append("c\n", 3).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a");
    }

    #[test]
    fn a_next_part_that_could_not_be_begun_is_begun_by_the_next_line_however_short() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = part(dir.path());
        let path = dir.path().join(FILE_NAME);
        // As after a rename whose next file could not be opened.
        std::fs::rename(&path, dir.path().join(audit_part(1))).unwrap();
        part.first = None;
        part.append("b\n", 2).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"b\n");
        assert_eq!(
            std::fs::read(dir.path().join(audit_part(1))).unwrap(),
            b"aa\n"
        );
    }
}
