//! The directories of a deployment that is being restored, and their mark.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::file::{read_all, write_new};
use crate::backup::BackupError;
use crate::clock;
use crate::control;
use crate::data_dir::{DEPLOYED, LOCK, RESTORING, derived, is_audit_log, sync_dir};
use crate::process::DataDirLock;

/// The directories of a deployment that is being restored.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// The tenants' directory.
    pub data: PathBuf,
    /// The control file's directory.
    pub control: PathBuf,
}

impl Dirs {
    fn each(&self) -> Vec<&PathBuf> {
        match self.data == self.control {
            true => vec![&self.data],
            false => vec![&self.data, &self.control],
        }
    }

    /// Makes, locks and marks them, all with one mark. What an unfinished restoration left is
    /// removed where that mark stands, and nowhere else.
    pub(super) fn prepare(&self) -> Result<Vec<DataDirLock>, BackupError> {
        for dir in self.each() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(BackupError::io("make the directory", dir))?;
        }
        let check = || {
            let mark = mark(&self.data)?;
            for dir in self.each() {
                if mark.is_none() || self::mark(dir)? != mark {
                    reject_used(dir)?;
                }
            }
            Ok::<_, BackupError>(mark)
        };
        // Before anything is written there.
        let _unlocked = check()?;
        let locks = self
            .each()
            .into_iter()
            .map(|dir| DataDirLock::acquire_to_restore(dir));
        let locks = locks.collect::<Result<Vec<_>, _>>()?;
        // Somebody may have been faster.
        let resumed = check()?;
        let text = match &resumed {
            Some(mark) => mark.clone(),
            None => format!("{MARK}id: {}\n", clock::uuid()).into_bytes(),
        };
        for dir in self.each() {
            match mark(dir)? {
                Some(_) => clear(dir)?,
                None => write_new(&dir.join(RESTORING), &text)?,
            }
        }
        self.flush()?;
        Ok(locks)
    }

    pub(super) fn flush(&self) -> Result<(), BackupError> {
        for dir in self.each() {
            sync_dir(dir).map_err(BackupError::io("flush", dir))?;
        }
        Ok(())
    }

    /// Removes all that a restoration writes, but for the marks.
    pub(super) fn clear(&self) -> Result<(), BackupError> {
        self.each().into_iter().try_for_each(|dir| clear(dir))?;
        self.flush()
    }

    /// That of the tenants goes first: once it is gone the deployment counts, and a mark that is
    /// left beside the control file means nothing.
    pub(super) fn unmark(&self) -> Result<(), BackupError> {
        for dir in self.each() {
            let mark = dir.join(RESTORING);
            std::fs::remove_file(&mark).map_err(BackupError::io("remove", &mark))?;
            self.flush()?;
        }
        Ok(())
    }
}

/// The mark in `dir`, if there is one.
fn mark(dir: &Path) -> Result<Option<Vec<u8>>, BackupError> {
    let path = dir.join(RESTORING);
    match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() <= LONGEST_MARK => {}
        Ok(_) => {
            let source = std::io::ErrorKind::InvalidData.into();
            return Err(BackupError::io("read", path)(source));
        }
        Err(_none) => return Ok(None),
    }
    read_all(&path)
        .map(Some)
        .map_err(BackupError::io("read", path))
}

/// Removes all that a restoration writes into `dir`, but for the mark.
fn clear(dir: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(dir).map_err(BackupError::io("read", dir))? {
        let path = entry.map_err(BackupError::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = derived(&name).is_some()
            || name == DEPLOYED
            || name.starts_with(control::FILE_NAME)
            || is_audit_log(&name)
            || name.starts_with(crate::data_dir::TEMPORARY_PREFIX);
        if ours {
            std::fs::remove_file(&path).map_err(BackupError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Refuses a directory that holds anything but a lock file.
fn reject_used(dir: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(dir).map_err(BackupError::io("read", dir))? {
        let name = entry.map_err(BackupError::io("read", dir))?.file_name();
        if name != LOCK {
            return Err(BackupError::TargetNotEmpty {
                dir: dir.to_owned(),
                example: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

/// More than any mark.
const LONGEST_MARK: u64 = 4096;
/// What stands in the mark, for people; behind it, an id.
const MARK: &str = "A restoration into this directory is under way, or was cut short. Run `nimbus backup restore` again: it begins afresh.\n";
