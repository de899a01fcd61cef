//! Documents that are asked for at the same time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::task::{JoinSet, yield_now};

use super::{Fixture, acme, add, fields, table};
use crate::documents::{Document, DocumentId, Mutation};
use crate::tenants::{StoreError, TenantProvider as _, TenantStore};

/// A request that has come, and waits.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Asks for documents at the same time.
pub(in crate::tenants) fn ask(
    store: &Arc<dyn TenantStore>,
    ids: &[DocumentId],
) -> JoinSet<Result<Document, StoreError>> {
    let mut asked = JoinSet::new();
    for &id in ids {
        let store = store.clone();
        drop(asked.spawn(async move { store.get(&table("t"), id).await }));
    }
    asked
}

pub(in crate::tenants) async fn each_of_a_crowd_is_answered_with_its_own<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
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

pub(in crate::tenants) async fn who_goes_away_takes_nobody_along<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
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

pub(in crate::tenants) async fn an_answer_is_of_after_the_question<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
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

pub(in crate::tenants) async fn a_closed_tenant_answers_those_who_wait<F: Fixture>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
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
