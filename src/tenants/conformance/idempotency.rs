//! Requests under a key: done once.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{Fixture, acme, fields, id, insert, table};
use crate::documents::schedule::{JobId, NewJob};
use crate::documents::{DocumentId, Done, Mutation, MutationOutcome, Once};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{StoreError, TenantProvider as _, TenantStore};

pub(in crate::tenants) fn once(key: &str, request: u8) -> Option<Once> {
    Some(Once::new(key.as_bytes(), [request; 32], "somebody"))
}

pub(in crate::tenants) async fn send(
    store: &Arc<dyn TenantStore>,
    key: &str,
    request: u8,
) -> Result<Done<Vec<MutationOutcome>>, StoreError> {
    let batch = vec![insert(&format!(r#"{{"n":{request}}}"#)), insert("{}")];
    store.apply_once(batch, once(key, request)).await
}

pub(in crate::tenants) async fn count(store: &Arc<dyn TenantStore>) -> usize {
    store.list(&table("t"), usize::MAX).await.unwrap().len()
}

pub(in crate::tenants) async fn a_request_is_done_once_under_its_key_also_after_a_restart<
    F: Fixture,
>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    let first = send(&store, "a", 1).await.unwrap();
    assert!(!first.replayed);
    let again = send(&store, "a", 1).await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.outcome, first.outcome);
    assert!(matches!(
        send(&store, "a", 2).await,
        Err(StoreError::KeyReused)
    ));
    assert!(!send(&store, "b", 1).await.unwrap().replayed);
    assert_eq!(count(&store).await, 4);
    drop(store);
    tenants.close().await.unwrap();
    drop(tenants);
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(send(&store, "a", 1).await.unwrap().outcome, first.outcome);
    assert_eq!(count(&store).await, 4);
}

pub(in crate::tenants) async fn a_request_that_was_refused_is_not_remembered<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let missing = DocumentId::generate();
    let delete = Mutation::Delete {
        table: table("t"),
        id: missing,
        if_version: None,
    };
    let batch = vec![insert("{}"), delete.clone()];
    for _ in 0..2 {
        let refused = store.apply_once(batch.clone(), once("a", 1)).await;
        assert!(matches!(refused, Err(StoreError::InBatch { index: 1, .. })));
    }
    assert_eq!(count(&store).await, 0);
    // The document came meanwhile: now it can be done.
    let come = Mutation::Insert {
        table: table("t"),
        fields: fields("{}"),
        id: Some(missing),
    };
    let _outcome = store.apply(come).await.unwrap();
    assert!(
        !store
            .apply_once(batch, once("a", 1))
            .await
            .unwrap()
            .replayed
    );
    assert_eq!(count(&store).await, 1);
}

pub(in crate::tenants) async fn requests_that_are_under_way_together_have_one_effect<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let mut sending = JoinSet::new();
    for _ in 0..32 {
        let store = store.clone();
        let _task = sending.spawn(async move { send(&store, "a", 1).await.unwrap() });
    }
    let done = sending.join_all().await;
    assert_eq!(done.iter().filter(|done| !done.replayed).count(), 1);
    assert!(done.iter().all(|one| one.outcome == done[0].outcome));
    assert_eq!(count(&store).await, 2);
}

pub(in crate::tenants) async fn a_job_is_scheduled_once_under_its_key<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let job = NewJob {
        delay: Duration::from_secs(60),
        mutation: insert("{}"),
    };
    let mut ids: Vec<JobId> = Vec::new();
    for replayed in [false, true] {
        let done = store
            .schedule_once(job.clone(), 1000, once("a", 1))
            .await
            .unwrap();
        assert_eq!((done.replayed, done.outcome.run_at_ms), (replayed, 61_000));
        ids.push(done.outcome.id);
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(store.jobs().await.unwrap().len(), 1);
}
