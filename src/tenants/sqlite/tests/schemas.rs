//! Schemas and indexes, as a table's users see them.

use serde_json::json;

use super::*;
use crate::tenants::conformance::schemas::{numbered, schema, unique, update};

/// The SQL indexes of a tenant's file that were made from schemas.
async fn made(house: &House) -> Vec<String> {
    let connection = house.connection("acme").await;
    let mut names = connection
        .prepare("SELECT name FROM sqlite_schema WHERE name GLOB 'nimbus_index_[0-9]*' ORDER BY rootpage, name")
        .unwrap();
    let names = names.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

#[tokio::test]
async fn indexes_are_made_kept_and_dropped_with_the_schema() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let _there = add(&store, r#"{"a":1,"b":2}"#).await;
    let with = |indexes: serde_json::Value| schema(&json!({"table": "t", "indexes": indexes}));
    let first =
        with(json!([{"name": "x", "fields": ["a"]}, {"name": "y", "fields": ["a", "b.c"]}]));
    store.put_schema(first.clone()).await.unwrap();
    let both = made(&house).await;
    assert_eq!(both.len(), 2);
    store.put_schema(first).await.unwrap();
    assert_eq!(made(&house).await, both);
    // Another name, another order: the same index. Unique is another one.
    store
        .put_schema(with(
            json!([{"name": "z", "fields": ["b"]}, {"name": "x2", "fields": ["a", "b.c"]}]),
        ))
        .await
        .unwrap();
    let now = made(&house).await;
    assert_eq!(now.len(), 2);
    assert!(now.contains(&both[1]), "{now:?} {both:?}");
    store.put_schema(unique(&["b"])).await.unwrap();
    assert_eq!(made(&house).await.len(), 1);
    store.delete_schema(&table("t")).await.unwrap();
    assert_eq!(made(&house).await.len(), 0);
}

#[tokio::test]
async fn a_compound_unique_index_compares_all_of_its_fields() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let _first = add(&store, r#"{"a":1,"b":{"c":"x"}}"#).await;
    let second = add(&store, r#"{"a":1.0,"b":{"c":"x"}}"#).await;
    let refused = store.put_schema(unique(&["a", "b.c"])).await;
    let Err(StoreError::NotUnique { fields, .. }) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(fields[..], ["a", "b.c"]);
    assert!(store.schemas().await.unwrap().is_empty());
    assert_eq!(made(&house).await.len(), 0);
    let _outcome = store.apply(update(second, r#"{"b":null}"#)).await.unwrap();
    store.put_schema(unique(&["a", "b.c"])).await.unwrap();
    for json in [
        r#"{"a":1}"#,
        r#"{"a":1}"#,
        r#"{"a":2,"b":{"c":"x"}}"#,
        r#"{"b":{"c":"x"}}"#,
    ] {
        let _there = add(&store, json).await;
    }
    let refused = store.apply(insert(r#"{"a":2,"b":{"c":"x"}}"#)).await;
    assert!(
        matches!(refused, Err(StoreError::NotUnique { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_schema_that_is_undone_is_forgotten() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let _one = add(&store, r#"{"a":1}"#).await;
    let _two = add(&store, r#"{"a":1}"#).await;
    // Its fields fit, its index does not: all of it is undone, in memory too.
    let half = schema(&json!({
        "table": "t",
        "fields": [{"name": "a", "field_type": "number", "required": true}],
        "indexes": [{"name": "i", "fields": ["b"]}, {"name": "u", "fields": ["a"], "unique": true}],
    }));
    let refused = store.put_schema(half).await;
    assert!(
        matches!(refused, Err(StoreError::NotUnique { .. })),
        "{refused:?}"
    );
    let _free = add(&store, r#"{"a":"text"}"#).await;
    assert_eq!(made(&house).await.len(), 0);
}

#[tokio::test]
async fn documents_written_between_the_scan_and_the_setting_are_looked_at() {
    let house = House::new(encryption());
    let (tenants, first) = acme(&house).await;
    let kept = add(&first, r#"{"n":1}"#).await;
    drop(first);
    tenants.close().await.unwrap();
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    // Past the server: the scan, then writes, then the setting in a transaction that has writes of
    // its own.
    let mut reader = Reader::new(&id("acme"), house.connection("acme").await, &Arc::default());
    let scanned = crate::tenants::schemas::scan(&mut reader, &id("acme"), &numbered()).unwrap();
    let wrong = add(&store, r#"{"n":"late"}"#).await;
    let put = async |between: Option<Mutation>| {
        let mut transaction = house.transaction("acme").await;
        let (tenant, mut cache) = (id("acme"), WriterCache::default());
        let mut writing =
            Writing::begin(&tenant, &mut transaction, &mut cache, &Unscheduled).unwrap();
        if let Some(mutation) = between {
            let _outcome = writing.apply(&mutation).unwrap();
        }
        let result = writing.put_schema(&numbered(), Some(scanned));
        transaction.roll_back().unwrap();
        result
    };
    let offender = |result: Result<(), StoreError>| match result {
        Err(StoreError::SchemaOffended { offenders, .. }) => offenders.first[0].0,
        other => panic!("{other:?}"),
    };
    assert_eq!(offender(put(None).await), wrong);
    let delete = Mutation::Delete {
        table: table("t"),
        id: wrong,
        if_version: None,
    };
    assert!(put(Some(delete.clone())).await.is_ok());
    let _outcome = store.apply(delete).await.unwrap();
    assert!(put(None).await.is_ok());
    let now = put(Some(update(kept, r#"{"n":"now"}"#))).await;
    assert_eq!(offender(now), kept);
}

#[tokio::test]
async fn readers_go_on_while_an_index_is_made_and_see_it_once_it_is_committed() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    for _ in 0..3 {
        let _there = add(&store, r#"{"n":1}"#).await;
    }
    let by_n = schema(&json!({"table": "t", "indexes": [{"name": "n", "fields": ["n"]}]}));
    let query = crate::documents::query::Query::from_json(
        r#"{"table":"t","filters":[{"field":"n","op":"eq","value":1}]}"#,
    )
    .unwrap();
    // The writer's part, on a connection of its own, held before its commit.
    let mut transaction = house.transaction("acme").await;
    let (tenant, mut cache) = (id("acme"), WriterCache::default());
    let mut writing = Writing::begin(&tenant, &mut transaction, &mut cache, &Unscheduled).unwrap();
    writing.put_schema(&by_n, None).unwrap();
    for _ in 0..2 {
        let page = store.query(query.clone(), None, 10).await.unwrap();
        assert_eq!(page.documents.len(), 3);
        let none = store.schema(&table("t")).await;
        assert!(
            matches!(none, Err(StoreError::SchemaNotFound { .. })),
            "{none:?}"
        );
    }
    transaction.commit().unwrap();
    assert_eq!(store.schema(&table("t")).await.unwrap(), by_n);
    let page = store.query(query, None, 10).await.unwrap();
    assert_eq!(page.documents.len(), 3);
}

#[tokio::test]
async fn a_rehearsal_makes_what_documents_may_break_and_drops_nothing() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let _there = add(&store, r#"{"n":1}"#).await;
    let plain = |name: &str| json!({"name": name, "fields": [name]});
    let stands = schema(&json!({"table": "t", "indexes": [plain("stands")]}));
    store.put_schema(stands).await.unwrap();
    let indexes = |transaction: &SqliteTransaction| -> Vec<String> {
        let sql =
            "SELECT sql FROM sqlite_schema WHERE name GLOB 'nimbus_index_[0-9]*' ORDER BY name";
        let mut all = transaction.connection().prepare(sql).unwrap();
        let all = all.query_map([], |row| row.get(0)).unwrap();
        all.map(Result::unwrap).collect()
    };
    let mut transaction = house.transaction("acme").await;
    let (tenant, mut cache) = (id("acme"), WriterCache::default());
    let mut writing = Writing::begin(&tenant, &mut transaction, &mut cache, &Unscheduled).unwrap();
    let unique = json!({"name": "n", "fields": ["n"], "unique": true});
    let wanted = schema(&json!({"table": "t", "indexes": [plain("new"), unique]}));
    let rehearsed = writing.rehearse(|writing| {
        writing.put_schema(&wanted, None)?;
        Ok(indexes(writing.transaction))
    });
    let rehearsed = rehearsed.unwrap().unwrap();
    assert_eq!(rehearsed.len(), 2, "{rehearsed:?}");
    assert!(rehearsed[1].contains("UNIQUE"), "{rehearsed:?}");
    assert_eq!(indexes(writing.transaction), rehearsed[..1]);
    // And the thing itself does both.
    writing.put_schema(&wanted, None).unwrap();
    let made = indexes(writing.transaction);
    assert_eq!(made.len(), 2);
    assert!(made.iter().any(|sql| sql.contains("UNIQUE")));
    transaction.roll_back().unwrap();
}
