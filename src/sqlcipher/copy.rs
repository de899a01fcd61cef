//! Copies between plaintext and encrypted databases, for `export` and `migrate`.
//!
//! Neither runs the schema: b-trees are copied entry by entry ([`super::relayout`]), so that any
//! database is taken, whatever collations, functions or modules its application has, and whether
//! its rows keep its own rules or not. Row ids stay. Memory stays constant but for the schema and
//! the largest row.

use std::io;
use std::path::Path;

use nimbus_manifests::{Cipher, Subject};
use rusqlite::Connection;

use super::error::{CopyError, io_error, is_not_understood, sqlite};
use super::relayout::relayout;
use super::snapshot::Snapshot;
use super::{Database, OpenError};
use crate::data_dir::{TEMPORARY_PREFIX, parent, side_files};
use crate::envelope::{Envelope, EnvelopeError, Intent, KeyedFile, PlainFile, Prepared};
use crate::failpoints::crash_point;
use crate::process::NewFile;
use crate::runtime::{Progress, blocking};

/// Writes `database` in plaintext to the new file `target`, mode 0600, which has no name until it
/// is whole. Blocks.
///
/// # Errors
///
/// [`CopyError`]; an existing target is refused.
pub fn export_plaintext(
    database: &Database,
    target: &Path,
    progress: Option<Progress>,
) -> Result<(), CopyError> {
    if std::fs::symlink_metadata(target).is_ok() {
        return Err(CopyError::TargetExists {
            path: target.to_owned(),
        });
    }
    let dir = parent(target);
    let new = NewFile::in_dir(dir, TEMPORARY_PREFIX).map_err(io_error("create a file in", dir))?;
    let mut source = Snapshot::of(database)?;
    relayout(&mut source, new.file(), None, true, progress).map_err(|fault| fault.of(database))?;
    crash_point!("export::filled");
    drop(source);
    crash_point!("export::copied");
    new.publish(target).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CopyError::TargetExists {
            path: target.to_owned(),
        },
        _ => io_error("create", target)(error),
    })
}

/// Makes the encrypted database of `subject` at `path` from all that the plaintext database
/// `source` holds, verified and flushed. It is under a manifest that says `new` until it is whole:
/// a copy that was cut short never passes for a database.
///
/// `validate` reads every page of the copy again, and compares each entry of each b-tree with what
/// was read of the source.
///
/// # Errors
///
/// [`CopyError`]; the source is untouched, and what stands at `path` is no database but the
/// beginning of one.
pub async fn import_plaintext(
    envelope: &Envelope,
    source: &Path,
    path: &Path,
    subject: &Subject,
    validate: bool,
    progress: Option<Progress>,
) -> Result<Database, CopyError> {
    let file = prepare_encrypted(envelope, path, subject).await?;
    let source = source.to_owned();
    let file = blocking(move || {
        let database = Database::keyed(file);
        fill(&source, &database, validate, progress).map(|()| database.into_file())
    })
    .await?;
    let file = envelope
        .publish_ready(file)
        .await
        .map_err(OpenError::from)?;
    Ok(Database::keyed(file))
}

fn fill(
    source: &Path,
    database: &Database,
    validate: bool,
    progress: Option<Progress>,
) -> Result<(), CopyError> {
    let path = database.path();
    clear_attempt(database)?;
    let Some(key) = database.key() else {
        let path = path.to_owned();
        return Err(OpenError::from(EnvelopeError::EncryptionOff { path }).into());
    };
    let dir = parent(path);
    let new = NewFile::in_dir(dir, TEMPORARY_PREFIX).map_err(io_error("create a file in", dir))?;
    let mut plain = Snapshot::of_plaintext(source)?;
    relayout(&mut plain, new.file(), Some(key), validate, progress)
        .map_err(|fault| fault.of(&Database::new(source, None)))?;
    drop(plain);
    crash_point!("migrate::copied");
    new.publish(path).map_err(io_error("create", path))?;
    // That SQLCipher, too, opens what was made; and SQLite's own word on it.
    let connection = database.prove()?;
    if validate && let Some(said) = database.finding(&connection)? {
        let path = source.to_owned();
        return Err(CopyError::Inconsistent { path, said });
    }
    Ok(())
}

/// The file of `subject` at `path`, where none is, under a key of its own: a copy is made in it.
///
/// # Errors
///
/// [`CopyError::Open`], also where encryption is off.
pub(super) async fn prepare_encrypted(
    envelope: &Envelope,
    path: &Path,
    subject: &Subject,
) -> Result<KeyedFile, CopyError> {
    let prepared = envelope
        .prepare(path, subject, Cipher::Sqlcipher4, Intent::Create)
        .await
        .map_err(OpenError::from)?;
    match prepared {
        Prepared::Keyed(file) => Ok(file),
        Prepared::Plain(file) => {
            let path = file.path().to_owned();
            Err(OpenError::from(EnvelopeError::EncryptionOff { path }).into())
        }
    }
}

/// Makes room for a copy. What an earlier attempt left under the same `new` manifest is begun
/// again; other files are kept.
pub(super) fn clear_attempt(database: &Database) -> Result<(), CopyError> {
    let path = database.path();
    if super::there(path) && database.prove().is_ok() {
        remove_database(path).map_err(io_error("remove", path))?;
    } else {
        super::set_aside(database)?;
        remove(path).map_err(io_error("remove", path))?;
    }
    Ok(())
}

/// Removes a database, and before it what SQLite keeps beside it.
pub(super) fn remove_database(path: &Path) -> io::Result<()> {
    side_files(path)
        .iter()
        .try_for_each(|beside| remove(beside))?;
    remove(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _gone => Ok(()),
    }
}

/// Brings all that the WAL of the plaintext database `source` holds into the file itself, and
/// leaves WAL mode: from here on the one file is the whole database. Blocks.
///
/// # Errors
///
/// [`CopyError`] when another process has the database open, among others.
pub(crate) fn fold_wal(source: &PlainFile) -> Result<(), CopyError> {
    let database = Database::new(source.path(), None);
    alone(&database)?
        .close()
        .map_err(|(_connection, error)| not_alone(&database, error))
}

/// A connection to a database that nobody else has open, with all of it in the one file: the WAL is
/// folded in and WAL mode left.
pub(super) fn alone(database: &Database) -> Result<Connection, CopyError> {
    let connection = database.writer()?;
    let failed = |error| not_alone(database, error);
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
        .map_err(failed)?;
    let mode: String = connection
        .query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))
        .map_err(failed)?;
    if mode != "delete" {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        return Err(failed(rusqlite::Error::SqliteFailure(busy, None)));
    }
    Ok(connection)
}

fn not_alone(database: &Database, source: rusqlite::Error) -> CopyError {
    sqlite("take for this command alone", database.path(), source)
}

/// What two databases must have in common to be taken for the same: the objects with their
/// definitions, and how many rows each table has.
#[derive(Debug)]
pub(super) struct Inventory {
    objects: Vec<Object>,
    /// `None` where counting needs what only the application has: a collation, a function, a
    /// module.
    rows: Vec<(String, Option<i64>)>,
}

/// Kind, name, table, definition.
type Object = (String, String, String, String);

impl Inventory {
    /// What the database of a connection holds.
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let objects = connection
            .prepare(
                "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema ORDER BY 1, 2",
            )?
            .query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?
            .collect::<rusqlite::Result<Vec<Object>>>()?;
        // A virtual table's rows lie in its shadow tables, which are compared like any other.
        let stored = |(kind, _, _, sql): &&Object| {
            kind == "table" && !sql.to_ascii_uppercase().starts_with("CREATE VIRTUAL")
        };
        let mut rows = Vec::new();
        for (_, table, ..) in objects.iter().filter(stored) {
            let name = table.replace('"', "\"\"");
            let count = format!("SELECT count(*) FROM \"{name}\"");
            let count = match connection.query_row(&count, [], |row| row.get(0)) {
                Err(error) if is_not_understood(&error) => None,
                count => Some(count?),
            };
            rows.push((table.clone(), count));
        }
        Ok(Self { objects, rows })
    }

    /// Compares what `source` holds with what its copy holds.
    pub(super) fn compare(&self, copy: &Self, source: &Path) -> Result<(), CopyError> {
        let differs = |what: String| {
            Err(CopyError::Differs {
                path: source.to_owned(),
                what,
            })
        };
        let objects = self.objects.iter().zip(&copy.objects);
        if let Some((theirs, _)) = objects.into_iter().find(|(a, b)| a != b) {
            return differs(format!("{} {}", theirs.0, theirs.1));
        }
        if self.objects.len() != copy.objects.len() {
            return differs("the number of tables and indexes".to_owned());
        }
        match self.rows.iter().zip(&copy.rows).find(|(a, b)| a != b) {
            Some(((table, _), _)) => differs(format!("the rows of table {table}")),
            None => Ok(()),
        }
    }
}
