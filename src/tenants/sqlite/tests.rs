//! One tenant's documents, as its users see them.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use nimbus_keyproviders::MemoryProvider;
use nimbus_manifests::Subject;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{reader::Reader, transaction::SqliteTransaction, *};
use crate::documents::query::Query;
use crate::documents::{Document, DocumentId, Fields, Mutation, MutationOutcome, TableName};
use crate::envelope::{KeyRing, manifest_path};
use crate::tenants::backend::{Storage as _, Transaction as _};
use crate::tenants::conformance::{
    Due, Fixture, Log, acme, add, bodies, conformance, fields, id, insert, table,
};
use crate::tenants::full_list::FullList as _;
use crate::tenants::writing::{WriterCache, Writing};
use crate::tenants::{ReaderLimits, TenantProvider as _, TenantStore};

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
            readers: ReaderLimits::new(2, usize::MAX),
            open_patience: Duration::from_secs(20),
            due: self.due.clone(),
            ..SqliteOptions::default()
        };
        let (envelope, dir) = (self.envelope.clone(), self.dir.path().into());
        let tenants = SqliteTenants::open(envelope, self.log.clone(), dir, options).await;
        tenants.unwrap()
    }

    fn file(&self, tenant: &str) -> PathBuf {
        self.dir.path().join(format!("{tenant}.sqlite3"))
    }

    /// The file as the server has it, past the server.
    async fn storage(&self, tenant: &str) -> SqliteStorage {
        let subject = Subject::sqlite_tenant(&id(tenant), &format!("{tenant}.sqlite3")).unwrap();
        let database =
            sqlcipher::open(&self.envelope, &self.file(tenant), &subject, Intent::Open).await;
        let envelope = self.envelope.clone();
        SqliteStorage::new(
            &id(tenant),
            envelope,
            Arc::default(),
            Arc::default(),
            database.unwrap(),
        )
    }

    /// A connection as the server has it, past the server.
    async fn connection(&self, tenant: &str) -> rusqlite::Connection {
        self.storage(tenant).await.connection().unwrap()
    }

    /// A writer of its own, past the server.
    async fn transaction(&self, tenant: &str) -> SqliteTransaction {
        let storage = self.storage(tenant).await;
        storage.writer(&Arc::default()).unwrap()
    }
}

impl Fixture for House {
    type Backend = SqliteFiles;

    fn empty() -> Self {
        Self::new(encryption())
    }

    async fn open(&self) -> SqliteTenants {
        self.open_with(16).await
    }

    fn due(&self) -> &Due {
        &self.due
    }
}

mod conformance;
mod deploys;
mod group_commit;
mod journal;
mod layouts;
mod lifecycle;
mod lookups;
mod plans;
mod readers;
mod rekey;
mod remembered;
mod schedule;
mod schemas;
mod system_fields;

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
