//! Requests under a key: done once.

use super::*;
use crate::documents::{CREDENTIAL_PART, MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Once};
use crate::tenants::conformance::idempotency::{count, send};

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
