//! Requests under a key: done once.

use super::*;
use crate::documents::schedule::{JobId, NewJob};
use crate::documents::{CREDENTIAL_PART, Done, MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Once};

async fn acme(house: &House) -> (SqliteTenants, Arc<dyn TenantStore>) {
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    (tenants, store)
}

fn once(key: &str, request: u8) -> Option<Once> {
    Some(Once::new(key.as_bytes(), [request; 32], "somebody"))
}

async fn send(
    store: &Arc<dyn TenantStore>,
    key: &str,
    request: u8,
) -> Result<Done<Vec<MutationOutcome>>, StoreError> {
    let batch = vec![insert(&format!(r#"{{"n":{request}}}"#)), insert("{}")];
    store.apply_once(batch, once(key, request)).await
}

async fn count(store: &Arc<dyn TenantStore>) -> usize {
    store.list(&table("t"), usize::MAX).await.unwrap().len()
}

#[tokio::test]
async fn a_request_is_done_once_under_its_key_also_after_a_restart() {
    let house = House::new(encryption());
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

#[tokio::test]
async fn a_request_that_was_refused_is_not_remembered() {
    let house = House::new(encryption());
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

#[tokio::test]
async fn requests_that_are_under_way_together_have_one_effect() {
    let house = House::new(encryption());
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

#[tokio::test]
async fn a_job_is_scheduled_once_under_its_key() {
    let house = House::new(encryption());
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

#[tokio::test]
async fn keys_are_forgotten_after_a_day_in_the_commits_of_others() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    for key in ["old", "wrong clock", "young"] {
        let _done = send(&store, key, 1).await.unwrap();
    }
    drop(store);
    tenants.close().await.unwrap();
    drop(tenants);
    let connection = house.connection("acme").await;
    let day = 24 * 60 * 60 * 1000;
    for (number, shift) in [(1, -day), (2, 2 * day), (3, -day + 60_000)] {
        let shifted = connection
            .execute(
                "UPDATE nimbus_remembered SET at = at + ?2 WHERE number = ?1",
                [number, shift],
            )
            .unwrap();
        assert_eq!(shifted, 1);
    }
    drop(connection);
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    let _there = add(&store, "{}").await;
    assert!(send(&store, "young", 1).await.unwrap().replayed);
    assert!(!send(&store, "old", 2).await.unwrap().replayed);
    drop(store);
    tenants.close().await.unwrap();
    let connection = house.connection("acme").await;
    let left: Vec<i64> = connection
        .prepare("SELECT number FROM nimbus_remembered ORDER BY number")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(left, [3, 4]);
}

#[tokio::test]
async fn no_more_keys_are_remembered_than_may_be_and_nothing_is_forgotten_for_them() {
    for (column, most) in [("number", MAX_REMEMBERED), ("bytes", MAX_REMEMBERED_BYTES)] {
        let house = House::new(encryption());
        let (tenants, store) = acme(&house).await;
        for key in ["a", "b"] {
            let _done = send(&store, key, 1).await.unwrap();
        }
        drop(store);
        tenants.close().await.unwrap();
        drop(tenants);
        // As if there were as many in between.
        let connection = house.connection("acme").await;
        let sql = format!("UPDATE nimbus_remembered SET {column} = ?1 WHERE number = 2");
        assert_eq!(connection.execute(&sql, [most]).unwrap(), 1);
        drop(connection);
        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        let refused = send(&store, "c", 1).await;
        assert!(
            matches!(refused, Err(StoreError::TooManyRemembered { own: false })),
            "{refused:?}"
        );
        assert_eq!(count(&store).await, 4, "nothing of it was done");
        assert!(send(&store, "a", 1).await.unwrap().replayed);
        let _there = add(&store, "{}").await;
    }
}

#[tokio::test]
async fn one_credential_has_at_most_half_of_what_is_remembered() {
    for (column, most) in [
        ("count", MAX_REMEMBERED / CREDENTIAL_PART),
        ("bytes", MAX_REMEMBERED_BYTES / CREDENTIAL_PART),
    ] {
        let house = House::new(encryption());
        let (tenants, store) = acme(&house).await;
        let _done = send(&store, "a", 1).await.unwrap();
        drop(store);
        tenants.close().await.unwrap();
        drop(tenants);
        // As if it had as many as it may.
        let connection = house.connection("acme").await;
        let sql = format!("UPDATE nimbus_remembered_of SET {column} = ?1");
        assert_eq!(connection.execute(&sql, [most]).unwrap(), 1);
        drop(connection);
        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        let refused = send(&store, "b", 1).await;
        assert!(
            matches!(refused, Err(StoreError::TooManyRemembered { own: true })),
            "{refused:?}"
        );
        assert_eq!(count(&store).await, 2, "nothing of it was done");
        assert!(send(&store, "a", 1).await.unwrap().replayed);
        let other = Some(Once::new(b"c", [1; 32], "somebody else"));
        let batch = vec![insert("{}"), insert("{}")];
        assert!(!store.apply_once(batch, other).await.unwrap().replayed);
    }
}

/// What each credential has, as it is counted and as it is.
fn counts(connection: &rusqlite::Connection, sql: &str) -> Vec<(Vec<u8>, i64, i64)> {
    let mut counts = connection.prepare(sql).unwrap();
    let counts = counts.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    counts.unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn what_is_forgotten_is_counted_no_more() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    for (key, who) in [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")] {
        let once = Some(Once::new(key.as_bytes(), [1; 32], who));
        let _done = store.apply_once(vec![insert("{}")], once).await.unwrap();
    }
    drop(store);
    tenants.close().await.unwrap();
    drop(tenants);
    let connection = house.connection("acme").await;
    let old = "UPDATE nimbus_remembered SET at = at - 86400000 WHERE number IN (1, 3, 4)";
    assert_eq!(connection.execute(old, []).unwrap(), 3);
    drop(connection);
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    let _there = add(&store, "{}").await;
    drop(store);
    tenants.close().await.unwrap();
    let connection = house.connection("acme").await;
    let counted = counts(&connection, "SELECT * FROM nimbus_remembered_of");
    let there = counts(
        &connection,
        "SELECT credential, count(*), sum(length(answer)) FROM nimbus_remembered GROUP BY credential",
    );
    assert_eq!(counted, there);
    assert_eq!(counted.len(), 1, "{counted:?}");
}
