//! Tenants that an operator locked.

use nimbus_manifests::TenantId;
use redb::{ReadableDatabase as _, ReadableTable as _, TableError};

use super::tables::LOCKS;
use super::{Control, ControlError};

impl Control {
    /// Notes that an operator locked a tenant.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn lock_tenant(&self, tenant: &TenantId) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut locks = transaction.open_table(LOCKS)?;
            locks.insert(tenant.as_str(), ())?;
            Ok(())
        })
    }

    /// Forgets that an operator locked a tenant.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn unlock_tenant(&self, tenant: &TenantId) -> Result<(), ControlError> {
        self.write(|transaction| {
            drop(transaction.open_table(LOCKS)?.remove(tenant.as_str())?);
            Ok(())
        })
    }

    /// Tenants that an operator locked.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn locked_tenants(&self) -> Result<Vec<TenantId>, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let locks = match transaction.open_table(LOCKS) {
                // A file of an earlier release: made with the first lock.
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                locks => locks?,
            };
            let mut tenants = Vec::new();
            for entry in locks.iter()? {
                // Only this file's own writer put it there.
                tenants.extend(entry?.0.value().parse::<TenantId>().ok());
            }
            Ok(tenants)
        })
    }
}
