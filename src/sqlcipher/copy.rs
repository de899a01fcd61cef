//! Copies between plaintext and encrypted databases, for `export` and `migrate`.
//!
//! Both run SQLCipher's own `sqlcipher_export` (<https://www.zetetic.net/sqlcipher/sqlcipher-api/#sqlcipher_export>) on a connection to
//! the encrypted file with the plaintext one attached, so that no key is ever part of an SQL text, and carry over what it leaves
//! out (`user_version`, `application_id`). Memory stays constant: pages spill into the target as the cache fills.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_manifests::{Cipher, Subject};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::{Database, OpenError, handed};
use crate::data_dir::TEMPORARY_PREFIX;
use crate::envelope::{Envelope, EnvelopeError, Intent, PlainFile, Prepared, blocking, parent};
use crate::failpoints::crash_point;
use crate::process::NewFile;
use crate::sqlite_file::{self, SqliteFile};

/// Told how many bytes of about how many were written, now and then; answers whether to go on. A copy that is stopped is removed.
pub type Progress = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Why a copy was not made. The source is untouched and no target stands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// One of the two databases does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The target is there already.
    #[error("{} already exists and is not overwritten; name another target", .path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// SQLite failed on the way: a full disk, say, or a damaged source.
    #[error("cannot {action} {}", .path.display())]
    Sqlite {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others have the file open and do not let go of it.
    #[error("{} is being read all the while; try again when it is used less", .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// So little room is left that those who write would soon find none.
    #[error("{} was not copied to the end: the disk is nearly full; make room and run it again", .path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// The database was closed while it was copied.
    #[error("{} was closed while it was copied; run it again", .path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
    /// The copy does not hold what the source holds.
    #[error("the copy differs from {} in {what}; nothing was replaced, please report this", .path.display())]
    Differs {
        /// The source.
        path: PathBuf,
        /// The table or object that differs.
        what: String,
    },
}

/// Writes `database` in plaintext to the new file `target`, mode 0600, which has no name until it is whole. Blocks.
///
/// # Errors
///
/// [`CopyError`]; an existing target is refused.
pub fn export_plaintext(
    database: &Database,
    target: &Path,
    progress: Option<Progress>,
) -> Result<(), CopyError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| CopyError::Io {
            action,
            path,
            source,
        }
    };
    if std::fs::symlink_metadata(target).is_ok() {
        return Err(CopyError::TargetExists {
            path: target.to_owned(),
        });
    }
    let dir = parent(target);
    let new = NewFile::in_dir(dir, TEMPORARY_PREFIX).map_err(io_error("create a file in", dir))?;
    let mut connection = database.writer()?;
    let copy = Copy {
        from: "main",
        to: OTHER,
        failed_on: target,
    };
    let handed = handed::uri(new.file()).map_err(|error| copy.failed("open", error))?;
    copy.attach_as(&connection, &handed)?;
    let vacuum: i64 = connection
        .pragma_query_value(None, "auto_vacuum", |row| row.get(0))
        .map_err(|error| copy.failed("read", error))?;
    copy.run(
        &connection,
        // In this order: to set the vacuum mode is a write, and there is no room for a journal.
        &format!("other.journal_mode = OFF; PRAGMA other.synchronous = OFF; PRAGMA other.auto_vacuum = {vacuum}"),
    )?;
    let growing = new.file().try_clone().map_err(io_error("open", target))?;
    let written = move || growing.metadata().map_or(0, |file| file.len());
    watch(&mut connection, progress, written, database.path());
    // One transaction, one snapshot: what a running server writes meanwhile does not come in halves.
    let transaction = connection
        .transaction()
        .map_err(|error| copy.failed("copy", error))?;
    copy.pages(&transaction)?;
    crash_point!("export::filled");
    copy.compare(&transaction, database.path())?;
    transaction
        .commit()
        .map_err(|error| copy.failed("write", error))?;
    copy.detach(&connection)?;
    crash_point!("export::copied");
    new.publish(target).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CopyError::TargetExists {
            path: target.to_owned(),
        },
        _ => io_error("create", target)(error),
    })
}

/// Makes the encrypted database of `subject` at `path` from all that the plaintext database `source` holds, verified and flushed. It is
/// under a manifest that says `new` until it is whole: a copy that was cut short never passes for a database.
///
/// `validate` compares schema and row counts, and reads every page of the copy again.
///
/// # Errors
///
/// [`CopyError`]; the source is untouched, and what stands at `path` is no database but the beginning of one.
pub async fn import_plaintext(
    envelope: &Envelope,
    source: &Path,
    path: &Path,
    subject: &Subject,
    validate: bool,
    progress: Option<Progress>,
) -> Result<Database, CopyError> {
    let prepared = envelope
        .prepare(path, subject, Cipher::Sqlcipher4, Intent::Create)
        .await
        .map_err(OpenError::from)?;
    let file = match prepared {
        Prepared::Keyed(file) => file,
        Prepared::Plain(file) => {
            let path = file.path().to_owned();
            return Err(OpenError::from(EnvelopeError::EncryptionOff { path }).into());
        }
    };
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
    // What an earlier attempt left under the same `new` manifest is begun again; what is none of ours is kept.
    if super::there(&database.path) && database.prove().is_err() {
        super::set_aside(database)?;
    }
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| CopyError::Io {
            action,
            path,
            source,
        }
    };
    let born = birth_settings(source).map_err(io_error("read", source))?;
    database.initialise_born(&born)?;
    // The encoding is written with the first table: this connection must know it, too.
    let mut connection = database
        .connect_born(&database.path, database.key().as_ref(), &born)
        .map_err(|error| database.explain("open", error))?;
    let copy = Copy {
        from: OTHER,
        to: "main",
        failed_on: source,
    };
    // Nobody else knows the target yet: a rollback journal would only double the work. WAL mode comes back at the end.
    copy.run(&connection, "main.journal_mode = DELETE")?;
    copy.run(&connection, "main.journal_mode = OFF")?;
    keep_wal(&connection, true).map_err(|error| copy.failed("prepare", error))?;
    copy.attach(&connection, source)?;
    let growing = database.path().to_owned();
    let written = move || std::fs::metadata(&growing).map_or(0, |file| file.len());
    watch(&mut connection, progress, written, source);
    // One transaction, one snapshot: a source that is written meanwhile is copied as it was.
    let transaction = connection
        .transaction()
        .map_err(|error| copy.failed("copy", error))?;
    copy.pages(&transaction)?;
    crash_point!("migrate::copied");
    if validate {
        copy.compare(&transaction, source)?;
    }
    transaction
        .commit()
        .map_err(|error| copy.failed("write", error))?;
    copy.detach(&connection)?;
    keep_wal(&connection, false).map_err(|error| copy.failed("write", error))?;
    copy.run(&connection, "main.journal_mode = WAL")?;
    connection
        .close()
        .map_err(|(_connection, error)| copy.failed("write", error))?;
    sqlite_file::flush(database.path()).map_err(io_error("flush", database.path()))?;
    if validate {
        database.verify_pages()?;
    }
    Ok(())
}

/// Whether closing a database leaves its WAL as it is: the source of a copy is only read.
fn keep_wal(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep)
        .map(drop)
}

/// What a database is born with and can never change again, read from the header of the plaintext file `source`: text encoding and
/// auto-vacuum (<https://www.sqlite.org/fileformat.html#the_database_header>).
fn birth_settings(source: &Path) -> io::Result<String> {
    let mut header = [0; 100];
    SqliteFile::open(source)?.read_exact_at(&mut header, 0)?;
    let number = |at: usize| {
        header[at..at + 4]
            .iter()
            .fold(0_u32, |n, byte| n << 8 | u32::from(*byte))
    };
    let encoding = match number(56) {
        2 => "UTF-16le",
        3 => "UTF-16be",
        _ => "UTF-8",
    };
    let vacuum = match (number(52), number(64)) {
        (0, _) => "NONE",
        (_, 0) => "FULL",
        _ => "INCREMENTAL",
    };
    Ok(format!(
        "PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {vacuum};"
    ))
}

/// Brings all that the WAL of the plaintext database `source` holds into the file itself, and leaves WAL mode: from here on the one file
/// is the whole database. Blocks.
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

/// A connection to a database that nobody else has open, with all of it in the one file: the WAL is folded in and WAL mode left.
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
    CopyError::Sqlite {
        action: "take for this command alone",
        path: database.path().to_owned(),
        source,
    }
}

/// One copy between `main` and the attached database.
struct Copy<'a> {
    from: &'static str,
    to: &'static str,
    failed_on: &'a Path,
}

impl Copy<'_> {
    fn failed(&self, action: &'static str, source: rusqlite::Error) -> CopyError {
        CopyError::Sqlite {
            action,
            path: self.failed_on.to_owned(),
            source,
        }
    }

    fn run(&self, connection: &Connection, pragma: &str) -> Result<(), CopyError> {
        connection
            .execute_batch(&format!("PRAGMA {pragma}"))
            .map_err(|error| self.failed("prepare", error))
    }

    /// Attaches a plaintext file: the empty key turns SQLCipher's codec off for it.
    fn attach(&self, connection: &Connection, path: &Path) -> Result<(), CopyError> {
        let path = path.to_str().ok_or_else(|| CopyError::Io {
            action: "name",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidFilename, "not UTF-8"),
        })?;
        self.attach_as(connection, path)
    }

    fn attach_as(&self, connection: &Connection, name: &str) -> Result<(), CopyError> {
        connection
            .execute("ATTACH DATABASE ?1 AS other KEY ''", [name])
            .map(drop)
            .and_then(|()| {
                // The first read: a file that is no database is refused here, before anything is written.
                connection.query_row(
                    "SELECT count(*) FROM other.sqlite_schema",
                    [],
                    |_row| Ok(()),
                )
            })
            .map_err(|error| self.failed("open", error))
    }

    fn detach(&self, connection: &Connection) -> Result<(), CopyError> {
        connection
            .execute_batch("DETACH DATABASE other")
            .map_err(|error| self.failed("write", error))
    }

    fn pages(&self, connection: &Connection) -> Result<(), CopyError> {
        connection
            .query_row(
                "SELECT sqlcipher_export(?1, ?2)",
                [self.to, self.from],
                |_row| Ok(()),
            )
            .map_err(|error| self.failed("copy", error))?;
        for pragma in ["user_version", "application_id"] {
            let value: i64 = connection
                .pragma_query_value(Some(self.from), pragma, |row| row.get(0))
                .map_err(|error| self.failed("read", error))?;
            connection
                .pragma_update(Some(self.to), pragma, value)
                .map_err(|error| self.failed("write", error))?;
        }
        Ok(())
    }

    fn compare(&self, connection: &Connection, source: &Path) -> Result<(), CopyError> {
        let of = |schema| {
            Inventory::of(connection, schema).map_err(|error| self.failed("compare", error))
        };
        // The same connection holds both.
        of("main")?.compare(&of(OTHER)?, source)
    }
}

/// What two databases must have in common to be taken for the same: the objects with their definitions, and how many rows each table has.
#[derive(Debug)]
pub(super) struct Inventory {
    objects: Vec<Object>,
    rows: Vec<(String, i64)>,
}

/// Kind, name, table, definition.
type Object = (String, String, String, String);

impl Inventory {
    /// What `schema` of a connection holds.
    pub(super) fn of(connection: &Connection, schema: &str) -> rusqlite::Result<Self> {
        let objects = connection
            .prepare(&format!(
                "SELECT type, name, tbl_name, coalesce(sql, '') FROM {schema}.sqlite_schema ORDER BY 1, 2"
            ))?
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
            let count = format!("SELECT count(*) FROM {schema}.\"{name}\"");
            rows.push((
                table.clone(),
                connection.query_row(&count, [], |row| row.get(0))?,
            ));
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

/// Reports the size of the growing file every few thousand steps of SQLite's machine, and stops it when it is told to.
fn watch(
    connection: &mut Connection,
    progress: Option<Progress>,
    written: impl Fn() -> u64 + Send + 'static,
    whole: &Path,
) {
    let Some(progress) = progress else { return };
    let total = std::fs::metadata(whole).map_or(0, |file| file.len());
    let report = move || !progress(written().min(total), total);
    // A progress bar that cannot be drawn is no reason to fail.
    drop(connection.progress_handler(REPORT_EVERY, Some(report)));
}

const OTHER: &str = "other";
const REPORT_EVERY: i32 = 20_000;
