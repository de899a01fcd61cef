//! Whether pages authenticate and the structure is whole.

use nimbus_keyproviders::CipherKey;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::{self, is_not_understood};
use super::{Damage, Database, OpenError, PAGE_BYTES, key};

/// How many pages of the file do not authenticate. Reads them all.
fn bad_pages(connection: &Connection) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare("PRAGMA cipher_integrity_check")?;
    let mut rows = statement.query([])?;
    let mut bad = 0;
    while rows.next()?.is_some() {
        bad += 1;
    }
    Ok(bad)
}

pub(super) fn finding(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let finding = finding_of_structure(connection)?;
    confirm(connection)?;
    Ok(finding)
}

/// Whether all that `connection` has read is authentic.
///
/// SQLCipher hands a page whose MAC is wrong to SQLite as zeros, and lets the *next* page fail: a
/// statement that reads no page after it ends well, with zeros for data (`sqlite3Codec`). It marks
/// the connection then as one that may not write, which ours otherwise may
/// (`sqlcipher_codec_ctx_set_error`). Within a transaction that writes there is no mark: there the
/// commit fails, as no page is encrypted any more.
///
/// # Errors
///
/// `SQLITE_CORRUPT`.
pub(crate) fn confirm(connection: &Connection) -> rusqlite::Result<()> {
    match connection.is_readonly(rusqlite::MAIN_DB)? {
        false => Ok(()),
        true => Err(error::sqlite_error(rusqlite::ffi::SQLITE_CORRUPT)),
    }
}

fn finding_of_structure(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({})", i32::MAX))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let finding: String = row.get(0)?;
        if finding != "ok" && !is_about_rules(&finding) {
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

/// Whether a finding is about what a row says, or what a module of its own keeps, and not about
/// where it is.
pub(super) fn is_about_rules(finding: &str) -> bool {
    finding.starts_with("CHECK constraint failed in ")
        || finding.starts_with("NULL value in ")
        || finding.starts_with("NUMERIC value in ")
        || finding.starts_with("TEXT value in ")
        || (finding.starts_with("non-") && finding.contains(" value in "))
        || finding.starts_with("unable to validate the inverted index")
}

/// Up to this size a failed open looks at each page to say what is wrong.
const DIAGNOSED_BYTES: u64 = 64 << 20;

impl Database {
    /// Proves every page: `cipher_integrity_check` over the file's page MACs, and SQLite's own
    /// `integrity_check` beside it. Reads the whole file twice, on two threads. Blocks; checkpoints
    /// what it can first, because the MAC check does not look into the WAL. (SQLite's own check
    /// does.) No page comes from the page cache.
    ///
    /// # Errors
    ///
    /// [`OpenError::Damaged`].
    pub fn verify_pages(&self) -> Result<(), OpenError> {
        let connection = self.uncached()?;
        connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(()))
            .map_err(|error| self.explain("verify", error))?;
        std::thread::scope(|scope| {
            let structure = scope.spawn(move || self.verify_structure(&connection));
            let macs = self.verify_macs();
            let structure = structure
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            macs.and(structure)
        })
    }

    /// Proves that every page in the file authenticates. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError::Damaged`].
    pub(crate) fn verify_macs(&self) -> Result<(), OpenError> {
        let Some(key) = self.key() else { return Ok(()) };
        let count = || {
            self.bad_pages_of(&key)
                .map_err(|error| self.explain("verify", error))
        };
        // A page that a checkpoint was writing just then looks torn; a damaged one looks so twice.
        if count()? == 0 {
            return Ok(());
        }
        match count()? {
            0 => Ok(()),
            bad => Err(OpenError::Damaged {
                path: self.path.clone(),
                damage: Damage::Pages {
                    bad,
                    pages: self.size()? / PAGE_BYTES,
                },
            }),
        }
    }

    /// SQLite's own check of the structure. Rows that break the rules of their table are no damage:
    /// SQLite kept them so.
    pub(super) fn verify_structure(&self, connection: &Connection) -> Result<(), OpenError> {
        match self.finding(connection)? {
            None => Ok(()),
            Some(_finding) => Err(OpenError::Damaged {
                path: self.path.clone(),
                damage: Damage::Structure,
            }),
        }
    }

    /// What SQLite's own check finds first, but for rows that break the rules of their table.
    pub(super) fn finding(&self, connection: &Connection) -> Result<Option<String>, OpenError> {
        // Each index entry is looked up: pages that come again must not be opened again.
        connection
            .pragma_update(None, "cache_size", VERIFYING_KIB)
            .map_err(|error| self.explain("verify", error))?;
        match finding(connection) {
            Ok(finding) => Ok(finding),
            // The schema needs a collation, a function or a module of its application, without
            // which SQLite checks nothing of it.
            Err(error) if is_not_understood(&error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the structure cannot be checked here, only that every page authenticates");
                Ok(None)
            }
            Err(error) => Err(self.explain("verify", error)),
        }
    }

    /// Turns SQLite's answer into what it means for this file: a wrong key and a damaged file are
    /// distinguished where possible.
    pub(super) fn explain(&self, action: &'static str, error: rusqlite::Error) -> OpenError {
        let path = self.path.clone();
        let extended = error.sqlite_error().map(|error| error.extended_code);
        match error.sqlite_error_code() {
            _ if extended == Some(rusqlite::ffi::SQLITE_READONLY_DBMOVED) => {
                OpenError::WalReplaced { path }
            }
            Some(ErrorCode::NotADatabase) => {
                self.diagnose().unwrap_or(OpenError::KeyMismatch { path })
            }
            Some(ErrorCode::DatabaseCorrupt) => self.diagnose().unwrap_or(OpenError::Damaged {
                path,
                damage: Damage::Structure,
            }),
            _ => OpenError::Sqlite {
                action,
                path,
                source: error,
            },
        }
    }

    /// Looks closer at a file whose page 1 does not authenticate: torn, or damaged in some pages.
    /// `None`: no page authenticates, or the file is too large to look at each on the way to an
    /// error message.
    fn diagnose(&self) -> Option<OpenError> {
        let damaged = |damage| {
            Some(OpenError::Damaged {
                path: self.path.clone(),
                damage,
            })
        };
        let size = self.size().ok()?;
        if size % PAGE_BYTES != 0 {
            return damaged(Damage::Torn { size });
        }
        let key = self.key()?;
        if size > DIAGNOSED_BYTES {
            return None;
        }
        let pages = size / PAGE_BYTES;
        let bad = self.bad_pages_of(&key).ok()?;
        (0 < bad && bad < pages).then(|| damaged(Damage::Pages { bad, pages }))?
    }

    /// Counts bad pages on a fresh connection that has read nothing.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one opener that the lint protects"
    )]
    fn bad_pages_of(&self, key: &CipherKey) -> rusqlite::Result<u64> {
        let connection = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        key::hand_over(&connection, key, None)?;
        bad_pages(&connection)
    }
}

/// Page cache of a verification, in KiB (negative: the unit is KiB and not pages).
const VERIFYING_KIB: i32 = -32_768;
