//! From a subject to an open database: what the core allows is proven, initialised, or settled.

use std::path::{Path, PathBuf};

use nimbus_manifests::{Cipher, Subject};
use rusqlite::{Connection, OpenFlags};

use super::library::quiet_library;
use super::{Database, OpenError, check_library, key, temporary, write_ahead};
use crate::data_dir::{self, TEMPORARY_PREFIX, side_files};
use crate::envelope::{
    self, Envelope, EnvelopeError, Event, EventKind, EventOutcome, Intent, KeyedFile, Opened,
    Prepared, Stage,
};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::sqlite_file;

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
pub(super) fn rows(connection: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
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
pub(super) fn set_aside(database: &Database) -> Result<(), OpenError> {
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

pub(super) fn there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.len() > 0)
}

/// Finds out whether a rekey that was cut short had swapped the file already.
pub(crate) fn which_key(file: KeyedFile) -> Result<(KeyedFile, Opened), OpenError> {
    let database = Database::keyed(file);
    let opened = database.which_key()?;
    Ok((database.into_file(), opened))
}

/// A temporary database. When it is dropped, what SQLite left beside it goes: on a full disk it
/// leaves WAL and shared memory behind, and each attempt would take more of what is missing.
#[derive(Debug)]
pub(super) struct Beside(pub(super) PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        for path in side_files(&self.0) {
            // Rarely there; what cannot be removed now goes at the next start.
            drop(std::fs::remove_file(path));
        }
    }
}

impl Database {
    /// Makes the file, with what `fill` puts into it and in WAL mode, under a temporary name, and
    /// renames it into place: a crash leaves no file or a whole one.
    pub(super) fn initialise(&self, fill: Fill) -> Result<(), OpenError> {
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
    pub(super) fn make(&self, path: &Path, fill: Fill) -> rusqlite::Result<()> {
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
}
