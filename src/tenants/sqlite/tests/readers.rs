//! Reads that nobody waits for any more.

use super::*;
use crate::tenants::readers::Readers;

const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_caller_went_away_ends_and_leaves_its_place_to_others() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("demo")).await.unwrap();
    let storage = house.storage("demo").await;
    let readers = Readers::new(&id("demo"), storage, 2, Arc::default(), None);
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
