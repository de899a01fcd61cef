//! The parts of the log at one moment, for a backup.
//!
//! What lies under the name of a part need not be one: whoever may write to the directory could put
//! a link to a key there. Only a regular file that has no other name is read, and only lines of the
//! log leave this module.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::files::{FILE_NAME, MAX_PART_BYTES, full_parts, open_to_read};
use super::line::check;
use crate::control::AuditHead as Head;

/// A part of the log, open: what is appended or renamed later does not change it.
#[derive(Debug)]
pub(crate) struct LogPart {
    /// Its name.
    pub(crate) name: String,
    file: File,
    bytes: u64,
}

/// What a part held.
#[derive(Debug)]
pub(crate) struct LogText {
    /// Whole lines of the log.
    pub(crate) text: Vec<u8>,
    /// The head after the last of them; `None` where there is none.
    pub(crate) head: Option<Head>,
}

impl LogPart {
    /// All parts in `dir`, in their order. The caller keeps the log from being written.
    pub(crate) fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let full = full_parts(dir)?.into_iter().map(|(_first, path)| path);
        let mut parts = Vec::new();
        for path in full.chain([dir.join(FILE_NAME)]) {
            let name = path.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            let opened = open_to_read(&path).and_then(|file| Ok((file.metadata()?, file)));
            let (found, file) = match opened {
                Ok(opened) => opened,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
            };
            if found.nlink() != 1 {
                return Err(io::Error::other(format!(
                    "{name} has another name, too, so that it may be anybody's: {MOVE_AWAY}"
                )));
            }
            let bytes = found.len();
            parts.push(Self { name, file, bytes });
        }
        Ok(parts)
    }

    /// How long it was at the moment.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it held at the moment. Anything but lines of the log is refused; the rest of a line
    /// that was cut short is left out.
    pub(crate) fn read(self) -> io::Result<LogText> {
        if self.bytes > MAX_PART_BYTES {
            let why = format!("it is too long for a part of the audit log: {MOVE_AWAY}");
            return Err(io::Error::other(why));
        }
        let mut text = Vec::new();
        self.file.take(self.bytes).read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        text.truncate(whole.map_or(0, |end| end + 1));
        let mut head = None;
        for (number, line) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
            let line = std::str::from_utf8(&line[..line.len() - 1]).ok();
            let checked = line.and_then(|line| check(None, None, line).ok());
            let Some((_line, here, _)) = checked else {
                return Err(io::Error::other(format!(
                    "its line {number} is no line of the audit log: {MOVE_AWAY}"
                )));
            };
            head = Some(here);
        }
        Ok(LogText { text, head })
    }
}

const MOVE_AWAY: &str =
    "`nimbus encryption audit --verify` says more; move the file out of the directory";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(dir: &Path) -> io::Result<Vec<String>> {
        Ok(LogPart::all(dir)?
            .into_iter()
            .map(|part| part.name)
            .collect())
    }

    #[test]
    fn takes_names_of_parts_alone_and_no_link_and_no_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [
            "nimbus-audit.1.log",
            "nimbus-audit.+00000000001.log",
            "nimbus-audit.0000000000001.log",
            "nimbus-audit.000000000001.log.set-aside-1",
        ] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::write(at("nimbus-audit.000000000007.log"), "").unwrap();
        std::fs::write(at(FILE_NAME), "").unwrap();
        let expected = ["nimbus-audit.000000000007.log", FILE_NAME];
        assert_eq!(names(dir.path()).unwrap(), expected);
        let planted = at("nimbus-audit.000000000009.log");
        std::fs::write(at("key"), "secret").unwrap();
        symlink(at("key"), &planted).unwrap();
        assert!(names(dir.path()).is_err(), "a symbolic link");
        std::fs::remove_file(&planted).unwrap();
        std::fs::hard_link(at("key"), &planted).unwrap();
        assert!(names(dir.path()).is_err(), "a hard link");
        std::fs::remove_file(&planted).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &planted, mode).unwrap();
        assert!(names(dir.path()).is_err(), "a pipe");
    }

    #[test]
    fn gives_lines_of_the_log_alone() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
            LogPart::all(dir.path()).unwrap().remove(0).read()
        };
        assert!(read("secret\n").is_err());
        assert!(read("{}\n").is_err());
        // Cut short by a crash: it was never acknowledged.
        assert_eq!(read("secret").unwrap().text, b"");
    }
}
