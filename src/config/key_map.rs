//! Which tenants have a KMS key of their own: a JSON object from tenant ids to keys, in a file or
//! in the configuration file itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::PathBuf;

use nimbus_manifests::TenantId;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Where the map is: in the configuration file, or in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyMapSource {
    /// A file of its own.
    File(PathBuf),
    /// Here.
    Inline(KeyMap),
}

impl<'de> Deserialize<'de> for KeyMapSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;
        impl<'de> Visitor<'de> for Source {
            type Value = KeyMapSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or an object from tenant ids to KMS keys,")
            }

            fn visit_str<E>(self, path: &str) -> Result<KeyMapSource, E> {
                Ok(path.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KeyMapSource, A::Error> {
                let map = MapAccessDeserializer::new(map);
                KeyMap::deserialize(map).map(KeyMapSource::Inline)
            }
        }
        deserializer.deserialize_any(Source)
    }
}

impl From<&str> for KeyMapSource {
    fn from(path: &str) -> Self {
        Self::File(path.into())
    }
}

/// Tenants and their keys: ids, aliases, or the ARNs of either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyMap(pub(super) BTreeMap<TenantId, String>);

impl<'de> Deserialize<'de> for KeyMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = KeyMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tenant ids to KMS keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyMap, A::Error> {
                let mut keys = BTreeMap::new();
                while let Some((tenant, key)) = map.next_entry::<String, String>()? {
                    let tenant: TenantId = tenant.parse().map_err(|error| {
                        A::Error::custom(format!("{tenant:?} is no tenant id: {error}"))
                    })?;
                    if key.trim() != key || key.is_empty() || key.len() > MAX_KEY {
                        return Err(A::Error::custom(format!(
                            "tenant {tenant} has no possible key"
                        )));
                    }
                    // The last one would win in silence, and a tenant would be under a key that its
                    // customer does not hold.
                    match keys.entry(tenant) {
                        Entry::Vacant(free) => {
                            free.insert(key);
                        }
                        Entry::Occupied(taken) => {
                            let tenant = taken.key();
                            return Err(A::Error::custom(format!(
                                "tenant {tenant} stands there twice"
                            )));
                        }
                    }
                }
                Ok(KeyMap(keys))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// As long as an ARN may be.
const MAX_KEY: usize = 2048;
