//! The manifests of sealed tenants, as rows. A rotation replaces one under the lock of the tenant's
//! row, and only where it is still what was read: see `envelope/rows.rs`.

use std::{path::PathBuf, sync::Arc};

use nimbus_manifests::TenantId;

use super::{
    catalog::{Catalog, State},
    changes::Decision,
    engine::{Connection as _, Engine, Malformed, Row, Stops, values},
};
use crate::envelope::{Envelope, KeyedFile, ManifestRow, ManifestRows, RowsError};
use crate::failpoints::crash_point;

impl<E: Engine> Catalog<E> {
    /// What messages call the row of a tenant.
    pub(super) fn place_of(&self, tenant: &TenantId) -> PathBuf {
        let table = PathBuf::from(format!("{}.tenants", self.engine.provider_space()));
        table.join(tenant.as_str())
    }
}

impl<E: Engine> ManifestRows for Catalog<E> {
    fn place(&self, tenant: &TenantId) -> PathBuf {
        self.place_of(tenant)
    }

    fn list(&self) -> Result<Vec<ManifestRow>, RowsError> {
        let established = self.is_established();
        if !established.map_err(|error| Arc::new(error) as RowsError)? {
            return Ok(Vec::new());
        }
        let sql = "SELECT name, manifest FROM @tenants WHERE state = ? ORDER BY name";
        let rows = self.ask(sql, values![State::There as i64]);
        let rows = rows.map_err(|failure| failure.source)?;
        let row = |mut row: Row| {
            let name = row.text(0)?.parse();
            let name = name.map_err(|_| Malformed::of("a tenant's id"))?;
            Ok((name, row.maybe_bytes(1)?))
        };
        let rows: Result<_, Malformed> = rows.into_iter().map(row).collect();
        rows.map_err(|what| Arc::new(what) as RowsError)
    }

    fn prove(
        &self,
        envelope: &Envelope,
        tenant: &TenantId,
        file: &KeyedFile,
    ) -> Result<(), RowsError> {
        self.prove(envelope, tenant, file)
    }

    fn replace(&self, tenant: &TenantId, before: &[u8], after: &[u8]) -> Result<bool, RowsError> {
        let replaced = self.change(tenant, |session, row| {
            if row.is_none_or(|row| row.state != State::There) {
                return Ok(Decision::Leave(false));
            }
            let sql = "SELECT manifest FROM @tenants WHERE name = ?";
            let statement = self.statement(sql, values![tenant.as_str()]);
            let rows = session.run(&[statement], &Stops::default());
            let mut rows = rows
                .map_err(super::catalog::failed)?
                .pop()
                .unwrap_or_default();
            let there = rows.first_mut().map(|row| row.maybe_bytes(0));
            let there = there.transpose().map_err(super::catalog::malformed)?;
            let there = there.flatten();
            // Stored by a try that was not answered.
            if there.as_deref() == Some(after) {
                return Ok(Decision::Leave(true));
            }
            if there.as_deref() != Some(before) {
                return Ok(Decision::Leave(false));
            }
            let sql = "UPDATE @tenants SET manifest = ? WHERE name = ?";
            crash_point!("tenants::relational::manifest-held");
            let statement = self.statement(sql, values![after, tenant.as_str()]);
            Ok(Decision::Do(vec![statement], true))
        });
        let replaced = replaced.map_err(|error| Arc::new(error) as RowsError)?;
        crash_point!("tenants::relational::manifest-replaced");
        Ok(replaced)
    }
}
