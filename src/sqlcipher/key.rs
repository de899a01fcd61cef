//! The key hand-over: the one place where key bytes leave Nimbus for SQLCipher.
//!
//! The key goes through `sqlite3_key_v2` from a buffer that is wiped on every path, so that no SQL
//! text, statement cache or error message ever holds it. SQLCipher copies it into memory of its
//! own, which it wipes when the connection closes.
#![expect(
    unsafe_code,
    reason = "sqlite3_key_v2 has no safe binding, and PRAGMA key would put the key into SQL text"
)]

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use nimbus_keyproviders::CipherKey;
use rusqlite::{Connection, ffi};
use zeroize::Zeroizing;

use super::Database;
use super::error::{OpenError, sqlite_error};
use super::page::{PageKey, SALT};
use super::page_cache::{Owner, opened_for};

/// Gives `key` to a connection that has not read anything yet. With an `owner` it reads through the
/// page cache; without one it reads what lies on the disk, and all of it is verified.
///
/// The raw form `x'<64 hex digits>'` tells SQLCipher to derive nothing from it but the HMAC key
/// (<https://www.zetetic.net/sqlcipher/sqlcipher-api/#key>, "Raw key").
pub(super) fn hand_over(
    connection: &Connection,
    key: &CipherKey,
    owner: Option<&Owner>,
) -> rusqlite::Result<()> {
    let mut raw = Zeroizing::new([0_u8; RAW_KEY_BYTES]);
    raw[..2].copy_from_slice(b"x'");
    HEXLOWER.encode_mut(key.expose(), &mut raw[2..RAW_KEY_BYTES - 1]);
    raw[RAW_KEY_BYTES - 1] = b'\'';
    let code = opened_for(owner, || {
        // SAFETY: the handle is that of a live connection, borrowed for the whole call; the name is
        // a NUL-terminated literal; the pointer and length describe `raw`, which outlives the call,
        // and SQLCipher copies the bytes before it returns.
        unsafe {
            ffi::sqlite3_key_v2(
                connection.handle(),
                c"main".as_ptr(),
                raw.as_ptr().cast(),
                RAW_KEY_BYTES as i32,
            )
        }
    });
    if code == ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
    }
}

/// `x'`, 64 hex digits, `'`.
const RAW_KEY_BYTES: usize = 2 + 64 + 1;

/// The key of a database's pages. Its salt is asked of SQLCipher: whoever opens and closes the file
/// by hand takes away SQLite's locks on it.
pub(super) fn page_key(database: &Database, connection: &Connection) -> Result<PageKey, OpenError> {
    let failed = |source| OpenError::Sqlite {
        action: "read the salt of",
        path: database.path().to_owned(),
        source,
    };
    let text: String = connection
        .pragma_query_value(None, "cipher_salt", |row| row.get(0))
        .map_err(failed)?;
    let salt = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let salt = salt.and_then(|salt| <[u8; SALT]>::try_from(salt).ok());
    match (database.key(), salt) {
        (Some(key), Some(salt)) => Ok(PageKey::new(key, salt)),
        _ => Err(failed(sqlite_error(ffi::SQLITE_NOTADB))),
    }
}
