//! The files of generations, and what is in them.

use std::collections::BTreeMap;
use std::ops::Range;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::rows::malformed;
use crate::documents::deploy::{AppFile, AppPath, Content, ContentHash};

/// The files of a generation, by path.
pub(super) fn listing(
    connection: &Connection,
    generation: i64,
) -> rusqlite::Result<Vec<(String, ContentHash)>> {
    connection
        .prepare_cached(
            "SELECT path, sha256 FROM nimbus_files JOIN nimbus_contents ON number = content
             WHERE generation = ?1 ORDER BY path",
        )?
        .query_map([generation], |row| Ok((row.get(0)?, stored_hash(row, 1)?)))?
        .collect()
}

/// Stores the files of a generation.
pub(super) fn store(
    connection: &Connection,
    generation: i64,
    files: &BTreeMap<AppPath, Content>,
) -> rusqlite::Result<()> {
    let mut use_content = connection.prepare_cached(
        "INSERT INTO nimbus_contents (sha256, size, uses) VALUES (?1, ?2, 1)
         ON CONFLICT (sha256) DO UPDATE SET uses = uses + 1
         RETURNING number, uses",
    )?;
    let mut add_piece = connection.prepare_cached("INSERT INTO nimbus_pieces VALUES (?1, ?2)")?;
    let mut add_file = connection.prepare_cached("INSERT INTO nimbus_files VALUES (?1, ?2, ?3)")?;
    for (path, content) in files {
        let size = content.bytes().len() as i64;
        let hash = content.hash();
        let (number, uses): (i64, i64) = use_content
            .query_row(params![hash.as_bytes(), size], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        if uses == 1 {
            for (id, piece) in (first_piece(number)..).zip(content.bytes().chunks(PIECE)) {
                add_piece.execute(params![id, piece])?;
            }
        }
        add_file.execute(params![generation, path.as_str(), number])?;
    }
    Ok(())
}

/// Removes the files of a generation, and the contents that no other has.
pub(super) fn forget(connection: &Connection, generation: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE nimbus_contents SET uses = nimbus_contents.uses - released.times
             FROM (SELECT content, count(*) AS times FROM nimbus_files
                   WHERE generation = ?1 GROUP BY content) AS released
             WHERE number = released.content",
        )?
        .execute([generation])?;
    let unused = connection
        .prepare_cached(
            "SELECT DISTINCT number FROM nimbus_files JOIN nimbus_contents ON number = content
             WHERE generation = ?1 AND uses = 0",
        )?
        .query_map([generation], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let mut drop_pieces =
        connection.prepare_cached("DELETE FROM nimbus_pieces WHERE id BETWEEN ?1 AND ?2")?;
    let mut drop_content =
        connection.prepare_cached("DELETE FROM nimbus_contents WHERE number = ?1")?;
    for number in unused {
        let last = first_piece(number + 1) - 1;
        drop_pieces.execute([first_piece(number), last])?;
        drop_content.execute([number])?;
    }
    connection
        .prepare_cached("DELETE FROM nimbus_files WHERE generation = ?1")?
        .execute([generation])?;
    Ok(())
}

/// A file of the active generation.
pub(super) fn find(connection: &Connection, path: &AppPath) -> rusqlite::Result<Option<AppFile>> {
    connection
        .prepare_cached(
            "SELECT sha256, size
             FROM nimbus_active JOIN nimbus_files USING (generation) JOIN nimbus_contents ON number = content
             WHERE path = ?1",
        )?
        .query_row([path.as_str()], |row| {
            let hash = stored_hash(row, 0)?;
            let size = row.get::<_, i64>(1)?;
            let size = size.try_into().map_err(|_| malformed(1, "size"))?;
            Ok(AppFile { hash, size })
        })
        .optional()
}

/// Part of a content; fewer bytes than asked for when it ends before, or is not there any more.
pub(super) fn read(
    connection: &Connection,
    hash: ContentHash,
    range: Range<u64>,
) -> rusqlite::Result<Vec<u8>> {
    // One statement, and so one state of the file.
    let mut pieces = connection.prepare_cached(
        "SELECT bytes FROM nimbus_contents JOIN nimbus_pieces
         ON id BETWEEN number * 65536 + ?2 AND number * 65536 + ?3
         WHERE sha256 = ?1 ORDER BY id",
    )?;
    let piece = PIECE as u64;
    let (first, last) = (range.start / piece, range.end.saturating_sub(1) / piece);
    let last = last.min(MAX_PLACE);
    let mut rows = pieces.query(params![hash.as_bytes(), first as i64, last as i64])?;
    let mut skip = (range.start % piece) as usize;
    let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while let Some(row) = rows.next()? {
        let piece = row.get_ref(0)?.as_blob()?;
        let piece = piece.get(skip..).unwrap_or_default();
        let missing = length - bytes.len();
        bytes.extend_from_slice(&piece[..piece.len().min(missing)]);
        skip = 0;
    }
    Ok(bytes)
}

/// Where the pieces of a content begin; they lie in a row.
fn first_piece(number: i64) -> i64 {
    number * (MAX_PLACE as i64 + 1)
}

fn stored_hash(row: &Row<'_>, column: usize) -> rusqlite::Result<ContentHash> {
    row.get(column).map(ContentHash::from_bytes)
}

/// Bytes of a piece: 64 KiB. The last one of a content may have fewer.
const PIECE: usize = 64 << 10;
/// The last place that a piece may have: far beyond what fits a body.
const MAX_PLACE: u64 = u16::MAX as u64;
