//! Sealed cursors: where a page ended, as text that only the tenant that gave it can read.
//!
//! ```text
//! base64url( nonce: 24, XChaCha20-Poly1305( place ), tag: 16 )
//! associated data: "nimbus cursor 1", 0, the kind, 0, the tenant, 0, what it is a place in
//! ```
//!
//! A place holds values of documents, and cursors end up in URLs and logs. The key is random, one a
//! tenant, and lies in the tenant's own database. The associated data makes a cursor good for its
//! own tenant, kind and query alone.

use std::fmt;

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use data_encoding::BASE64URL_NOPAD;
use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use nimbus_manifests::TenantId;

use super::StoreError;
use crate::documents::InputError;
use crate::documents::query::{Position, Query};
use crate::documents::schedule::JobPlace;

/// The bytes of a tenant's cursor key.
pub const CURSOR_KEY_BYTES: usize = 32;

/// What a cursor is a place in. Each kind has a label of its own, so that one is never taken for
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CursorKind {
    /// The answer to a query.
    Query,
    /// The list of jobs that wait.
    Jobs,
}

impl CursorKind {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Query => b"query",
            Self::Jobs => b"jobs",
        }
    }
}

/// What seals the cursors of one tenant, and opens them. The key is wiped when this is dropped.
pub struct Cursors {
    tenant: TenantId,
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for Cursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursors")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl Cursors {
    /// Those of `tenant`, under its key.
    #[must_use]
    pub fn new(tenant: &TenantId, key: &[u8; CURSOR_KEY_BYTES]) -> Self {
        Self {
            tenant: tenant.clone(),
            cipher: XChaCha20Poly1305::new(key.into()),
        }
    }

    /// A cursor for `place` in what `of` names: a table, or the digest of a query.
    pub fn seal(&self, kind: CursorKind, of: &[u8], place: &[u8]) -> Result<String, StoreError> {
        let mut sealed = vec![0; NONCE];
        OsRandom.fill(&mut sealed)?;
        let nonce = XNonce::try_from(&*sealed).expect("it has the length of a nonce");
        sealed.extend_from_slice(place);
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &nonce,
                &self.context(kind, of),
                (&mut sealed[NONCE..]).into(),
            )
            .expect("the cipher takes 256 GiB");
        sealed.extend_from_slice(&tag);
        Ok(BASE64URL_NOPAD.encode(&sealed))
    }

    /// The place that a cursor of this tenant names in what `of` names.
    pub fn open(&self, kind: CursorKind, of: &[u8], cursor: &str) -> Result<Vec<u8>, InputError> {
        self.unsealed(kind, of, cursor).ok_or(InputError::Cursor)
    }

    /// The cursor for a place in the answer to a query.
    pub fn seal_position(&self, query: &Query, position: &Position) -> Result<String, StoreError> {
        self.seal(CursorKind::Query, &query.digest(), &position.to_bytes())
    }

    /// The place in the answer to a query that a cursor names.
    pub fn open_position(&self, query: &Query, cursor: &str) -> Result<Position, InputError> {
        let place = self.open(CursorKind::Query, &query.digest(), cursor)?;
        Position::from_bytes(&place).ok_or(InputError::Cursor)
    }

    /// The cursor for a place in the list of jobs that wait.
    pub fn seal_job(&self, place: JobPlace) -> Result<String, StoreError> {
        self.seal(CursorKind::Jobs, b"", &place.to_bytes())
    }

    /// The place in the list of jobs that a cursor names.
    pub fn open_job(&self, cursor: &str) -> Result<JobPlace, InputError> {
        let place = self.open(CursorKind::Jobs, b"", cursor)?;
        JobPlace::from_bytes(&place).ok_or(InputError::Cursor)
    }

    fn unsealed(&self, kind: CursorKind, of: &[u8], cursor: &str) -> Option<Vec<u8>> {
        let sealed = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
        let (nonce, rest) = sealed.split_at_checked(NONCE)?;
        let (text, tag) = rest.split_at_checked(rest.len().checked_sub(TAG)?)?;
        let (nonce, tag) = (XNonce::try_from(nonce).ok()?, Tag::try_from(tag).ok()?);
        let mut place = text.to_vec();
        self.cipher
            .decrypt_inout_detached(
                &nonce,
                &self.context(kind, of),
                place.as_mut_slice().into(),
                &tag,
            )
            .ok()?;
        Some(place)
    }

    /// What a cursor is bound to. Labels and tenants' names have no zero byte, and `of` comes last.
    fn context(&self, kind: CursorKind, of: &[u8]) -> Vec<u8> {
        let parts: [&[u8]; 4] = [
            b"nimbus cursor 1",
            kind.label(),
            self.tenant.as_str().as_bytes(),
            of,
        ];
        parts.join(&0)
    }
}

const NONCE: usize = 24;
const TAG: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::documents::query::{Key, TypeRank};

    fn cursors(tenant: &str, key: u8) -> Cursors {
        Cursors::new(&tenant.parse().unwrap(), &[key; 32])
    }

    fn query(table: &str) -> Query {
        let json = format!(
            r#"{{"table":"{table}","filters":[{{"field":"a","op":"eq","value":1}}],"order":{{"field":"b"}}}}"#
        );
        Query::from_json(&json).unwrap()
    }

    #[test]
    fn a_cursor_opens_for_its_own_tenant_key_kind_and_query_alone() {
        let (own, table) = (cursors("acme", 7), query("t"));
        let position = Position {
            rank: TypeRank::String,
            key: Key::Text("confidential diagnosis".to_owned()),
            seq: 9,
        };
        let cursor = own.seal_position(&table, &position).unwrap();
        assert_eq!(own.open_position(&table, &cursor), Ok(position.clone()));
        let refused = Err(InputError::Cursor);
        for (cursors, query) in [
            (&own, query("u")),
            (&cursors("acme2", 7), query("t")),
            (&cursors("acme", 8), query("t")),
        ] {
            assert_eq!(cursors.open_position(&query, &cursor), refused);
        }
        // Two cursors for one place differ, and neither says anything of it.
        let again = own.seal_position(&table, &position).unwrap();
        assert_ne!(cursor, again);
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).unwrap();
        let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(!holds(b"confidential") && !holds(b"diagnosis"));
    }

    #[test]
    fn a_cursor_of_one_kind_is_none_of_another() {
        let own = cursors("acme", 7);
        let place = JobPlace {
            run_at_ms: -1,
            id: "019aacb8-6f2e-7c41-a0f3-2f1d1f0a5c11".parse().unwrap(),
        };
        let cursor = own.seal_job(place).unwrap();
        assert_eq!(own.open_job(&cursor), Ok(place));
        let refused = Err(InputError::Cursor);
        assert_eq!(own.open_position(&query("t"), &cursor), refused);
        let position = Position {
            rank: TypeRank::Number,
            key: Key::Integer(1),
            seq: 9,
        };
        let cursor = own.seal_position(&query("t"), &position).unwrap();
        assert_eq!(own.open_job(&cursor), Err(InputError::Cursor));
    }

    #[test]
    fn an_edited_cursor_is_refused_wherever_it_was_edited() {
        let (own, table) = (cursors("acme", 7), query("t"));
        let position = Position {
            rank: TypeRank::Number,
            key: Key::Integer(1),
            seq: 9,
        };
        let cursor = own.seal_position(&table, &position).unwrap();
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[at] ^= 1;
            let edited = BASE64URL_NOPAD.encode(&edited);
            assert_eq!(
                own.open_position(&table, &edited),
                Err(InputError::Cursor),
                "{at}"
            );
        }
        for end in 0..bytes.len() {
            let cut = BASE64URL_NOPAD.encode(&bytes[..end]);
            assert_eq!(own.open_position(&table, &cut), Err(InputError::Cursor));
        }
        // The form of earlier versions: version, binding and place in the clear.
        let plain = [&[1][..], &[0; 16], &position.to_bytes()].concat();
        for text in ["", "=", "AQ", "ä", &BASE64URL_NOPAD.encode(&plain)] {
            assert_eq!(own.open_position(&table, text), Err(InputError::Cursor));
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_again(place in prop::collection::vec(any::<u8>(), 0..300), of in prop::collection::vec(any::<u8>(), 0..40)) {
            let own = cursors("acme", 1);
            let cursor = own.seal(CursorKind::Query, &of, &place).unwrap();
            prop_assert_eq!(own.open(CursorKind::Query, &of, &cursor), Ok(place));
        }
    }
}
