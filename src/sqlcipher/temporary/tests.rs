//! The file against a plain one in memory, what is changed on its disk, and SQLite on top of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use proptest::prelude::*;
use rusqlite::{Connection, OpenFlags};

use super::file::{BLOCK, TemporaryFile};
use super::layer::layer_of;
use super::room::{keep_free, room, was_refused};
use crate::process::Reserve;

fn file() -> (tempfile::TempDir, TemporaryFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = TemporaryFile::new(room(dir.path())).unwrap();
    (dir, file)
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Cut(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Now and then on the edges of blocks.
    let edge = (0..6_u64, 0..3_u64).prop_map(|(block, by)| (block * BLOCK as u64 + by).max(1) - 1);
    let offset = prop_oneof![0..20_000_u64, edge.clone()];
    let length = prop_oneof![0..10_000_usize, edge.prop_map(|edge| edge as usize)];
    let data = (any::<u8>(), length.clone())
        .prop_map(|(first, length)| (0..length).map(|n| first.wrapping_add(n as u8)).collect());
    let step = prop_oneof![
        3 => (offset.clone(), data).prop_map(|(offset, data)| Step::Write(offset, data)),
        3 => (offset.clone(), length).prop_map(|(offset, length)| Step::Read(offset, length)),
        1 => offset.prop_map(Step::Cut),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn is_as_a_file_in_memory_is(steps in steps()) {
        let (_dir, mut file) = file();
        let mut model: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Write(offset, data) => {
                    file.write_at(&data, offset).unwrap();
                    let (start, end) = (offset as usize, offset as usize + data.len());
                    if !data.is_empty() {
                        model.resize(model.len().max(end), 0);
                        model[start..end].copy_from_slice(&data);
                    }
                }
                Step::Read(offset, length) => {
                    let mut out = vec![7; length];
                    let read = file.read_at(&mut out, offset).unwrap();
                    let start = model.len().min(offset as usize);
                    let mut expected = model[start..].to_vec();
                    expected.truncate(length);
                    prop_assert_eq!(read, expected.len());
                    expected.resize(length, 0);
                    prop_assert_eq!(out, expected);
                }
                Step::Cut(length) => {
                    file.set_len(length).unwrap();
                    model.resize(length as usize, 0);
                }
            }
            prop_assert_eq!(file.len(), model.len() as u64);
        }
        let mut out = vec![7; model.len()];
        prop_assert_eq!(file.read_at(&mut out, 0).unwrap(), model.len());
        prop_assert_eq!(out, model);
    }
}

fn block(of: u8) -> [u8; BLOCK] {
    [of; BLOCK]
}

fn on_disk(file: &TemporaryFile, block: u64) -> Vec<u8> {
    let mut content = vec![0; BLOCK];
    let place = block * BLOCK as u64;
    file.on_disk().read_exact_at(&mut content, place).unwrap();
    content
}

fn put(file: &TemporaryFile, block: u64, content: &[u8]) {
    let place = block * BLOCK as u64;
    file.on_disk().write_all_at(content, place).unwrap();
}

#[track_caller]
fn assert_bad(file: &mut TemporaryFile, block: u64) {
    for length in [BLOCK, 10] {
        let mut out = vec![7; length];
        let read = file.read_at(&mut out, block * BLOCK as u64);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(out.iter().all(|byte| *byte == 0));
    }
}

#[track_caller]
fn assert_good(file: &mut TemporaryFile, block: u64, content: u8) {
    let mut out = [0; BLOCK];
    let read = file.read_at(&mut out, block * BLOCK as u64).unwrap();
    assert_eq!((read, out), (BLOCK, [content; BLOCK]));
}

#[test]
fn a_block_that_was_changed_swapped_or_put_back_is_refused() {
    let (_dir, mut file) = file();
    for number in 0..3 {
        let place = u64::from(number) * BLOCK as u64;
        file.write_at(&block(number), place).unwrap();
    }
    let (first, second) = (on_disk(&file, 0), on_disk(&file, 1));
    for at in [0, 1, BLOCK - 1] {
        let mut changed = first.clone();
        changed[at] ^= 1;
        put(&file, 0, &changed);
        assert_bad(&mut file, 0);
    }
    put(&file, 0, &second);
    put(&file, 1, &first);
    assert_bad(&mut file, 0);
    assert_bad(&mut file, 1);
    put(&file, 0, &first);
    put(&file, 1, &second);
    assert_good(&mut file, 0, 0);
    assert_good(&mut file, 1, 1);
    // As it was before it was written again, also with the same content.
    file.write_at(&block(0), 0).unwrap();
    assert_ne!(on_disk(&file, 0), first);
    put(&file, 0, &first);
    assert_bad(&mut file, 0);
    // Nor is a part of it written over what is not known.
    let refused = file.write_at(b"part", 5).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    // Zeros, and a file that is cut.
    put(&file, 1, &[0; BLOCK]);
    assert_bad(&mut file, 1);
    file.on_disk().set_len(2 * BLOCK as u64).unwrap();
    assert_bad(&mut file, 2);
    // Another process's file, or another file of this one.
    let (_dir, mut other) = self::file();
    other.write_at(&block(1), BLOCK as u64).unwrap();
    put(&file, 1, &on_disk(&other, 1));
    assert_bad(&mut file, 1);
}

#[test]
fn nothing_that_was_cut_off_comes_back_and_what_was_never_written_is_zero() {
    let (_dir, mut file) = file();
    file.write_at(&[9; 2 * BLOCK], 0).unwrap();
    let old = on_disk(&file, 1);
    file.set_len(100).unwrap();
    file.set_len(3 * BLOCK as u64).unwrap();
    put(&file, 1, &old);
    assert_good(&mut file, 1, 0);
    assert_good(&mut file, 2, 0);
    let mut out = [7; 200];
    assert_eq!(file.read_at(&mut out, 0).unwrap(), 200);
    assert_eq!((&out[..100], &out[100..]), (&[9; 100][..], &[0; 100][..]));
}

#[test]
fn small_writes_one_after_the_other_are_sealed_once_a_block() {
    let (_dir, mut file) = file();
    // As the records of a savepoint: a page number, then a page.
    let mut offset = 0;
    for page in 0..100_u32 {
        file.write_at(&page.to_be_bytes(), offset).unwrap();
        file.write_at(&block(page as u8), offset + 4).unwrap();
        offset += 4 + BLOCK as u64;
    }
    assert_eq!(file.sealed(), offset / BLOCK as u64);
    let mut number = [0; 4];
    assert_eq!(file.read_at(&mut number, 99 * 4100).unwrap(), 4);
    assert_eq!(u32::from_be_bytes(number), 99);
}

#[test]
fn has_no_name_and_nothing_that_can_be_read() {
    let (dir, mut file) = file();
    let canary = b"canary in a temporary file ".repeat(1000);
    file.write_at(&canary, 3).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let mut content = vec![0; canary.len() / BLOCK * BLOCK];
    file.on_disk().read_exact_at(&mut content, 0).unwrap();
    let found = content.windows(9).any(|window| window == b"temporary");
    assert!(!found && content.iter().any(|byte| *byte != 0));
}

/// A connection of a file in `dir` through the layer. It is as those of tenants are, but for its
/// key.
#[expect(
    clippy::disallowed_methods,
    reason = "a plain database of the test's own"
)]
fn connect(dir: &Path) -> Connection {
    let layer = layer_of(dir).unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection = Connection::open_with_flags_and_vfs(dir.join("a.sqlite3"), flags, layer);
    let connection = connection.unwrap();
    let settings = "PRAGMA journal_mode = WAL; PRAGMA temp_store = FILE; PRAGMA cache_size = -512;
         CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT);";
    connection.execute_batch(settings).unwrap();
    connection
}

/// Rows whose values are long and in no order.
fn fill(connection: &Connection, rows: u32, length: usize) {
    let mut insert = connection
        .prepare(
            "INSERT INTO t (value) VALUES (printf('%08x', ?1 * 2654435761 % 4294967296) || ?2)",
        )
        .unwrap();
    connection.execute_batch("BEGIN").unwrap();
    for row in 0..rows {
        insert.execute((row, "x".repeat(length))).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
}

/// The files that this process has open in `dir` without a name, or with one that is gone.
fn open_in(dir: &Path) -> Vec<File> {
    let is_nameless = |path: &Path| {
        let target = std::fs::read_link(path).unwrap_or_default();
        target.starts_with(dir) && target.to_string_lossy().ends_with(" (deleted)")
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = open.map(|entry| entry.unwrap().path());
    let nameless: Vec<_> = open.filter(|path| is_nameless(path)).collect();
    #[expect(clippy::disallowed_methods, reason = "no database")]
    nameless
        .into_iter()
        .map(|path| File::open(path).unwrap())
        .collect()
}

const SORTED: &str = "SELECT substr(value, 1, 8) FROM t ORDER BY value LIMIT 150";

fn sorted(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut sort = connection.prepare(SORTED)?;
    sort.query_map([], |row| row.get(0))?.collect()
}

#[test]
fn sqlite_sorts_makes_indexes_and_undoes_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let connection = connect(dir.path());
    fill(&connection, 200, 50_000);
    let first = sorted(&connection).unwrap();
    assert_eq!(first.len(), 150);
    assert!(first.is_sorted());
    connection
        .execute_batch("CREATE INDEX i ON t (value)")
        .unwrap();
    assert_eq!(sorted(&connection).unwrap(), first);
    connection
        .execute_batch(
            "BEGIN; SAVEPOINT s; UPDATE t SET value = 'y' || value; DELETE FROM t WHERE id > 100;
             SAVEPOINT deeper; DROP INDEX i;",
        )
        .unwrap();
    assert!(
        !open_in(dir.path()).is_empty(),
        "the savepoint is on the disk"
    );
    let undo = "ROLLBACK TO deeper; ROLLBACK TO s; RELEASE s; COMMIT";
    connection.execute_batch(undo).unwrap();
    assert_eq!(open_in(dir.path()).len(), 0);
    assert_eq!(sorted(&connection).unwrap(), first);
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    // The settings are those that the module names.
    let option = |option: &str| -> bool {
        let sql = "SELECT sqlite_compileoption_used(?1)";
        connection
            .query_row(sql, [option], |row| row.get(0))
            .unwrap()
    };
    assert!(option("TEMP_STORE=2"));
    assert!(option("DEFAULT_CACHE_SIZE=-2000"));
}

#[test]
fn what_is_changed_on_the_disk_fails_what_reads_it_and_is_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let connection = connect(dir.path());
    fill(&connection, 200, 50_000);
    let before = sorted(&connection).unwrap();
    let whole = "SELECT value FROM t ORDER BY value LIMIT 150";
    let mut sort = connection.prepare(whole).unwrap();
    let mut rows = sort.query([]).unwrap();
    let _first = rows.next().unwrap();
    assert_eq!(open_in(dir.path()).len(), 1, "sorted on the disk");
    change_all(dir.path());
    let error = loop {
        match rows.next() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("all was read"),
            Err(error) => break error,
        }
    };
    let code = error.sqlite_error().unwrap().extended_code;
    assert_eq!(code, rusqlite::ffi::SQLITE_IOERR_DATA);
    drop(rows);
    drop(sort);
    // A savepoint that cannot be undone undoes the transaction.
    connection
        .execute_batch("BEGIN; INSERT INTO t (value) VALUES ('0'); SAVEPOINT s; UPDATE t SET value = 'y' || value;")
        .unwrap();
    change_all(dir.path());
    let error = connection.execute_batch("ROLLBACK TO s").unwrap_err();
    let code = error.sqlite_error().unwrap().extended_code;
    assert_eq!(code, rusqlite::ffi::SQLITE_IOERR_DATA);
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").unwrap();
    }
    assert_eq!(sorted(&connection).unwrap(), before);
}

/// Turns a bit in every block of every temporary file in `dir`. Each is open once: twice would turn
/// it back.
#[expect(clippy::disallowed_methods, reason = "no database")]
fn change_all(dir: &Path) {
    use std::os::fd::AsRawFd as _;

    for file in open_in(dir) {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        for place in (100..file.metadata().unwrap().len()).step_by(BLOCK) {
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ 1], place).unwrap();
        }
    }
}

#[test]
fn without_room_it_is_full_and_everything_else_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let connection = connect(dir.path());
    fill(&connection, 100, 100_000);
    let before = sorted(&connection).unwrap();
    keep_free(dir.path(), Reserve::Bytes(u64::MAX));
    let full = |error: rusqlite::Error| {
        let code = error.sqlite_error_code();
        assert_eq!(code, Some(rusqlite::ErrorCode::DiskFull));
        assert!(was_refused());
    };
    full(sorted(&connection).unwrap_err());
    full(
        connection
            .execute_batch("CREATE INDEX i ON t (value)")
            .unwrap_err(),
    );
    let change = "BEGIN; SAVEPOINT s; UPDATE t SET value = 'y' || value;";
    full(connection.execute_batch(change).unwrap_err());
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").unwrap();
    }
    fill(&connection, 1, 10);
    let sql = "DELETE FROM t WHERE id = 101";
    assert_eq!(connection.execute(sql, []).unwrap(), 1);
    keep_free(dir.path(), Reserve::Bytes(0));
    assert_eq!(sorted(&connection).unwrap(), before);
    assert_eq!(open_in(dir.path()).len(), 0);
}
