//! Copies between plaintext and encrypted redb files, block for block, for `export` and `migrate`.
//!
//! The device gives redb a file of 4096-byte blocks; those blocks, one after another, are a
//! plaintext redb file. So a copy knows nothing of tables, takes constant memory, and is exact.
#![expect(
    clippy::disallowed_methods,
    reason = "redb locks by `flock`, which belongs to one open file and not to the process"
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use nimbus_keyproviders::{CipherKey, OsRandom};
use nimbus_manifests::FileId;
use redb::StorageBackend as _;
use redb::backends::FileBackend;

use super::ControlError;
use super::database::{self, Protection, explain};
use super::device::{BLOCK, BlockFile as _, Device};
use super::overlay::Overlay;
use crate::data_dir::{TEMPORARY_PREFIX, parent, sync_dir};
use crate::envelope::{EnvelopeError, KeyedFile, Opened, Stage};
use crate::failpoints::crash_point;
use crate::process::NewFile;
use crate::runtime::{Progress, blocking};

/// Writes the encrypted redb database of `file` in plaintext to the new file `target`, mode 0600,
/// which has no name until it is whole.
///
/// # Errors
///
/// [`ControlError`]; an existing target is refused, and none is left when the copy fails.
pub async fn export_plaintext(
    file: KeyedFile,
    target: &Path,
    progress: Option<Progress>,
) -> Result<(), ControlError> {
    let target = target.to_owned();
    blocking(move || {
        let (key, file_id) = opening_key(&file)?;
        let read = |error: io::Error| explain(file.path(), redb::Error::Io(error));
        let write = failed("write", &target);
        let device = database::device(file.path(), &key, file_id)?;
        let dir = parent(&target);
        let new =
            NewFile::in_dir(dir, TEMPORARY_PREFIX).map_err(failed("create a file in", dir))?;
        let length = device.len().map_err(read)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while at < length {
            let chunk = &mut chunk[..CHUNK.min(usize::try_from(length - at).unwrap_or(CHUNK))];
            device.read(at, chunk).map_err(read)?;
            new.file().write_at(at, chunk).map_err(&write)?;
            at += chunk.len() as u64;
            report(&progress, at, length).map_err(&write)?;
        }
        crash_point!("export::copied");
        // Opening it verifies every checksum in it.
        let copy = new.file().try_clone().map_err(&write)?;
        let copy = FileBackend::new(copy).map_err(|error| explain(&target, error))?;
        database::check(&target, copy)?;
        new.publish(&target).map_err(failed("create", &target))
    })
    .await
}

/// Fills the database of `file`, which is in [`Stage::Initialise`], with all that the plaintext
/// redb file `source` holds, verified and flushed.
///
/// # Errors
///
/// [`ControlError`]; no file stands at the database's path then.
pub async fn import_plaintext(
    source: &Path,
    file: KeyedFile,
    progress: Option<Progress>,
) -> Result<KeyedFile, ControlError> {
    let source = source.to_owned();
    blocking(move || {
        let read = failed("read", &source);
        let plain = database::lock(&source)?;
        let length = plain.len().map_err(&read)?;
        let temporary = temporary(file.path())?;
        let write = |error: io::Error| explain(file.path(), redb::Error::Io(error));
        {
            let (key, file_id) = (file.cipher_key(), file.manifest().file_id());
            let device = database::device(temporary.path(), &key, file_id)?;
            device.set_len(length).map_err(write)?;
            let mut chunk = vec![0; CHUNK];
            let mut at = 0;
            while at < length {
                let chunk = &mut chunk[..CHUNK.min(usize::try_from(length - at).unwrap_or(CHUNK))];
                plain.read_at(at, chunk).map_err(&read)?;
                device.write(at, chunk).map_err(write)?;
                at += chunk.len() as u64;
                report(&progress, at, length).map_err(failed("write", file.path()))?;
            }
            device.sync_data().map_err(write)?;
        }
        crash_point!("migrate::copied");
        drop(database::open(temporary.path(), &Protection::of(&file))?);
        temporary
            .as_file()
            .sync_all()
            .map_err(failed("flush", file.path()))?;
        let _persisted = temporary
            .persist(file.path())
            .map_err(|error| failed("create", file.path())(error.error))?;
        let dir = parent(file.path());
        sync_dir(dir).map_err(failed("flush", dir))?;
        Ok(file)
    })
    .await
}

/// Puts a copy under the next key in the place of a control file whose manifest says `rekeying`:
/// made, verified, flushed, renamed. Blocks.
///
/// # Errors
///
/// [`ControlError`]; the file is then still under its first key, whole.
pub(crate) fn swap_to_next_key(
    file: &KeyedFile,
    progress: Option<&Progress>,
) -> Result<(), ControlError> {
    let Some(copy) = file.copy_under_next() else {
        let path = file.path().to_owned();
        return Err(EnvelopeError::NeverInitialised { path }.into());
    };
    let path = file.path();
    let read = |error: io::Error| explain(path, redb::Error::Io(error));
    let write = |error: io::Error| explain(copy.path(), redb::Error::Io(error));
    let file_id = file.manifest().file_id();
    let _new = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(copy.path())
        .map_err(failed("create", copy.path()))?;
    {
        let from = database::device(path, &file.cipher_key(), file_id)?;
        let to = database::device(copy.path(), &copy.cipher_key(), file_id)?;
        let length = from.len().map_err(read)?;
        to.set_len(length).map_err(write)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while at < length {
            let chunk = &mut chunk[..CHUNK.min(usize::try_from(length - at).unwrap_or(CHUNK))];
            from.read(at, chunk).map_err(read)?;
            to.write(at, chunk).map_err(write)?;
            at += chunk.len() as u64;
            if progress.is_some_and(|progress| !progress(at, length)) {
                return Err(read(io::ErrorKind::Interrupted.into()));
            }
        }
        to.sync_data().map_err(write)?;
    }
    crash_point!("rekey::copied");
    drop(database::open(copy.path(), &Protection::of(&copy))?);
    File::open(copy.path())
        .and_then(|file| file.sync_all())
        .map_err(failed("flush", copy.path()))?;
    crash_point!("rekey::verified");
    std::fs::rename(copy.path(), path).map_err(failed("rename", copy.path()))?;
    crash_point!("rekey::renamed");
    let dir = parent(path);
    sync_dir(dir).map_err(failed("flush", dir))?;
    crash_point!("rekey::swapped");
    Ok(())
}

/// Proves that an encrypted redb file is whole under the key of its manifest. Nothing on the disk
/// changes: what redb writes to what it opens stays in memory. Blocks.
///
/// # Errors
///
/// [`ControlError`].
pub(crate) fn check(file: &KeyedFile) -> Result<(), ControlError> {
    let (key, file_id) = opening_key(file)?;
    let device = database::device(file.path(), &key, file_id)?;
    let overlay =
        Overlay::on(device).map_err(|error| explain(file.path(), redb::Error::Io(error)))?;
    database::check(file.path(), overlay)
}

/// Reads in the database of `file` without writing to it or taking it: who writes there meanwhile
/// makes this fail.
pub(super) fn look_into<T>(
    file: &KeyedFile,
    work: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
) -> Result<T, ControlError> {
    let path = file.path();
    let (key, file_id) = opening_key(file)?;
    let looked = File::open(path).and_then(|looked| {
        let device = Device::open(looked, &key, file_id, Arc::new(OsRandom))?;
        Overlay::on(device)
    });
    let overlay = looked.map_err(|error| explain(path, redb::Error::Io(error)))?;
    let database = database::open_on(path, overlay)?;
    work(&database).map_err(|error| explain(path, error))
}

/// The key that opens `file`, when anything was ever in it.
fn opening_key(file: &KeyedFile) -> Result<(CipherKey, FileId), ControlError> {
    let key = match (file.stage(), file.next_cipher_key()) {
        (Stage::Initialise, _) => {
            let path = file.path().to_owned();
            return Err(EnvelopeError::NeverInitialised { path }.into());
        }
        (Stage::Rekeying { .. }, Some(next)) if super::which_key(file)? == Opened::Next => next,
        (Stage::Ready | Stage::Initialised | Stage::Rekeying { .. }, _) => file.cipher_key(),
    };
    Ok((key, file.manifest().file_id()))
}

fn temporary(target: &Path) -> Result<tempfile::NamedTempFile<File>, ControlError> {
    let dir = parent(target);
    tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(dir)
        .map_err(failed("create a file in", dir))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ControlError {
    let path = path.to_owned();
    move |source| ControlError::Io {
        action,
        path: path.clone(),
        source,
    }
}

/// An error when the copy must stop.
fn report(progress: &Option<Progress>, done: u64, total: u64) -> io::Result<()> {
    match progress {
        Some(progress) if !progress(done, total) => Err(io::ErrorKind::Interrupted.into()),
        _ => Ok(()),
    }
}

/// A whole number of blocks.
const CHUNK: usize = 256 * BLOCK;
