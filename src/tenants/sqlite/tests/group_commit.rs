//! Group commit on SQLite: what shares a commit, what fails alone, and what is left in the file.

mod batches;
mod resting;

use std::sync::atomic::AtomicUsize;

use rusqlite::Connection;
use tokio::{sync::oneshot, time::timeout};

use super::*;
use crate::documents::query::QueryPage;
use crate::tenants::{
    ReaderLimits, alone,
    backend::DocumentRows as _,
    error::Limit,
    group_commit::{
        BatchOutcome, MAX_GROUP, MAX_GROUP_BYTES, MAX_QUEUED, MAX_QUEUED_BYTES, Size, Writer,
    },
    journal,
    readers::Readers,
    sqlite::{migrations, storage::SqliteStorage, transaction::SqliteTransaction},
    writing::Writing,
};

/// One encrypted tenant with its writer, and what the test does to the writer's connection.
struct Desk {
    /// Crash points belong to the process: where tests share one, they take turns.
    _turn: fail::FailScenario<'static>,
    _dir: TempDir,
    file: PathBuf,
    readers: Arc<Readers<SqliteStorage>>,
    writer: Writer<SqliteStorage>,
    commits: Arc<AtomicUsize>,
    reject_commits: Arc<AtomicBool>,
}

fn table() -> TableName {
    "t".parse().unwrap()
}

fn insert(json: &str) -> Mutation {
    Mutation::Insert {
        table: table(),
        fields: Fields::from_json(json).unwrap(),
        id: None,
    }
}

fn chosen(id: DocumentId) -> Mutation {
    Mutation::Insert {
        table: table(),
        fields: Fields::from_json("{}").unwrap(),
        id: Some(id),
    }
}

async fn desk(prepare: impl FnOnce(&Connection)) -> Desk {
    let turn = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("acme.sqlite3");
    let tenant: TenantId = "acme".parse().unwrap();
    let subject = Subject::sqlite_tenant(&tenant, "acme.sqlite3").unwrap();
    let envelope = encryption();
    let database = sqlcipher::open(&envelope, &file, &subject, Intent::Create)
        .await
        .unwrap();
    let storage = SqliteStorage::new(&tenant, envelope, Arc::default(), Arc::default(), database);
    let mut connection = storage.connection().unwrap();
    migrations::establish(&mut connection, &tenant).unwrap();
    prepare(&connection);
    let (commits, reject_commits) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (counted, refused) = (Arc::clone(&commits), Arc::clone(&reject_commits));
    connection
        .commit_hook(Some(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            refused.load(Ordering::SeqCst)
        }))
        .unwrap();
    let halted = Arc::default();
    let connection = SqliteTransaction::new(&storage.file(), connection, &halted, true).unwrap();
    let readers = Readers::new(
        &tenant,
        storage,
        &ReaderLimits::new(2, usize::MAX),
        halted,
        None,
    );
    let writer = start(&tenant, Some(connection), &readers);
    Desk {
        _turn: turn,
        _dir: dir,
        file,
        readers,
        writer,
        commits,
        reject_commits,
    }
}

fn start(
    tenant: &TenantId,
    connection: Option<SqliteTransaction>,
    readers: &Arc<Readers<SqliteStorage>>,
) -> Writer<SqliteStorage> {
    let due = Arc::new(Unscheduled);
    Writer::start(tenant, connection, Arc::clone(readers), due).unwrap()
}

impl Desk {
    /// Queues one mutation.
    fn submit(&self, mutation: Mutation) -> Result<oneshot::Receiver<BatchOutcome>, StoreError> {
        self.writer.submit(vec![mutation], None)
    }

    async fn apply(&self, mutation: Mutation) -> Result<MutationOutcome, StoreError> {
        answered(self.submit(mutation).unwrap()).await
    }

    async fn bodies(&self) -> Vec<String> {
        let list = self
            .readers
            .read(|rows| match rows.table(&table())? {
                Some(number) => {
                    let all = Query::all(table());
                    let page = rows.query(number, &all, None, 1000, usize::MAX, &mut || false)?;
                    Ok(page.expect("no scan: each document is returned"))
                }
                None => Ok(QueryPage {
                    documents: Vec::new(),
                    next: None,
                }),
            })
            .await
            .unwrap();
        list.documents
            .into_iter()
            .map(|document| document.fields.as_json().to_owned())
            .collect()
    }
}

/// The answer to one mutation, which must come: a stranded caller fails the test.
async fn answered(answer: oneshot::Receiver<BatchOutcome>) -> Result<MutationOutcome, StoreError> {
    alone(all_answered(answer).await)
}

async fn all_answered(
    answer: oneshot::Receiver<BatchOutcome>,
) -> Result<Vec<MutationOutcome>, StoreError> {
    let answer = timeout(Duration::from_secs(30), answer)
        .await
        .expect("stranded in the queue")
        .expect("answered");
    answer.map(|done| done.outcome)
}

/// Keeps the writer from taking a group for this long, so that one can be made up.
fn hold(name: &str, ms: u64) {
    fail::cfg(name, &format!("sleep({ms})")).unwrap();
}

#[tokio::test]
async fn what_queues_up_shares_one_commit_in_order() {
    let desk = desk(|_| ()).await;
    let _outcome = desk.apply(insert(r#"{"n":0}"#)).await.unwrap();
    hold("tenants::writer::batch-taken", 100);
    let before = desk.commits.load(Ordering::SeqCst);
    let answers: Vec<_> = (1..=100)
        .map(|n| desk.submit(insert(&format!(r#"{{"n":{n}}}"#))).unwrap())
        .collect();
    fail::remove("tenants::writer::batch-taken");
    let mut ids = Vec::new();
    for answer in answers {
        ids.push(answered(answer).await.unwrap().id());
    }
    // The first was taken alone or with some others; the rest waited together.
    assert!(
        desk.commits.load(Ordering::SeqCst) - before <= 3,
        "{} commits",
        desk.commits.load(Ordering::SeqCst)
    );
    assert!(
        ids.is_sorted_by(|a, b| a < b),
        "ids follow the order of storing"
    );
    let expected: Vec<_> = (0..=100).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    assert_eq!(desk.bodies().await, expected);
}

#[tokio::test]
async fn a_bad_mutation_fails_alone() {
    let desk = desk(|_| ()).await;
    let taken = desk.apply(insert(r#"{"n":0}"#)).await.unwrap().id();
    hold("tenants::writer::batch-taken", 50);
    let absent = DocumentId::generate();
    let group = [
        insert(r#"{"n":1}"#),
        chosen(taken),
        Mutation::Update {
            table: table(),
            id: absent,
            patch: Fields::from_json("{}").unwrap(),
            if_version: None,
        },
        Mutation::Delete {
            table: "nowhere".parse().unwrap(),
            id: absent,
            if_version: None,
        },
        insert(r#"{"n":2}"#),
    ];
    let answers: Vec<_> = group
        .into_iter()
        .map(|mutation| desk.submit(mutation).unwrap())
        .collect();
    fail::remove("tenants::writer::batch-taken");
    let mut outcomes = Vec::new();
    for answer in answers {
        outcomes.push(answered(answer).await);
    }
    assert!(matches!(
        outcomes[..],
        [
            Ok(_),
            Err(StoreError::DocumentExists { .. }),
            Err(StoreError::DocumentNotFound { .. }),
            Err(StoreError::DocumentNotFound { .. }),
            Ok(_)
        ]
    ));
    assert_eq!(
        desk.bodies().await,
        [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":2}"#]
    );
}

#[tokio::test]
async fn a_table_whose_first_document_fails_does_not_come_to_be() {
    let desk = desk(|connection| {
        // Its first document fits no more; its table alone does.
        let pages: i64 = connection
            .query_row("PRAGMA page_count", [], |row| row.get(0))
            .unwrap();
        let _limit: i64 = connection
            .query_row(
                &format!("PRAGMA max_page_count = {}", pages + 40),
                [],
                |row| row.get(0),
            )
            .unwrap();
    })
    .await;
    let large = insert(&format!(r#"{{"x":"{}"}}"#, "y".repeat(900_000)));
    assert!(matches!(
        desk.apply(large.clone()).await,
        Err(StoreError::StorageFull { .. })
    ));
    let small = desk.apply(insert(r#"{"n":1}"#)).await;
    assert!(small.is_ok(), "{small:?}");
    assert!(matches!(
        desk.apply(large).await,
        Err(StoreError::StorageFull { .. })
    ));
    assert_eq!(desk.bodies().await, [r#"{"n":1}"#]);
}

#[tokio::test]
async fn when_the_commit_fails_every_caller_hears_it_and_the_next_group_works() {
    let desk = desk(|_| ()).await;
    desk.reject_commits.store(true, Ordering::SeqCst);
    hold("tenants::writer::batch-taken", 50);
    let answers: Vec<_> = (0..20)
        .map(|_| desk.submit(insert("{}")).unwrap())
        .collect();
    fail::remove("tenants::writer::batch-taken");
    for answer in answers {
        assert!(matches!(
            answered(answer).await,
            Err(StoreError::Engine { .. })
        ));
    }
    desk.reject_commits.store(false, Ordering::SeqCst);
    // The table whose making was rolled back is made again.
    let _outcome = desk.apply(insert(r#"{"after":true}"#)).await.unwrap();
    assert_eq!(desk.bodies().await, [r#"{"after":true}"#]);
    // Nor does the journal know of what was not committed.
    let journal = desk.readers.read(|rows| journal::page(rows, None, 10));
    let journal = journal.await.unwrap();
    assert_eq!((journal.records.len(), journal.latest), (1, 1));
    assert!(!desk.writer.has_ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_stranded_whenever_the_writer_pauses() {
    let desk = desk(|_| ()).await;
    for point in [
        "tenants::writer::batch-taken",
        "tenants::writer::committed",
        "tenants::writer::answered",
        "tenants::writer::checkpointed",
    ] {
        hold(point, 2);
        for _ in 0..20 {
            let first = desk.submit(insert("{}")).unwrap();
            // Arrives while the writer is somewhere in its round.
            tokio::time::sleep(Duration::from_micros(2500)).await;
            let second = desk.submit(insert("{}")).unwrap();
            let _outcome = answered(first).await.unwrap();
            let _outcome = answered(second).await.unwrap();
        }
        fail::remove(point);
    }
    assert_eq!(desk.bodies().await.len(), 160);
}

#[tokio::test]
async fn the_queue_is_bounded_in_number() {
    let desk = desk(|_| ()).await;
    hold("tenants::writer::batch-taken", 300);
    let mut answers = Vec::new();
    let refused = loop {
        match desk.submit(insert("{}")) {
            Ok(answer) => answers.push(answer),
            Err(error) => break error,
        }
    };
    fail::remove("tenants::writer::batch-taken");
    assert!(matches!(
        refused,
        StoreError::Busy {
            what: Limit::WriteQueue,
            ..
        }
    ));
    assert!(
        (MAX_QUEUED..=MAX_QUEUED + MAX_GROUP).contains(&answers.len()),
        "{}",
        answers.len()
    );
    for answer in answers {
        let _outcome = answered(answer).await.unwrap();
    }
    // What was refused is not counted as waiting.
    assert_eq!(desk.writer.queued.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes() {
    let desk = desk(|_| ()).await;
    hold("tenants::writer::batch-taken", 300);
    let large = insert(&format!(r#"{{"x":"{}"}}"#, "y".repeat(1_000_000)));
    let mut answers = Vec::new();
    while let Ok(answer) = desk.submit(large.clone()) {
        answers.push(answer);
    }
    fail::remove("tenants::writer::batch-taken");
    let most = (MAX_QUEUED_BYTES + MAX_GROUP_BYTES) / 1_000_000 + 2;
    assert!(
        (MAX_QUEUED_BYTES / 1_000_100..=most).contains(&answers.len()),
        "{}",
        answers.len()
    );
    for answer in answers {
        let _outcome = answered(answer).await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_withdraw() {
    let desk = desk(|_| ()).await;
    drop(desk.submit(insert(r#"{"n":1}"#)).unwrap());
    let _outcome = desk.apply(insert(r#"{"n":2}"#)).await.unwrap();
    assert_eq!(desk.bodies().await.len(), 2);
}

#[tokio::test]
async fn closing_writes_what_was_queued_and_leaves_no_wal() {
    let desk = desk(|_| ()).await;
    let answers: Vec<_> = (0..200)
        .map(|_| desk.submit(insert("{}")).unwrap())
        .collect();
    desk.readers.close().await;
    desk.writer.close().unwrap();
    for answer in answers {
        let _outcome = answered(answer).await.unwrap();
    }
    assert!(matches!(
        desk.submit(insert("{}")),
        Err(StoreError::Closed { .. })
    ));
    assert!(desk.writer.has_ended());
    assert!(!desk.file.with_extension("sqlite3-wal").exists());
    desk.writer.close().unwrap();
}

/// Statements without an end: one that reads, one that writes, which SQLite undoes with its whole
/// transaction, and one that makes an index as a schema does.
const ENDLESS: [&str; 3] = [
    "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)",
    "INSERT INTO endless WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "CREATE TABLE more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_halted_ends_at_once_and_acknowledges_nothing() {
    for endless in ENDLESS {
        let desk = desk(|connection| {
            connection
                .execute_batch("CREATE TABLE endless (n INTEGER)")
                .unwrap();
        })
        .await;
        let before = desk.apply(insert(r#"{"n":1}"#)).await.unwrap();
        // In one group: what was done already, what does not end, and what comes after it.
        hold("tenants::writer::batch-taken", 50);
        let first = desk.submit(insert(r#"{"n":2}"#)).unwrap();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let work = move |writing: &mut Writing<'_, SqliteTransaction>| {
            begun.send(()).unwrap();
            writing.transaction.execute_batch(endless)
        };
        let second = desk.submit(insert(r#"{"n":3}"#)).unwrap();
        let unending = desk.writer.run(Size::SMALL, work).unwrap();
        let last = desk.submit(insert(r#"{"n":4}"#)).unwrap();
        tokio::task::block_in_place(|| has_begun.recv()).unwrap();
        desk.readers.halt();
        tokio::task::block_in_place(|| desk.writer.close()).unwrap();
        let refused = unending.await.unwrap_or(Err(desk.readers.closed()));
        assert!(
            matches!(refused, Err(StoreError::Closed { .. })),
            "{refused:?}"
        );
        fail::remove("tenants::writer::batch-taken");
        let mut acknowledged = vec![before.id()];
        for answer in [first, second, last] {
            match answer.await.unwrap_or(Err(desk.readers.closed())) {
                Ok(done) => acknowledged.push(done.outcome[0].id()),
                Err(error) => assert!(matches!(error, StoreError::Closed { .. }), "{error:?}"),
            }
        }
        let connection = desk.readers.storage().connection().unwrap();
        let stored: i64 = connection
            .query_row("SELECT count(*) FROM documents_1", [], |row| row.get(0))
            .unwrap();
        assert_eq!(
            stored,
            i64::try_from(acknowledged.len()).unwrap(),
            "what is there is what was acknowledged"
        );
    }
}

#[tokio::test]
async fn a_first_mutation_that_finds_no_database_is_answered_and_ends_the_writer() {
    let desk = desk(|_| ()).await;
    desk.readers.close().await;
    desk.writer.close().unwrap();
    std::fs::remove_file(&desk.file).unwrap();

    let writer = start(&desk.writer.tenant, None, &desk.readers);
    let outcome = answered(writer.submit(vec![insert("{}")], None).unwrap()).await;
    assert!(
        matches!(outcome, Err(StoreError::Open { .. })),
        "{outcome:?}"
    );
    writer.close().unwrap();
    assert!(writer.has_ended());
}
