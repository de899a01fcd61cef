use std::fs;
use std::path::Path;

use nimbus_keyproviders::OsRandom;

use super::super::page::{PageKey, SALT, Sealed};
use super::*;
use crate::sqlcipher::tests::Fixture;

/// A database with a table, an index, a payload in overflow pages, and free pages with two trunks;
/// all of it in the file.
fn fill(database: &Database) {
    let connection = database.writer().unwrap();
    connection
        .execute_batch(
            "CREATE INDEX i ON t (value);
             CREATE TABLE large (x); INSERT INTO large VALUES (zeroblob(30000));
             CREATE TABLE going (x);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1100)
             INSERT INTO going SELECT randomblob(3900) FROM n;
             DROP TABLE going;
             PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
}

fn key_of(database: &Database, path: &Path) -> PageKey {
    let head = fs::read(path).unwrap();
    PageKey::new(database.key().unwrap(), head[..SALT].try_into().unwrap())
}

fn page(file: &mut [u8], number: u32) -> &mut Sealed {
    let at = (number as usize - 1) * PAGE;
    (&mut file[at..at + PAGE]).try_into().unwrap()
}

/// Changes the content of a page as who has the key does.
fn rewrite(key: &PageKey, file: &mut [u8], number: u32, change: impl FnOnce(&mut Content)) {
    let page = page(file, number);
    let mut content = key.open(number, page).unwrap();
    change(&mut content);
    *page = key.seal(number, &content, &OsRandom).unwrap();
}

fn put(content: &mut Content, at: usize, number: u32) {
    content[at..at + 4].copy_from_slice(&number.to_be_bytes());
}

/// What a verification of the file with these bytes says.
async fn damage(fixture: &Fixture, path: &Path, bytes: &[u8]) -> Option<Damage> {
    fs::write(path, bytes).unwrap();
    match fixture.opened("demo").await.verify_pages() {
        Ok(()) => None,
        Err(OpenError::Damaged { damage, .. }) => Some(damage),
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_damaged_page_is_found_whatever_it_is() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    fill(&fixture.opened("demo").await);
    let key = key_of(&fixture.opened("demo").await, &path);
    let mut whole = fs::read(&path).unwrap();
    let pages = u32::try_from(whole.len() / PAGE).unwrap();
    let first = key.open(1, page(&mut whole, 1)).unwrap();
    let trunk = number(&first, FIRST_TRUNK);
    let content = key.open(trunk, page(&mut whole, trunk)).unwrap();
    let (next, leaf) = (number(&content, NEXT_TRUNK), number(&content, FIRST_LEAF));
    assert!(next != 0 && number(&content, LEAVES) > 0);
    assert_eq!(damage(&fixture, &path, &whole).await, None);
    // Trees of all kinds, overflow pages, and free ones.
    let some = (2..40).step_by(3).chain((40..=pages).step_by(131));
    for number in some.chain([trunk, next, leaf]) {
        let mut bytes = whole.clone();
        page(&mut bytes, number)[2000] ^= 1;
        let found = damage(&fixture, &path, &bytes).await;
        let (bad, pages) = (1, u64::from(pages));
        assert_eq!(found, Some(Damage::Pages { bad, pages }), "{number}");
    }
}

#[tokio::test]
async fn a_page_that_nothing_leads_to_and_one_behind_the_end_are_looked_at() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    fill(&fixture.opened("demo").await);
    let key = key_of(&fixture.opened("demo").await, &path);
    let whole = fs::read(&path).unwrap();
    let more = u32::try_from(whole.len() / PAGE).unwrap() + 1;
    let sealed = key.seal(
        more,
        &Content::new([7; super::super::page::CONTENT]),
        &OsRandom,
    );
    // Behind the end: it must authenticate, and lies there as SQLite may leave it.
    let mut longer = [&whole[..], &sealed.unwrap()].concat();
    assert_eq!(damage(&fixture, &path, &longer).await, None);
    page(&mut longer, more)[5] ^= 1;
    let (bad, pages) = (1, u64::from(more));
    let found = damage(&fixture, &path, &longer).await;
    assert_eq!(found, Some(Damage::Pages { bad, pages }));
    page(&mut longer, more)[5] ^= 1;
    // In the database, and in no tree and no list.
    rewrite(&key, &mut longer, 1, |first| put(first, 28, more));
    assert_eq!(
        damage(&fixture, &path, &longer).await,
        Some(Damage::Structure)
    );
    // A leaf less in the list.
    let mut unlisted = whole.clone();
    let first = key.open(1, page(&mut unlisted, 1)).unwrap();
    let trunk = number(&first, FIRST_TRUNK);
    rewrite(&key, &mut unlisted, trunk, |content| {
        let leaves = number(content, LEAVES);
        put(content, LEAVES, leaves - 1);
    });
    assert_eq!(
        damage(&fixture, &path, &unlisted).await,
        Some(Damage::Structure)
    );
}

#[tokio::test]
async fn frames_that_are_not_in_the_file_and_the_pages_under_them_are_proven() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    // A reader of before keeps the frames out of the file.
    let reader = database.reader().unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM t;")
        .unwrap();
    let _rows: i64 = reader
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    let writer = database.writer().unwrap();
    writer
        .execute_batch("UPDATE t SET value = 'another' WHERE id < 100")
        .unwrap();
    database.verify_pages().unwrap();
    // Written as SQLite's own connections see it: no file is opened and closed by hand.
    let flip = |path: &Path, at: u64| {
        let file = SqliteFile::open_to_write(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    let wal = crate::data_dir::beside(&path, crate::data_dir::WAL);
    let frame = 32 + 24 + 2000;
    let found = |what: &str| match database.verify_pages() {
        Err(OpenError::Damaged { .. }) => {}
        other => panic!("{what}: {other:?}"),
    };
    flip(&wal, frame);
    found("a frame");
    flip(&wal, frame);
    database.verify_pages().unwrap();
    // The page of the file that the frame lies over.
    let mut head = [0; 4];
    SqliteFile::open(&wal)
        .unwrap()
        .read_exact_at(&mut head, 32)
        .unwrap();
    let under = (u64::from(u32::from_be_bytes(head)) - 1) * PAGE_BYTES + 2000;
    flip(&path, under);
    found("the page under it");
    flip(&path, under);
    database.verify_pages().unwrap();
}

#[tokio::test]
async fn pages_are_proven_where_sqlite_does_not_understand_the_schema() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let database = fixture.opened("demo").await;
    let connection = database.writer().unwrap();
    connection
        .execute_batch(
            "CREATE INDEX i ON t (value);
             PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(sql, 'value TEXT', 'value TEXT COLLATE elsewhere')
             WHERE name = 't';
             PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
    drop((connection, database));
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(damage(&fixture, &path, &bytes).await, None);
    let last = bytes.len() - 2000;
    bytes[last] ^= 1;
    assert!(matches!(
        damage(&fixture, &path, &bytes).await,
        Some(Damage::Pages { bad: 1, .. })
    ));
}

#[test]
fn the_page_where_locks_lie_is_not_asked_for() {
    let end = |pages: u32| u64::from(pages) * PAGE_BYTES;
    let numbers: Vec<u32> = behind(LOCK_PAGE - 2, end(LOCK_PAGE + 1)).collect();
    assert_eq!(numbers, [LOCK_PAGE - 1, LOCK_PAGE + 1]);
    assert_eq!(behind(5, end(5) + 17).count(), 0);
    assert_eq!(behind(6, end(5)).count(), 0);
}
