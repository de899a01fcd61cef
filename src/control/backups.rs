//! The snapshots that this deployment made.

use redb::ReadableDatabase as _;
use uuid::Uuid;

use super::tables::BACKUPS;
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
