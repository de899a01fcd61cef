//! The files of the log: `nimbus-audit.log`, and before it the parts that were full, `nimbus-audit.<number of the first line>.log`.
//!
//! Lines are appended, flushed, and then the head of the chain is put into the control file. What a crash can leave, and what the next opening does:
//!
//! | after | on disk | the next opening |
//! | --- | --- | --- |
//! | half of a line written | a line without its end, beyond the head | cuts it off: nobody was told that it counts |
//! | lines written and flushed | whole lines beyond the head | checks their chain and MACs, and moves the head |
//! | a full part renamed | no `nimbus-audit.log`; the head is the last line of the last part | begins it with the next line |
//!
//! Anything else was not done by a crash: the log is set aside, and a new one begins with a line that says so.
#![expect(
    clippy::disallowed_methods,
    reason = "the audit log's files are none of SQLite's"
)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::line::{LineError, Sealer, check};
use crate::control::AuditHead as Head;
use crate::envelope::{set_aside, sync_dir};
use crate::failpoints::crash_point;

/// The part that is written.
pub const FILE_NAME: &str = "nimbus-audit.log";

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
    /// There is a log, and nothing is known of it.
    #[error("there is a log that this control file does not know")]
    Unknown,
    /// A line beyond the head is wrong.
    #[error("a line after number {after} is wrong: {error}")]
    Line {
        /// The last line that is right.
        after: u64,
        /// What is wrong.
        error: LineError,
    },
}

impl GrowingFile {
    /// Opens the log in `dir` behind `head`, mends what a crash left, and gives the head as it is then.
    pub(super) fn open(
        dir: &Path,
        head: Head,
        sealer: Sealer<'_>,
        full: u64,
    ) -> io::Result<(Self, Head, Option<Broken>)> {
        let path = dir.join(FILE_NAME);
        let text = read_growing(dir)?;
        let (ends, found, first, mut broken) = follow(&text, head, sealer);
        if found.is_none() && ends > 0 && broken.is_none() {
            broken = Some(if head == Head::START {
                Broken::Unknown
            } else {
                Broken::Truncated(head.seq)
            });
        }
        // Without a line in the part that is written, the head is the last line of the last full one.
        if ends == 0 && head != Head::START && last_of_full(dir)? != Some(head) {
            broken = Some(Broken::Truncated(head.seq));
        }
        if broken.is_some() && !text.is_empty() {
            set_aside(&path, "it does not go on where the audit log had ended")?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        let (len, first) = match broken {
            Some(_) => (0, None),
            None => (ends as u64, first),
        };
        if len < file.metadata()?.len() {
            file.set_len(len)?;
        }
        file.sync_all()?;
        sync_dir(dir)?;
        let part = Self {
            dir: dir.to_owned(),
            file,
            len,
            first,
            full,
        };
        Ok((part, found.unwrap_or(head), broken))
    }

    /// Appends whole lines, the first of them number `first`, durably. After an error nothing of them counts.
    pub(super) fn append(&mut self, lines: &str, first: u64) -> io::Result<()> {
        if self.len > 0 && self.len + lines.len() as u64 > self.full {
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
        let _first = self.first.get_or_insert(first);
        Ok(())
    }

    /// Gives the full part a name of its own, and begins the next.
    fn begin_next(&mut self) -> io::Result<()> {
        let path = self.dir.join(FILE_NAME);
        // Each step counts as soon as it is done: one that fails is tried again by the next line, and the others are not.
        if let Some(first) = self.first {
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &path,
                rustix::fs::CWD,
                self.dir.join(full_name(first)),
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

/// Goes along the lines of the part that is written: where the whole lines end, the head there, the number of the first line, and what is wrong.
/// No head when `head` is not among them.
fn follow(
    text: &str,
    head: Head,
    sealer: Sealer<'_>,
) -> (usize, Option<Head>, Option<u64>, Option<Broken>) {
    let (mut ends, mut found, mut first) = (0, None, None);
    let mut before: Option<Head> = None;
    for line in text.split_inclusive('\n') {
        let Some(whole) = line.strip_suffix('\n') else {
            // Cut short by a crash.
            break;
        };
        // Up to the head, the control file vouches for the chain; beyond it, the MAC does. The first line may be the one after the head.
        let after_head = before.is_none() && check(Some(sealer), Some(head), whole).is_ok();
        let expected = before.or((after_head || head == Head::START).then_some(head));
        match check(Some(sealer), expected, whole) {
            Ok((line, here, sealed)) => {
                if found.is_some() || after_head {
                    if !sealed {
                        let after = before.map_or(0, |head| head.seq);
                        let error = LineError::Forged;
                        return (ends, found, first, Some(Broken::Line { after, error }));
                    }
                    found = Some(here);
                }
                if here == head {
                    found = Some(here);
                }
                let _first = first.get_or_insert(line.seq);
                before = Some(here);
            }
            Err(error) if found.is_some() || head == Head::START => {
                let after = before.map_or(0, |head| head.seq);
                return (ends, found, first, Some(Broken::Line { after, error }));
            }
            // `--verify` tells about lines before the head; what matters here is that the head is found.
            Err(_) => before = None,
        }
        ends += line.len();
    }
    (ends, found, first, None)
}

/// The head at the end of the last full part.
fn last_of_full(dir: &Path) -> io::Result<Option<Head>> {
    let Some((_first, path)) = full_parts(dir)?.pop() else {
        return Ok(None);
    };
    let text = read(&path)?;
    let last = text.lines().next_back().unwrap_or_default();
    Ok(check(None, None, last).ok().map(|(_line, head, _)| head))
}

/// The full parts in their order, each with the number of its first line.
pub(super) fn full_parts(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| {
                let number = name.strip_prefix("nimbus-audit.")?.strip_suffix(".log")?;
                number.parse::<u64>().ok()
            });
        parts.extend(number.map(|number| (number, path)));
    }
    parts.sort_unstable();
    Ok(parts)
}

fn full_name(first: u64) -> String {
    format!("nimbus-audit.{first:012}.log")
}

/// All parts of the log, as they were at one moment; what is appended or begun later is not among them.
pub(super) struct Parts {
    full: Vec<PathBuf>,
    /// The one that grows, and its length then.
    growing: Option<(PathBuf, File, u64)>,
}

impl Parts {
    /// The parts in `dir`. The one that grows is opened first: should it be given a name of its own just then, it is found by that as well, and counts once.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE_NAME);
        let growing = match open_to_read(&path) {
            Ok(file) => {
                let found = file.metadata()?;
                Some((path, file, found))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        ::fail::fail_point!("audit::part-opened");
        let mut full = Vec::new();
        for (_first, path) in full_parts(dir)? {
            let found = std::fs::symlink_metadata(&path)?;
            let same =
                |growing: &Metadata| (growing.dev(), growing.ino()) == (found.dev(), found.ino());
            if growing
                .as_ref()
                .is_some_and(|(_, _, growing)| same(growing))
            {
                // Those after it are later.
                break;
            }
            full.push(path);
        }
        let growing = growing.map(|(path, file, found)| (path, file, found.len()));
        Ok(Self { full, growing })
    }

    /// The name of each and its text, in order, read when it is asked for.
    pub(super) fn texts(self) -> impl Iterator<Item = io::Result<(String, String)>> {
        let named = |path: &Path, text| {
            let name = path.file_name().unwrap_or_default();
            (name.to_string_lossy().into_owned(), text)
        };
        let full = self.full.into_iter();
        let full = full.map(move |path| Ok(named(&path, read(&path)?)));
        let growing = self.growing.into_iter();
        full.chain(growing.map(move |(path, file, length)| Ok(named(&path, text(file, length)?))))
    }
}

/// The part that is written, as far as it is there.
pub(super) fn read_growing(dir: &Path) -> io::Result<String> {
    match read(&dir.join(FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// A part, whole.
pub(super) fn read(path: &Path) -> io::Result<String> {
    text(open_to_read(path)?, MAX_PART_BYTES)
}

/// What is not UTF-8 is no line of ours, and shows as such.
fn text(file: File, length: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let _length = file
        .take(length.min(MAX_PART_BYTES))
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open_to_read(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(
            (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
                .bits()
                .cast_signed(),
        )
        .open(path)
}

/// A part is full far below this.
const MAX_PART_BYTES: u64 = 256 << 20;
