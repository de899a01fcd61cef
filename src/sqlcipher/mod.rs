//! The one place that opens a SQLCipher or plain SQLite connection.
//!
//! A connection is made from a [`Prepared`] value of the core, which proves that the manifest was
//! read, authenticated and unwrapped (or that encryption is off); no function takes key bytes and a
//! path. Every connection has WAL, `synchronous=FULL`, temporary files that are encrypted and have
//! no name (`temporary`), foreign keys, and no automatic checkpoint: when to checkpoint is the
//! store's decision.

mod adopt;
mod btree;
mod ciphertext;
mod copy;
mod error;
mod key;
mod layout;
mod online_rekey;
mod page;
pub mod page_cache;
mod rekey;
mod relayout;
mod snapshot;
mod swap_guard;
mod temporary;
mod wal;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nimbus_keyproviders::CipherKey;
use nimbus_manifests::{Cipher, Manifest, Subject};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

pub(crate) use adopt::adopt;
pub(crate) use ciphertext::{Ciphertext, UNIT};
pub(crate) use copy::fold_wal;
pub use copy::{export_plaintext, import_plaintext};
use error::is_not_understood;
pub use error::{CopyError, Damage, OpenError};
pub(crate) use online_rekey::{Following, NotSwapped};
use page_cache::Owner;
pub(crate) use rekey::swap_to_next_key;
pub(crate) use temporary::{keep_free, was_refused};
pub(crate) use wal::{WalReader, frames as wal_frames};

use crate::data_dir::{self, TEMPORARY_PREFIX, WAL, beside, side_files};
use crate::envelope::{
    self, Envelope, EnvelopeError, Event, EventKind, EventOutcome, Intent, KeyedFile,
    LeaseStanding, Opened, Prepared, Stage,
};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::sqlite_file;

/// An opened database: whatever a new connection to it needs.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    keyed: Option<KeyedFile>,
    /// The connection that proved page 1, for the first who asks for one: opening costs more than
    /// most requests.
    proven: Mutex<Option<Connection>>,
    /// Whether another process may exchange the file, so that nothing is to be written to what was
    /// opened.
    beside_others: bool,
    /// Whose pages its connections keep; `None` where each page is to be verified as it lies on the
    /// disk.
    pages: Option<Owner>,
}

/// Opens or creates the database of `subject` at `path`, as the opening table says.
///
/// Page 1 was read, and so authenticated, before this returns. Its connections read through the
/// page cache, if this process has one.
///
/// # Errors
///
/// [`OpenError`]; nothing is created or changed in place of a file that is refused.
pub async fn open(
    envelope: &Envelope,
    path: &Path,
    subject: &Subject,
    intent: Intent,
) -> Result<Database, OpenError> {
    open_and(
        envelope,
        path,
        subject,
        intent,
        |_| Ok(()),
        |database| database,
    )
    .await
}

/// What a new database is to hold when it comes into being.
pub(crate) type Fill = fn(&mut Connection) -> rusqlite::Result<()>;

/// As [`open`], and goes on with `then` on the thread that proved page 1: handing over to another
/// costs as much as the proof. A new database is filled by `fill` before it gets its name.
///
/// # Errors
///
/// As [`open`].
pub(crate) async fn open_and<T: Send + 'static>(
    envelope: &Envelope,
    path: &Path,
    subject: &Subject,
    intent: Intent,
    fill: Fill,
    then: impl FnOnce(Database) -> T + Send + 'static,
) -> Result<T, OpenError> {
    let prepared = envelope
        .prepare(path, subject, Cipher::Sqlcipher4, intent)
        .await?;
    let file = match prepared {
        Prepared::Plain(file) => {
            return blocking(move || {
                let database = Database::new(file.path(), None);
                if !file.exists() {
                    database.initialise(fill)?;
                }
                database.proven().map(then)
            })
            .await;
        }
        Prepared::Keyed(file) => file,
    };
    let file = match file.stage() {
        Stage::Ready => {
            let envelope = envelope.clone();
            let event = Event::new(EventKind::Open, EventOutcome::Done).of(file.manifest());
            return blocking(move || {
                let database = Database::keyed(file).served().proven()?;
                if let Some(file) = &database.keyed {
                    envelope.refresh_mirror(file)?;
                }
                envelope.note(event);
                Ok(then(database))
            })
            .await;
        }
        Stage::Initialise => {
            let proven = blocking(move || initialise_again(file, fill)).await?;
            let Database {
                keyed: Some(file),
                proven,
                pages,
                ..
            } = proven
            else {
                unreachable!("it was made from a keyed file")
            };
            let file = envelope.publish_named(file).await?;
            // The same file under the same key: what proved it serves the first read.
            let database = Database {
                proven,
                pages,
                ..Database::keyed(file)
            };
            return Ok(blocking(move || then(database)).await);
        }
        Stage::Initialised => {
            let proven = blocking(move || Database::keyed(file).proven()).await?;
            envelope.publish_named(proven.into_file()).await?
        }
        Stage::Rekeying { .. } => {
            let (file, opened) = blocking(move || which_key(file)).await?;
            envelope.settle(file, opened).await?
        }
    };
    Ok(blocking(move || then(Database::keyed(file).served())).await)
}

/// Opens an encrypted database that exists, and changes nothing beside it: an unfinished creation
/// is refused, an unfinished rekey is opened under whichever of its two keys fits and left as it
/// is. For looking and copying. Blocks.
///
/// # Errors
///
/// [`OpenError`].
pub(crate) fn open_as_it_is(file: KeyedFile) -> Result<Database, OpenError> {
    as_it_is(Database::keyed(file))
}

/// As [`open_as_it_is`], beside a server that may exchange the file at any time. Its connections
/// write nothing into the file, not even what stands in the WAL, and leave what SQLite keeps beside
/// it where it is: should they have opened a file that was exchanged just then, the WAL they find
/// is not its own. Blocks.
///
/// # Errors
///
/// As [`open_as_it_is`]; of a file that was exchanged while it was opened, most often that key and
/// file do not match.
pub(crate) fn open_beside_others(file: KeyedFile) -> Result<Database, OpenError> {
    as_it_is(Database {
        beside_others: true,
        ..Database::keyed(file)
    })
}

fn as_it_is(database: Database) -> Result<Database, OpenError> {
    let beside_others = database.beside_others;
    let opened = match database.keyed.as_ref().map(KeyedFile::stage) {
        None | Some(Stage::Ready | Stage::Initialised) => return database.proven(),
        Some(Stage::Rekeying { .. }) => database.which_key()?,
        Some(Stage::Initialise) => {
            let path = database.path;
            return Err(EnvelopeError::NeverInitialised { path }.into());
        }
    };
    let file = database.into_file().under(opened)?;
    Database {
        beside_others,
        ..Database::keyed(file)
    }
    .proven()
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
    fn verify_structure(&self, connection: &Connection) -> Result<(), OpenError> {
        match self.finding(connection)? {
            None => Ok(()),
            Some(_finding) => Err(OpenError::Damaged {
                path: self.path.clone(),
                damage: Damage::Structure,
            }),
        }
    }

    /// What SQLite's own check finds first, but for rows that break the rules of their table.
    fn finding(&self, connection: &Connection) -> Result<Option<String>, OpenError> {
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

    /// Makes the file, with what `fill` puts into it and in WAL mode, under a temporary name, and
    /// renames it into place: a crash leaves no file or a whole one.
    fn initialise(&self, fill: Fill) -> Result<(), OpenError> {
        let dir = data_dir::parent(&self.path);
        let io_error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io {
                action,
                path,
                source,
            }
        };
        // The random name is reserved, then given to SQLite, which opens an empty file as a new
        // database.
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(dir)
            .map_err(io_error("create a file in", dir))?
            .into_temp_path();
        let _beside = Beside(temporary.to_path_buf());
        self.make(&temporary, fill)
            .map_err(|error| self.explain("create", error))?;
        crash_point!("sqlcipher::initialised");
        sqlite_file::flush(&temporary).map_err(io_error("flush", &temporary))?;
        crash_point!("sqlcipher::flushed");
        temporary
            .persist(&self.path)
            .map_err(|error| io_error("create", &self.path)(error.error))?;
        crash_point!("sqlcipher::renamed");
        data_dir::sync_dir(dir).map_err(io_error("flush", dir))
    }

    /// Makes a database of the empty file at `path`. It has no name that counts yet, so nothing is
    /// flushed and nothing can be rolled back: what fails half way is thrown away.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one opener that the lint protects"
    )]
    fn make(&self, path: &Path, fill: Fill) -> rusqlite::Result<()> {
        drop(check_library());
        let mut connection = Connection::open_with_flags_and_vfs(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            temporary::layer_of(data_dir::parent(path))?,
        )?;
        quiet_library(&connection)?;
        if let Some(key) = self.key() {
            key::hand_over(&connection, &key, None)?;
        }
        connection.pragma(None, "journal_mode", "OFF", |_mode| Ok(()))?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        crash_point!("sqlcipher::connected");
        fill(&mut connection)?;
        write_ahead(&connection)?;
        connection.close().map_err(|(_connection, error)| error)
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

    /// Turns SQLite's answer into what it means for this file: a wrong key and a damaged file are
    /// told apart where they can be.
    fn explain(&self, action: &'static str, error: rusqlite::Error) -> OpenError {
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

/// Finishes a creation that was cut short, or begins one. What an earlier attempt left is kept if
/// the key opens it and nothing was written to it, and set aside if not: it holds what a
/// restoration of the name was about to bring back, and who creates a tenant gets an empty one. The
/// file and its name are durable when this returns.
fn initialise_again(file: KeyedFile, fill: Fill) -> Result<Database, OpenError> {
    let mut database = Database::keyed(file).served();
    if there(&database.path) {
        match database.prove() {
            Ok(connection)
                if is_as_filled(&connection, fill)
                    .map_err(|error| database.explain("read", error))? =>
            {
                let dir = data_dir::parent(&database.path);
                data_dir::sync_dir(dir).map_err(|source| OpenError::Io {
                    action: "flush",
                    path: dir.to_owned(),
                    source,
                })?;
                return Ok(database.proven_by(connection));
            }
            // What was read of it is not read again.
            Ok(connection) => {
                drop(connection);
                database = Database::keyed(database.into_file()).served();
            }
            Err(OpenError::KeyMismatch { .. } | OpenError::Damaged { .. }) => {}
            // It says nothing about the file: on a full disk each attempt would set another one
            // aside.
            Err(error) => return Err(error),
        }
    }
    set_aside(&database)?;
    database.initialise(fill)?;
    database.proven()
}

/// Whether a database has what `fill` makes, and nothing else.
#[expect(
    clippy::disallowed_methods,
    reason = "a database in memory is nobody's file"
)]
fn is_as_filled(connection: &Connection, fill: Fill) -> rusqlite::Result<bool> {
    let mut fresh = Connection::open_in_memory()?;
    fill(&mut fresh)?;
    Ok(rows(connection)? == rows(&fresh)?)
}

/// The tables, and how many rows each has, up to more than any has in a new database.
fn rows(connection: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut tables =
        connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let tables = tables.query_map([], |row| row.get::<_, String>(0))?;
    let counted = tables.map(|table| {
        let table = table?;
        let quoted = table.replace('"', "\"\"");
        let count = format!("SELECT count(*) FROM (SELECT 1 FROM \"{quoted}\" LIMIT 1000)");
        let count = connection.query_row(&count, [], |row| row.get(0))?;
        Ok((table, count))
    });
    counted.collect()
}

/// Sets aside what stands at the database's path, with its WAL.
fn set_aside(database: &Database) -> Result<(), OpenError> {
    let path = database.path.clone();
    for old in side_files(&path).into_iter().chain([path]) {
        if there(&old) {
            let aside = data_dir::set_aside(&old, envelope::CUT_SHORT);
            let _aside = aside.map_err(|source| OpenError::Io {
                action: "set aside",
                path: old.clone(),
                source,
            })?;
        }
    }
    Ok(())
}

fn there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.len() > 0)
}

/// A temporary database. When it is dropped, what SQLite left beside it goes: on a full disk it
/// leaves WAL and shared memory behind, and each attempt would take more of what is missing.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        for path in side_files(&self.0) {
            // Rarely there; what cannot be removed now goes at the next start.
            drop(std::fs::remove_file(path));
        }
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

/// Finds out whether a rekey that was cut short had swapped the file already.
pub(crate) fn which_key(file: KeyedFile) -> Result<(KeyedFile, Opened), OpenError> {
    let database = Database::keyed(file);
    let opened = database.which_key()?;
    Ok((database.into_file(), opened))
}

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

fn finding(connection: &Connection) -> rusqlite::Result<Option<String>> {
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
fn is_about_rules(finding: &str) -> bool {
    finding.starts_with("CHECK constraint failed in ")
        || finding.starts_with("NULL value in ")
        || finding.starts_with("NUMERIC value in ")
        || finding.starts_with("TEXT value in ")
        || (finding.starts_with("non-") && finding.contains(" value in "))
        || finding.starts_with("unable to validate the inverted index")
}

/// SQLCipher writes its own diagnostics to standard error unless told not to; ours come from the
/// error codes.
fn quiet_library(connection: &Connection) -> rusqlite::Result<()> {
    static QUIET: AtomicBool = AtomicBool::new(false);
    if !QUIET.load(Ordering::Relaxed) {
        connection.execute_batch("PRAGMA cipher_log_level = NONE")?;
        QUIET.store(true, Ordering::Relaxed);
    }
    Ok(())
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
/// Up to this size a failed open looks at each page to say what is wrong.
const DIAGNOSED_BYTES: u64 = 64 << 20;
const WAL_RESET_FIXED: i32 = 3_051_003;

#[cfg(test)]
pub(crate) mod tests;
