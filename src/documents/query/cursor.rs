//! Cursors: where a page ended, as text that the client hands back.
//!
//! ```text
//! base64url( 1, binding: 16 bytes, rank: 8, seq: 8, kind: 1, value )    numbers big-endian
//! kind 0: an integer, 8 bytes; 1: a double, 8 bytes; 2: text, UTF-8 to the end
//! ```
//!
//! `binding` is a hash of tenant and query, against mistakes: a cursor says nothing that its owner has not seen, and
//! whatever is put in its place names a position and no more.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use super::Query;
use crate::documents::InputError;

/// A place in the order of a query: right after a document that was there. It does not depend on that document
/// staying there, nor on others.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// Where the type of the value that the order goes by stands among types.
    pub rank: i64,
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
    /// As a cursor for this query on this tenant.
    #[must_use]
    pub fn to_cursor(&self, tenant: &str, query: &Query) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(binding(tenant, query));
        bytes.extend(self.rank.to_be_bytes());
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
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// Reads a cursor, which must be of this query on this tenant.
    pub fn from_cursor(cursor: &str, tenant: &str, query: &Query) -> Result<Self, InputError> {
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes());
        let bytes = bytes.map_err(|_| InputError::Cursor)?;
        parse(&bytes, &binding(tenant, query)).ok_or(InputError::Cursor)
    }
}

fn parse(bytes: &[u8], binding: &[u8; BINDING_BYTES]) -> Option<Position> {
    let (&[version], rest) = bytes.split_first_chunk()?;
    let (bound, rest) = rest.split_first_chunk::<BINDING_BYTES>()?;
    let (rank, rest) = rest.split_first_chunk()?;
    let (seq, rest) = rest.split_first_chunk()?;
    let (&[kind], value) = rest.split_first_chunk()?;
    if version != VERSION || bound != binding {
        return None;
    }
    let key = match kind {
        0 => Key::Integer(i64::from_be_bytes(value.try_into().ok()?)),
        1 => {
            let double = f64::from_be_bytes(value.try_into().ok()?);
            double.is_finite().then_some(Key::Double(double))?
        }
        2 => Key::Text(String::from_utf8(value.to_vec()).ok()?),
        _ => return None,
    };
    Some(Position {
        rank: i64::from_be_bytes(*rank),
        key,
        seq: i64::from_be_bytes(*seq),
    })
}

/// What a cursor belongs to.
fn binding(tenant: &str, query: &Query) -> [u8; BINDING_BYTES] {
    let query = serde_json::to_vec(query).expect("a query is plain data");
    let mut hash = Sha256::new();
    hash.update(b"nimbus query cursor 1\0");
    hash.update(tenant.as_bytes());
    // No tenant's name has it.
    hash.update(b"\0");
    hash.update(&query);
    let hash: [u8; 32] = hash.finalize().into();
    let (binding, _) = hash.split_first_chunk().expect("a hash is longer");
    *binding
}

const VERSION: u8 = 1;
const BINDING_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn query(table: &str) -> Query {
        let json = format!(
            r#"{{"table":"{table}","filters":[{{"field":"a","op":"eq","value":1}}],"order":{{"field":"b"}}}}"#
        );
        Query::from_json(&json).unwrap()
    }

    #[test]
    fn cursors_read_back_and_only_for_their_query_and_tenant() {
        let keys = [
            Key::Integer(i64::MIN),
            Key::Double(-0.5),
            Key::Text("a\0é".to_owned()),
            Key::Text(String::new()),
        ];
        for key in keys {
            let position = Position {
                rank: 5,
                key,
                seq: i64::MAX,
            };
            let cursor = position.to_cursor("acme", &query("t"));
            let read = |cursor: &str, tenant: &str, table: &str| {
                Position::from_cursor(cursor, tenant, &query(table))
            };
            assert_eq!(read(&cursor, "acme", "t"), Ok(position));
            assert_eq!(read(&cursor, "acme", "u"), Err(InputError::Cursor));
            assert_eq!(read(&cursor, "acme2", "t"), Err(InputError::Cursor));
            // Every byte up to the value's counts.
            for end in 0..46 {
                assert_eq!(read(&cursor[..end], "acme", "t"), Err(InputError::Cursor));
            }
        }
        let nan = Position {
            rank: 4,
            key: Key::Double(f64::NAN),
            seq: 1,
        };
        let cursor = nan.to_cursor("acme", &query("t"));
        for cursor in ["", "=", "AQ", "ä", &cursor, &"A".repeat(100)] {
            let read = Position::from_cursor(cursor, "acme", &query("t"));
            assert_eq!(read, Err(InputError::Cursor), "{cursor}");
        }
    }
}
