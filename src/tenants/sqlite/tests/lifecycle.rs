//! How tenants come, go, and share the places for open ones.

use std::sync::Mutex;

use super::*;
use crate::control::Control;
use crate::envelope::{AuditError, AuditSink, Event, EventOutcome, ManifestMirror as _, Trouble};

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_creations_wins() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let tenants = tenants.clone();
        drop(all.spawn(async move { tenants.create_tenant(&id("acme")).await }));
    }
    let results = all.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(
        results
            .iter()
            .filter(|result| matches!(result, Err(StoreError::TenantExists { .. })))
            .count(),
        7
    );
}

#[tokio::test]
async fn the_list_is_what_the_directory_holds() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    for tenant in ["b", "a", "unfinished", "broken", "0"] {
        tenants.create_tenant(&id(tenant)).await.unwrap();
    }
    tenants.close().await.unwrap();
    drop(tenants);
    // A creation that a crash cut short: its manifest was put back to `new`.
    let manifest = manifest_path(&house.file("unfinished"));
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("ready", "new", 1)).unwrap();
    fs::write(manifest_path(&house.file("broken")), "no manifest").unwrap();
    for foreign in [
        "notes.txt",
        "UPPER.sqlite3",
        ".sqlite3",
        "x.sqlite3-wal",
        "a.sqlite3.set-aside-1",
    ] {
        fs::write(house.dir.path().join(foreign), "foreign").unwrap();
    }
    fs::create_dir(house.dir.path().join("directory.sqlite3")).unwrap();

    let tenants = house.open().await;
    let listed = tenants.list_tenants().await.unwrap();
    assert_eq!(listed, ["0", "a", "b", "broken"].map(id));
    let Err(StoreError::Open { trouble, .. }) = tenants.open(&id("broken")).await else {
        panic!("opened a tenant without a manifest");
    };
    assert_eq!(trouble, Trouble::ManifestCorrupt);
    assert!(
        tenants.open(&id("a")).await.is_ok(),
        "one tenant's trouble is its own"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_tenants_share_three_places() {
    let house = House::new(encryption());
    let tenants = house.open_with(3).await;
    let name = |n: usize| id(&format!("t{n:02}"));
    for n in 0..50 {
        tenants.create_tenant(&name(n)).await.unwrap();
    }
    let mut work = JoinSet::new();
    for worker in 0..8 {
        let tenants = tenants.clone();
        drop(work.spawn(async move {
            for step in 0..50 {
                let n = (worker * 11 + step * 7) % 50;
                let store = tenants.open(&name(n)).await.unwrap();
                let there = add(&store, &format!(r#"{{"n":{n}}}"#)).await;
                let read = store.get(&table("t"), there).await.unwrap();
                assert_eq!(read.fields.as_json(), format!(r#"{{"n":{n}}}"#));
                assert!(tenants.0.registry.occupied() <= 3);
            }
        }));
    }
    drop(work.join_all().await);
    for n in 0..50 {
        let store = tenants.open(&name(n)).await.unwrap();
        assert_eq!(store.list(&table("t"), 1000).await.unwrap().len(), 8);
    }
    tenants.close().await.unwrap();
    assert_eq!(tenants.0.registry.occupied(), 0);
}

/// Inserts until refused; says how many were answered with success, and the refusal.
async fn insert_until_refused(tenants: SqliteTenants, tenant: TenantId) -> (usize, StoreError) {
    let mut done = 0;
    loop {
        let result = match tenants.open(&tenant).await {
            Ok(store) => store.apply(insert("{}")).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(_) => done += 1,
            Err(error) => return (done, error),
        }
    }
}

/// Waits until the load on `acme` has come to something.
async fn until_written(tenants: &SqliteTenants) {
    let store = tenants.open(&id("acme")).await.unwrap();
    let written = async {
        while store.list(&table("t"), 100).await.unwrap().len() < 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), written).await;
    waited.expect("a hundred documents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deleting_under_load_leaves_nothing() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let held = tenants.open(&id("acme")).await.unwrap();
    let mut load = JoinSet::new();
    for _ in 0..16 {
        drop(load.spawn(insert_until_refused(tenants.clone(), id("acme"))));
    }
    until_written(&tenants).await;
    tenants.delete_tenant(&id("acme")).await.unwrap();
    for (_, refusal) in load.join_all().await {
        assert!(
            matches!(refusal, StoreError::TenantNotFound { .. }),
            "{refusal}"
        );
    }
    // A request that held the tenant gets the same error.
    assert!(matches!(
        held.apply(insert("{}")).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    assert!(matches!(
        held.list(&table("t"), 10).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    assert_eq!(
        catalog::leftovers(&house.file("acme")),
        Vec::<PathBuf>::new()
    );
    assert_eq!(tenants.list_tenants().await.unwrap(), []);
    assert_eq!(tenants.0.deletions.pending_deletes().unwrap(), []);
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(store.list(&table("t"), 10).await.unwrap(), []);
}

#[tokio::test]
async fn the_start_finishes_a_deletion() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    for tenant in ["gone", "stays"] {
        tenants.create_tenant(&id(tenant)).await.unwrap();
    }
    tenants.close().await.unwrap();
    house.log.begin_delete(&id("gone")).unwrap();
    drop(tenants);
    let again = house.open().await;
    assert_eq!(again.list_tenants().await.unwrap(), [id("stays")]);
    assert_eq!(
        catalog::leftovers(&house.file("gone")),
        Vec::<PathBuf>::new()
    );
    assert_eq!(again.0.deletions.pending_deletes().unwrap(), []);
    again.create_tenant(&id("gone")).await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_gets_stuck_hides_the_tenant_and_is_carried_on() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    tenants.0.registry.close(&id("acme")).await.unwrap();
    // What cannot be removed as a file is the fault here.
    let obstacle = house.dir.path().join("acme.sqlite3-shm");
    fs::create_dir(&obstacle).unwrap();
    assert!(matches!(
        tenants.delete_tenant(&id("acme")).await,
        Err(StoreError::LeftBehind { .. })
    ));
    assert_eq!(tenants.list_tenants().await.unwrap(), []);
    assert!(matches!(
        tenants.open(&id("acme")).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    assert!(matches!(
        tenants.create_tenant(&id("acme")).await,
        Err(StoreError::LeftBehind { .. })
    ));
    fs::remove_dir(&obstacle).unwrap();
    tenants.delete_tenant(&id("acme")).await.unwrap();
    tenants.create_tenant(&id("acme")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn closing_under_load_loses_no_answered_write() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let mut load = JoinSet::new();
    for _ in 0..16 {
        drop(load.spawn(insert_until_refused(tenants.clone(), id("acme"))));
    }
    until_written(&tenants).await;
    tenants.close().await.unwrap();
    let mut answered = 0;
    for (done, refusal) in load.join_all().await {
        assert!(matches!(refusal, StoreError::Closed { .. }), "{refusal}");
        answered += done;
    }
    assert!(answered > 0);
    drop(tenants);
    let connection = house.connection("acme").await;
    let stored: i64 = connection
        .query_row("SELECT count(*) FROM documents_1", [], |row| row.get(0))
        .unwrap();
    assert!(
        usize::try_from(stored).unwrap() >= answered,
        "{stored} of {answered}"
    );
}

#[tokio::test]
async fn a_tenant_closed_ahead_of_time_opens_again() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let there = add(&store, "{}").await;
    store.close().await.unwrap();
    assert!(matches!(
        store.get(&table("t"), there).await,
        Err(StoreError::Closed { .. })
    ));
    let store = tenants.open(&id("acme")).await.unwrap();
    assert!(store.get(&table("t"), there).await.is_ok());
}

#[tokio::test]
async fn rejects_a_newer_layout_and_a_foreign_database() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("newer")).await.unwrap();
    tenants.create_tenant(&id("foreign")).await.unwrap();
    tenants.close().await.unwrap();
    drop(tenants);
    let newer = house.connection("newer").await;
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let foreign = house.connection("foreign").await;
    foreign.pragma_update(None, "user_version", 0).unwrap();
    drop(foreign);
    let tenants = house.open().await;
    assert!(matches!(
        tenants.open(&id("newer")).await,
        Err(StoreError::LayoutTooNew {
            found: 99,
            known: 6,
            ..
        })
    ));
    assert!(matches!(
        tenants.open(&id("foreign")).await,
        Err(StoreError::ForeignFile { .. })
    ));
}

#[tokio::test]
async fn a_deletion_that_cannot_be_recorded_harms_nothing() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let there = add(&store, "{}").await;
    house.log.failing.store(true, Ordering::SeqCst);
    assert!(matches!(
        tenants.delete_tenant(&id("acme")).await,
        Err(StoreError::Control { .. })
    ));
    let store = tenants.open(&id("acme")).await.unwrap();
    assert!(store.get(&table("t"), there).await.is_ok());
    assert_eq!(tenants.list_tenants().await.unwrap(), [id("acme")]);
    house.log.failing.store(false, Ordering::SeqCst);
    tenants.delete_tenant(&id("acme")).await.unwrap();
    assert_eq!(tenants.list_tenants().await.unwrap(), []);
}

#[tokio::test]
async fn a_deletion_takes_the_mirror_of_the_manifest_with_it() {
    let house = House::new(encryption());
    let control = Arc::new(
        Control::open(&house.envelope, house.dir.path())
            .await
            .unwrap(),
    );
    let open = || {
        let envelope = house.envelope.clone();
        let envelope = envelope.with_mirror(control.clone(), house.dir.path());
        let (dir, options) = (house.dir.path().into(), SqliteOptions::default());
        SqliteTenants::open(envelope, control.clone(), dir, options)
    };
    let mirrored = |tenant: &str| {
        let subject = Subject::sqlite_tenant(&id(tenant), &format!("{tenant}.sqlite3")).unwrap();
        !control.get(&subject).unwrap().is_empty()
    };
    let tenants = open().await.unwrap();
    for tenant in ["now", "later", "stays"] {
        tenants.create_tenant(&id(tenant)).await.unwrap();
        assert!(mirrored(tenant));
    }
    tenants.delete_tenant(&id("now")).await.unwrap();
    assert!(!mirrored("now"));
    tenants.close().await.unwrap();
    drop(tenants);
    // The process died right after the record of this one was durable.
    control.begin_delete(&id("later")).unwrap();
    let tenants = open().await.unwrap();
    assert!(!mirrored("later"));
    assert!(mirrored("stays"));
    assert_eq!(control.pending_deletes().unwrap(), []);
    assert_eq!(tenants.list_tenants().await.unwrap(), [id("stays")]);
}

/// An audit log that can be set to reject events with this outcome.
#[derive(Debug, Default)]
struct Refusing(Mutex<Option<EventOutcome>>);

#[async_trait]
impl AuditSink for Refusing {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        let refused = *self.0.lock().unwrap();
        match events.iter().any(|event| Some(event.outcome) == refused) {
            true => Err(AuditError::new(std::io::Error::other("told to refuse"))),
            false => Ok(()),
        }
    }

    fn note(&self, _event: Event) {}
}

#[tokio::test]
async fn an_audit_log_that_refuses_a_deletion_is_what_is_told_and_whether_it_was_done() {
    let audit = Arc::new(Refusing::default());
    let house = House::new(encryption().with_audit(audit.clone()));
    let tenants = house.open().await;
    for (refused, done, words) in [
        (EventOutcome::Begun, false, "is not deleted"),
        (EventOutcome::Done, true, "is deleted, but"),
    ] {
        *audit.0.lock().unwrap() = None;
        drop(tenants.create_tenant(&id("acme")).await);
        *audit.0.lock().unwrap() = Some(refused);
        let refusal = tenants.delete_tenant(&id("acme")).await.unwrap_err();
        assert!(refusal.to_string().contains(words), "{refusal}");
        assert!(!refusal.to_string().contains("the key"), "{refusal}");
        assert_eq!(tenants.list_tenants().await.unwrap().is_empty(), done);
        assert_eq!(house.file("acme").exists(), !done);
    }
}
