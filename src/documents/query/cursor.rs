//! Where a page of a query ends, as bytes. The store seals them before a client sees them: they
//! hold a value of a document.
//!
//! ```text
//! rank: 8, seq: 8, kind: 1, value    numbers big-endian
//! kind 0: an integer, 8 bytes; 1: a double, 8 bytes; 2: text, UTF-8 to the end
//! ```

use sha2::{Digest as _, Sha256};

use super::{Query, TypeRank};

/// A place in the order of a query: right after a document that was there. It does not depend on
/// that document staying there, nor on others.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// The type of the value that the order goes by.
    pub rank: TypeRank,
    /// That value, where types have several.
    pub key: Key,
    /// The number of the write that inserted the document.
    pub seq: i64,
}

impl Eq for Position {}

/// A value that an order goes by.
#[derive(Debug, Clone, PartialEq)]
pub enum Key {
    /// An integer, and whatever has but one value of its type.
    Integer(i64),
    /// Another number; it is finite.
    Double(f64),
    /// Text.
    Text(String),
}

impl Position {
    /// It as bytes, which [`from_bytes`](Self::from_bytes) reads.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.rank.number().to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        match &self.key {
            Key::Integer(integer) => {
                bytes.push(0);
                bytes.extend(integer.to_be_bytes());
            }
            Key::Double(double) => {
                bytes.push(1);
                bytes.extend(double.to_be_bytes());
            }
            Key::Text(text) => {
                bytes.push(2);
                bytes.extend(text.as_bytes());
            }
        }
        bytes
    }

    /// Reads it; `None` when these bytes are no position.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (rank, rest) = bytes.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (&[kind], value) = rest.split_first_chunk()?;
        let key = match kind {
            0 => Key::Integer(i64::from_be_bytes(value.try_into().ok()?)),
            1 => {
                let double = f64::from_be_bytes(value.try_into().ok()?);
                double.is_finite().then_some(Key::Double(double))?
            }
            2 => Key::Text(String::from_utf8(value.to_vec()).ok()?),
            _ => return None,
        };
        Some(Self {
            rank: TypeRank::from_number(i64::from_be_bytes(*rank))?,
            key,
            seq: i64::from_be_bytes(*seq),
        })
    }
}

impl Query {
    /// A hash of all that the query asks, however it was written: a cursor belongs to one query.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let query = serde_json::to_vec(self).expect("a query is plain data");
        Sha256::digest(query).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back_and_nothing_shorter_does() {
        let keys = [
            Key::Integer(i64::MIN),
            Key::Double(-0.5),
            Key::Text("a\0é".to_owned()),
            Key::Text(String::new()),
        ];
        for key in keys {
            let is_text = matches!(key, Key::Text(_));
            let position = Position {
                rank: TypeRank::List,
                key,
                seq: i64::MAX,
            };
            let bytes = position.to_bytes();
            assert_eq!(Position::from_bytes(&bytes), Some(position));
            let whole = if is_text { 17 } else { bytes.len() };
            for end in 0..whole {
                assert_eq!(Position::from_bytes(&bytes[..end]), None);
            }
        }
        let nan = Position {
            rank: TypeRank::Number,
            key: Key::Double(f64::NAN),
            seq: 1,
        };
        assert_eq!(Position::from_bytes(&nan.to_bytes()), None);
    }

    #[test]
    fn the_digest_is_that_of_what_is_asked() {
        let digest = |json: &str| Query::from_json(json).unwrap().digest();
        let query = digest(r#"{"table":"t","order":{"field":"a"}}"#);
        assert_eq!(
            query,
            digest(
                r#"{"order":{"direction":"asc","field":"a"},"filters":[],"limit":null,"table":"t"}"#
            )
        );
        for other in [
            r#"{"table":"u","order":{"field":"a"}}"#,
            r#"{"table":"t","order":{"field":"b"}}"#,
            r#"{"table":"t","order":{"field":"a","direction":"desc"}}"#,
            r#"{"table":"t"}"#,
            r#"{"table":"t","order":{"field":"a"},"filters":[{"field":"a","op":"eq","value":1}]}"#,
        ] {
            assert_ne!(query, digest(other), "{other}");
        }
    }
}
