//! The opener against real files, with a key in memory.

use std::sync::Arc;

use nimbus_keyproviders::MemoryProvider;
use nimbus_manifests::{Cipher, Subject, TenantId};

use super::*;
use crate::envelope::{Envelope, Intent, KeyRing, Prepared, manifest_path};
use crate::runtime::Progress;

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    envelope: Envelope,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let key = Arc::new(MemoryProvider::random().unwrap());
        Self {
            dir: tempfile::tempdir().unwrap(),
            envelope: Envelope::new(KeyRing::new(key, vec![], vec![])),
        }
    }

    fn path(&self, tenant: &str) -> PathBuf {
        self.dir.path().join(format!("{tenant}.sqlite3"))
    }

    pub(super) async fn opened(&self, tenant: &str) -> Database {
        self.open(tenant, Intent::Open).await.unwrap()
    }

    /// The file of a rekey that has begun.
    pub(super) async fn rekeying(&self, tenant: &str) -> KeyedFile {
        let (path, subject) = (self.path(tenant), subject(tenant));
        let prepared = self
            .envelope
            .prepare(&path, &subject, Cipher::Sqlcipher4, Intent::Open)
            .await
            .unwrap();
        let Prepared::Keyed(file) = prepared else {
            panic!("it is encrypted");
        };
        self.envelope.begin_rekey(file).await.unwrap()
    }

    pub(super) fn rows(&self, database: &Database) -> i64 {
        rows(&database.reader().unwrap())
    }

    async fn open(&self, tenant: &str, intent: Intent) -> Result<Database, OpenError> {
        open(&self.envelope, &self.path(tenant), &subject(tenant), intent).await
    }

    /// A database of some hundred pages, closed and checkpointed.
    pub(super) async fn filled(&self, tenant: &str) -> PathBuf {
        let database = self.open(tenant, Intent::Create).await.unwrap();
        let connection = database.writer().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                 INSERT INTO t (value) SELECT printf('canary %0200d', i) FROM n;
                 PRAGMA wal_checkpoint(TRUNCATE);",
            )
            .unwrap();
        self.path(tenant)
    }
}

fn subject(tenant: &str) -> Subject {
    let tenant: TenantId = tenant.parse().unwrap();
    Subject::sqlite_tenant(&tenant, &format!("{tenant}.sqlite3")).unwrap()
}

fn rows(connection: &Connection) -> i64 {
    connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

#[test]
fn the_linked_library_is_what_was_measured() {
    check_library().unwrap();
}

#[tokio::test]
async fn encrypts_and_reopens() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"canary"));
    assert!(!bytes.starts_with(b"SQLite format 3"));
    let database = fixture.open("demo", Intent::Open).await.unwrap();
    assert_eq!(rows(&database.reader().unwrap()), 2000);
    database.verify_pages().unwrap();
}

#[tokio::test]
async fn connections_are_set_up_as_documented() {
    let fixture = Fixture::new();
    let database = fixture.open("demo", Intent::Create).await.unwrap();
    let connection = database.writer().unwrap();
    let ask = |pragma: &str| {
        connection
            .query_row(&format!("PRAGMA {pragma}"), [], |row| {
                row.get::<_, rusqlite::types::Value>(0)
            })
            .unwrap()
    };
    assert_eq!(ask("journal_mode"), "wal".to_owned().into());
    assert_eq!(ask("synchronous"), 2.into());
    assert_eq!(ask("wal_autocheckpoint"), 0.into());
    assert_eq!(ask("temp_store"), 1.into());
    assert_eq!(ask("foreign_keys"), 1.into());
    assert_eq!(ask("cipher_page_size"), "4096".to_owned().into());
    let reader = database.reader().unwrap();
    assert!(reader.execute_batch("CREATE TABLE no (x)").is_err());
}

#[tokio::test]
async fn tells_a_foreign_file_from_a_damaged_one() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.filled("one").await, fixture.filled("two").await);

    let _bytes = std::fs::copy(&one, &two).unwrap();
    let error = fixture.open("two", Intent::Open).await.unwrap_err();
    assert!(matches!(error, OpenError::KeyMismatch { .. }), "{error:?}");

    let mut bytes = std::fs::read(&one).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&one, &bytes).unwrap();
    let error = fixture.open("one", Intent::Open).await.unwrap_err();
    let OpenError::Damaged {
        damage: Damage::Pages { bad: 1, .. },
        ..
    } = error
    else {
        panic!("{error:?}")
    };

    bytes[100] ^= 1;
    bytes.truncate(bytes.len() - 100);
    std::fs::write(&one, &bytes).unwrap();
    let error = fixture.open("one", Intent::Open).await;
    assert!(matches!(error, Err(OpenError::Damaged { .. })), "{error:?}");
}

#[tokio::test]
async fn finds_a_damaged_page_behind_a_sound_first_one() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 200;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let database = fixture.open("demo", Intent::Open).await.unwrap();
    let error = database.verify_pages().unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Damaged {
                damage: Damage::Pages { bad: 1, .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn finishes_a_creation_and_keeps_what_opens() {
    let fixture = Fixture::new();
    let path = fixture.path("demo");
    // As after a kill between the file's rename and the manifest's: `new`, and a whole file.
    let prepared = fixture
        .envelope
        .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Create)
        .await
        .unwrap();
    let Prepared::Keyed(file) = prepared else {
        panic!("encryption is on")
    };
    let database = Database::keyed(file);
    database.initialise(|_| Ok(())).unwrap();
    let salt = std::fs::read(&path).unwrap();
    drop(fixture.open("demo", Intent::Create).await.unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), salt);
}

#[tokio::test]
async fn sets_aside_what_does_not_open_beside_a_new_manifest() {
    let fixture = Fixture::new();
    let path = fixture.path("demo");
    drop(
        fixture
            .envelope
            .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Create)
            .await
            .unwrap(),
    );
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let database = fixture.open("demo", Intent::Create).await.unwrap();
    drop(database.writer().unwrap());
    let aside = fixture.dir.path().join("demo.sqlite3.set-aside-1");
    assert_eq!(std::fs::read(aside).unwrap(), vec![7; 8192]);
}

#[tokio::test]
async fn what_looks_beside_others_leaves_the_wal_to_them() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let database = fixture.open("demo", Intent::Open).await.unwrap();
    let writer = database.writer().unwrap();
    writer
        .execute_batch("UPDATE t SET value = 'in the WAL'")
        .unwrap();
    let prepared = fixture
        .envelope
        .prepare(&path, &subject("demo"), Cipher::Sqlcipher4, Intent::Open)
        .await
        .unwrap();
    let Prepared::Keyed(file) = prepared else {
        panic!("it is encrypted")
    };
    let looking = open_beside_others(file).unwrap();
    let reader = looking.reader().unwrap();
    assert_eq!(rows(&reader), 2000);
    writer.close().unwrap();
    let before = std::fs::read(&path).unwrap();
    // The last one, who would otherwise bring the WAL into the file and remove it.
    reader.close().unwrap();
    let wal = path.with_extension("sqlite3-wal");
    assert!(std::fs::metadata(&wal).unwrap().len() > 0);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    looking.tidy();
    assert!(!wal.exists());
    assert_ne!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn exports_and_imports_all_that_a_database_holds() {
    let fixture = Fixture::new();
    drop(fixture.filled("demo").await);
    let database = fixture.open("demo", Intent::Open).await.unwrap();
    database
        .writer()
        .unwrap()
        .execute_batch(
            "PRAGMA user_version = 7; PRAGMA application_id = 99;
             CREATE INDEX i ON t (value); CREATE VIEW v AS SELECT id FROM t;
             CREATE TABLE w (k TEXT PRIMARY KEY, x) WITHOUT ROWID; INSERT INTO w VALUES ('a', 1);
             CREATE VIRTUAL TABLE f USING fts5(body); INSERT INTO f VALUES ('needle in hay');
             CREATE TRIGGER g AFTER DELETE ON t BEGIN DELETE FROM w; END;",
        )
        .unwrap();
    let plain = fixture.dir.path().join("out").with_extension("plain");
    export_plaintext(&database, &plain, None).unwrap();
    assert!(
        std::fs::read(&plain)
            .unwrap()
            .starts_with(b"SQLite format 3\0")
    );
    assert!(matches!(
        export_plaintext(&database, &plain, None),
        Err(CopyError::TargetExists { .. })
    ));

    let copy = import_plaintext(
        &fixture.envelope,
        &plain,
        &fixture.path("copy"),
        &subject("copy"),
        true,
        None,
    )
    .await
    .unwrap();
    let connection = copy.reader().unwrap();
    assert_eq!(rows(&connection), 2000);
    let number = |sql: &str| -> i64 { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(number("PRAGMA user_version"), 7);
    assert_eq!(number("PRAGMA application_id"), 99);
    assert_eq!(number("SELECT count(*) FROM f WHERE f MATCH 'needle'"), 1);
    assert_eq!(number("SELECT count(*) FROM v"), 2000);
    assert_eq!(number("SELECT x FROM w WHERE k = 'a'"), 1);
}

#[tokio::test]
async fn leaves_no_plaintext_of_an_export_that_is_stopped() {
    let house = Fixture::new();
    let database = house.open("big", Intent::Create).await.unwrap();
    let connection = database.writer().unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (value TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
             INSERT INTO t SELECT printf('canary %050d', i) FROM n;",
        )
        .unwrap();
    let out = house.dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let stop: Progress = Arc::new(|_done, _total| false);
    let error = export_plaintext(&database, &out.join("big.sqlite3"), Some(stop)).unwrap_err();
    assert!(
        matches!(error, CopyError::Open(OpenError::Sqlite { .. })),
        "{error:?}"
    );
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(rows(&connection), 50_000);
}

#[tokio::test]
async fn makes_and_opens_plaintext_when_encryption_is_off_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo.sqlite3");
    let plain = Envelope::plaintext();
    for intent in [Intent::Create, Intent::Open] {
        let database = open(&plain, &path, &subject("demo"), intent).await.unwrap();
        assert!(database.manifest().is_none());
    }
    assert!(!manifest_path(&path).exists());
    let fixture = Fixture::new();
    let error = open(&fixture.envelope, &path, &subject("demo"), Intent::Open)
        .await
        .unwrap_err();
    assert_eq!(error.trouble(), crate::envelope::Trouble::Plaintext);

    let encrypted = fixture.filled("demo").await;
    let error = open(&plain, &encrypted, &subject("demo"), Intent::Open)
        .await
        .unwrap_err();
    assert_eq!(error.trouble(), crate::envelope::Trouble::KeyUnavailable);
}

/// The index of the WAL is shared in a process, and the WAL is opened by its name.
#[tokio::test]
async fn a_connection_that_finds_another_wal_than_the_ones_before_it_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.filled("demo").await;
    let mut wal = path.clone().into_os_string();
    wal.push("-wal");
    let database = fixture.opened("demo").await;
    let writer = database.writer().unwrap();
    let insert = "INSERT INTO t (value) VALUES ('acknowledged')";
    assert_eq!(writer.execute(insert, []).unwrap(), 1);
    assert_eq!(rows(&database.reader().unwrap()), 2001);
    std::fs::remove_file(&wal).unwrap();
    for _ in 0..2 {
        let error = database.reader().unwrap_err();
        assert!(matches!(error, OpenError::WalReplaced { .. }), "{error:?}");
        assert_eq!(error.trouble(), crate::envelope::Trouble::Storage);
    }
    // The connections that were there before have all of it, and the last of them brings it into
    // the file.
    assert_eq!(rows(&writer), 2001);
    writer.close().unwrap();
    assert_eq!(rows(&database.reader().unwrap()), 2001);
}
