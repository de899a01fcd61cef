//! The control file and the audit log at one moment, for a backup.
#![expect(
    clippy::disallowed_methods,
    reason = "redb locks by `flock`, which belongs to one open file and not to the process"
)]

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, MutexGuard, RwLockWriteGuard};

use nimbus_keyproviders::ArchiveKey;
use nimbus_manifests::{DekId, FileId};

use super::{AuditHead, Control, Open};
use crate::audit::LogPart;
use crate::envelope::{KeyedFile, ReadError, manifest_path, parent, read_manifest};

/// What seals the catalogues of a deployment's backups, and its name in them.
#[derive(Clone)]
pub(crate) struct ArchiveSealer {
    /// The key.
    pub(crate) key: Arc<ArchiveKey>,
    /// The control file.
    pub(crate) file_id: FileId,
    /// The data key that it comes from.
    pub(crate) dek_id: DekId,
}

impl ArchiveSealer {
    /// That of a control file.
    pub(crate) fn of(file: &KeyedFile) -> Self {
        Self {
            key: Arc::new(file.archive_key()),
            file_id: file.manifest().file_id(),
            dek_id: file.manifest().deks()[0].id,
        }
    }
}

impl fmt::Debug for ArchiveSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveSealer")
            .field("dek_id", &self.dek_id)
            .finish_non_exhaustive()
    }
}

/// The control file and the audit log at a moment.
#[derive(Debug)]
pub(crate) struct FrozenControl {
    /// The control file's manifest, as it lay on the disk.
    pub(crate) manifest: Vec<u8>,
    /// The control file, as it lay on the disk.
    pub(crate) bytes: Vec<u8>,
    /// The audit log's parts.
    pub(crate) log: Vec<LogPart>,
    /// What seals the catalogue.
    pub(crate) sealer: ArchiveSealer,
}

impl Control {
    /// What seals the catalogues of backups; `None` in plaintext.
    pub(crate) fn archive_sealer(&self) -> Option<ArchiveSealer> {
        let open = self.changing();
        open.archive.clone()
    }

    /// Reads the control file between two transactions and between two writings of the audit log. Blocks, and has both wait meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Held::freeze`].
    pub(crate) fn freeze(&self) -> io::Result<FrozenControl> {
        let chaining = self.chaining();
        let open = self.changing();
        Held { chaining, open }.freeze(&self.path)
    }

    /// Has transactions and writings of the audit log wait, if none is under way. Does not block.
    pub(crate) fn try_hold(&self) -> Option<Held<'_>> {
        let chaining = self.chained.try_lock().ok()?;
        let open = self.state.try_write().ok()?;
        Some(Held { chaining, open })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The control file between two transactions and between two writings of the audit log.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    chaining: MutexGuard<'a, Option<AuditHead>>,
    open: RwLockWriteGuard<'a, Open>,
}

impl Held<'_> {
    /// Reads it, which is at `path`, and opens the audit log. Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says; of a deployment in plaintext, that it is one.
    pub(crate) fn freeze(self, path: &Path) -> io::Result<FrozenControl> {
        let Self { chaining, open } = self;
        let sealer = open.archive.clone();
        let sealer = sealer.ok_or_else(|| io::Error::other("encryption is off"))?;
        let manifest = match read_manifest(&manifest_path(path)) {
            Ok(Some(sealed)) => sealed.as_bytes().to_vec(),
            Ok(None) => return Err(io::Error::other("its manifest is missing")),
            Err(ReadError::Io(error)) => return Err(error),
            Err(ReadError::Parse(error)) => return Err(io::Error::other(error)),
        };
        let mut bytes = Vec::new();
        let _read = io::Read::read_to_end(&mut File::open(path)?, &mut bytes)?;
        let log = LogPart::all(parent(path))?;
        drop((open, chaining));
        Ok(FrozenControl {
            manifest,
            bytes,
            log,
            sealer,
        })
    }
}
