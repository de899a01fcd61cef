//! The database of a backup becomes one of this deployment: the same pages, under a data key that
//! was never in a backup.
//!
//! The order is that of a creation (`envelope`), whose table says what a kill leaves:
//!
//! | step | on disk after it | next start |
//! | --- | --- | --- |
//! | 1. manifest `new` published | manifest `new` | no tenant; the next creation or adoption goes on with its key |
//! | 2. copy made under the fresh key and proven (`adopt::copied`, `adopt::verified`) | and a temporary file | the same; the temporary file is removed |
//! | 3. copy renamed into its place (`adopt::renamed`) | manifest `new`, the database | the same: a further adoption begins it again; a creation of the same name sets aside what stands there |
//! | 4. `ready` mirrored, then published | the tenant, whole | open |

use std::path::Path;

use nimbus_manifests::Subject;

use super::copy::{alone, clear_attempt, prepare_encrypted, remove_database};
use super::error::{CopyError, io_error, sqlite};
use super::rekey::{copy_pages, verify};
use super::{Beside, Database, OpenError, open_as_it_is};
use crate::data_dir::{TEMPORARY_PREFIX, parent, sync_dir};
use crate::envelope::{Envelope, KeyedFile};
use crate::failpoints::crash_point;
use crate::runtime::{Progress, blocking};
use crate::sqlite_file;

/// Makes the database of `subject` at `path`, where none is, out of `source`, under a file id and a
/// data key of its own. Each page of `source` is authenticated as it is read, and the copy is
/// proven before it counts. `source` is nobody else's; what stands in its WAL is folded into it.
///
/// # Errors
///
/// [`CopyError`]; there is no database of `subject` then, but for the beginning of one.
pub(crate) async fn adopt(
    envelope: &Envelope,
    source: KeyedFile,
    path: &Path,
    subject: &Subject,
    progress: Progress,
) -> Result<(), CopyError> {
    let file = prepare_encrypted(envelope, path, subject).await?;
    let begun = envelope.clone();
    let file = blocking(move || {
        let path = file.path().to_owned();
        fill(source, file, &progress).inspect_err(|_| {
            // Best effort, the key first: what stays is begun again by a further run.
            drop(begun.forget(&path).map(|()| remove_database(&path)));
        })
    })
    .await?;
    let published = envelope.publish_ready(file).await;
    published
        .map(drop)
        .map_err(|error| OpenError::from(error).into())
}

fn fill(source: KeyedFile, file: KeyedFile, progress: &Progress) -> Result<KeyedFile, CopyError> {
    let source = open_as_it_is(source)?;
    let mut connection = alone(&source)?;
    let database = Database::keyed(file.share());
    clear_attempt(&database)?;
    let (path, dir) = (file.path(), parent(file.path()));
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(dir)
        .map_err(io_error("create a file in", dir))?
        .into_temp_path();
    let _beside = Beside(temporary.to_path_buf());
    let copy = Database::new(&temporary, Some(file.share()));
    copy_pages(&connection, &copy, source.path(), Some(progress))?;
    crash_point!("adopt::copied");
    verify(&mut connection, &copy, source.path(), Some(progress))?;
    connection
        .close()
        .map_err(|(_connection, error)| sqlite("close", source.path(), error))?;
    sqlite_file::flush(&temporary).map_err(io_error("flush", &temporary))?;
    crash_point!("adopt::verified");
    temporary
        .persist_noclobber(path)
        .map_err(|error| io_error("create", path)(error.error))?;
    sync_dir(dir).map_err(io_error("flush", dir))?;
    crash_point!("adopt::renamed");
    Ok(file)
}
