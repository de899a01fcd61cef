use super::*;
use crate::tenants::conformance::journal::{journal, numbers};

#[tokio::test]
async fn the_journal_keeps_the_last_hundred_thousand_writes() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let _there = add(&store, "{}").await;
    drop(store);
    tenants.close().await.unwrap();
    drop(tenants);
    // As if that many writes had been made.
    let connection = house.connection("acme").await;
    let fill = "WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 102398)
                INSERT INTO nimbus_journal SELECT n, change, number, id, at FROM n, nimbus_journal WHERE sequence = 1";
    assert_eq!(connection.execute(fill, []).unwrap(), 102_397);
    drop(connection);

    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    let _there = add(&store, "{}").await;
    let page = journal(&store, 0, 1).await;
    assert_eq!((page.latest, page.floor), (102_399, 0));
    let _there = add(&store, "{}").await;
    let page = store.journal(None, 1).await.unwrap();
    assert_eq!((page.latest, page.floor), (102_400, 2400));
    assert_eq!(numbers(&page), [2401], "the beginning is what is there");
    // Who read up to an earlier write would miss some.
    for gone in [0, 1, 2399] {
        assert!(matches!(
            store.journal(Some(gone), 1).await,
            Err(StoreError::JournalExpired { after, floor: 2400 }) if after == gone
        ));
    }
    assert_eq!(numbers(&journal(&store, 2400, 1).await), [2401]);
}
