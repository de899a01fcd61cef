//! Deletions of tenants under way.

use nimbus_manifests::TenantId;
use redb::{ReadTransaction, ReadableDatabase as _, ReadableTable as _};

use super::tables::{ANNOUNCED, DELETIONS, DUE, LOCKS, MANIFESTS};
use super::{Control, ControlError};

impl Control {
    /// Marks a tenant as being deleted, durably: from here on the next start finishes the deletion.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn begin_delete(&self, tenant: &TenantId) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut deletions = transaction.open_table(DELETIONS)?;
            deletions.insert(tenant.as_str(), ())?;
            Ok(())
        })
    }

    /// Ends a deletion: the tenant's mirrored manifests, its due time, its access keys and its mark
    /// go in one commit, and no request is let in by those keys once this has returned.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn finish_delete(&self, tenant: &TenantId) -> Result<(), ControlError> {
        self.forget_callers(tenant, |transaction| {
            drop(transaction.open_table(DELETIONS)?.remove(tenant.as_str())?);
            drop(transaction.open_table(LOCKS)?.remove(tenant.as_str())?);
            drop(transaction.open_table(DUE)?.remove(tenant.as_str())?);
            let mut manifests = transaction.open_table(MANIFESTS)?;
            let mut announced = transaction.open_table(ANNOUNCED)?;
            for kind in ["db:sqlite:tenant", "cache:libsql:tenant"] {
                // `;` follows `:`: everything that begins with this tenant's prefix.
                let range = format!("{kind}:{tenant}:")..format!("{kind}:{tenant};");
                let range = range.start.as_str()..range.end.as_str();
                manifests.retain_in::<&str, _>(range.clone(), |_, _| false)?;
                announced.retain_in::<&str, _>(range, |_, _| false)?;
            }
            Ok(())
        })
    }

    /// Tenants whose deletion has begun and not ended.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn pending_deletes(&self) -> Result<Vec<TenantId>, ControlError> {
        self.with(|database| pending(&database.begin_read()?))
    }
}

/// As [`Control::pending_deletes`].
pub(super) fn pending(transaction: &ReadTransaction) -> Result<Vec<TenantId>, redb::Error> {
    let mut tenants = Vec::new();
    for entry in transaction.open_table(DELETIONS)?.iter()? {
        // Only this file's own writer put it there.
        tenants.extend(entry?.0.value().parse::<TenantId>().ok());
    }
    Ok(tenants)
}
