//! The one place that opens a SQLCipher or plain SQLite connection.
//!
//! A connection is made from a [`Prepared`](crate::envelope::Prepared) value of the core, which
//! proves that the manifest was read, authenticated and unwrapped (or that encryption is off); no
//! function takes key bytes and a path. Every connection has WAL, `synchronous=FULL`, temporary
//! files that are encrypted and have no name (`temporary`), foreign keys, and no automatic
//! checkpoint: when to checkpoint is the store's decision.

mod adopt;
mod arrive;
mod btree;
mod ciphertext;
mod copy;
mod error;
mod key;
mod layout;
mod library;
mod online_rekey;
mod opening;
mod page;
pub mod page_cache;
mod rekey;
mod relayout;
mod snapshot;
mod swap_guard;
mod temporary;
mod verification;
mod wal;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nimbus_keyproviders::CipherKey;
use nimbus_manifests::Manifest;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::data_dir::{self, WAL, beside};
use crate::envelope::{KeyedFile, LeaseStanding, Opened};
use library::quiet_library;
use opening::{Beside, set_aside, there};
use page_cache::Owner;

pub(crate) use adopt::adopt;
pub use arrive::ArrivingDatabase;
pub(crate) use ciphertext::{Ciphertext, UNIT};
pub(crate) use copy::fold_wal;
pub use copy::{export_plaintext, import_plaintext};
pub use error::{CopyError, Damage, OpenError};
pub(crate) use online_rekey::{Following, NotSwapped};
pub(crate) use page::{Tag, tag};
pub(crate) use rekey::swap_to_next_key;
pub(crate) use temporary::{keep_free, was_refused};
pub(crate) use wal::{WalReader, frames as wal_frames};

pub use library::check_library;
pub use opening::open;
pub(crate) use opening::{open_and, open_as_it_is, open_beside_others, which_key};
pub(crate) use verification::confirm;

/// An opened database: whatever a new connection to it needs.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    keyed: Option<KeyedFile>,
    /// The connection that proved page 1, for the first who asks for one: opening costs more than
    /// most requests.
    proven: Mutex<Option<Connection>>,
    /// Whether another process may exchange the file, so that nothing must be written to what was
    /// opened.
    beside_others: bool,
    /// The owner of cached pages; `None` where each page must be verified as it lies on the
    /// disk.
    pages: Option<Owner>,
}

impl Database {
    fn new(path: &Path, keyed: Option<KeyedFile>) -> Self {
        Self {
            path: path.to_owned(),
            keyed,
            proven: Mutex::default(),
            beside_others: false,
            pages: None,
        }
    }

    /// The database of a file whose page 1 was proven, or is about to be.
    pub(crate) fn keyed(file: KeyedFile) -> Self {
        let path = file.path().to_owned();
        Self::new(&path, Some(file))
    }

    /// This database, with what was read of it kept in the page cache for all its connections.
    pub(crate) fn served(mut self) -> Self {
        self.pages = self.keyed.as_ref().and_then(|_| Owner::new());
        self
    }

    /// This database, with the pages of `other`: the same file under the same key.
    pub(crate) fn served_as(mut self, other: &Self) -> Self {
        self.pages.clone_from(&other.pages);
        self
    }

    /// From now on none of its pages is served from the page cache.
    pub(crate) fn close_pages(&self) {
        if let Some(pages) = &self.pages {
            pages.close();
        }
    }

    /// Wipes its pages in the page cache. Blocks, for longer where there are many.
    pub(crate) fn forget_pages(&self) {
        if let Some(pages) = &self.pages {
            pages.forget();
        }
    }

    /// This database, once page 1 was read.
    fn proven(self) -> Result<Self, OpenError> {
        let connection = self.prove()?;
        Ok(self.proven_by(connection))
    }

    fn proven_by(mut self, connection: Connection) -> Self {
        self.proven = Mutex::new(Some(connection));
        self
    }

    /// What an encrypted database was made from.
    fn into_file(self) -> KeyedFile {
        self.keyed
            .expect("only asked of databases that were made from a keyed file")
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its verified manifest; `None` for a plaintext database.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.keyed.as_ref().map(KeyedFile::manifest)
    }

    /// Whether its key may be used now.
    pub(crate) fn standing(&self) -> LeaseStanding {
        let keyed = self.keyed.as_ref();
        keyed.map_or(LeaseStanding::Good, KeyedFile::standing)
    }

    /// A connection that may write. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`], as [`open`].
    pub fn writer(&self) -> Result<Connection, OpenError> {
        let proven = self
            .proven
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        proven.map_or_else(|| self.fresh(), Ok)
    }

    /// A connection that has read nothing but page 1 yet. Blocks.
    fn fresh(&self) -> Result<Connection, OpenError> {
        self.connect(&self.path, self.key().as_ref(), self.pages.as_ref())
            .map_err(|error| self.explain("open", error))
    }

    /// A connection that only reads, and sees one snapshot a transaction. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`], as [`open`].
    pub fn reader(&self) -> Result<Connection, OpenError> {
        let connection = self.writer()?;
        connection
            .pragma_update(None, "query_only", true)
            .map_err(|error| self.explain("open", error))?;
        Ok(connection)
    }

    /// A connection to what lies on the disk. Blocks.
    fn uncached(&self) -> Result<Connection, OpenError> {
        if self.pages.is_none() {
            return self.writer();
        }
        self.connect(&self.path, self.key().as_ref(), None)
            .map_err(|error| self.explain("open", error))
    }

    /// Has SQLite remove what it kept beside a file that was opened beside others, once there are
    /// none; what cannot be removed stays. Blocks.
    pub(crate) fn tidy(mut self) {
        self.beside_others = false;
        // Whoever closes the file last removes it.
        drop(self.fresh());
    }

    fn key(&self) -> Option<CipherKey> {
        self.keyed.as_ref().map(KeyedFile::cipher_key)
    }

    /// Opens once and reads page 1.
    fn prove(&self) -> Result<Connection, OpenError> {
        let wal = beside(&self.path, WAL);
        let size = self.size()?;
        // A checkpoint that was cut short may leave half a page at the end; the WAL then still
        // holds it.
        if size % PAGE_BYTES != 0 && std::fs::metadata(wal).map_or(0, |wal| wal.len()) == 0 {
            return Err(OpenError::Damaged {
                path: self.path.clone(),
                damage: Damage::Torn { size },
            });
        }
        self.fresh()
    }

    /// One connection to `path`, keyed, set up, and proven by reading the schema.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one opener that the lint protects"
    )]
    fn connect(
        &self,
        path: &Path,
        key: Option<&CipherKey>,
        pages: Option<&Owner>,
    ) -> rusqlite::Result<Connection> {
        // SQLCipher sets itself up on its first connection, and two first ones at a time get in
        // each other's way.
        drop(check_library());
        // Until the WAL is open, too.
        let _opening = swap_guard::Opening::of(path);
        let connection = Connection::open_with_flags_and_vfs(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            temporary::layer_of(data_dir::parent(path))?,
        )?;
        ::fail::fail_point!("sqlcipher::opened");
        if self.beside_others {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
        connection.busy_timeout(BUSY_TIMEOUT)?;
        quiet_library(&connection)?;
        if let Some(key) = key {
            key::hand_over(&connection, key, pages)?;
        }
        if !self.beside_others {
            write_ahead(&connection)?;
        }
        connection.execute_batch(SETTINGS)?;
        let _objects: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let page = key.map_or(SMALLEST_PAGE, |_key| PAGE_BYTES);
        if wal::is_another(&connection, path, page)? {
            // It has nothing of this database's to bring into it.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            let moved = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY_DBMOVED);
            return Err(rusqlite::Error::SqliteFailure(moved, None));
        }
        Ok(connection)
    }

    /// Which of the two keys of a rekey opens the file.
    fn which_key(&self) -> Result<Opened, OpenError> {
        let try_key = |key: Option<CipherKey>| match key {
            Some(key) => self.connect(&self.path, Some(&key), None).map(drop),
            None => Err(rusqlite::Error::InvalidQuery),
        };
        let first = match try_key(self.key()) {
            Ok(()) => return Ok(Opened::First),
            Err(error) => error,
        };
        try_key(self.keyed.as_ref().and_then(KeyedFile::next_cipher_key))
            .map(|()| Opened::Next)
            .map_err(|_| self.explain("open", first))
    }

    /// A connection with the key and nothing else set, to a file that may be empty yet.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one opener that the lint protects"
    )]
    fn bare(&self) -> Result<Connection, OpenError> {
        let open = || {
            let connection = Connection::open_with_flags(
                &self.path,
                OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?;
            quiet_library(&connection)?;
            if let Some(key) = self.key() {
                key::hand_over(&connection, &key, None)?;
            }
            Ok(connection)
        };
        open().map_err(|error| self.explain("create", error))
    }

    fn size(&self) -> Result<u64, OpenError> {
        std::fs::metadata(&self.path)
            .map(|metadata| metadata.len())
            .map_err(|source| OpenError::Io {
                action: "read",
                path: self.path.clone(),
                source,
            })
    }
}

/// Puts the file into WAL mode, which writes its first page when it is new. The statement is
/// stepped to its end: its row comes before its commit, and who stops at the row never hears that
/// the disk was full.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let mut mode = String::new();
    connection.pragma(None, "journal_mode", "WAL", |row| {
        mode = row.get(0)?;
        Ok(())
    })?;
    if mode == "wal" {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
        Some(format!(
            "the journal stays in mode {mode}; Nimbus needs WAL"
        )),
    ))
}

const SETTINGS: &str = "\
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA temp_store = FILE;
    PRAGMA foreign_keys = ON;
    PRAGMA trusted_schema = OFF;
    PRAGMA cell_size_check = ON;";
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE_BYTES: u64 = 4096;
/// Of a plaintext file.
const SMALLEST_PAGE: u64 = 512;

#[cfg(test)]
pub(crate) mod tests;
