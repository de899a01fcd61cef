//! The cache under SQLCipher, on real files. Each test is a process of its own, which has one
//! cache.

mod store;

use nimbus_keyproviders::{CipherKey, Dek, OsRandom};
use nimbus_manifests::FileId;
use rusqlite::OpenFlags;

use super::cache::lock;
use super::*;
use crate::sqlcipher::page::PAGE;
use crate::sqlcipher::{Database, key};

/// What a reader says of a database: its rows, or the code of the error.
type Outcome = Result<Vec<(i64, String)>, Option<rusqlite::ErrorCode>>;

struct House {
    dir: tempfile::TempDir,
    key: CipherKey,
}

impl House {
    /// With a cache of this many bytes.
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let _started = start(bytes, dir.path()).unwrap();
        assert_eq!(stats().bytes, 0, "the self-test leaves nothing");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "nor a file");
        Self {
            dir,
            key: new_key(),
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("a.sqlite3")
    }

    fn open(&self, owner: Option<&Owner>) -> Connection {
        self.open_under(&self.key, owner)
    }

    fn open_under(&self, key: &CipherKey, owner: Option<&Owner>) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.path(), flags).unwrap();
        key::hand_over(&connection, key, owner).unwrap();
        connection
    }

    /// Some hundred pages in WAL mode, and the connection that wrote them.
    fn filled(&self, owner: Option<&Owner>) -> Connection {
        let connection = self.open(owner);
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT);
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                 INSERT INTO t (value) SELECT printf('canary %0200d', i) FROM n;",
            )
            .unwrap();
        connection
    }

    /// What a connection that has read nothing yet finds.
    fn outcome(&self, owner: Option<&Owner>) -> Outcome {
        all(&self.open(owner))
    }
}

fn all(connection: &Connection) -> Outcome {
    let mut read = connection
        .prepare("SELECT id, value FROM t")
        .map_err(|error| error.sqlite_error_code())?;
    let rows = read.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.and_then(Iterator::collect)
        .map_err(|error: rusqlite::Error| error.sqlite_error_code())
}

fn new_key() -> CipherKey {
    let dek = Dek::generate(&OsRandom).unwrap();
    dek.cipher_key(&FileId::from_uuid(uuid::Uuid::nil()))
}

/// How many pages a read missed and found.
fn moved<T>(work: impl FnOnce() -> T) -> (u64, u64, T) {
    let before = stats();
    let result = work();
    let after = stats();
    (
        after.misses - before.misses,
        after.hits - before.hits,
        result,
    )
}

/// A connection reads page 1 now and then again.
fn is_near(pages: u64, others: u64) -> bool {
    pages.abs_diff(others) <= PAGE_ONE
}

const PAGE_ONE: u64 = 3;

fn checkpoint(connection: &Connection) {
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
}

#[test]
fn what_one_connection_wrote_or_read_the_others_find_in_the_wal_and_in_the_file() {
    let house = House::new(64 << 20);
    let owner = Owner::new().unwrap();
    let writer = house.filled(Some(&owner));
    let (misses, hits, rows) = moved(|| house.outcome(Some(&owner)).unwrap());
    assert_eq!((misses, rows.len()), (0, 2000));
    assert!(hits > 100, "{hits}");
    checkpoint(&writer);
    let (misses, again, _rows) = moved(|| house.outcome(Some(&owner)).unwrap());
    assert!(
        misses == 0 && is_near(again, hits),
        "{misses} {again} {hits}"
    );
    // A commit empties the caches of the connections; of this one only what was written changes.
    let reader = house.open(Some(&owner));
    assert_eq!(all(&reader).unwrap().len(), 2000);
    let update = "UPDATE t SET value = 'new' WHERE id = 1000";
    writer.execute_batch(update).unwrap();
    let (misses, again, rows) = moved(|| all(&reader).unwrap());
    assert!(
        misses == 0 && is_near(again, hits),
        "{misses} {again} {hits}"
    );
    assert_eq!(rows[999].1, "new");
    // Nobody else's connection finds anything.
    let other = Owner::new().unwrap();
    let (misses, none, _rows) = moved(|| house.outcome(Some(&other)).unwrap());
    assert!(
        is_near(misses, hits) && none <= PAGE_ONE,
        "{misses} {none} {hits}"
    );
    let (misses, none, _rows) = moved(|| house.outcome(None).unwrap());
    assert_eq!((misses, none), (0, 0), "it does not ask");
}

#[test]
fn changed_swapped_and_replayed_pages_in_the_file_are_found_out_as_without_the_cache() {
    let house = House::new(64 << 20);
    let owner = Owner::new().unwrap();
    let writer = house.filled(Some(&owner));
    checkpoint(&writer);
    let older = std::fs::read(house.path()).unwrap();
    writer
        .execute_batch("UPDATE t SET value = printf('younger %0200d', id)")
        .unwrap();
    checkpoint(&writer);
    drop(writer);
    let whole = std::fs::read(house.path()).unwrap();
    let pages = whole.len() / PAGE;
    let good = house.outcome(Some(&owner));
    assert_eq!(good.as_ref().unwrap().len(), 2000);
    // Whether it is found out.
    let attack = |what: String, file: &[u8]| {
        std::fs::write(house.path(), file).unwrap();
        let with = house.outcome(Some(&owner));
        let without = house.outcome(None);
        assert_eq!(with, without, "{what}");
        // And it spoils nothing.
        std::fs::write(house.path(), &whole).unwrap();
        let (misses, _hits, after) = moved(|| house.outcome(Some(&owner)));
        assert_eq!(after, good, "{what}");
        assert_eq!(misses, 0, "{what}: every true page is still kept");
        with.is_err()
    };
    for page in [0, 2, pages / 2, pages - 1] {
        // Ciphertext at both ends, IV, MAC; in page 1 the salt comes first.
        for at in [0, 15, 16, 2000, 4015, 4016, 4031, 4032, 4095] {
            let mut file = whole.clone();
            file[page * PAGE + at] ^= 0x80;
            let what = format!("byte {at} of page {page}");
            assert!(attack(what.clone(), &file), "{what}");
        }
    }
    let page = |file: &[u8], number: usize| file[number * PAGE..(number + 1) * PAGE].to_vec();
    let put = |number: usize, page: &[u8]| {
        let mut file = whole.clone();
        file[number * PAGE..(number + 1) * PAGE].copy_from_slice(page);
        file
    };
    let (one, two) = (pages / 2, pages / 2 + 1);
    let mut swapped = put(one, &page(&whole, two));
    swapped[two * PAGE..(two + 1) * PAGE].copy_from_slice(&page(&whole, one));
    assert!(attack("two pages swapped".into(), &swapped));
    assert!(attack("a page twice".into(), &put(one, &page(&whole, two))));
    // The ciphertext of one under IV and MAC of another, and the other way round.
    let mut mixed = page(&whole, one);
    mixed[4016..].copy_from_slice(&page(&whole, two)[4016..]);
    assert!(attack(
        "IV and MAC of another page".into(),
        &put(one, &mixed)
    ));
    let mut mixed = page(&whole, one);
    mixed[4032..].copy_from_slice(&page(&older, one)[4032..]);
    assert!(attack(
        "the MAC of its older version".into(),
        &put(one, &mixed)
    ));
    let mut mixed = page(&older, one);
    mixed[4016..].copy_from_slice(&page(&whole, one)[4016..]);
    assert!(attack(
        "the older ciphertext under IV and MAC".into(),
        &put(one, &mixed)
    ));
    assert!(attack("zeros".into(), &put(one, &[0; PAGE])));
    assert!(attack("a file cut short".into(), &whole[..one * PAGE]));
    // What the page MACs do not show, with or without a cache: the older version of a page at its
    // place.
    assert!(!attack(
        "its older version".into(),
        &put(one, &page(&older, one))
    ));
}

#[test]
fn changed_and_swapped_frames_of_the_wal_are_found_out_as_without_the_cache() {
    let house = House::new(64 << 20);
    let owner = Owner::new().unwrap();
    // It keeps the index of the WAL, so that the frames are not proven by their checksums any more.
    let writer = house.filled(Some(&owner));
    let wal = house.dir.path().join("a.sqlite3-wal");
    let whole = std::fs::read(&wal).unwrap();
    let good = house.outcome(Some(&owner));
    assert_eq!(good, house.outcome(None));
    const FRAME: usize = 24 + PAGE;
    let frames = (whole.len() - 32) / FRAME;
    let last = 32 + (frames - 1) * FRAME + 24;
    let before = last - FRAME;
    let write = |at: usize, bytes: &[u8]| {
        let file = crate::sqlite_file::SqliteFile::open_to_write(&wal).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    };
    let mut attacks = Vec::new();
    for at in [16, 2000, 4015, 4016, 4031, 4032, 4095] {
        attacks.push((last + at, vec![whole[last + at] ^ 1]));
    }
    attacks.push((last, whole[before..before + PAGE].to_vec()));
    attacks.push((last, vec![0; PAGE]));
    for (at, bytes) in attacks {
        write(at, &bytes);
        let (with, without) = (house.outcome(Some(&owner)), house.outcome(None));
        assert_eq!(with, without, "at {at}");
        assert!(with.is_err(), "at {at}");
        write(at, &whole[at..at + bytes.len()]);
        assert_eq!(house.outcome(Some(&owner)), good, "at {at}");
    }
    drop(writer);
}

#[test]
fn a_wrong_key_finds_nothing_and_keeps_nothing() {
    let house = House::new(16 << 20);
    let owner = Owner::new().unwrap();
    let writer = house.filled(Some(&owner));
    checkpoint(&writer);
    drop(writer);
    let before = stats();
    let wrong = house.open_under(&new_key(), Some(&owner));
    assert!(all(&wrong).is_err());
    drop(wrong);
    assert_eq!(stats(), before, "it is not even looked for");
    let (misses, hits, rows) = moved(|| house.outcome(Some(&owner)).unwrap());
    assert_eq!((misses, rows.len()), (0, 2000));
    // The owner's key is the first that is used, be it a wrong one: then nothing is found, and
    // nothing kept.
    let other = Owner::new().unwrap();
    let wrong = house.open_under(&new_key(), Some(&other));
    assert!(all(&wrong).is_err());
    let before = stats().bytes;
    let (_misses, none, rows) = moved(|| house.outcome(Some(&other)).unwrap());
    assert_eq!((none, rows.len()), (0, 2000));
    assert_eq!(stats().bytes, before);
    assert!(hits > 0);
}

#[test]
fn pages_of_a_closed_owner_are_neither_found_nor_kept_and_are_wiped() {
    let house = House::new(16 << 20);
    let owner = Owner::new().unwrap();
    let writer = house.filled(Some(&owner));
    checkpoint(&writer);
    let (canary, cache) = (b"canary 0000", CACHE.get().unwrap());
    assert!(cache.contains(canary));
    let reader = house.open(Some(&owner));
    assert_eq!(all(&reader).unwrap().len(), 2000);
    owner.close();
    let (_misses, hits, rows) = moved(|| house.outcome(Some(&owner)).unwrap());
    assert_eq!((hits, rows.len()), (0, 2000));
    owner.forget();
    assert_eq!(stats().bytes, 0);
    assert!(!cache.contains(canary));
    // Connections that go on put nothing back.
    let update = "UPDATE t SET value = 'canary 0000 again' WHERE id < 100";
    writer.execute_batch(update).unwrap();
    assert_eq!(all(&reader).unwrap().len(), 2000);
    assert_eq!(stats().bytes, 0);
    assert!(!cache.contains(canary));
    // Without a word they go with the last that has them.
    let other = Owner::new().unwrap();
    let reader = house.open(Some(&other));
    assert_eq!(all(&reader).unwrap().len(), 2000);
    drop(other);
    assert!(stats().bytes > 0 && cache.contains(canary));
    drop(reader);
    assert_eq!(stats().bytes, 0);
    assert!(!cache.contains(canary));
}

#[test]
fn what_judges_the_disk_reads_it() {
    let house = House::new(16 << 20);
    let owner = Owner::new().unwrap();
    drop(house.filled(Some(&owner)));
    let connection = house.open(Some(&owner));
    assert_eq!(all(&connection).unwrap().len(), 2000);
    let check = |connection: &Connection| {
        let mut check = connection.prepare("PRAGMA cipher_integrity_check").unwrap();
        let found = check.query_map([], |row| row.get::<_, String>(0)).unwrap();
        found.count()
    };
    // Even through the cache, a damaged page has no entry.
    let mut file = std::fs::read(house.path()).unwrap();
    file[5 * PAGE + 100] ^= 1;
    drop(connection);
    std::fs::write(house.path(), &file).unwrap();
    assert_eq!(check(&house.open(Some(&owner))), 1);
    let (misses, hits, bad) = moved(|| check(&house.open(None)));
    assert_eq!((misses, hits, bad), (0, 0, 1));
}

#[tokio::test]
async fn a_database_is_served_from_the_cache_and_verified_beside_it() {
    use crate::sqlcipher::tests::Fixture;

    let dir = tempfile::tempdir().unwrap();
    let _started = start(16 << 20, dir.path()).unwrap();
    let fixture = Fixture::new();
    let _path = fixture.filled("demo").await;
    assert_eq!(stats().bytes, 0, "it was closed");
    let database = fixture.opened("demo").await;
    assert_eq!(fixture.rows(&database), 2000);
    let (misses, hits, rows) = moved(|| fixture.rows(&database));
    assert!(misses == 0 && hits > 0 && rows == 2000, "{misses} {hits}");
    let (misses, hits, verified) = moved(|| database.verify_pages());
    assert!(misses == 0 && hits == 0, "{misses} {hits}");
    verified.unwrap();
    drop(database);
    assert_eq!(stats().bytes, 0);
}

#[test]
fn stays_off_where_the_library_does_something_else() {
    fail::cfg("page_cache::lost", "return").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = start(16 << 20, dir.path()).unwrap_err();
    assert!(matches!(error, NotStarted::Order(_)), "{error}");
    assert!(Owner::new().is_none());
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!((left, stats().bytes), (0, 0));
    fail::remove("page_cache::lost");
    assert!(Owner::new().is_none(), "for good");
    let error = start(16 << 20, dir.path()).unwrap_err();
    assert!(matches!(error, NotStarted::Twice), "{error}");
    assert!(Database::new(dir.path(), None).served().pages.is_none());
}

#[test]
fn refuses_more_memory_than_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let error = start(1 << 60, dir.path()).unwrap_err();
    assert!(matches!(error, NotStarted::NoMemory { .. }), "{error}");
    assert!(Owner::new().is_none());
}

impl Cache {
    /// Whether these bytes stand in any slot.
    fn contains(&self, bytes: &[u8]) -> bool {
        self.shards.iter().any(|shard| lock(shard).contains(bytes))
    }
}
