//! Tenants' access keys: in the control file for good, and in memory for the requests.
//!
//! No request reads the file: the table in memory is loaded when the file is opened, and changed
//! with each commit, by one writer at a time, before the change is answered. What a deleted tenant
//! had goes in the commit that ends its deletion.

mod index;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use jiff::Timestamp;
use nimbus_keyproviders::RandomError;
use nimbus_manifests::TenantId;
use redb::{ReadableDatabase as _, ReadableTable as _, WriteTransaction};
use serde::Serialize;

use super::access_key::{AccessKey, AccessKeyId, KeyName, Scope};
use super::tables::{ACCESS_KEYS, DUE};
use super::{Control, ControlError, usage};
use crate::clock;
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;

pub use index::Record;
pub(crate) use index::{KeyIndex, beyond_remembered, sort};

/// An access key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = KnownKey)]
pub struct KeyInfo {
    /// Its id, as text.
    pub id: String,
    /// Its name.
    #[schema(value_type = String)]
    pub name: KeyName,
    /// What it allows.
    pub scope: Scope,
    /// When it was made.
    #[schema(value_type = String)]
    pub created: Timestamp,
}

/// What a presented key turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyVerdict {
    /// A key of this tenant.
    Live {
        /// The tenant.
        tenant: TenantId,
        /// What it allows.
        scope: Scope,
    },
    /// A key that was revoked, and is still remembered.
    Revoked,
    /// None that we know.
    Unknown,
}

/// Why a key was not made or revoked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The control file failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The tenant has as many keys as it may have.
    #[error("tenant {tenant} has {MAX_KEYS} access keys, and no more are kept; revoke one first")]
    TooMany {
        /// The tenant.
        tenant: TenantId,
    },
    /// A tenant was deleted since the caller looked: this one may be gone.
    #[error("a tenant was deleted meanwhile")]
    Deleted,
    /// The database that has the keys failed.
    #[error("access keys cannot be read or changed: {0}")]
    Database(Arc<dyn std::error::Error + Send + Sync>),
}

/// Where access keys are kept: the control file, or a database that several servers share.
#[async_trait]
pub trait AccessKeys: fmt::Debug + Send + Sync {
    /// Whether what is in memory is young enough to judge by.
    fn is_fresh(&self) -> bool {
        true
    }

    /// Has what is in memory be newer than this call. `false` where nobody else changes keys.
    async fn refresh(&self) -> Result<bool, KeyError> {
        Ok(false)
    }

    /// What `presented` is, by what is in memory. A key that is not known costs as long as one that
    /// is.
    fn judge(&self, presented: &AccessKey) -> KeyVerdict;

    /// Whether a tenant has a key of this id that was not revoked, by what is in memory.
    fn is_live(&self, tenant: &TenantId, id: AccessKeyId) -> bool;

    /// How many deletions of tenants have ended. Who makes a key asks before it looks whether the
    /// tenant exists.
    fn deletions(&self) -> u64;

    /// Makes a key for `tenant`, which existed when `deletions` deletions had ended. The answer is
    /// the only copy of its secret. Blocks.
    fn create(
        &self,
        tenant: &TenantId,
        name: KeyName,
        scope: Scope,
        deletions: u64,
    ) -> Result<(AccessKey, KeyInfo), KeyError>;

    /// The keys of a tenant, oldest first, without those that were revoked.
    fn list(&self, tenant: &TenantId) -> Vec<KeyInfo>;

    /// The keys of a tenant as they are kept, with those that were revoked and are remembered.
    /// Blocks.
    fn records(&self, tenant: &TenantId) -> Result<Vec<(AccessKeyId, Record)>, KeyError>;

    /// Revokes a key of `tenant`; whether there was such a key. After an error the key may still
    /// count. Blocks.
    fn revoke(&self, tenant: &TenantId, id: AccessKeyId) -> Result<bool, KeyError>;
}

impl AccessKeys for Control {
    fn judge(&self, presented: &AccessKey) -> KeyVerdict {
        self.judge_key(presented)
    }

    fn is_live(&self, tenant: &TenantId, id: AccessKeyId) -> bool {
        self.keys.read().is_live(tenant, id)
    }

    fn deletions(&self) -> u64 {
        Self::deletions(self)
    }

    fn create(
        &self,
        tenant: &TenantId,
        name: KeyName,
        scope: Scope,
        deletions: u64,
    ) -> Result<(AccessKey, KeyInfo), KeyError> {
        self.create_key(tenant, name, scope, deletions)
    }

    fn list(&self, tenant: &TenantId) -> Vec<KeyInfo> {
        self.tenant_keys(tenant)
    }

    fn records(&self, tenant: &TenantId) -> Result<Vec<(AccessKeyId, Record)>, KeyError> {
        Ok(self.keys.of(tenant, |_| true))
    }

    fn revoke(&self, tenant: &TenantId, id: AccessKeyId) -> Result<bool, KeyError> {
        Ok(self.revoke_key(tenant, id)?)
    }
}

/// The keys in memory.
#[derive(Debug, Default)]
pub(super) struct KeyTable {
    known: RwLock<KeyIndex>,
    /// Held from before a commit until the table shows it.
    writing: Mutex<()>,
    /// How many deletions have ended since the file was opened.
    deletions: AtomicU64,
}

impl Control {
    /// What `presented` is. A key that is not known costs as long as one that is; neither reads the
    /// file.
    #[must_use]
    pub fn judge_key(&self, presented: &AccessKey) -> KeyVerdict {
        self.keys.read().judge(presented)
    }

    /// How many deletions of tenants have ended. Who makes a key asks before it looks whether the
    /// tenant exists.
    #[must_use]
    pub fn deletions(&self) -> u64 {
        self.keys.deletions.load(Ordering::SeqCst)
    }

    /// Makes a key for `tenant`, which existed when `deletions` deletions had ended. The answer is
    /// the only copy of its secret.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; [`KeyError::Deleted`] means that the caller has to look again.
    pub fn create_key(
        &self,
        tenant: &TenantId,
        name: KeyName,
        scope: Scope,
        deletions: u64,
    ) -> Result<(AccessKey, KeyInfo), KeyError> {
        let _writing = self.keys.writing();
        if self.deletions() != deletions {
            return Err(KeyError::Deleted);
        }
        if self.keys.of(tenant, Record::is_live).len() >= MAX_KEYS {
            let tenant = tenant.clone();
            return Err(KeyError::TooMany { tenant });
        }
        let (key, record) = Record::draw(tenant, name, scope)?;
        self.put_records(&[(key.id(), &record)], &[])?;
        crash_point!("keys::created");
        let info = record.info(key.id());
        self.keys.write().insert(key.id(), record);
        Ok((key, info))
    }

    /// Takes over the keys of a tenant that comes from elsewhere, and notes that it may have work
    /// due.
    pub(crate) fn admit(
        &self,
        tenant: &TenantId,
        keys: &[(AccessKeyId, Record)],
    ) -> Result<(), ControlError> {
        let _writing = self.keys.writing();
        debug_assert!(keys.iter().all(|(_, record)| record.tenant.0 == *tenant));
        let records: Vec<_> = keys.iter().map(|(id, record)| (*id, record)).collect();
        let texts = self.texts(&records)?;
        self.write(|transaction| {
            let mut stored = transaction.open_table(ACCESS_KEYS)?;
            for (id, text) in &texts {
                stored.insert(id.as_str(), text.as_slice())?;
            }
            // Its work is not known here: the next start looks at it at once.
            drop(transaction.open_table(DUE)?.insert(tenant.as_str(), 0)?);
            Ok(())
        })?;
        let mut known = self.keys.write();
        for (id, record) in keys {
            known.insert(*id, record.clone());
        }
        Ok(())
    }

    /// The keys of a tenant, oldest first, without those that were revoked.
    #[must_use]
    pub fn tenant_keys(&self, tenant: &TenantId) -> Vec<KeyInfo> {
        self.keys.read().live(tenant)
    }

    /// Revokes a key of `tenant`: the next request with it is refused, after a restart too. Whether
    /// there was such a key.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; the key then still counts.
    pub fn revoke_key(&self, tenant: &TenantId, id: AccessKeyId) -> Result<bool, ControlError> {
        let _writing = self.keys.writing();
        let found = self.keys.read().keys.get(&id).cloned();
        let Some(mut record) = found.filter(|one| one.is_live() && one.tenant.0 == *tenant) else {
            return Ok(false);
        };
        record.revoke();
        let revoked = self.keys.of(tenant, |one| !one.is_live());
        let forgotten = beyond_remembered(&revoked);
        self.put_records(&[(id, &record)], &forgotten)?;
        crash_point!("keys::revoked");
        let mut known = self.keys.write();
        known.insert(id, record.clone());
        known.remove(tenant, &forgotten);
        drop(known);
        // Whoever destroys the newest header of the file gets the commit before it: that one must
        // know it, too.
        if let Err(error) = self.put_records(&[(id, &record)], &[]) {
            tracing::warn!(
                error = error_chain(&error),
                "a revocation was written once, and not twice"
            );
        }
        Ok(true)
    }

    /// Removes all that is kept about a tenant's callers, keys and usage, with `also` in one
    /// commit.
    pub(super) fn forget_callers(
        &self,
        tenant: &TenantId,
        also: impl Fn(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), ControlError> {
        let _writing = self.keys.writing();
        let ids: Vec<AccessKeyId> = self
            .keys
            .of(tenant, |_| true)
            .iter()
            .map(|(id, _)| *id)
            .collect();
        self.write(|transaction| {
            also(transaction)?;
            let mut keys = transaction.open_table(ACCESS_KEYS)?;
            for id in &ids {
                drop(keys.remove(id.to_string().as_str())?);
            }
            drop(keys);
            usage::forget(transaction, tenant)
        })?;
        self.keys.write().remove(tenant, &ids);
        self.keys.deletions.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Before a tenant comes into being: whoever held keys to one of that name, whose files were
    /// taken away by hand, is forgotten.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn begin_create(&self, tenant: &TenantId) -> Result<(), ControlError> {
        let remains = !self.keys.of(tenant, |_| true).is_empty() || self.has_usage(tenant)?;
        if remains {
            tracing::warn!(%tenant, "access keys and usage of an earlier tenant of this name are removed");
            self.forget_callers(tenant, |_| Ok(()))?;
        }
        Ok(())
    }

    /// Reads all keys into memory.
    pub(super) fn load_keys(&self) -> Result<(), ControlError> {
        let texts = self.with(|database| {
            let transaction = database.begin_read()?;
            let mut texts = Vec::new();
            for entry in transaction.open_table(ACCESS_KEYS)?.iter()? {
                let (id, record) = entry?;
                texts.push((id.value().to_owned(), record.value().to_vec()));
            }
            Ok(texts)
        })?;
        let mut known = self.keys.write();
        for (id, text) in texts {
            let record = Record::from_json(&text).map_err(|source| ControlError::Damaged {
                path: self.path.clone(),
                source: Box::new(source),
            })?;
            // Only this file's own writer put it there.
            if let Ok(id) = id.parse() {
                known.insert(id, record);
            }
        }
        Ok(())
    }

    /// Puts so many keys in the table, in memory alone.
    #[cfg(test)]
    pub(super) fn fill_with_keys(&self, tenant: &TenantId, count: usize) {
        for _ in 0..count {
            let key = AccessKey::draw(&nimbus_keyproviders::OsRandom).expect("randomness");
            let record = Record {
                tenant: index::TenantName(tenant.clone()),
                name: "one of many".parse().expect("a name"),
                scope: Scope::Read,
                created: now(),
                hash: key.hash(),
                revoked: None,
            };
            self.keys.write().insert(key.id(), record);
        }
    }

    /// Keys as they are stored.
    fn texts(
        &self,
        records: &[(AccessKeyId, &Record)],
    ) -> Result<Vec<(String, Vec<u8>)>, ControlError> {
        records
            .iter()
            .map(|(id, record)| Ok((id.to_string(), record.to_json()?)))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(|source| ControlError::Io {
                action: "write an access key to",
                path: self.path.clone(),
                source: source.into(),
            })
    }

    fn put_records(
        &self,
        records: &[(AccessKeyId, &Record)],
        forgotten: &[AccessKeyId],
    ) -> Result<(), ControlError> {
        let texts = self.texts(records)?;
        self.write(|transaction| {
            let mut keys = transaction.open_table(ACCESS_KEYS)?;
            for (id, text) in &texts {
                keys.insert(id.as_str(), text.as_slice())?;
            }
            for id in forgotten {
                drop(keys.remove(id.to_string().as_str())?);
            }
            Ok(())
        })
    }
}

impl KeyTable {
    /// A tenant's keys that `which` chooses, oldest first.
    fn of(&self, tenant: &TenantId, which: impl Fn(&Record) -> bool) -> Vec<(AccessKeyId, Record)> {
        self.read().of(tenant, which)
    }

    // Each change under a lock is complete in itself: a panic leaves no half of it.

    fn read(&self) -> RwLockReadGuard<'_, KeyIndex> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, KeyIndex> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time, to the millisecond: people look at it.
fn now() -> Timestamp {
    let now = clock::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// How many keys a tenant may have.
pub const MAX_KEYS: usize = 1000;
