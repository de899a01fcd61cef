//! Deploys in the tenant's file: what is stored, shared, and removed.

use super::*;
use crate::documents::deploy::{ContentHash, GENERATIONS_KEPT};
use crate::tenants::conformance::deploys::{deploy, ticking};

/// How many contents and pieces are stored, and how often each content is used by its own account
/// and by the files'.
async fn stored(house: &House) -> (i64, i64) {
    let connection = house.connection("acme").await;
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let wrong = count(
        "SELECT count(*) FROM nimbus_contents
         WHERE uses <> (SELECT count(*) FROM nimbus_files WHERE content = number)",
    );
    assert_eq!(wrong.unwrap(), 0);
    let astray = count(
        "SELECT count(*) FROM nimbus_pieces
         WHERE id / 65536 NOT IN (SELECT number FROM nimbus_contents)",
    );
    assert_eq!(astray.unwrap(), 0);
    (
        count("SELECT count(*) FROM nimbus_contents").unwrap(),
        count("SELECT count(*) FROM nimbus_pieces").unwrap(),
    )
}

#[tokio::test]
async fn equal_contents_are_stored_once_and_removed_with_the_last_generation_that_has_them() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let large = vec![7; 3 * (64 << 10) + 1];
    let (a, b) = (&b"a"[..], &b"b"[..]);
    let first = deploy(&[("a", a), ("again", a), ("large", &large), ("empty", b"")]);
    store.deploy(first).await.unwrap();
    assert_eq!(stored(&house).await, (3, 1 + 4));
    store.deploy(deploy(&[("a", a), ("b", b)])).await.unwrap();
    assert_eq!(stored(&house).await, (4, 1 + 4 + 1));
    for _ in 0..GENERATIONS_KEPT - 1 {
        store.deploy(deploy(&[("a", a)])).await.unwrap();
    }
    // The first generation is gone, and with it what it alone had.
    assert_eq!(stored(&house).await, (2, 2));
    let gone = store.app_content(ContentHash::of(&large), 0..10).await;
    assert!(matches!(gone, Err(StoreError::ContentGone { .. })));
    store.deploy(deploy(&[])).await.unwrap();
    assert_eq!(stored(&house).await, (1, 1));
    let listed = store.generations().await.unwrap();
    assert_eq!(listed.generations.len(), GENERATIONS_KEPT);
    assert_eq!(listed.active, Some(GENERATIONS_KEPT as i64 + 2));
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn a_generation_that_nobody_wrote_is_damage() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    store.deploy(ticking("hourly")).await.unwrap();
    let connection = house.connection("acme").await;
    connection
        .execute("UPDATE nimbus_generations SET cron_list = '[{}]'", [])
        .unwrap();
    drop(connection);
    let damaged = store.activate(1).await;
    assert!(
        matches!(damaged, Err(StoreError::Corrupt { .. })),
        "{damaged:?}"
    );
    tenants.close().await.unwrap();
}
