//! The linked library: that it is what Nimbus relies on, and what it may say.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;

use super::OpenError;

/// Asserts, once a process, that the linked library is what Nimbus was measured with; opens a
/// database in memory.
///
/// # Errors
///
/// [`OpenError::Library`] names what is missing.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one opener that the lint protects"
)]
pub fn check_library() -> Result<(), OpenError> {
    static VERDICT: OnceLock<Result<(), String>> = OnceLock::new();
    let check = || {
        let connection = Connection::open_in_memory().map_err(|error| error.to_string())?;
        let ask = |pragma: &str| {
            connection
                .query_row(pragma, [], |row| row.get::<_, String>(0))
                .map_err(|error| format!("`{pragma}` answered {error}"))
        };
        let version = ask("PRAGMA cipher_version")?;
        if !version.starts_with("4.") {
            return Err(format!("it is SQLCipher {version}, not 4"));
        }
        quiet_library(&connection).map_err(|error| error.to_string())?;
        // The provider answers only on a keyed connection; this key protects nothing, an empty
        // database in memory.
        connection
            .execute_batch("PRAGMA key = 'asking for the provider'")
            .map_err(|error| error.to_string())?;
        let provider = ask("PRAGMA cipher_provider")?;
        if provider != "openssl" {
            return Err(format!("its cryptography is {provider}, not OpenSSL"));
        }
        if rusqlite::version_number() < WAL_RESET_FIXED {
            return Err(format!(
                "SQLite {} can corrupt a WAL database (fixed in 3.51.3)",
                rusqlite::version()
            ));
        }
        Ok(())
    };
    VERDICT
        .get_or_init(check)
        .clone()
        .map_err(OpenError::Library)
}

/// SQLCipher writes its own diagnostics to standard error unless disabled; those of Nimbus come
/// from the error codes.
pub(super) fn quiet_library(connection: &Connection) -> rusqlite::Result<()> {
    static QUIET: AtomicBool = AtomicBool::new(false);
    if !QUIET.load(Ordering::Relaxed) {
        connection.execute_batch("PRAGMA cipher_log_level = NONE")?;
        QUIET.store(true, Ordering::Relaxed);
    }
    Ok(())
}

const WAL_RESET_FIXED: i32 = 3_051_003;
