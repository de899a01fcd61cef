use std::sync::atomic::AtomicUsize;

use super::*;
use crate::envelope::{Holder as _, Revocation, read_manifest};

/// Some thousand pages: more than are copied in one step.
async fn filled(tenants: &SqliteTenants) -> Arc<dyn TenantStore> {
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let text = "x".repeat(90_000);
    for n in 0..120 {
        let _id = add(&store, &format!("{{\"n\":{n},\"text\":\"{text}\"}}")).await;
    }
    store
}

/// The file is under its one key, as before, and nothing is left of a copy.
fn assert_as_it_was(house: &House, revision: u64) {
    let sealed = read_manifest(&manifest_path(&house.file("acme")));
    let manifest = sealed.unwrap().unwrap();
    let claims = manifest.claims();
    assert_eq!(claims.deks().len(), 1);
    assert_eq!(claims.revision(), revision + 2, "rekeying, then ready");
    let left: Vec<_> = fs::read_dir(house.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("rekey"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

fn revision(house: &House) -> u64 {
    let sealed = read_manifest(&manifest_path(&house.file("acme")));
    sealed.unwrap().unwrap().claims().revision()
}

fn cause(error: &StoreError) -> String {
    crate::error_chain::error_chain(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_ends_a_rotation_at_its_next_step() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    let store = filled(&tenants).await;
    let before = revision(&house);
    // The first step of the copy is its last.
    let (asked, runtime) = (
        Arc::new(AtomicUsize::new(0)),
        tokio::runtime::Handle::current(),
    );
    let (asking, shared) = (asked.clone(), tenants.0.clone());
    let progress: Progress = Arc::new(move |_done, _total| {
        if asking.fetch_add(1, Ordering::SeqCst) == 0 {
            let locked = Revocation::Locked;
            runtime.block_on(shared.revoke(Some(&id("acme")), &locked));
        }
        true
    });
    let error = tenants.rotate_dek(&id("acme"), progress).await.unwrap_err();
    assert!(
        cause(&error).contains("closed while it was copied"),
        "{error:?}"
    );
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_as_it_was(&house, before);
    drop(store);
    let store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(store.list(&table("t"), 1000).await.unwrap().len(), 120);
    tenants.close().await.unwrap();
}

/// It waits for whoever has the file open, for a minute; a server that is to stop does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_does_not_wait_for_a_rotation_that_waits_for_the_file() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    let _store = filled(&tenants).await;
    let before = revision(&house);
    let somebody = house.connection("acme").await;
    let going = {
        let tenants = tenants.clone();
        tokio::spawn(async move { tenants.rotate_dek(&id("acme"), Arc::new(|_, _| true)).await })
    };
    let writer = id("acme");
    // It came as far as the swap once the writer's connection is closed for it.
    loop {
        let handle = tenants.0.registry.ready(&writer).unwrap();
        if handle
            .readers()
            .storage()
            .file()
            .followed
            .load(Ordering::Relaxed)
            && house.file("acme").with_extension("sqlite3.rekey").exists()
        {
            break;
        }
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(30), tenants.close())
        .await
        .expect("it does not wait")
        .unwrap();
    let _error = going.await.unwrap().unwrap_err();
    drop(somebody);
    assert_as_it_was(&house, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_ends_before_it_takes_the_last_room_from_those_who_write() {
    let _turn = fail::FailScenario::setup();
    let house = House::new(encryption());
    let tenants = house.open().await;
    let store = filled(&tenants).await;
    let before = revision(&house);
    // After the first look.
    fail::cfg("rekey::room", "1*off->return").unwrap();
    let rotated = tenants.rotate_dek(&id("acme"), Arc::new(|_, _| true)).await;
    fail::remove("rekey::room");
    let error = rotated.unwrap_err();
    assert!(cause(&error).contains("nearly full"), "{error:?}");
    assert_as_it_was(&house, before);
    let _id = add(&store, "{}").await;
    assert_eq!(store.list(&table("t"), 1000).await.unwrap().len(), 121);
    tenants
        .rotate_dek(&id("acme"), Arc::new(|_, _| true))
        .await
        .unwrap();
    tenants.close().await.unwrap();
}
