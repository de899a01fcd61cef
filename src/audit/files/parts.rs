//! The parts of the log as they lie in the directory.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{FILE_NAME, end_of};
use crate::audit::line::check;
use crate::control::AuditHead as Head;
use crate::data_dir::audit_part_number;

/// Whether the line of the head is in a full part.
pub(super) fn is_in_full(dir: &Path, head: Head) -> io::Result<bool> {
    let parts = full_parts(dir)?.into_iter();
    let before = parts.rev().find(|(first, _)| *first <= head.seq);
    Ok(match before {
        Some((_, path)) => end_of(&read(&path)?, head) > 0,
        None => false,
    })
}

/// The head at the end of the last full part.
pub(super) fn last_of_full(dir: &Path) -> io::Result<Option<Head>> {
    let Some((_first, path)) = full_parts(dir)?.pop() else {
        return Ok(None);
    };
    let text = read(&path)?;
    let last = text.lines().next_back().unwrap_or_default();
    Ok(check(None, None, last).ok().map(|(_line, head, _)| head))
}

/// The full parts in their order, each with the number of its first line.
pub(in crate::audit) fn full_parts(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(audit_part_number);
        parts.extend(number.map(|number| (number, path)));
    }
    parts.sort_unstable();
    Ok(parts)
}

/// All parts of the log, as they were at one moment; what is appended or begun later is not among
/// them.
pub(in crate::audit) struct Parts {
    full: Vec<PathBuf>,
    /// The one that grows, and its length then.
    growing: Option<(PathBuf, File, u64)>,
}

impl Parts {
    /// The parts in `dir`. The one that grows is opened first: should it be given a name of its own
    /// just then, it is found by that as well, and counts once.
    pub(in crate::audit) fn open(dir: &Path) -> io::Result<Self> {
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
    pub(in crate::audit) fn texts(self) -> impl Iterator<Item = io::Result<(String, String)>> {
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
pub(in crate::audit) fn read_growing(dir: &Path) -> io::Result<String> {
    match read(&dir.join(FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// A part, whole.
pub(in crate::audit) fn read(path: &Path) -> io::Result<String> {
    text(open_to_read(path)?, MAX_PART_BYTES)
}

/// What is not UTF-8 is not a line of the log, and shows as such.
fn text(file: File, length: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(length.min(MAX_PART_BYTES))
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a regular file; what a link leads to is none of the log's, and a pipe would be waited for.
pub(in crate::audit) fn open_to_read(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(
            (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
                .bits()
                .cast_signed(),
        )
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => {
            let name = path.file_name().unwrap_or_default().display();
            let why = format!("{name} is no regular file: move it away");
            Err(io::Error::other(why))
        }
    }
}

/// A part is full far below this.
pub(in crate::audit) const MAX_PART_BYTES: u64 = 256 << 20;
