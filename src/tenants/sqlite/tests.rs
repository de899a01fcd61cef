//! One tenant's documents, as its users see them.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use nimbus_keyproviders::MemoryProvider;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;
use crate::{
    documents::{
        Document, DocumentId, Fields, Mutation, MutationOutcome, TableName,
        query::{MAX_PAGE, Query},
        schedule::NewJob,
    },
    envelope::{KeyRing, manifest_path},
    sqlcipher,
    tenants::{MAX_PAGE_BYTES, MAX_TABLES, full_list::FullList as _},
};

/// A core with a fresh key.
pub(super) fn encryption() -> Envelope {
    let key = Arc::new(MemoryProvider::random().unwrap());
    Envelope::new(KeyRing::new(key, Vec::new(), Vec::new()))
}

/// A data directory that can be opened again and again, as by one server after another.
struct House {
    dir: TempDir,
    envelope: Envelope,
    log: Arc<Log>,
    due: Arc<Due>,
}

/// A control file that outlives its server, and can be told to fail.
#[derive(Debug, Default)]
struct Log {
    pending: Mutex<BTreeSet<TenantId>>,
    failing: AtomicBool,
}

impl Log {
    fn write(&self, change: impl FnOnce(&mut BTreeSet<TenantId>)) -> Result<(), StoreError> {
        if self.failing.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("told to fail"));
            return Err(StoreError::Control { source });
        }
        change(&mut self.pending.lock().unwrap());
        Ok(())
    }
}

impl DeletionLog for Log {
    fn begin_create(&self, _tenant: &TenantId) -> Result<(), StoreError> {
        self.write(|_pending| {})
    }

    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.write(|pending| assert!(pending.insert(tenant.clone())))
    }

    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.write(|pending| assert!(pending.remove(tenant)))
    }

    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.pending.lock().unwrap().iter().cloned().collect())
    }
}

/// Who is told of work that will be due, and can be told to refuse.
#[derive(Debug, Default)]
struct Due {
    told: Mutex<Vec<Told>>,
    failing: AtomicBool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Expect(TenantId, i64),
    Found(TenantId, i64),
    Forget(TenantId),
}

impl Due {
    fn tell(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }

    /// What was told since this was last asked.
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

impl DueLog for Due {
    fn expect(&self, tenant: &TenantId, due_ms: i64) -> Result<(), StoreError> {
        if self.failing.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("told to fail"));
            return Err(StoreError::Control { source });
        }
        self.tell(Told::Expect(tenant.clone(), due_ms));
        Ok(())
    }

    fn found(&self, tenant: &TenantId, due_ms: i64) {
        self.tell(Told::Found(tenant.clone(), due_ms));
    }

    fn forget(&self, tenant: &TenantId) {
        self.tell(Told::Forget(tenant.clone()));
    }
}

impl House {
    fn new(envelope: Envelope) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            envelope,
            log: Arc::default(),
            due: Arc::default(),
        }
    }

    async fn open_with(&self, max_open_tenants: usize) -> SqliteTenants {
        let options = SqliteOptions {
            max_open_tenants,
            readers_per_tenant: 2,
            open_patience: Duration::from_secs(20),
            due: self.due.clone(),
            ..SqliteOptions::default()
        };
        let (envelope, dir) = (self.envelope.clone(), self.dir.path().into());
        let tenants = SqliteTenants::open(envelope, self.log.clone(), dir, options).await;
        tenants.unwrap()
    }

    async fn open(&self) -> SqliteTenants {
        self.open_with(16).await
    }

    fn file(&self, tenant: &str) -> PathBuf {
        self.dir.path().join(format!("{tenant}.sqlite3"))
    }

    /// A connection as the server has it, past the server.
    async fn connection(&self, tenant: &str) -> rusqlite::Connection {
        let subject = Subject::sqlite_tenant(&id(tenant), &format!("{tenant}.sqlite3")).unwrap();
        let database =
            sqlcipher::open(&self.envelope, &self.file(tenant), &subject, Intent::Open).await;
        database.unwrap().writer().unwrap()
    }
}

fn id(tenant: &str) -> TenantId {
    tenant.parse().unwrap()
}

fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

fn fields(json: &str) -> Fields {
    Fields::from_json(json).unwrap()
}

fn insert(json: &str) -> Mutation {
    Mutation::Insert {
        table: table("t"),
        fields: fields(json),
        id: None,
    }
}

async fn add(store: &Arc<dyn TenantStore>, json: &str) -> DocumentId {
    store.apply(insert(json)).await.unwrap().id()
}

fn bodies(documents: &[Document]) -> Vec<&str> {
    documents
        .iter()
        .map(|document| document.fields.as_json())
        .collect()
}

mod deploys;
mod journal;
mod layouts;
mod lifecycle;
mod lookups;
mod plans;
mod query;
mod readers;
mod rekey;
mod remembered;
mod schedule;
mod schemas;
mod versions;

#[tokio::test]
async fn documents_survive_closing() {
    for envelope in [encryption(), Envelope::plaintext()] {
        let house = House::new(envelope);
        let tenants = house.open().await;
        tenants.create_tenant(&id("acme")).await.unwrap();
        let store = tenants.open(&id("acme")).await.unwrap();
        let json = r#"{"z":1.10,"größe":[123456789012345678901234567890,"\u0000 \" é"],"a":null}"#;
        let kept = add(&store, json).await;
        let gone = add(&store, r#"{"n":2}"#).await;
        let changed = add(&store, r#"{"n":3,"keep":true}"#).await;
        let patch = Mutation::Update {
            table: table("t"),
            id: changed,
            patch: fields(r#"{"n":null,"new":[1]}"#),
            if_version: None,
        };
        assert_eq!(
            store.apply(patch).await.unwrap(),
            MutationOutcome::new(changed, Some(4))
        );
        let delete = Mutation::Delete {
            table: table("t"),
            id: gone,
            if_version: None,
        };
        assert_eq!(
            store.apply(delete).await.unwrap(),
            MutationOutcome::new(gone, Some(5))
        );
        let before = store.list(&table("t"), 1000).await.unwrap();
        drop(store);
        tenants.close().await.unwrap();
        assert!(!house.file("acme").with_extension("sqlite3-wal").exists());
        drop(tenants);

        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        let after = store.list(&table("t"), 1000).await.unwrap();
        assert_eq!(after, before);
        assert_eq!(
            bodies(&after),
            [json, r#"{"n":null,"keep":true,"new":[1]}"#]
        );
        let document = store.get(&table("t"), kept).await.unwrap();
        assert_eq!(document, after[0]);
        assert_eq!(document.created_ms, kept.unix_ms());
        assert_eq!(document.updated_ms, document.created_ms);
        assert!(after[1].updated_ms >= after[1].created_ms);
        assert_eq!((after[0].version, after[1].version), (1, 4));
        assert!(matches!(
            store.get(&table("t"), gone).await,
            Err(StoreError::DocumentNotFound { .. })
        ));
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    assert!(matches!(
        tenants.open(&id("acme")).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    assert!(matches!(
        tenants.delete_tenant(&id("acme")).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    assert!(catalog::leftovers(&house.file("acme")).is_empty());
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let absent = DocumentId::generate();
    assert!(matches!(
        store.get(&table("t"), absent).await,
        Err(StoreError::DocumentNotFound { .. })
    ));
    assert_eq!(store.list(&table("t"), 1000).await.unwrap(), []);
    let _there = add(&store, "{}").await;
    assert!(matches!(
        store.get(&table("t"), absent).await,
        Err(StoreError::DocumentNotFound { .. })
    ));
    for mutation in [
        Mutation::Update {
            table: table("t"),
            id: absent,
            patch: fields("{}"),
            if_version: None,
        },
        Mutation::Delete {
            table: table("t"),
            id: absent,
            if_version: None,
        },
        Mutation::Delete {
            table: table("u"),
            id: absent,
            if_version: None,
        },
    ] {
        assert!(matches!(
            store.apply(mutation).await,
            Err(StoreError::DocumentNotFound { .. })
        ));
    }
    assert_eq!(store.list(&table("u"), 1000).await.unwrap(), []);
}

#[tokio::test]
async fn lists_follow_insertion_and_not_the_ids_clients_chose() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let _first = add(&store, r#"{"n":1}"#).await;
    let old: DocumentId = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".parse().unwrap();
    let chosen = Mutation::Insert {
        table: table("t"),
        fields: fields(r#"{"n":2}"#),
        id: Some(old),
    };
    assert_eq!(
        store.apply(chosen.clone()).await.unwrap(),
        MutationOutcome::new(old, Some(2))
    );
    assert!(
        matches!(store.apply(chosen).await, Err(StoreError::DocumentExists { id, .. }) if id == old)
    );
    let _third = add(&store, r#"{"n":3}"#).await;
    let list = store.list(&table("t"), 1000).await.unwrap();
    assert_eq!(bodies(&list), [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#]);
    assert!(
        list[1].created_ms > old.unix_ms(),
        "the creation time is the server's"
    );
    assert_eq!(
        bodies(&store.list(&table("t"), 2).await.unwrap()),
        [r#"{"n":1}"#, r#"{"n":2}"#]
    );
    // Case makes another table, and the same id is free in it.
    let elsewhere = Mutation::Insert {
        table: table("T"),
        fields: fields("{}"),
        id: Some(old),
    };
    assert!(store.apply(elsewhere).await.is_ok());
}

#[tokio::test]
async fn lists_are_bounded() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    for _ in 0..=MAX_PAGE / 100 {
        let mut group = JoinSet::new();
        for _ in 0..100 {
            let store = Arc::clone(&store);
            drop(group.spawn(async move { store.apply(insert("{}")).await }));
        }
        assert!(group.join_all().await.iter().all(Result::is_ok));
    }
    let all = Query::all(table("t"));
    let page = store.query(all, None, usize::MAX).await.unwrap();
    assert_eq!(page.documents.len(), MAX_PAGE);
    assert!(page.next.is_some(), "more are there");
    let whole = store.list(&table("t"), usize::MAX).await.unwrap();
    assert_eq!(whole.len(), MAX_PAGE + 100);

    let large = fields(&format!(r#"{{"x":"{}"}}"#, "y".repeat(1_048_000)));
    let put = |table: TableName| Mutation::Insert {
        table,
        fields: large.clone(),
        id: None,
    };
    for _ in 0..9 {
        let _outcome = store.apply(put(table("large"))).await.unwrap();
        let job = NewJob {
            delay: Duration::from_secs(60),
            mutation: put(table("never")),
        };
        let _job = store.schedule(job, 0).await.unwrap();
    }
    let page = store
        .query_page(Query::all(table("large")), None, 1000)
        .await
        .unwrap();
    assert_eq!(page.documents.len(), MAX_PAGE_BYTES / 1_048_000);
    assert!(page.next.is_some(), "it ended early");
    let whole = store.list(&table("large"), usize::MAX).await.unwrap();
    assert_eq!(whole.len(), 9);
    let jobs = store.list_jobs(None, 1000).await.unwrap();
    assert!(jobs.more && jobs.items.len() < 5);
    assert_eq!(store.jobs().await.unwrap().len(), 9);
}

#[tokio::test]
async fn a_tenant_has_a_limit_of_tables() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let into = |n: usize| Mutation::Insert {
        table: table(&format!("t{n}")),
        fields: fields("{}"),
        id: None,
    };
    for chunk in (0..MAX_TABLES).collect::<Vec<_>>().chunks(100) {
        let mut group = JoinSet::new();
        for &n in chunk {
            let (store, mutation) = (Arc::clone(&store), into(n));
            drop(group.spawn(async move { store.apply(mutation).await }));
        }
        assert!(group.join_all().await.iter().all(Result::is_ok));
    }
    assert!(matches!(
        store.apply(into(MAX_TABLES)).await,
        Err(StoreError::TooManyTables { .. })
    ));
    assert!(store.apply(into(0)).await.is_ok());
}

#[tokio::test]
async fn a_patch_that_makes_a_document_too_large_is_refused() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let big = format!(r#"{{"a":"{}"}}"#, "x".repeat(600_000));
    let there = add(&store, &big).await;
    let patch = fields(&big.replace("\"a\"", "\"b\""));
    let result = store
        .apply(Mutation::Update {
            table: table("t"),
            id: there,
            patch,
            if_version: None,
        })
        .await;
    assert!(matches!(result, Err(StoreError::Input(_))));
    assert_eq!(
        store
            .get(&table("t"), there)
            .await
            .unwrap()
            .fields
            .as_json(),
        big
    );
}

#[tokio::test]
async fn damage_is_reported_and_stays_with_its_tenant() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    for tenant in ["bad", "good"] {
        tenants.create_tenant(&id(tenant)).await.unwrap();
        let store = tenants.open(&id(tenant)).await.unwrap();
        for _ in 0..50 {
            let _there = add(&store, &format!(r#"{{"x":"{}"}}"#, "y".repeat(3000))).await;
        }
    }
    tenants.close().await.unwrap();
    drop(tenants);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(house.file("bad"))
        .unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    for page in pages / 2..pages {
        file.write_all_at(&[0; 16], page * 4096 + 100).unwrap();
    }
    let tenants = house.open().await;
    let bad = tenants.open(&id("bad")).await.unwrap();
    assert!(matches!(
        bad.list(&table("t"), 1000).await,
        Err(StoreError::Corrupt { .. })
    ));
    let written = bad
        .apply(insert(&format!(r#"{{"x":"{}"}}"#, "y".repeat(3000))))
        .await;
    assert!(
        matches!(written, Err(StoreError::Corrupt { .. })),
        "{written:?}"
    );
    drop(bad);
    // The damaged tenant is opened afresh, and says the same again.
    let bad = tenants.open(&id("bad")).await.unwrap();
    assert!(matches!(
        bad.list(&table("t"), 1000).await,
        Err(StoreError::Corrupt { .. })
    ));
    let good = tenants.open(&id("good")).await.unwrap();
    assert_eq!(good.list(&table("t"), 1000).await.unwrap().len(), 50);
}
