//! Documents that are asked for at the same time.

use tokio::sync::oneshot;

use super::*;
use crate::tenants::{ReaderLimits, backend::Wanted, conformance::lookups::ask, readers::Readers};

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_is_not_read() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let document = add(&store, "{}").await;
    let storage = house.storage("acme").await;
    let readers = Readers::new(
        &id("acme"),
        storage,
        &ReaderLimits::new(1, usize::MAX),
        Arc::default(),
        None,
    );
    let (mut wanted, mut answers, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for _each in 0..3 {
        let (answer, found) = oneshot::channel();
        let table = table("t");
        wanted.push(Wanted {
            table,
            id: document,
        });
        answers.push(answer);
        waiting.push(found);
    }
    drop(waiting.remove(1));
    let looking = Arc::clone(&readers);
    let looking = tokio::task::spawn_blocking(move || looking.look_up_all(&wanted, &answers));
    let read: Vec<bool> = looking.await.unwrap().iter().map(Result::is_ok).collect();
    assert_eq!(read, [true, false, true]);
    readers.close().await;
    drop(store);
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn damage_fails_what_lies_in_it_and_nothing_else() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let mut ids = Vec::new();
    // Each fills most of a page.
    for n in 0..40 {
        let json = format!(r#"{{"n":{n},"filler":"{}"}}"#, "x".repeat(3000));
        ids.push(add(&store, &json).await);
    }
    drop(store);
    tenants.close().await.unwrap();
    drop(tenants);
    // One page in the middle of the documents.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(house.file("acme"))
        .unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    file.write_all_at(&[0x5A; 64], (pages - 12) * 4096 + 100)
        .unwrap();

    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    let (mut found, mut damaged) = (0, 0);
    for answer in ask(&store, &ids).join_all().await {
        match answer {
            Ok(_document) => found += 1,
            Err(StoreError::Corrupt { .. }) => damaged += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        damaged > 0 && found > 30,
        "{found} found, {damaged} damaged"
    );
}
