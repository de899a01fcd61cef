//! The control file and the audit log at one moment, for a backup.
//!
//! What is read is the file that is open, and not whatever has its name: an older copy in its place
//! would be saved as if it were in force.
#![expect(
    clippy::disallowed_methods,
    reason = "redb locks by `flock`, which belongs to one open file and not to the process"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError, RwLockWriteGuard};

use nimbus_keyproviders::ArchiveKey;
use nimbus_manifests::{DekId, FileId, SealedManifest, Subject};
use redb::ReadableDatabase as _;

use super::audit::{self, AuditHead};
use super::database::{self, Inode, Protection, explain};
use super::device::BlockFile;
use super::manifests;
use super::overlay::Overlay;
use super::{Control, ControlError, Key, Open, subject};
use crate::data_dir::parent;
use crate::envelope::{Copies, KeyedFile, ReadError, manifest_path, read_manifest};

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
pub(crate) struct FrozenControl<L> {
    /// The control file's manifest, as it lay on the disk.
    pub(crate) manifest: SealedManifest,
    /// Whether that is the manifest that the file was opened by. One that was rewrapped since is
    /// not.
    pub(crate) is_known: bool,
    /// The control file, as it lay on the disk.
    pub(crate) bytes: Vec<u8>,
    /// The audit log's parts.
    pub(crate) log: L,
    /// What seals the catalogue.
    pub(crate) sealer: ArchiveSealer,
}

/// What a frozen control file holds.
#[derive(Debug)]
pub(crate) struct FrozenState {
    /// Where the audit log ends.
    pub(crate) head: AuditHead,
    /// The copies of manifests.
    pub(crate) copies: BTreeMap<Subject, Copies>,
}

impl Control {
    /// What seals the catalogues of backups; `None` in plaintext.
    pub(crate) fn archive_sealer(&self) -> Option<ArchiveSealer> {
        let open = self.changing();
        open.archive.clone()
    }

    /// Whether it has another data key than this one, as far as that is known now. Does not
    /// block.
    pub(crate) fn has_other_key(&self, key: Option<DekId>) -> bool {
        let open = self.state.try_read().ok();
        let now = open.and_then(|open| open.archive.as_ref().map(|archive| archive.dek_id));
        now.is_some_and(|now| Some(now) != key)
    }

    /// Reads the control file between two transactions and between two writings of the audit log,
    /// which `open_log` opens in its directory. Blocks, and has both wait meanwhile.
    ///
    /// # Errors
    ///
    /// As [`HeldControl::freeze`].
    pub(crate) fn freeze<L>(
        &self,
        open_log: impl FnOnce(&Path) -> io::Result<L>,
    ) -> io::Result<FrozenControl<L>> {
        let mut chaining = self.chaining();
        let settled = self.settle_audit_head(&mut chaining);
        // Opens the file again where that is due.
        let settled = settled.and_then(|()| self.audit_head());
        let _head = settled.map_err(io::Error::other)?;
        let open = self.changing();
        HeldControl { chaining, open }.freeze(&self.path, open_log)
    }

    /// Has transactions and writings of the audit log wait, if none is under way. Does not block.
    pub(crate) fn try_hold(&self) -> Option<HeldControl<'_>> {
        let chaining = self.chained.try_lock().ok()?;
        let open = self.state.try_write().ok()?;
        // Otherwise its head is not the log's, or it must be opened again first.
        let is_settled = chaining.is_none() && open.database.is_some();
        is_settled.then_some(HeldControl { chaining, open })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The control file between two transactions and between two writings of the audit log.
#[derive(Debug)]
pub(crate) struct HeldControl<'a> {
    chaining: MutexGuard<'a, Option<AuditHead>>,
    open: RwLockWriteGuard<'a, Open>,
}

impl HeldControl<'_> {
    /// Reads it, which is at `path`, and has `open_log` open the audit log in its directory.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says; of a deployment in plaintext, that it is one; that another
    /// file has the name of the one that is open, or that its manifest is none of it.
    pub(crate) fn freeze<L>(
        self,
        path: &Path,
        open_log: impl FnOnce(&Path) -> io::Result<L>,
    ) -> io::Result<FrozenControl<L>> {
        let Self { chaining, open } = self;
        let sealer = open.archive.clone();
        let sealer = sealer.ok_or_else(|| io::Error::other("encryption is off"))?;
        let manifest = match read_manifest(&manifest_path(path)) {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Err(io::Error::other("its manifest is missing")),
            Err(ReadError::Io(error)) => return Err(error),
            Err(ReadError::Parse(error)) => return Err(io::Error::other(error)),
        };
        let claims = manifest.claims();
        // While a rekey ends it holds both keys.
        let holds_key = claims.deks().iter().any(|dek| dek.id == sealer.dek_id);
        if *claims.subject() != subject() || claims.file_id() != sealer.file_id || !holds_key {
            return Err(io::Error::other(
                "the manifest beside it is not the one of the file that is in use: put the newest one back",
            ));
        }
        let bytes = read_open(path, &open)?;
        let log = open_log(parent(path))?;
        let is_known = open
            .manifest
            .as_ref()
            .is_some_and(|known| known.as_bytes() == manifest.as_bytes());
        drop((open, chaining));
        Ok(FrozenControl {
            manifest,
            is_known,
            bytes,
            log,
            sealer,
        })
    }
}

impl Control {
    /// What a frozen control file holds; every checksum in it is verified. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; also when the file has another data key by now.
    pub(crate) fn look_into_frozen(
        &self,
        bytes: Arc<Vec<u8>>,
        sealer: &ArchiveSealer,
    ) -> Result<FrozenState, ControlError> {
        let database = {
            let open = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let is_same = (open.archive.as_ref()).is_some_and(|now| now.dek_id == sealer.dek_id);
            match &open.key {
                Key::Had(Protection::Keyed(key, file_id), _) if is_same => {
                    let device = database::device_on(&self.path, Frozen(bytes), key, *file_id)?;
                    let overlay = Overlay::on(device);
                    let overlay =
                        overlay.map_err(|error| explain(&self.path, redb::Error::Io(error)))?;
                    database::open_on(&self.path, overlay)?
                }
                _ => {
                    return Err(ControlError::Io {
                        action: "read the copy of",
                        path: self.path.clone(),
                        source: io::Error::other("its key was replaced meanwhile; try again"),
                    });
                }
            }
        };
        let read = || -> Result<_, redb::Error> {
            let transaction = database.begin_read()?;
            Ok(FrozenState {
                head: audit::head(&transaction)?,
                copies: manifests::copies(&transaction)?,
            })
        };
        read().map_err(|error| explain(&self.path, error))
    }
}

/// The bytes of the file that is open.
fn read_open(path: &Path, open: &Open) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if open.database.is_none() || Inode::of(&file)? != open.inode {
        return Err(io::Error::other(
            "another file has its name while it is in use: put the one that is in use back, or restart the server",
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file that was read.
struct Frozen(Arc<Vec<u8>>);

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frozen").field(&self.0.len()).finish()
    }
}

impl BlockFile for Frozen {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let begin = usize::try_from(offset).map_err(io::Error::other)?;
        let there = self.0.get(begin..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
