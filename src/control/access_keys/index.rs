//! Access keys in memory, and how they are stored.

use std::collections::{BTreeSet, HashMap};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use nimbus_keyproviders::{OsRandom, RandomError};
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::now;
use crate::clock;
use crate::control::access_key::{AccessKey, AccessKeyId, KeyName, Scope, SecretHash};
use crate::control::{KeyInfo, KeyVerdict};

/// Keys by their ids, and by their tenants.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    pub(super) keys: HashMap<AccessKeyId, Record>,
    of_tenants: HashMap<TenantId, BTreeSet<AccessKeyId>>,
}

impl KeyIndex {
    /// What `presented` is.
    pub(crate) fn judge(&self, presented: &AccessKey) -> KeyVerdict {
        let record = self.keys.get(&presented.id());
        let kept = record.map_or(SecretHash::NONE, |record| record.hash);
        let same = bool::from(kept.ct_eq(&presented.hash()));
        match record {
            Some(record) if same && record.revoked.is_none() => KeyVerdict::Live {
                tenant: record.tenant.0.clone(),
                scope: record.scope,
            },
            Some(_) if same => KeyVerdict::Revoked,
            _ => KeyVerdict::Unknown,
        }
    }

    /// Whether a tenant has a key of this id that was not revoked.
    pub(crate) fn is_live(&self, tenant: &TenantId, id: AccessKeyId) -> bool {
        let record = self.keys.get(&id);
        record.is_some_and(|record| record.is_live() && record.tenant.0 == *tenant)
    }

    /// A tenant's keys that `which` chooses, oldest first.
    pub(crate) fn of(
        &self,
        tenant: &TenantId,
        which: impl Fn(&Record) -> bool,
    ) -> Vec<(AccessKeyId, Record)> {
        let ids = self.of_tenants.get(tenant).into_iter().flatten();
        let found = ids.filter_map(|id| Some((*id, self.keys.get(id)?)));
        let mut found: Vec<_> = found
            .filter(|(_, record)| which(record))
            .map(|(id, record)| (id, record.clone()))
            .collect();
        sort(&mut found);
        found
    }

    /// The keys of a tenant, oldest first, without those that were revoked.
    pub(crate) fn live(&self, tenant: &TenantId) -> Vec<KeyInfo> {
        let live = self.of(tenant, Record::is_live);
        live.into_iter()
            .map(|(id, record)| record.info(id))
            .collect()
    }

    /// Removes all keys of a tenant.
    pub(crate) fn forget(&mut self, tenant: &TenantId) {
        for id in self.of_tenants.remove(tenant).unwrap_or_default() {
            self.keys.remove(&id);
        }
    }

    pub(crate) fn insert(&mut self, id: AccessKeyId, record: Record) {
        let ids = self.of_tenants.entry(record.tenant.0.clone()).or_default();
        ids.insert(id);
        self.keys.insert(id, record);
    }

    /// Removes these keys of a tenant.
    pub(super) fn remove(&mut self, tenant: &TenantId, ids: &[AccessKeyId]) {
        for id in ids {
            self.keys.remove(id);
        }
        if let Some(left) = self.of_tenants.get_mut(tenant) {
            left.retain(|id| !ids.contains(id));
            if left.is_empty() {
                self.of_tenants.remove(tenant);
            }
        }
    }
}

/// A key as it is stored, as JSON under its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub(super) tenant: TenantName,
    pub(super) name: KeyName,
    pub(super) scope: Scope,
    pub(super) created: Timestamp,
    /// SHA-256 of the secret.
    #[serde(with = "hex")]
    pub(super) hash: SecretHash,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) revoked: Option<Timestamp>,
}

impl Record {
    /// A new key, and what is stored of it.
    pub(crate) fn draw(
        tenant: &TenantId,
        name: KeyName,
        scope: Scope,
    ) -> Result<(AccessKey, Self), RandomError> {
        let key = AccessKey::draw(&OsRandom)?;
        let record = Self {
            tenant: TenantName(tenant.clone()),
            name,
            scope,
            created: now(),
            hash: key.hash(),
            revoked: None,
        };
        Ok((key, record))
    }

    pub(crate) fn is_live(&self) -> bool {
        self.revoked.is_none()
    }

    pub(crate) fn revoke(&mut self) {
        self.revoked = Some(clock::now());
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    pub(crate) fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub(crate) fn info(&self, id: AccessKeyId) -> KeyInfo {
        KeyInfo {
            id: id.to_string(),
            name: self.name.clone(),
            scope: self.scope,
            created: self.created,
        }
    }
}

/// A tenant id in a record: checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct TenantName(pub(super) TenantId);

impl TryFrom<String> for TenantName {
    type Error = nimbus_manifests::InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<TenantName> for String {
    fn from(tenant: TenantName) -> Self {
        tenant.0.to_string()
    }
}

/// The oldest first.
pub(crate) fn sort(records: &mut [(AccessKeyId, Record)]) {
    records.sort_by_key(|(id, record)| (record.revoked, record.created, *id));
}

/// Of a tenant's revoked keys, the oldest first, those to be forgotten when another is revoked:
/// they are then refused as keys that never were.
pub(crate) fn beyond_remembered(revoked: &[(AccessKeyId, Record)]) -> Vec<AccessKeyId> {
    let surplus = (revoked.len() + 1).saturating_sub(MAX_REVOKED);
    revoked.iter().take(surplus).map(|(id, _)| *id).collect()
}

/// A hash as hexadecimal text.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::{HEXLOWER, SecretHash};

    pub(in crate::control) fn serialize<S: Serializer>(
        hash: &SecretHash,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.serialize_str(&HEXLOWER.encode(hash.as_bytes()))
    }

    pub(in crate::control) fn deserialize<'de, D: Deserializer<'de>>(
        text: D,
    ) -> Result<SecretHash, D::Error> {
        let text = String::deserialize(text)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(SecretHash::from_bytes)
            .ok_or_else(|| D::Error::custom("a hash is 64 hexadecimal digits"))
    }
}

/// How many revoked keys of a tenant are distinguished from unknown ones.
const MAX_REVOKED: usize = 100;
