//! The parts of the log at one moment, for a backup.
#![expect(
    clippy::disallowed_methods,
    reason = "the audit log's files are none of SQLite's"
)]

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::files::{FILE_NAME, full_parts};

/// A part of the log, open: what is appended or renamed later does not change it.
#[derive(Debug)]
pub(crate) struct LogPart {
    /// Its name.
    pub(crate) name: String,
    file: File,
    bytes: u64,
}

impl LogPart {
    /// All parts in `dir`, in their order. The caller keeps the log from being written.
    pub(crate) fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let full = full_parts(dir)?.into_iter().map(|(_first, path)| path);
        let mut parts = Vec::new();
        for path in full.chain([dir.join(FILE_NAME)]) {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let name = path.file_name().unwrap_or_default();
            parts.push(Self {
                name: name.to_string_lossy().into_owned(),
                bytes: file.metadata()?.len(),
                file,
            });
        }
        Ok(parts)
    }

    /// How long it was at the moment.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it held at the moment.
    pub(crate) fn read(self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let _read = self.file.take(self.bytes).read_to_end(&mut text)?;
        Ok(text)
    }
}
