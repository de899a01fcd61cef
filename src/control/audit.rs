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
pub(super) fn head(transaction: &ReadTransaction) -> Result<AuditHead, redb::Error> {
    Ok(mark(transaction, HEAD)?.unwrap_or(AuditHead::START))
}

/// A place in the chain, by its name.
fn mark(transaction: &ReadTransaction, name: &str) -> Result<Option<AuditHead>, redb::Error> {
    let table = transaction.open_table(AUDIT)?;
    let mark = table.get(name)?.map(|mark| {
        let (seq, hash) = mark.value();
        AuditHead { seq, hash }
    });
    Ok(mark)
}

impl Control {
    /// The key that seals lines, and the data key that it comes from; `None` in plaintext.
    pub(crate) fn audit_sealer(&self) -> Option<(Arc<AuditKey>, DekId)> {
        let open = self.state.read().unwrap_or_else(PoisonError::into_inner);
        open.audit.clone()
    }

    /// Held from before a line is sealed until its head is written: the key that seals lines does
    /// not change in between, and nobody sees a line without its head. In it is the head of lines
    /// that were written, where it could not be yet.
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

    /// Moves the end of the chain, durably. What was noted of a break is in the lines before it.
    pub(crate) fn set_audit_head(&self, head: AuditHead) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(AUDIT)?;
            drop(table.insert(HEAD, (head.seq, head.hash))?);
            drop(table.remove(BROKEN)?);
            Ok(())
        })
    }

    /// Whether parts of the log were being set aside when the head was last written.
    pub(crate) fn audit_is_broken(&self) -> Result<bool, ControlError> {
        let broken = self.with(|database| mark(&database.begin_read()?, BROKEN))?;
        Ok(broken.is_some())
    }

    /// Notes that parts of the log are about to be set aside, until the head moves.
    pub(crate) fn note_audit_broken(&self) -> Result<(), ControlError> {
        self.set_mark(BROKEN, AuditHead::START)
    }

    /// Behind which line the log counts: [`AuditHead::START`], or where an operator accepted that
    /// it is not whole.
    pub(crate) fn audit_base(&self) -> Result<AuditHead, ControlError> {
        let base = self.with(|database| mark(&database.begin_read()?, BASE))?;
        Ok(base.unwrap_or(AuditHead::START))
    }

    /// From here on the log counts behind `base`.
    pub(crate) fn set_audit_base(&self, base: AuditHead) -> Result<(), ControlError> {
        self.set_mark(BASE, base)
    }

    fn set_mark(&self, name: &str, mark: AuditHead) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(AUDIT)?;
            drop(table.insert(name, (mark.seq, mark.hash))?);
            Ok(())
        })
    }
}

const HEAD: &str = "head";
/// Parts of the log are being set aside.
const BROKEN: &str = "broken";
/// Where the log that counts begins.
const BASE: &str = "base";
