//! The name of a table of documents.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::limits::MAX_TABLE_NAME_BYTES;
use super::{InputError, error::excerpt};

/// The name of a table: `[A-Za-z][A-Za-z0-9_-]{0,63}`. Case counts: `Cities` and `cities` are two
/// tables.
///
/// The rule keeps names fit for a URL path, a file name and a shell word. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName(Arc<str>);

impl TableName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TableName {
    type Err = InputError;

    fn from_str(name: &str) -> Result<Self, InputError> {
        if is_name(name, MAX_TABLE_NAME_BYTES) {
            Ok(Self(name.into()))
        } else {
            Err(InputError::TableName {
                name: excerpt(name),
            })
        }
    }
}

/// A letter, then letters, digits, `_` and `-`, at most `max_bytes` in all.
pub(super) fn is_name(name: &str, max_bytes: usize) -> bool {
    let rest = name.strip_prefix(|c: char| c.is_ascii_alphabetic());
    rest.is_some_and(|rest| {
        name.len() <= max_bytes
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    })
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TableName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_rule() {
        for name in ["a", "Cities", "a-b_c9", &"t".repeat(64)] {
            assert_eq!(name.parse::<TableName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn rejects_everything_else() {
        let long = "t".repeat(65);
        for name in [
            "", "_a", "-a", "9a", "a b", "a.b", "a/b", "a\"b", "a\0b", "é", "aé", "a;drop", &long,
        ] {
            assert!(
                matches!(name.parse::<TableName>(), Err(InputError::TableName { .. })),
                "{name:?}"
            );
        }
    }
}
