//! Key files: 32 raw bytes that nobody but their owner may read.
//!
//! Reading checks what was opened, not what the name pointed at a moment before: mode, owner and
//! size come from `fstat` on the descriptor that the bytes are then read from. A symbolic link is
//! followed (mounted secrets are links), because every check applies to the file it leads to.
//!
//! Writing never overwrites and never leaves half a key: the bytes go to a temporary name in the
//! same directory, are flushed, and only then get the final name, in one step that fails if
//! anything stands there, a dangling link included. A crash leaves the whole key, or no key and
//! perhaps a `.<name>.<random>.tmp` that was never used and can be deleted.
#![expect(clippy::disallowed_methods, reason = "key files are none of SQLite's")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::error::KeyFileError;
use crate::local::LocalKey;
use crate::memory::KEY_BYTES;
use crate::mounted::is_private;
pub use crate::path::parent;
use crate::random::SecureRandom;

/// Reads the key in the file at `path`.
///
/// # Errors
/// One variant of [`KeyFileError`] for each thing that can be wrong with the file.
pub fn read(path: &Path) -> Result<LocalKey, KeyFileError> {
    let mut file = open_checked(path)?;
    // One byte more than the longest text form we recognise: enough to tell the lengths apart,
    // and a cap on what is read.
    let mut buffer = Zeroizing::new([0; LONGEST_KNOWN + 1]);
    let length = read_up_to(&mut file, &mut *buffer).map_err(|source| io_error(path, source))?;
    check_length(path, length, &file)?;
    let bytes = &buffer[..length];
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(KeyFileError::AllZero {
            path: path.to_owned(),
        });
    }
    LocalKey::try_init_with(|key| {
        key.copy_from_slice(bytes);
        Ok(())
    })
}

/// Draws a key from `random` and writes it to a new file at `path`, mode 0400. Missing parent
/// directories are made with mode 0700. Returns the key, read back from the finished file.
///
/// # Errors
/// [`KeyFileError::Exists`] when anything stands at `path`; what the file system says otherwise.
/// No key stands at `path` then.
pub fn generate_new(path: &Path, random: &dyn SecureRandom) -> Result<LocalKey, KeyFileError> {
    let name = path.file_name().ok_or_else(|| KeyFileError::NotAFile {
        path: path.to_owned(),
        kind: "directory",
    })?;
    // Asked before a key is drawn only to fail early; the rename below is what decides.
    if fs::symlink_metadata(path).is_ok() {
        return Err(KeyFileError::Exists {
            path: path.to_owned(),
        });
    }
    let parent = parent(path);
    create_parents(parent).map_err(|source| io_error(parent, source))?;
    let key = LocalKey::generate(random)?;
    let mut suffix = [0; 8];
    random.fill(&mut suffix)?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}.tmp", data_encoding::HEXLOWER.encode(&suffix)));
    let temporary = TemporaryFile(parent.join(temporary_name));
    write_durably(&temporary.0, &key).map_err(|source| io_error(&temporary.0, source))?;
    publish(&temporary.0, path)?;
    sync_directory(parent).map_err(|source| io_error(parent, source))?;
    let written = read(path)?;
    if written.id() == key.id() {
        Ok(written)
    } else {
        Err(KeyFileError::Changed {
            path: path.to_owned(),
            expected: key.id().clone(),
            found: written.id().clone(),
        })
    }
}

/// Destroys the key at `path`: overwrites it where it lies, removes it, and makes that durable.
/// Answers whether it was there.
///
/// Overwriting reaches the blocks that the file has now; a copying file system, a wearing disk or a
/// backup may keep older ones.
///
/// # Errors
/// What the file system says; the file may then be overwritten and still be there.
pub fn destroy(path: &Path) -> Result<bool, KeyFileError> {
    let failed = |source| io_error(path, source);
    let length = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        // A link is removed; what it leads to may be another's.
        Ok(_) => 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed(source)),
    };
    if length > 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        let zeros = vec![0; usize::try_from(length.min(LONGEST_KNOWN as u64)).unwrap_or(0)];
        file.write_all(&zeros)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
    }
    fs::remove_file(path).map_err(failed)?;
    let parent = parent(path);
    sync_directory(parent).map_err(|source| io_error(parent, source))?;
    Ok(true)
}

/// Whether nobody can read the file at `path` but who may ([`is_private`]).
///
/// # Errors
/// When it cannot be opened.
pub fn is_closed(path: &Path) -> Result<bool, KeyFileError> {
    let file = open(path)?;
    is_private(path, &file).map_err(|source| io_error(path, source))
}

/// Opens a file of secrets, if nobody but its owner can reach it.
pub(crate) fn open_checked(path: &Path) -> Result<File, KeyFileError> {
    let file = open(path)?;
    check(path, &file)?;
    Ok(file)
}

fn open(path: &Path) -> Result<File, KeyFileError> {
    // NONBLOCK: opening a named pipe must not wait for a writer. NOCTTY: nor must a terminal
    // become ours.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => KeyFileError::Missing {
                path: path.to_owned(),
            },
            io::ErrorKind::PermissionDenied => KeyFileError::Unreadable {
                path: path.to_owned(),
                euid: rustix::process::geteuid().as_raw(),
            },
            _ => io_error(path, source),
        })
}

/// What the descriptor says about the file: type, owner, mode.
fn check(path: &Path, file: &File) -> Result<(), KeyFileError> {
    let metadata = file.metadata().map_err(|source| io_error(path, source))?;
    let path = path.to_owned();
    let kind = metadata.file_type();
    if !kind.is_file() {
        let kind = if kind.is_dir() {
            "directory"
        } else if kind.is_fifo() {
            "named pipe"
        } else {
            "device"
        };
        return Err(KeyFileError::NotAFile { path, kind });
    }
    let euid = rustix::process::geteuid().as_raw();
    if metadata.uid() != euid && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Err(KeyFileError::ForeignOwner {
            path,
            owner,
            euid,
            directory: false,
        });
    }
    match is_private(&path, file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(KeyFileError::TooOpen {
            path,
            mode: metadata.mode() & 0o7777,
            directory: false,
        }),
        Err(source) => Err(io_error(&path, source)),
    }
}

fn check_length(path: &Path, length: usize, file: &File) -> Result<(), KeyFileError> {
    let path = path.to_owned();
    match length {
        KEY_BYTES => Ok(()),
        0 => Err(KeyFileError::Empty { path }),
        // With or without the line end that an editor or `echo` adds.
        44 | 45 => Err(KeyFileError::LooksLikeBase64 {
            path,
            length: length as u64,
        }),
        64 | LONGEST_KNOWN => Err(KeyFileError::LooksLikeHex {
            path,
            length: length as u64,
        }),
        _ => {
            let length = file
                .metadata()
                .map_or(0, |metadata| metadata.len())
                .max(length as u64);
            Err(KeyFileError::WrongLength { path, length })
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Makes the missing directories down to `directory`, each 0700 and durable.
fn create_parents(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .collect();
    for ancestor in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(ancestor) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        sync_directory(parent(ancestor))?;
    }
    Ok(())
}

fn write_durably(path: &Path, key: &LocalKey) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)?;
    file.write_all(key.bytes())?;
    file.sync_all()
}

/// Gives the finished file its name, if nothing stands there.
fn publish(temporary: &Path, path: &Path) -> Result<(), KeyFileError> {
    let renamed = match rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE)
    {
        // A file system or kernel without it: a hard link is as atomic and refuses as well. The
        // temporary name goes with its guard.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            rustix::fs::linkat(CWD, temporary, CWD, path, AtFlags::empty())
        }
        renamed => renamed,
    };
    renamed.map_err(|errno| match errno {
        Errno::EXIST => KeyFileError::Exists {
            path: path.to_owned(),
        },
        errno => io_error(path, errno.into()),
    })
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn io_error(path: &Path, source: io::Error) -> KeyFileError {
    KeyFileError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Removes the temporary name when dropped; after a rename there is nothing left to remove.
struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Nothing can be done here, and what stays behind was never in use.
        let _ = fs::remove_file(&self.0);
    }
}

/// Sixty-four hex digits and a line end.
const LONGEST_KNOWN: usize = 65;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_bare_name_is_this_one() {
        for (path, dir) in [
            ("master.key", "."),
            ("./master.key", "."),
            ("keys/master.key", "keys"),
            ("/master.key", "/"),
        ] {
            assert_eq!(parent(Path::new(path)), Path::new(dir), "{path}");
        }
    }
}
