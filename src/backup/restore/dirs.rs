//! The directories of a deployment that is being restored, and their mark.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::file::write_new;
use crate::backup::BackupError;
use crate::control;
use crate::data_dir::{DEPLOYED, LOCK, RESTORING, derived};
use crate::envelope::sync_dir;
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

    /// Makes, locks and marks them. What an unfinished restoration left is removed.
    pub(super) fn prepare(&self) -> Result<DataDirLock, BackupError> {
        let mark = self.data.join(RESTORING);
        let resumed = mark.symlink_metadata().is_ok();
        for dir in self.each() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(BackupError::io("make the directory", dir))?;
            if !resumed {
                reject_used(dir)?;
            }
        }
        let lock = DataDirLock::acquire_to_restore(&self.data)?;
        if resumed {
            self.clear()?;
        } else {
            // Somebody may have been faster.
            self.each()
                .into_iter()
                .try_for_each(|dir| reject_used(dir))?;
            write_new(&mark, MARK.as_bytes())?;
        }
        self.flush()?;
        Ok(lock)
    }

    pub(super) fn flush(&self) -> Result<(), BackupError> {
        for dir in self.each() {
            sync_dir(dir).map_err(BackupError::io("flush", dir))?;
        }
        Ok(())
    }

    /// Removes all that a restoration writes, but for the mark.
    pub(super) fn clear(&self) -> Result<(), BackupError> {
        for dir in self.each() {
            let entries = std::fs::read_dir(dir).map_err(BackupError::io("read", dir))?;
            for entry in entries {
                let path = entry.map_err(BackupError::io("read", dir))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let ours = derived(&name).is_some()
                    || name == DEPLOYED
                    || name.starts_with(control::FILE_NAME)
                    || name.starts_with("nimbus-audit.")
                    || name.starts_with(crate::data_dir::TEMPORARY_PREFIX);
                if ours {
                    std::fs::remove_file(&path).map_err(BackupError::io("remove", &path))?;
                }
            }
        }
        self.flush()
    }

    pub(super) fn unmark(&self) -> Result<(), BackupError> {
        let mark = self.data.join(RESTORING);
        std::fs::remove_file(&mark).map_err(BackupError::io("remove", &mark))?;
        self.flush()
    }
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

/// What stands in the mark, for people.
const MARK: &str = "A restoration into this directory is under way, or was cut short. Run `nimbus backup restore` again: it begins afresh.\n";
