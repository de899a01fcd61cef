//! Documents that are asked for at the same time.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::*;
use crate::tenants::sqlite::{lookups::Wanted, readers::Readers};

/// A request that has come, and waits.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Asks for documents at the same time.
fn ask(store: &Arc<dyn TenantStore>, ids: &[DocumentId]) -> JoinSet<Result<Document, StoreError>> {
    let mut asked = JoinSet::new();
    for &id in ids {
        let store = store.clone();
        drop(asked.spawn(async move { store.get(&table("t"), id).await }));
    }
    asked
}

async fn one_tenant() -> (House, SqliteTenants, Arc<dyn TenantStore>) {
    let house = House::new(encryption());
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    (house, tenants, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_a_crowd_is_answered_with_its_own() {
    let (_house, _tenants, store) = one_tenant().await;
    let mut there = Vec::new();
    for n in 0..50 {
        there.push(add(&store, &format!(r#"{{"n":{n}}}"#)).await);
    }
    let mut crowd = JoinSet::new();
    // More than are looked up together, and some that are nowhere.
    for ask in 0..600 {
        let (store, wanted) = (store.clone(), there.get(ask % 60).copied());
        drop(crowd.spawn(async move {
            let id = wanted.unwrap_or_else(DocumentId::generate);
            let name = if ask % 7 == 0 { "u" } else { "t" };
            match store.get(&table(name), id).await {
                Ok(document) => {
                    assert_eq!((document.id, name), (id, "t"));
                    let body = format!(r#"{{"n":{}}}"#, ask % 60);
                    assert_eq!(document.fields.as_json(), body);
                    true
                }
                Err(StoreError::DocumentNotFound { id: missing, .. }) => {
                    assert_eq!(missing, id);
                    assert!(wanted.is_none() || name == "u");
                    false
                }
                Err(error) => panic!("{error}"),
            }
        }));
    }
    let found = crowd.join_all().await.into_iter().filter(|found| *found);
    assert_eq!(
        found.count(),
        (0..600).filter(|ask| ask % 60 < 50 && ask % 7 != 0).count()
    );
}

#[tokio::test]
async fn who_goes_away_takes_nobody_along() {
    let (_house, _tenants, store) = one_tenant().await;
    let document = add(&store, "{}").await;
    let t = table("t");
    for steps in 0..6 {
        // The first is alone, the others are on the list.
        let mut abandoned: Vec<_> = (0..3).map(|_| Box::pin(store.get(&t, document))).collect();
        for one in &mut abandoned {
            let _pending_or_not = poll_once(one.as_mut());
        }
        for _ in 0..steps {
            yield_now().await;
        }
        drop(abandoned);
        assert_eq!(store.get(&t, document).await.unwrap().id, document);
    }
}

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_is_not_read() {
    let (house, tenants, store) = one_tenant().await;
    let document = add(&store, "{}").await;
    let subject = Subject::sqlite_tenant(&id("acme"), "acme.sqlite3").unwrap();
    let path = house.file("acme");
    let database = sqlcipher::open(&house.envelope, &path, &subject, Intent::Open).await;
    let readers = Readers::new(&id("acme"), database.unwrap(), 1);
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
async fn an_answer_is_of_after_the_question() {
    let (_house, _tenants, store) = one_tenant().await;
    let document = add(&store, r#"{"n":0}"#).await;
    let t = table("t");
    for n in 1..50 {
        let patch = fields(&format!(r#"{{"n":{n}}}"#));
        let update = Mutation::Update {
            table: t.clone(),
            id: document,
            patch,
            if_version: None,
        };
        // One look-up is under way while the write is answered.
        let early = store.get(&t, document);
        let (early, written) = tokio::join!(early, store.apply(update));
        let _outcome = written.unwrap();
        let _either = early.unwrap();
        let late = store.get(&t, document).await.unwrap();
        assert_eq!(late.fields.as_json(), format!(r#"{{"n":{n}}}"#));
    }
}

#[tokio::test]
async fn a_closed_tenant_answers_those_who_wait() {
    let (_house, tenants, store) = one_tenant().await;
    let document = add(&store, "{}").await;
    let t = table("t");
    let waiting = ask(&store, &[document; 10]);
    yield_now().await;
    tenants.close().await.unwrap();
    for answer in waiting.join_all().await {
        assert!(
            matches!(answer, Ok(_) | Err(StoreError::Closed { .. })),
            "{answer:?}"
        );
    }
    assert!(matches!(
        store.get(&t, document).await,
        Err(StoreError::Closed { .. })
    ));
}

#[tokio::test]
async fn damage_fails_what_lies_in_it_and_nothing_else() {
    let (house, tenants, store) = one_tenant().await;
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
