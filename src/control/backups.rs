//! The snapshots that this deployment made, and its line: one that was restored from a backup is
//! another line than the one that it was restored from.

use redb::ReadableDatabase as _;
use uuid::Uuid;

use super::tables::{BACKUPS, SECRETS};
use super::{Control, ControlError};

/// A catalogue: its number and its SHA-256.
pub(crate) type MadeSnapshot = (u64, [u8; 32]);

impl Control {
    /// The last one that this deployment made in a repository. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(crate) fn made_snapshot(
        &self,
        repository: Uuid,
    ) -> Result<Option<MadeSnapshot>, ControlError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(BACKUPS)?;
            Ok(table
                .get(&*repository.to_string())?
                .map(|made| made.value()))
        })
    }

    /// The line; `None` of a deployment that was never restored from a backup. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(crate) fn line(&self) -> Result<Option<Uuid>, ControlError> {
        self.with(|database| {
            let line = database.begin_read()?.open_table(SECRETS)?.get(LINE)?;
            Ok(line.and_then(|line| Uuid::from_slice(line.value()).ok()))
        })
    }

    /// Begins a line of its own, which made no snapshot yet. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(crate) fn begin_line(&self, line: Uuid) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut secrets = transaction.open_table(SECRETS)?;
            drop(secrets.insert(LINE, line.as_bytes().as_slice())?);
            transaction.open_table(BACKUPS)?.retain(|_, _| false)?;
            Ok(())
        })
    }

    /// Notes one, durably. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(crate) fn note_snapshot(
        &self,
        repository: Uuid,
        made: MadeSnapshot,
    ) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(BACKUPS)?;
            drop(table.insert(&*repository.to_string(), made)?);
            Ok(())
        })
    }
}

const LINE: &str = "backup-line";
