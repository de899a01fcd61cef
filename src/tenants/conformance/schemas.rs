//! Schemas and unique indexes.

use std::sync::Arc;

use serde_json::json;
use tokio::task::JoinSet;

use super::{Fixture, acme, add, bodies, fields, id, insert, table};
use crate::documents::schema::{TableSchema, Violation};
use crate::documents::{Document, DocumentId, Mutation};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{MAX_OFFENDERS, StoreError, TenantProvider as _};

pub(in crate::tenants) fn schema(json: &serde_json::Value) -> TableSchema {
    TableSchema::from_json(&json.to_string()).unwrap()
}

/// `t`, whose `n` is a number and required.
pub(in crate::tenants) fn numbered() -> TableSchema {
    schema(
        &json!({"table": "t", "fields": [{"name": "n", "field_type": "number", "required": true}]}),
    )
}

pub(in crate::tenants) fn unique(fields: &[&str]) -> TableSchema {
    schema(&json!({"table": "t", "indexes": [{"name": "only", "fields": fields, "unique": true}]}))
}

pub(in crate::tenants) fn update(id: DocumentId, patch: &str) -> Mutation {
    Mutation::Update {
        table: table("t"),
        id,
        patch: fields(patch),
        if_version: None,
    }
}

pub(in crate::tenants) async fn a_schema_is_kept_and_taken_away<F: Fixture>() {
    let house = F::empty();
    let (tenants, first) = acme(&house).await;
    let none = first.schema(&table("t")).await;
    assert!(
        matches!(none, Err(StoreError::SchemaNotFound { .. })),
        "{none:?}"
    );
    let none = first.delete_schema(&table("t")).await;
    assert!(
        matches!(none, Err(StoreError::SchemaNotFound { .. })),
        "{none:?}"
    );
    first.put_schema(numbered()).await.unwrap();
    let other = schema(&json!({"table": "A", "json_schema": {"required": ["x"]}}));
    first.put_schema(other.clone()).await.unwrap();
    drop(first);
    tenants.close().await.unwrap();
    drop(tenants);

    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(store.schema(&table("t")).await.unwrap(), numbered());
    assert_eq!(store.schemas().await.unwrap(), [other, numbered()]);
    // The table came into being with its schema, and has no documents.
    assert_eq!(store.list(&table("t"), 10).await.unwrap(), []);
    assert!(store.apply(insert("{}")).await.is_err());
    store.delete_schema(&table("t")).await.unwrap();
    assert!(store.apply(insert("{}")).await.is_ok());
    let none = store.delete_schema(&table("t")).await;
    assert!(
        matches!(none, Err(StoreError::SchemaNotFound { .. })),
        "{none:?}"
    );
}

pub(in crate::tenants) async fn every_way_to_write_is_held_to_the_schema<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    store.put_schema(numbered()).await.unwrap();
    let there = add(&store, r#"{"n":1,"free":[]}"#).await;
    let missing = Violation::Missing { field: "n".into() };
    let refused = store.apply(insert(r#"{"free":1}"#)).await;
    assert!(
        matches!(&refused, Err(StoreError::SchemaViolation { violation, .. }) if *violation == missing),
        "{refused:?}"
    );
    for patch in [r#"{"n":"1"}"#, r#"{"n":null}"#] {
        let refused = store.apply(update(there, patch)).await;
        assert!(
            matches!(refused, Err(StoreError::SchemaViolation { .. })),
            "{refused:?}"
        );
    }
    let _merged = store.apply(update(there, r#"{"free":2}"#)).await.unwrap();
    let batch = vec![insert(r#"{"n":2}"#), insert("{}")];
    let refused = store.apply_all(batch).await;
    assert!(
        matches!(&refused, Err(StoreError::InBatch { index: 1, source }) if matches!(**source, StoreError::SchemaViolation { .. })),
        "{refused:?}"
    );
    let all = store.list(&table("t"), 10).await.unwrap();
    assert_eq!(bodies(&all), [r#"{"n":1,"free":2}"#]);
}

pub(in crate::tenants) async fn a_schema_is_refused_while_documents_do_not_fit_and_the_first_are_named<
    F: Fixture,
>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let mut offending = Vec::new();
    for n in 0..30 {
        let fits = n % 2 == 0;
        let id = add(&store, if fits { r#"{"n":1}"# } else { r#"{"n":"1"}"# }).await;
        if !fits {
            offending.push(id);
        }
    }
    let Err(StoreError::SchemaOffended { offenders, .. }) = store.put_schema(numbered()).await
    else {
        panic!("it was set");
    };
    let named: Vec<_> = offenders.first.iter().map(|(id, _)| *id).collect();
    assert_eq!(named, offending[..MAX_OFFENDERS]);
    assert!(offenders.more);
    assert!(offenders.to_string().ends_with("; and more"), "{offenders}");
    assert!(matches!(
        store.schema(&table("t")).await,
        Err(StoreError::SchemaNotFound { .. })
    ));
    for &id in &offending[..14] {
        let _outcome = store.apply(update(id, r#"{"n":2}"#)).await.unwrap();
    }
    let Err(StoreError::SchemaOffended { offenders, .. }) = store.put_schema(numbered()).await
    else {
        panic!("it was set");
    };
    assert_eq!((offenders.first.len(), offenders.more), (1, false));
    let delete = Mutation::Delete {
        table: table("t"),
        id: offending[14],
        if_version: None,
    };
    let _outcome = store.apply(delete).await.unwrap();
    store.put_schema(numbered()).await.unwrap();
}

pub(in crate::tenants) async fn a_unique_index_keeps_types_apart_and_does_not_compare_what_has_no_value<
    F: Fixture,
>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    store.put_schema(unique(&["a"])).await.unwrap();
    for json in [
        "1",
        "true",
        r#""1""#,
        "0",
        "false",
        "1.5",
        r#""true""#,
        r#""""#,
        r#""a""#,
        r#""A""#,
    ] {
        let _there = add(&store, &format!(r#"{{"a":{json}}}"#)).await;
    }
    for json in [
        "1",
        "1.0",
        "1e0",
        "-0",
        "0.0",
        "true",
        r#""1""#,
        r#""\u0061""#,
        "15e-1",
    ] {
        let refused = store.apply(insert(&format!(r#"{{"a":{json}}}"#))).await;
        let Err(StoreError::NotUnique { index, fields, .. }) = &refused else {
            panic!("{json}: {refused:?}");
        };
        assert_eq!(
            (index.as_str(), &fields[..]),
            ("only", &["a".to_owned()][..])
        );
    }
    // Missing, null, lists and objects are not compared.
    for json in ["{}", r#"{"a":null}"#, r#"{"a":[1]}"#, r#"{"a":{"b":1}}"#] {
        let _first = add(&store, json).await;
        let _second = add(&store, json).await;
    }
    let other = add(&store, r#"{"a":2}"#).await;
    let refused = store.apply(update(other, r#"{"a":1}"#)).await;
    assert!(
        matches!(refused, Err(StoreError::NotUnique { .. })),
        "{refused:?}"
    );
    let _itself = store.apply(update(other, r#"{"a":2.0}"#)).await.unwrap();
    // What was refused left nothing behind, and an id that is taken is told apart.
    let again = Mutation::Insert {
        table: table("t"),
        fields: fields(r#"{"a":99}"#),
        id: Some(other),
    };
    let refused = store.apply(again).await;
    assert!(
        matches!(refused, Err(StoreError::DocumentExists { .. })),
        "{refused:?}"
    );
}

pub(in crate::tenants) async fn a_schema_and_writes_in_one_group_see_each_other_in_turn<
    F: Fixture,
>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    // All are queued while the writer is at its first: they share groups, whatever their number.
    let mut tasks = JoinSet::new();
    for n in 0..200_i64 {
        let store = Arc::clone(&store);
        drop(tasks.spawn(async move {
            match n % 10 {
                3 => store.put_schema(numbered()).await.map(drop),
                7 => store.delete_schema(&table("t")).await,
                even if even % 2 == 0 => store.apply(insert(r#"{"n":1}"#)).await.map(drop),
                _ => store.apply(insert(r#"{"n":"x"}"#)).await.map(drop),
            }
        }));
    }
    for result in tasks.join_all().await {
        assert!(
            matches!(
                result,
                Ok(())
                    | Err(StoreError::SchemaViolation { .. }
                        | StoreError::SchemaOffended { .. }
                        | StoreError::SchemaNotFound { .. })
            ),
            "{result:?}"
        );
    }
    // Whatever came first: under a schema there are no documents that do not fit it.
    let wrong = |document: &&Document| document.fields.as_json().contains('x');
    let documents = store.list(&table("t"), usize::MAX).await.unwrap();
    match store.schema(&table("t")).await {
        Ok(_) => assert_eq!(documents.iter().find(wrong), None),
        Err(_) => {
            let is_set = store.put_schema(numbered()).await.is_ok();
            assert_eq!(is_set, !documents.iter().any(|document| wrong(&document)));
        }
    }
}
