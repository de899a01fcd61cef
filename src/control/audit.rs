//! The head of the audit log's chain.

use std::sync::{Arc, MutexGuard, PoisonError};

use nimbus_keyproviders::AuditKey;
use nimbus_manifests::DekId;
use redb::{ReadTransaction, ReadableDatabase as _};

use super::tables::AUDIT;
use super::{Control, ControlError};
use crate::envelope::KeyedFile;

/// Where the audit log's chain ends: the number of its last line, and that line's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    /// The number; 0 before the first line.
    pub seq: u64,
    /// SHA-256 of the line without its line end; zeros before the first line.
    pub hash: [u8; 32],
}

impl AuditHead {
    /// Before the first line.
    pub const START: Self = Self {
        seq: 0,
        hash: [0; 32],
    };
}

impl AuditHead {
    /// The head in the control file of `file`, which is only looked at. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(crate) fn of(file: &KeyedFile) -> Result<Self, ControlError> {
        super::copy::look_into(file, |database| head(&database.begin_read()?))
    }
}

/// The head as a transaction sees it.
fn head(transaction: &ReadTransaction) -> Result<AuditHead, redb::Error> {
    let table = transaction.open_table(AUDIT)?;
    let head = table.get(HEAD)?.map(|head| {
        let (seq, hash) = head.value();
        AuditHead { seq, hash }
    });
    Ok(head.unwrap_or(AuditHead::START))
}

impl Control {
    /// The key that seals lines, and the data key that it comes from; `None` in plaintext.
    pub(crate) fn audit_sealer(&self) -> Option<(Arc<AuditKey>, DekId)> {
        let open = self.state.read().unwrap_or_else(PoisonError::into_inner);
        open.audit.clone()
    }

    /// Held from before a line is sealed until its head is written: the key that seals lines does not change in between, and nobody sees a line
    /// without its head. In it is the head of lines that were written, where it could not be yet.
    pub(crate) fn chaining(&self) -> MutexGuard<'_, Option<AuditHead>> {
        self.chained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the head of lines that were written.
    pub(crate) fn settle_audit_head(
        &self,
        unsettled: &mut Option<AuditHead>,
    ) -> Result<(), ControlError> {
        if let Some(head) = *unsettled {
            self.set_audit_head(head)?;
            *unsettled = None;
        }
        Ok(())
    }

    /// Where the chain ends; [`AuditHead::START`] before its first line.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn audit_head(&self) -> Result<AuditHead, ControlError> {
        self.with(|database| head(&database.begin_read()?))
    }

    /// Moves the end of the chain, durably.
    pub(crate) fn set_audit_head(&self, head: AuditHead) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(AUDIT)?;
            drop(table.insert(HEAD, (head.seq, head.hash))?);
            Ok(())
        })
    }
}

const HEAD: &str = "head";
