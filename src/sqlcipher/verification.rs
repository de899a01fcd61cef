//! Whether pages authenticate and the structure is whole.
//!
//! Each page is read and authenticated once. SQLite's own check reads, through SQLCipher, each page
//! that is in use, and finds pages that nothing leads to. It does not read the leaves of the free
//! list and what stands behind the end of the database: those are authenticated beside it. All of
//! that is of one state while a transaction pins it, if the file has all of the WAL: otherwise, and
//! where SQLite cannot check the structure, every page of the file is authenticated by itself.
//!
//! | page | proven by |
//! | --- | --- |
//! | of a b-tree, an overflow chain, the pointer map, a trunk of the free list | SQLite's check |
//! | a leaf of the free list, one behind the end | its MAC |
//! | one that nothing leads to | SQLite's check finds it |
//! | the one where locks lie | nobody: SQLite neither reads nor writes it |
//! | a frame of the WAL that is not in the file | SQLite's check; then the page of the file that it lies over by its MAC |

use nimbus_keyproviders::CipherKey;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::{self, is_not_understood, sqlite_error};
use super::key::page_key;
use super::page::{Content, LOCK_PAGE, PAGE};
use super::{Damage, Database, OpenError, PAGE_BYTES, key};
use crate::runtime::Progress;
use crate::sqlite_file::{SqliteFile, WalIndex};

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

/// What SQLite's own check says.
enum Checked {
    /// It read every page that is in use, and all is sound.
    Whole,
    /// It cannot understand the schema, and read no more than that.
    NotUnderstood,
    /// Something is not sound.
    Found(String),
}

/// The pages that stand behind the end of a database with `count`, in a file of this length.
fn behind(count: u32, length: u64) -> impl Iterator<Item = u32> {
    let last = u32::try_from(length / PAGE_BYTES).unwrap_or(u32::MAX);
    (count.saturating_add(1)..=last).filter(|number| *number != LOCK_PAGE)
}

/// A number of a page, big-endian.
fn number(content: &Content, at: usize) -> u32 {
    let bytes = content.iter().skip(at).take(4);
    bytes.fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Up to this size a failed open looks at each page to say what is wrong.
const DIAGNOSED_BYTES: u64 = 64 << 20;

impl Database {
    /// Proves every page and SQLite's own structure. Blocks; checkpoints what it can first. No page
    /// comes from the page cache.
    ///
    /// # Errors
    ///
    /// [`OpenError::Damaged`].
    pub fn verify_pages(&self) -> Result<(), OpenError> {
        let connection = self.uncached()?;
        connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(()))
            .map_err(|error| self.explain("verify", error))?;
        self.verify_once(&connection, None)
    }

    /// The same through `connection`, which reads what lies on the disk. `progress` is asked now
    /// and then whether to go on.
    pub(super) fn verify_once(
        &self,
        connection: &Connection,
        progress: Option<&Progress>,
    ) -> Result<(), OpenError> {
        if self.key().is_none() {
            return self.verify_structure(connection);
        }
        let failed = |error| self.explain("verify", error);
        let mut file = self.file()?;
        let before = self.committed(&mut file)?;
        let pin = connection.unchecked_transaction().map_err(failed)?;
        let _objects: i64 = pin
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(failed)?;
        // Nothing was committed in between: the transaction reads the file alone, and keeps it.
        let is_whole = before.is_none_or(|index| index.in_file >= index.frames)
            && self.committed(&mut file)? == before;
        let checked = self.checked(connection);
        let is_proven = match &checked {
            Ok(Checked::Whole) if is_whole => {
                self.others_authenticate(connection, &file, progress)?
            }
            Ok(_) | Err(OpenError::Damaged { .. }) => false,
            Err(_) => true,
        };
        drop(pin);
        if !is_proven {
            self.verify_macs()?;
        }
        match checked? {
            Checked::Whole | Checked::NotUnderstood => Ok(()),
            Checked::Found(_) => Err(self.structure_damaged()),
        }
    }

    /// Whether the pages authenticate that SQLite's check does not read: the leaves of the free
    /// list, which hang on its trunks (<https://www.sqlite.org/fileformat.html#the_freelist>) and are sound
    /// by that check, and what stands behind the end.
    fn others_authenticate(
        &self,
        connection: &Connection,
        file: &SqliteFile,
        progress: Option<&Progress>,
    ) -> Result<bool, OpenError> {
        let failed = |error| self.explain("verify", error);
        let key = page_key(self, connection)?;
        let length = file.len().map_err(self.unreadable())?;
        let count: u32 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .map_err(failed)?;
        let read = |number: u32| -> Result<Option<Content>, OpenError> {
            let Some(before) = number.checked_sub(1) else {
                return Ok(None);
            };
            let mut page = [0; PAGE];
            file.read_exact_at(&mut page, u64::from(before) * PAGE_BYTES)
                .map_err(self.unreadable())?;
            Ok(key.open(number, &page))
        };
        let Some(first) = read(1)? else {
            return Ok(false);
        };
        let mut trunk = number(&first, FIRST_TRUNK);
        while trunk != 0 {
            if progress.is_some_and(|progress| !progress(length, length)) {
                return Err(failed(sqlite_error(rusqlite::ffi::SQLITE_INTERRUPT)));
            }
            let Some(content) = read(trunk)? else {
                return Ok(false);
            };
            for leaf in 0..number(&content, LEAVES) {
                if read(number(&content, FIRST_LEAF + 4 * leaf as usize))?.is_none() {
                    return Ok(false);
                }
            }
            trunk = number(&content, NEXT_TRUNK);
        }
        for number in behind(count, length) {
            if read(number)?.is_none() {
                return Ok(false);
            }
        }
        Ok(length.is_multiple_of(PAGE_BYTES))
    }

    fn file(&self) -> Result<SqliteFile, OpenError> {
        // SQLite's layer takes no link.
        let file = self.path.canonicalize();
        file.and_then(|path| SqliteFile::open(&path))
            .map_err(self.unreadable())
    }

    fn committed(&self, file: &mut SqliteFile) -> Result<Option<WalIndex>, OpenError> {
        file.wal_index().map_err(self.unreadable())
    }

    fn unreadable(&self) -> impl FnOnce(std::io::Error) -> OpenError {
        |source| OpenError::Io {
            action: "read",
            path: self.path.clone(),
            source,
        }
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
    fn verify_structure(&self, connection: &Connection) -> Result<(), OpenError> {
        match self.finding(connection)? {
            None => Ok(()),
            Some(_finding) => Err(self.structure_damaged()),
        }
    }

    fn structure_damaged(&self) -> OpenError {
        OpenError::Damaged {
            path: self.path.clone(),
            damage: Damage::Structure,
        }
    }

    /// What SQLite's own check finds first, but for rows that break the rules of their table.
    pub(super) fn finding(&self, connection: &Connection) -> Result<Option<String>, OpenError> {
        match self.checked(connection)? {
            Checked::Found(finding) => Ok(Some(finding)),
            Checked::Whole | Checked::NotUnderstood => Ok(None),
        }
    }

    fn checked(&self, connection: &Connection) -> Result<Checked, OpenError> {
        // Each index entry is looked up: pages that come again must not be opened again.
        connection
            .pragma_update(None, "cache_size", VERIFYING_KIB)
            .map_err(|error| self.explain("verify", error))?;
        match finding(connection) {
            Ok(None) => Ok(Checked::Whole),
            Ok(Some(finding)) => Ok(Checked::Found(finding)),
            // The schema needs a collation, a function or a module of its application, without
            // which SQLite checks nothing of it.
            Err(error) if is_not_understood(&error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the structure cannot be checked here, only that every page authenticates");
                Ok(Checked::NotUnderstood)
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
/// Where the first trunk page of the free list stands, in page 1.
const FIRST_TRUNK: usize = 32;
/// In a trunk page: the next one, how many leaves hang on it, and which.
const NEXT_TRUNK: usize = 0;
const LEAVES: usize = 4;
const FIRST_LEAF: usize = 8;

#[cfg(test)]
mod tests;
