//! Access keys, which all servers share: in the provider's tables, and in the memory of each.

use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::TenantId;

use super::{
    catalog::{Catalog, State, failed, malformed, stored_key},
    changes::{Decision, NUMBER},
    engine::{Connection as _, Engine, Stops, values},
};
use crate::control::{
    AccessKey, AccessKeyId, AccessKeys, KeyError, KeyInfo, KeyName, KeyRecord, KeyVerdict,
    MAX_KEYS, Scope, beyond_remembered, sort_keys,
};
use crate::tenants::StoreError;

/// The access keys of a catalog.
#[derive(Debug)]
pub(super) struct SharedKeys<E>(pub(super) Arc<Catalog<E>>);

impl<E: Engine> Catalog<E> {
    /// The access keys of all servers on this database.
    #[must_use]
    pub fn access_keys(self: &Arc<Self>) -> Arc<dyn AccessKeys> {
        Arc::new(SharedKeys(Arc::clone(self)))
    }

    /// The keys of a tenant, whose row is locked.
    fn keys_of(
        &self,
        session: &mut E::Connection,
        tenant: &TenantId,
    ) -> Result<Vec<(AccessKeyId, KeyRecord)>, StoreError> {
        let sql = "SELECT id, record FROM @keys WHERE tenant = ?";
        let statement = self.statement(sql, values![tenant.as_str()]);
        let rows = session.run(&[statement], &Stops::default());
        let rows = rows.map_err(failed)?.pop().unwrap_or_default();
        let keys: Result<Vec<_>, _> = rows.into_iter().map(stored_key).collect();
        let mut keys = keys.map_err(malformed)?;
        sort_keys(&mut keys);
        Ok(keys)
    }
}

#[async_trait]
impl<E: Engine> AccessKeys for SharedKeys<E> {
    fn is_fresh(&self) -> bool {
        self.0.is_trusted()
    }

    async fn refresh(&self) -> Result<bool, KeyError> {
        self.0.renew().await.map_err(database)?;
        Ok(true)
    }

    fn judge(&self, presented: &AccessKey) -> KeyVerdict {
        self.0.known().keys.judge(presented)
    }

    fn is_live(&self, tenant: &TenantId, id: AccessKeyId) -> bool {
        self.0.known().keys.is_live(tenant, id)
    }

    /// A key is made under the lock of its tenant's row, which says whether there is one.
    fn deletions(&self) -> u64 {
        0
    }

    fn create(
        &self,
        tenant: &TenantId,
        name: KeyName,
        scope: Scope,
        _deletions: u64,
    ) -> Result<(AccessKey, KeyInfo), KeyError> {
        let (key, record) = KeyRecord::draw(tenant, name, scope)?;
        let id = key.id();
        let json = record
            .to_json()
            .map_err(|error| KeyError::Database(Arc::new(error)))?;
        let catalog = &self.0;
        let made = catalog.change(tenant, |session, row| {
            if row.is_none_or(|row| row.state != State::There) {
                return Ok(Decision::Leave(Err(KeyError::Deleted)));
            }
            let keys = catalog.keys_of(session, tenant)?;
            // Made by a try that was not answered.
            if keys.iter().any(|(made, _)| *made == id) {
                return Ok(Decision::Leave(Ok(())));
            }
            if keys.iter().filter(|(_, record)| record.is_live()).count() >= MAX_KEYS {
                let tenant = tenant.clone();
                return Ok(Decision::Leave(Err(KeyError::TooMany { tenant })));
            }
            let sql = format!(
                "INSERT INTO @keys (id, tenant, record, changed) VALUES (?, ?, ?, {NUMBER})"
            );
            let values = values![id.to_string(), tenant.as_str(), json.clone()];
            let statements = vec![catalog.count(), catalog.statement(&sql, values)];
            Ok(Decision::Do(statements, Ok(())))
        });
        made.map_err(database)??;
        let info = record.info(id);
        Ok((key, info))
    }

    fn list(&self, tenant: &TenantId) -> Vec<KeyInfo> {
        self.0.known().keys.live(tenant)
    }

    fn records(&self, tenant: &TenantId) -> Result<Vec<(AccessKeyId, KeyRecord)>, KeyError> {
        self.0.look().map_err(database)?;
        Ok(self.0.known().keys.of(tenant, |_| true))
    }

    fn revoke(&self, tenant: &TenantId, id: AccessKeyId) -> Result<bool, KeyError> {
        let catalog = &self.0;
        let mut was_live = false;
        let revoked = catalog.change(tenant, |session, _row| {
            let keys = catalog.keys_of(session, tenant)?;
            let found = keys.iter().find(|(found, _)| *found == id);
            let Some((_, record)) = found.filter(|(_, record)| record.is_live()) else {
                // Revoked by a try that was not answered, or not at all.
                return Ok(Decision::Leave(was_live));
            };
            was_live = true;
            let mut record = record.clone();
            record.revoke();
            let json = record.to_json();
            let json = json.map_err(|error| StoreError::Provider {
                source: Arc::new(error),
            })?;
            let revoked = keys.iter().filter(|(_, one)| !one.is_live());
            let forgotten = beyond_remembered(&revoked.cloned().collect::<Vec<_>>());
            let mut statements = vec![catalog.count()];
            statements.push(catalog.statement(
                &format!("UPDATE @keys SET record = ?, changed = {NUMBER} WHERE id = ?"),
                values![json, id.to_string()],
            ));
            statements.extend(forgotten.iter().map(|old| {
                catalog.statement("DELETE FROM @keys WHERE id = ?", values![old.to_string()])
            }));
            Ok(Decision::Do(statements, true))
        });
        revoked.map_err(database)
    }
}

fn database(error: StoreError) -> KeyError {
    KeyError::Database(Arc::new(error))
}
