//! Whether SQLCipher calls its provider as the cache relies on, shown on a database that is made
//! for it.
//!
//! What is written must be found when it is read, from the WAL and from the file; what is read must
//! be found when it is read again; and each page that was changed on the disk must be refused
//! although it is kept as it was.

use std::path::{Path, PathBuf};

use nimbus_keyproviders::{CipherKey, Dek, OsRandom};
use nimbus_manifests::FileId;
use rusqlite::{Connection, OpenFlags};

use super::cache::{Cache, Owner};
use super::{CacheStats, NotStarted};
use crate::data_dir::TEMPORARY_PREFIX;
use crate::sqlcipher::page::PAGE;
use crate::sqlcipher::{Beside, OpenError, key};
use crate::sqlite_file::SqliteFile;

/// Runs it in `dir`, and leaves neither a file nor a page behind.
pub(super) fn run(cache: &'static Cache, dir: &Path) -> Result<(), NotStarted> {
    let failed = |source| OpenError::Io {
        action: "create a file in",
        path: dir.to_owned(),
        source,
    };
    let file = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(dir)
        .map_err(failed)?
        .into_temp_path();
    let _beside = Beside(file.to_path_buf());
    let key = Dek::generate(&OsRandom).map_err(|error| failed(std::io::Error::other(error)))?;
    let test = Test {
        cache,
        path: file.to_path_buf(),
        key: key.cipher_key(&FileId::from_uuid(uuid::Uuid::nil())),
    };
    test.run()
}

struct Test {
    cache: &'static Cache,
    path: PathBuf,
    key: CipherKey,
}

impl Test {
    fn run(&self) -> Result<(), NotStarted> {
        let owner = self.cache.owner();
        let writer = self.open(&owner)?;
        let kept = self.moved(|| {
            self.done(writer.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT);
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
                 INSERT INTO t (value) SELECT printf('%0200d', i) FROM n;",
            ))
        })?;
        expect(
            kept.bytes > 0,
            "what is written is not signed after it is encrypted",
        )?;
        let found = self.moved(|| self.read(&owner))?;
        expect(
            found.hits >= LEAST_PAGES && found.misses == 0,
            "what was written is not found in the WAL",
        )?;
        self.done(writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"))?;
        drop(writer);
        let found = self.moved(|| self.read(&owner))?;
        expect(
            found.hits >= LEAST_PAGES && found.misses == 0,
            "what was written is not found in the file",
        )?;
        let reads = found.hits;
        // As a tenant that is opened: nothing of it is kept yet. (A connection reads page 1 more
        // than once.)
        let other = self.cache.owner();
        let missed = self.moved(|| self.read(&other))?;
        expect(
            missed.misses >= LEAST_PAGES && missed.misses + missed.hits == reads,
            "pages are found under another owner",
        )?;
        expect(
            missed.bytes > 0,
            "what is read is not verified before it is decrypted",
        )?;
        let found = self.moved(|| self.read(&other))?;
        expect(
            found.hits == reads && found.misses == 0,
            "what was read is not found when it is read again",
        )?;
        self.tamper(&other)
    }

    /// Changes a byte of each kind in two pages, and puts it back.
    fn tamper(&self, owner: &Owner) -> Result<(), NotStarted> {
        const IN_PAGES: [usize; 9] = [
            3,
            20,
            PAGE - 80,
            PAGE - 64,
            PAGE - 1,
            2 * PAGE,
            3 * PAGE - 81,
            3 * PAGE - 80,
            3 * PAGE - 1,
        ];
        for at in IN_PAGES {
            self.flip(at)?;
            let read = self.read(owner);
            self.flip(at)?;
            expect(read.is_err(), "a page that was changed is accepted")?;
        }
        self.read(owner)
    }

    fn flip(&self, at: usize) -> Result<(), NotStarted> {
        let flip = || {
            let file = SqliteFile::open_to_write(&self.path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64)?;
            file.write_all_at(&[byte[0] ^ 1], at as u64)
        };
        flip().map_err(|source| {
            NotStarted::from(OpenError::Io {
                action: "write",
                path: self.path.clone(),
                source,
            })
        })
    }

    /// Reads each page, on a connection that has read none.
    fn read(&self, owner: &Owner) -> Result<(), NotStarted> {
        let connection = self.open(owner)?;
        let rows = connection.query_row(
            "SELECT count(value), sum(length(value)) FROM t",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        );
        expect(
            self.done(rows)? == (200, 40_000),
            "what is read is not what was written",
        )
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a database of the self-test's own, without a manifest"
    )]
    fn open(&self, owner: &Owner) -> Result<Connection, NotStarted> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            key::hand_over(&connection, &self.key, Some(owner))?;
            Ok(connection)
        };
        self.done(open())
    }

    /// What `work` moves in the cache.
    fn moved(
        &self,
        work: impl FnOnce() -> Result<(), NotStarted>,
    ) -> Result<CacheStats, NotStarted> {
        let before = self.cache.stats();
        work()?;
        let after = self.cache.stats();
        Ok(CacheStats {
            bytes: after.bytes.saturating_sub(before.bytes),
            hits: after.hits - before.hits,
            misses: after.misses - before.misses,
            evictions: after.evictions - before.evictions,
        })
    }

    fn done<T>(&self, result: rusqlite::Result<T>) -> Result<T, NotStarted> {
        result.map_err(|source| {
            NotStarted::from(OpenError::Sqlite {
                action: "test the page cache with",
                path: self.path.clone(),
                source,
            })
        })
    }
}

fn expect(is_so: bool, otherwise: &'static str) -> Result<(), NotStarted> {
    if is_so {
        Ok(())
    } else {
        Err(NotStarted::Order(otherwise))
    }
}

/// The rows take ten and more, page 1 among them.
const LEAST_PAGES: u64 = 10;
