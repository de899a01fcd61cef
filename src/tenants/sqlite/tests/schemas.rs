//! Schemas and indexes, as a table's users see them.

use serde_json::json;

use super::{query::store, *};
use crate::{
    documents::schema::{TableSchema, Violation},
    tenants::MAX_OFFENDERS,
};

fn schema(json: &serde_json::Value) -> TableSchema {
    TableSchema::from_json(&json.to_string()).unwrap()
}

/// `t`, whose `n` is a number and required.
fn numbered() -> TableSchema {
    schema(
        &json!({"table": "t", "fields": [{"name": "n", "field_type": "number", "required": true}]}),
    )
}

fn unique(fields: &[&str]) -> TableSchema {
    schema(&json!({"table": "t", "indexes": [{"name": "only", "fields": fields, "unique": true}]}))
}

fn update(id: DocumentId, patch: &str) -> Mutation {
    Mutation::Update {
        table: table("t"),
        id,
        patch: fields(patch),
        if_version: None,
    }
}

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
async fn a_schema_is_kept_and_taken_away() {
    let house = House::new(encryption());
    let (tenants, first) = store(&house).await;
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

#[tokio::test]
async fn every_way_to_write_is_held_to_the_schema() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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

#[tokio::test]
async fn a_schema_is_refused_while_documents_do_not_fit_and_the_first_are_named() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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

#[tokio::test]
async fn indexes_are_made_kept_and_dropped_with_the_schema() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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
async fn a_unique_index_keeps_types_apart_and_does_not_compare_what_has_no_value() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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

#[tokio::test]
async fn a_compound_unique_index_compares_all_of_its_fields() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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
async fn a_schema_and_writes_in_one_group_see_each_other_in_turn() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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

#[tokio::test]
async fn a_schema_that_is_undone_is_forgotten() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
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
    let (tenants, first) = store(&house).await;
    let kept = add(&first, r#"{"n":1}"#).await;
    drop(first);
    tenants.close().await.unwrap();
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    // Past the server: the scan, then writes, then the setting in a transaction that has writes of its own.
    let tenant = id("acme");
    let mut reader = apply::Reader::new(house.connection("acme").await);
    let scanned = reader.scan(&tenant, &numbered()).unwrap();
    let wrong = add(&store, r#"{"n":"late"}"#).await;
    let connection = house.connection("acme").await;
    let put = |between: Option<Mutation>| {
        let sequence = layout::last_sequence(&connection).unwrap();
        let mut known = apply::Known::default();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut writing = apply::Writing::new(
            &tenant,
            &connection,
            &mut known,
            &crate::tenants::Unscheduled,
            sequence,
        );
        if let Some(mutation) = between {
            let _outcome = writing.apply(&mutation).unwrap();
        }
        let result = writing.put_scanned(&numbered(), Some(scanned));
        connection.execute_batch("ROLLBACK").unwrap();
        result
    };
    let offender = |result: Result<(), StoreError>| match result {
        Err(StoreError::SchemaOffended { offenders, .. }) => offenders.first[0].0,
        other => panic!("{other:?}"),
    };
    assert_eq!(offender(put(None)), wrong);
    let delete = Mutation::Delete {
        table: table("t"),
        id: wrong,
        if_version: None,
    };
    assert!(put(Some(delete.clone())).is_ok());
    let _outcome = store.apply(delete).await.unwrap();
    assert!(put(None).is_ok());
    assert_eq!(offender(put(Some(update(kept, r#"{"n":"now"}"#)))), kept);
}

#[tokio::test]
async fn readers_go_on_while_an_index_is_made_and_see_it_once_it_is_committed() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
    for _ in 0..3 {
        let _there = add(&store, r#"{"n":1}"#).await;
    }
    let by_n = schema(&json!({"table": "t", "indexes": [{"name": "n", "fields": ["n"]}]}));
    let query = crate::documents::query::Query::from_json(
        r#"{"table":"t","filters":[{"field":"n","op":"eq","value":1}]}"#,
    )
    .unwrap();
    // The writer's part, on a connection of its own, held before its commit.
    let connection = house.connection("acme").await;
    let tenant = id("acme");
    let sequence = layout::last_sequence(&connection).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut known = apply::Known::default();
    let due = crate::tenants::Unscheduled;
    let mut writing = apply::Writing::new(&tenant, &connection, &mut known, &due, sequence);
    writing.put_schema(&by_n).unwrap();
    for _ in 0..2 {
        let page = store.query(query.clone(), None, 10).await.unwrap();
        assert_eq!(page.documents.len(), 3);
        let none = store.schema(&table("t")).await;
        assert!(
            matches!(none, Err(StoreError::SchemaNotFound { .. })),
            "{none:?}"
        );
    }
    connection.execute_batch("COMMIT").unwrap();
    assert_eq!(store.schema(&table("t")).await.unwrap(), by_n);
    let page = store.query(query, None, 10).await.unwrap();
    assert_eq!(page.documents.len(), 3);
}

#[tokio::test]
async fn a_rehearsal_makes_what_documents_may_break_and_drops_nothing() {
    let house = House::new(encryption());
    let (_tenants, store) = store(&house).await;
    let _there = add(&store, r#"{"n":1}"#).await;
    let plain = |name: &str| json!({"name": name, "fields": [name]});
    let stands = schema(&json!({"table": "t", "indexes": [plain("stands")]}));
    store.put_schema(stands).await.unwrap();
    let connection = house.connection("acme").await;
    let tenant = id("acme");
    let sequence = layout::last_sequence(&connection).unwrap();
    let indexes = || -> Vec<String> {
        let sql =
            "SELECT sql FROM sqlite_schema WHERE name GLOB 'nimbus_index_[0-9]*' ORDER BY name";
        let mut all = connection.prepare(sql).unwrap();
        let all = all.query_map([], |row| row.get(0)).unwrap();
        all.map(Result::unwrap).collect()
    };
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut known = apply::Known::default();
    let due = crate::tenants::Unscheduled;
    let mut writing = apply::Writing::new(&tenant, &connection, &mut known, &due, sequence);
    let unique = json!({"name": "n", "fields": ["n"], "unique": true});
    let wanted = schema(&json!({"table": "t", "indexes": [plain("new"), unique]}));
    let rehearsed = writing.rehearse(|writing| {
        writing.put_schema(&wanted)?;
        Ok(indexes())
    });
    let rehearsed = rehearsed.unwrap().unwrap();
    assert_eq!(rehearsed.len(), 2, "{rehearsed:?}");
    assert!(rehearsed[1].contains("UNIQUE"), "{rehearsed:?}");
    assert_eq!(indexes(), rehearsed[..1]);
    // And the thing itself does both.
    writing.put_schema(&wanted).unwrap();
    assert_eq!(indexes().len(), 2);
    assert!(indexes().iter().any(|sql| sql.contains("UNIQUE")));
    connection.execute_batch("ROLLBACK").unwrap();
}
