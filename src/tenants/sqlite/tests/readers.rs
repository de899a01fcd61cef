//! Reads that nobody waits for any more, and the places of those that take long.

use super::*;
use crate::documents::query::Position;
use crate::tenants::{ReaderLimits, conformance::queries::read, readers::Readers};

const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_caller_went_away_ends_and_leaves_its_place_to_others() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("demo")).await.unwrap();
    let storage = house.storage("demo").await;
    let readers = Readers::new(
        &id("demo"),
        storage,
        &ReaderLimits::new(2, usize::MAX),
        Arc::default(),
        None,
    );
    // As many as may read at once, none of which ends by itself.
    let (begun, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let mut endless = JoinSet::new();
    for _ in 0..2 {
        let (readers, begun) = (Arc::clone(&readers), begun.clone());
        let _task = endless.spawn(async move {
            let read = readers.read(move |reader| {
                begun.send(()).unwrap();
                reader.on(|connection| connection.query_row(ENDLESS, [], |row| row.get(0)))
            });
            let _: Result<i64, StoreError> = read.await;
        });
    }
    for _ in 0..2 {
        waiting.recv().await.unwrap();
    }
    endless.shutdown().await;
    let one = readers.read(|reader| {
        reader.on(|connection| connection.query_row("SELECT 1", [], |row| row.get(0)))
    });
    let one: i64 = one.await.unwrap();
    assert_eq!(one, 1);
    readers.close().await;
    tenants.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_leave_readers_to_what_an_index_answers() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    for n in 0..3 {
        let _there = add(&store, &format!(r#"{{"n":{n}}}"#)).await;
    }
    drop(store);
    tenants.close().await.unwrap();
    let storage = house.storage("acme").await;
    let readers = Readers::new(
        &id("acme"),
        storage,
        &ReaderLimits::new(4, usize::MAX),
        Arc::default(),
        None,
    );
    let find = |query: &str, after: Option<Position>| {
        let (readers, query) = (Arc::clone(&readers), read(query));
        async move { readers.find(query, after, 10, usize::MAX).await }
    };
    const SCAN: &str = r#"{"table":"t","filters":[{"field":"n","op":"eq","value":1}]}"#;
    const NEWEST: &str = r#"{"table":"t","order":{"field":"_creationTime","direction":"desc"}}"#;
    assert_eq!(find(SCAN, None).await.unwrap().documents.len(), 1);
    // Two scans that do not end by themselves; eight more wait.
    let places = [
        readers.scan_place().await.unwrap(),
        readers.scan_place().await.unwrap(),
    ];
    let mut scans = JoinSet::new();
    for _ in 0..8 {
        let _task = scans.spawn(find(SCAN, None));
    }
    // However long they have waited, none has kept a reader.
    for _ in 0..20 {
        let newest = find(NEWEST, None).await.unwrap();
        assert_eq!(bodies(&newest.documents)[0], r#"{"n":2}"#);
        tokio::task::yield_now().await;
    }
    let held = readers.hold(Duration::from_secs(60)).await.unwrap();
    drop(held.expect("every reader is free"));
    assert!(scans.try_join_next().is_none());
    drop(places);
    while let Some(found) = scans.join_next().await {
        assert_eq!(found.unwrap().unwrap().documents.len(), 1);
    }
    // A caller that waits when the tenant is closed gets an error.
    let places = [
        readers.scan_place().await.unwrap(),
        readers.scan_place().await.unwrap(),
    ];
    let waiting = tokio::spawn(find(SCAN, None));
    readers.close().await;
    drop(places);
    assert!(matches!(
        waiting.await.unwrap(),
        Err(StoreError::Closed { .. })
    ));
}
