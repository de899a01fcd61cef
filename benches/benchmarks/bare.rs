//! The engine alone: a loop over rusqlite that inserts what the server inserts, into the same
//! tables, with the same settings, in commits as large as the server's.

use std::time::{Duration, Instant};

use nimbus::documents::DocumentId;
use rusqlite::{Connection, OpenFlags, params};
use tempfile::TempDir;

use crate::http::House;
use crate::setup::{self, document};

pub(crate) struct Bare {
    connection: Connection,
    group: usize,
    next: usize,
    _dir: TempDir,
}

impl Bare {
    /// An encrypted database with the tables of the tenant `demo` of `house`, which is in plaintext
    /// and has one table of documents.
    #[expect(
        clippy::disallowed_methods,
        reason = "what our writer is compared with is SQLite without it"
    )]
    pub(crate) fn open(house: &House, group: usize) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let model = house.machine.find("demo.sqlite3");
        let model = Connection::open_with_flags(model, flags).expect("the tenant's file");
        let tables: Vec<String> = model
            .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
            .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
            .expect("its tables");
        let dir = setup::directory();
        let path = dir.path().join("bare.sqlite3");
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_CREATE)
            .expect("a new file");
        connection.execute_batch(SETTINGS).expect("settings");
        for table in tables {
            connection.execute_batch(&table).expect("a table");
        }
        Self {
            connection,
            group,
            next: 0,
            _dir: dir,
        }
    }

    /// Documents inserted a second, over about `time`.
    pub(crate) fn rate(&mut self, time: Duration) -> f64 {
        let started = Instant::now();
        let before = self.next;
        while started.elapsed() < time {
            self.commit().expect("a commit");
        }
        (self.next - before) as f64 / started.elapsed().as_secs_f64()
    }

    fn commit(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.unchecked_transaction()?;
        let mut insert = transaction
            .prepare_cached("INSERT INTO documents_1 (seq, id, created, updated, fields) VALUES (?1, ?2, ?3, ?3, jsonb(?4))")?;
        let mut note =
            transaction.prepare_cached("INSERT INTO nimbus_journal VALUES (?1, 1, 1, ?2, ?3)")?;
        for _ in 0..self.group {
            self.next += 1;
            let (id, sequence) = (DocumentId::generate(), self.next as i64);
            let (fields, now) = (document(self.next), id.unix_ms());
            insert.execute(params![sequence, id.as_bytes(), now, fields])?;
            note.execute(params![sequence, id.as_bytes(), now])?;
        }
        drop((insert, note));
        transaction.commit()?;
        if (self.next / self.group).is_multiple_of(CHECKPOINT) {
            let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
            self.connection.query_row(checkpoint, [], |_row| Ok(()))?;
        }
        Ok(())
    }
}

/// Commits between checkpoints: about as many pages as the server lets come together.
const CHECKPOINT: usize = 60;
const SETTINGS: &str = "\
    PRAGMA key = \"x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'\";
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA temp_store = MEMORY;
    PRAGMA foreign_keys = ON;
    PRAGMA cache_size = -2048;";
