//! Documents, lists and their limits.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{Fixture, add, bodies, fields, id, insert, table};
use crate::documents::query::{MAX_PAGE, Query};
use crate::documents::schedule::NewJob;
use crate::documents::{DocumentId, Mutation, MutationOutcome, TableName};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{MAX_PAGE_BYTES, MAX_TABLES, StoreError, TenantProvider as _};

pub(in crate::tenants) async fn documents_survive_closing<F: Fixture>() {
    {
        let house = F::empty();
        let tenants = house.open().await;
        tenants.create_tenant(&id("acme")).await.unwrap();
        let store = tenants.open(&id("acme")).await.unwrap();
        let json = r#"{"z":1.10,"größe":[123456789012345678901234567890,"\u0000 \" é"],"a":null}"#;
        let kept = add(&store, json).await;
        let gone = add(&store, r#"{"n":2}"#).await;
        let changed = add(&store, r#"{"n":3,"keep":true}"#).await;
        let patch = Mutation::Update {
            table: table("t"),
            id: changed,
            patch: fields(r#"{"n":null,"new":[1]}"#),
            if_version: None,
        };
        assert_eq!(
            store.apply(patch).await.unwrap(),
            MutationOutcome::new(changed, Some(4))
        );
        let delete = Mutation::Delete {
            table: table("t"),
            id: gone,
            if_version: None,
        };
        assert_eq!(
            store.apply(delete).await.unwrap(),
            MutationOutcome::new(gone, Some(5))
        );
        let before = store.list(&table("t"), 1000).await.unwrap();
        drop(store);
        tenants.close().await.unwrap();
        drop(tenants);

        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        let after = store.list(&table("t"), 1000).await.unwrap();
        assert_eq!(after, before);
        assert_eq!(
            bodies(&after),
            [json, r#"{"n":null,"keep":true,"new":[1]}"#]
        );
        let document = store.get(&table("t"), kept).await.unwrap();
        assert_eq!(document, after[0]);
        assert_eq!(document.created_ms, kept.unix_ms());
        assert_eq!(document.updated_ms, document.created_ms);
        assert!(after[1].updated_ms >= after[1].created_ms);
        assert_eq!((after[0].version, after[1].version), (1, 4));
        assert!(matches!(
            store.get(&table("t"), gone).await,
            Err(StoreError::DocumentNotFound { .. })
        ));
    }
}

pub(in crate::tenants) async fn what_is_not_there_is_not_found<F: Fixture>() {
    let house = F::empty();
    let tenants = house.open().await;
    assert!(matches!(
        tenants.open(&id("acme")).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    assert!(matches!(
        tenants.delete_tenant(&id("acme")).await,
        Err(StoreError::TenantNotFound { .. })
    ));
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let absent = DocumentId::generate();
    assert!(matches!(
        store.get(&table("t"), absent).await,
        Err(StoreError::DocumentNotFound { .. })
    ));
    assert_eq!(store.list(&table("t"), 1000).await.unwrap(), []);
    let _there = add(&store, "{}").await;
    assert!(matches!(
        store.get(&table("t"), absent).await,
        Err(StoreError::DocumentNotFound { .. })
    ));
    for mutation in [
        Mutation::Update {
            table: table("t"),
            id: absent,
            patch: fields("{}"),
            if_version: None,
        },
        Mutation::Delete {
            table: table("t"),
            id: absent,
            if_version: None,
        },
        Mutation::Delete {
            table: table("u"),
            id: absent,
            if_version: None,
        },
    ] {
        assert!(matches!(
            store.apply(mutation).await,
            Err(StoreError::DocumentNotFound { .. })
        ));
    }
    assert_eq!(store.list(&table("u"), 1000).await.unwrap(), []);
}

pub(in crate::tenants) async fn lists_follow_insertion_and_not_the_ids_clients_chose<F: Fixture>() {
    let house = F::empty();
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let _first = add(&store, r#"{"n":1}"#).await;
    let old: DocumentId = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".parse().unwrap();
    let chosen = Mutation::Insert {
        table: table("t"),
        fields: fields(r#"{"n":2}"#),
        id: Some(old),
    };
    assert_eq!(
        store.apply(chosen.clone()).await.unwrap(),
        MutationOutcome::new(old, Some(2))
    );
    assert!(
        matches!(store.apply(chosen).await, Err(StoreError::DocumentExists { id, .. }) if id == old)
    );
    let _third = add(&store, r#"{"n":3}"#).await;
    let list = store.list(&table("t"), 1000).await.unwrap();
    assert_eq!(bodies(&list), [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#]);
    assert!(
        list[1].created_ms > old.unix_ms(),
        "the creation time is the server's"
    );
    assert_eq!(
        bodies(&store.list(&table("t"), 2).await.unwrap()),
        [r#"{"n":1}"#, r#"{"n":2}"#]
    );
    // Case makes another table, and the same id is free in it.
    let elsewhere = Mutation::Insert {
        table: table("T"),
        fields: fields("{}"),
        id: Some(old),
    };
    assert!(store.apply(elsewhere).await.is_ok());
}

pub(in crate::tenants) async fn lists_are_bounded<F: Fixture>() {
    let house = F::empty();
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    for _ in 0..=MAX_PAGE / 100 {
        let mut group = JoinSet::new();
        for _ in 0..100 {
            let store = Arc::clone(&store);
            drop(group.spawn(async move { store.apply(insert("{}")).await }));
        }
        assert!(group.join_all().await.iter().all(Result::is_ok));
    }
    let all = Query::all(table("t"));
    let page = store.query(all, None, usize::MAX).await.unwrap();
    assert_eq!(page.documents.len(), MAX_PAGE);
    assert!(page.next.is_some(), "more are there");
    let whole = store.list(&table("t"), usize::MAX).await.unwrap();
    assert_eq!(whole.len(), MAX_PAGE + 100);

    let large = fields(&format!(r#"{{"x":"{}"}}"#, "y".repeat(1_048_000)));
    let put = |table: TableName| Mutation::Insert {
        table,
        fields: large.clone(),
        id: None,
    };
    for _ in 0..9 {
        let _outcome = store.apply(put(table("large"))).await.unwrap();
        let job = NewJob {
            delay: Duration::from_secs(60),
            mutation: put(table("never")),
        };
        store.schedule(job, 0).await.unwrap();
    }
    let page = store
        .query_page(Query::all(table("large")), None, 1000)
        .await
        .unwrap();
    assert_eq!(page.documents.len(), MAX_PAGE_BYTES / 1_048_000);
    assert!(page.next.is_some(), "it ended early");
    let whole = store.list(&table("large"), usize::MAX).await.unwrap();
    assert_eq!(whole.len(), 9);
    let jobs = store.list_jobs(None, 1000).await.unwrap();
    assert!(jobs.more && jobs.items.len() < 5);
    assert_eq!(store.jobs().await.unwrap().len(), 9);
}

pub(in crate::tenants) async fn a_tenant_has_a_limit_of_tables<F: Fixture>() {
    let house = F::empty();
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let into = |n: usize| Mutation::Insert {
        table: table(&format!("t{n}")),
        fields: fields("{}"),
        id: None,
    };
    for chunk in (0..MAX_TABLES).collect::<Vec<_>>().chunks(100) {
        let mut group = JoinSet::new();
        for &n in chunk {
            let (store, mutation) = (Arc::clone(&store), into(n));
            drop(group.spawn(async move { store.apply(mutation).await }));
        }
        assert!(group.join_all().await.iter().all(Result::is_ok));
    }
    assert!(matches!(
        store.apply(into(MAX_TABLES)).await,
        Err(StoreError::TooManyTables { .. })
    ));
    assert!(store.apply(into(0)).await.is_ok());
}

pub(in crate::tenants) async fn a_patch_that_makes_a_document_too_large_is_refused<F: Fixture>() {
    let house = F::empty();
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let big = format!(r#"{{"a":"{}"}}"#, "x".repeat(600_000));
    let there = add(&store, &big).await;
    let patch = fields(&big.replace("\"a\"", "\"b\""));
    let result = store
        .apply(Mutation::Update {
            table: table("t"),
            id: there,
            patch,
            if_version: None,
        })
        .await;
    assert!(matches!(result, Err(StoreError::Input(_))));
    assert_eq!(
        store
            .get(&table("t"), there)
            .await
            .unwrap()
            .fields
            .as_json(),
        big
    );
}
