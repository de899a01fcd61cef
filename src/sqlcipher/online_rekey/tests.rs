//! A copy that follows its database.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::envelope::Opened;
use crate::sqlcipher::OpenError;
use crate::sqlcipher::tests::Fixture;

/// One connection writes in every way that changes pages, while the copy follows.
#[tokio::test]
async fn follows_whatever_is_written_and_ends_as_the_same_database() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    let writer = database.writer().unwrap();
    let file = fixture.rekeying("demo").await;
    // Committed before, in the WAL when the snapshot is taken.
    run(&writer, "UPDATE t SET value = 'before' WHERE id = 1");
    let mut following = Following::begin(file, quiet()).unwrap();
    for round in 0..40 {
        for statement in [
            format!(
                "INSERT INTO t (value) SELECT printf('more %0400d', id) FROM t LIMIT {}",
                round * 9 % 200
            ),
            format!("UPDATE t SET value = 'round {round}' WHERE id % 97 = {round}"),
            format!("DELETE FROM t WHERE id % 50 = {round}"),
            format!(
                "CREATE TABLE made{round} (x); DROP TABLE IF EXISTS made{}",
                (round + 37) % 40
            ),
            "BEGIN; DELETE FROM t; ROLLBACK".to_owned(),
        ] {
            run(&writer, &statement);
        }
        match round % 10 {
            // Everything into the file, and the WAL begun afresh, as far as the pin allows.
            3 => drop(writer.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE)),
            7 => run(&writer, "VACUUM"),
            _ => {}
        }
        if round % 4 == 0 {
            assert!(following.catch_up().unwrap() > 0);
        }
        if round % 8 == 0 {
            assert_eq!(
                following.catch_up().unwrap(),
                0,
                "nothing was written since"
            );
        }
    }
    following.finish().unwrap();
    let expected = content(&writer);
    // Somebody has it open still: nothing is exchanged, and the copy goes on.
    let not = following.swap().err().unwrap();
    assert!(matches!(not.error, CopyError::Busy { .. }) && !not.renamed);
    following.resume().unwrap();
    assert_eq!(following.catch_up().unwrap(), 0);
    following.finish().unwrap();
    writer.close().unwrap();
    drop(database);
    let file = following.swap().ok().unwrap();
    let database = Database::keyed(file.under(Opened::Next).unwrap());
    database.verify_pages().unwrap();
    assert_eq!(content(&database.writer().unwrap()), expected);
    assert!(!beside(&path, ".rekey").exists());
}

#[tokio::test]
async fn an_idle_database_whose_wal_comes_and_goes_is_followed_too() {
    let fixture = Fixture::new();
    let _path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    let writer = database.writer().unwrap();
    let file = fixture.rekeying("demo").await;
    let mut following = Following::begin(file, quiet()).unwrap();
    writer.busy_timeout(std::time::Duration::ZERO).unwrap();
    for round in 0..6 {
        run(&writer, "PRAGMA wal_checkpoint(TRUNCATE)");
        run(
            &writer,
            &format!("UPDATE t SET value = 'round {round}' WHERE id = 7"),
        );
        if round % 2 == 0 {
            assert!(following.catch_up().unwrap() > 0);
        }
        run(&writer, "PRAGMA wal_checkpoint(TRUNCATE)");
    }
    following.finish().unwrap();
    let expected = content(&writer);
    writer.close().unwrap();
    drop(database);
    let file = following.swap().ok().unwrap();
    let database = Database::keyed(file.under(Opened::Next).unwrap());
    database.verify_pages().unwrap();
    assert_eq!(content(&database.writer().unwrap()), expected);
}

/// The connection has the old file, and would find the WAL of the new one beside it.
#[tokio::test]
async fn nothing_is_exchanged_while_a_connection_opens_the_file_or_has_it_open() {
    let _turn = fail::FailScenario::setup();
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    let writer = database.writer().unwrap();
    let file = fixture.rekeying("demo").await;
    let looking = Database::keyed(file.share());
    let mut following = Following::begin(file, quiet()).unwrap();
    following.finish().unwrap();
    writer.close().unwrap();
    drop(database);
    fail::cfg("sqlcipher::opened", "pause").unwrap();
    let looking = std::thread::spawn(move || looking.reader());
    while swap_guard::alone(&path, || ()).is_some() {
        std::thread::yield_now();
    }
    assert!(!beside(&path, "-wal").exists());
    let not = following.swap().expect_err("it is not swapped");
    assert!(matches!(not.error, CopyError::Busy { .. }) && !not.renamed);
    fail::remove("sqlcipher::opened");
    let reader = looking.join().unwrap().unwrap();
    let not = following.swap().expect_err("it is not swapped");
    assert!(matches!(not.error, CopyError::Busy { .. }) && !not.renamed);
    let expected = content(&reader);
    drop(reader);
    let file = following.swap().ok().unwrap();
    let database = Database::keyed(file.under(Opened::Next).unwrap());
    assert_eq!(content(&database.writer().unwrap()), expected);
}

#[tokio::test]
async fn it_stops_in_the_verification_too_when_it_is_told_to() {
    let fixture = Fixture::new();
    let _path = fixture.filled("demo").await;
    let file = fixture.rekeying("demo").await;
    let copied = std::sync::atomic::AtomicBool::new(false);
    let progress: Progress = Arc::new(move |done, total| {
        // Asked the first time at the end of the copy, and then no more by it.
        !copied.swap(done == total, std::sync::atomic::Ordering::SeqCst)
    });
    let error = Following::begin(file, progress).err().expect("it stops");
    assert!(
        matches!(&error, CopyError::Open(OpenError::Sqlite { source, .. })
            if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted)),
        "{error:?}"
    );
}

/// Of the copy, SQLite's own check does not read these.
#[tokio::test]
async fn a_free_page_of_the_copy_that_does_not_authenticate_is_found() {
    let fixture = Fixture::new();
    let _path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    let writer = database.writer().unwrap();
    run(&writer, "DELETE FROM t WHERE id % 100 < 90");
    run(&writer, "PRAGMA wal_checkpoint(TRUNCATE)");
    drop((writer, database));
    let file = fixture.rekeying("demo").await;
    let target = Database::keyed(file.copy_under_next().unwrap());
    drop(File::create_new(target.path()).unwrap());
    let source = Database::keyed(file);
    let mut source = source.fresh().unwrap();
    copy_pages(&source, &target, target.path(), None).unwrap();
    verify(&mut source, &target, target.path(), None).unwrap();
    let whole = std::fs::read(target.path()).unwrap();
    let mut missed = Vec::new();
    for number in 0..whole.len() / PAGE {
        let mut bytes = whole.clone();
        bytes[number * PAGE + 2000] ^= 1;
        std::fs::write(target.path(), bytes).unwrap();
        if verify(&mut source, &target, target.path(), None).is_ok() {
            missed.push(number + 1);
        }
    }
    assert_eq!(missed, Vec::<usize>::new());
}

#[tokio::test]
async fn a_frame_that_does_not_authenticate_stops_it() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    let writer = database.writer().unwrap();
    let file = fixture.rekeying("demo").await;
    let mut following = Following::begin(file, quiet()).unwrap();
    run(&writer, "UPDATE t SET value = 'x' WHERE id = 7");
    let wal = OpenOptions::new()
        .write(true)
        .open(beside(&path, "-wal"))
        .unwrap();
    wal.write_all_at(b"scribbled", 32 + 24 + 100).unwrap();
    let error = following.catch_up().err().unwrap();
    assert!(
        matches!(error, CopyError::Open(OpenError::Damaged { .. })),
        "{error:?}"
    );
}

fn quiet() -> Progress {
    Arc::new(|_, _| true)
}

fn run(connection: &Connection, sql: &str) {
    use rusqlite::fallible_iterator::FallibleIterator as _;
    let mut statements = rusqlite::Batch::new(connection, sql);
    while let Some(mut statement) = statements.next().unwrap() {
        let mut rows = statement.query([]).unwrap();
        while rows.next().unwrap().is_some() {}
    }
}

fn content(connection: &Connection) -> (i64, String, i64) {
    connection
        .query_row(
            "SELECT count(*), group_concat(id || value, ';' ORDER BY id), (SELECT count(*) FROM sqlite_schema) FROM t",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap()
}
