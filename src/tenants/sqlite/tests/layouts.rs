//! Files of earlier versions, and what is in them afterwards.

use super::*;
use crate::documents::query::Query;

/// Makes the file of `acme` one of an earlier version.
async fn age(house: &House, layout: i64) {
    let connection = house.connection("acme").await;
    let first = ["nimbus_tables", "nimbus_sequence"];
    let later = match layout {
        1 => later_tables(&connection, &first),
        2 => later_tables(&connection, &[&first[..], &["nimbus_journal"]].concat()),
        3 => [
            "nimbus_cursor_key",
            "nimbus_remembered",
            "nimbus_remembered_of",
        ]
        .map(str::to_owned)
        .into(),
        4 => vec!["nimbus_remembered_of".to_owned()],
        _ => Vec::new(),
    };
    for table in later {
        connection
            .execute_batch(&format!("DROP TABLE {table}"))
            .unwrap();
    }
    let mut lacks = match layout {
        5 => Vec::new(),
        4 => vec!["nimbus_remembered DROP COLUMN credential"],
        _ => vec![
            "documents_1 DROP COLUMN version",
            "documents_2 DROP COLUMN version",
        ],
    };
    lacks.push("nimbus_tables DROP COLUMN ascending");
    for lacks in lacks {
        let sql = format!("ALTER TABLE {lacks}");
        connection.execute_batch(&sql).unwrap();
    }
    if layout == 1 {
        // It counted the writes that inserted something.
        connection
            .execute_batch("UPDATE nimbus_sequence SET last = 7")
            .unwrap();
    }
    connection
        .pragma_update(None, "user_version", layout)
        .unwrap();
}

/// The tables of the server that are none of `known`.
fn later_tables(connection: &rusqlite::Connection, known: &[&str]) -> Vec<String> {
    let mut names = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'nimbus_*'")
        .unwrap();
    let names = names.query_map([], |row| row.get(0)).unwrap();
    let mut names: Vec<String> = names.map(Result::unwrap).collect();
    names.retain(|name| !known.contains(&name.as_str()));
    names
}

/// A tenant `acme`, closed again: three documents in `t`, the second of which was changed last, and
/// one in `u` that was changed, removed and inserted again.
async fn furnished(house: &House) -> Vec<Document> {
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let mut ids = Vec::new();
    for n in 1..=3 {
        ids.push(add(&store, &format!(r#"{{"n":{n}}}"#)).await);
    }
    let update = |name: &str, id: DocumentId| Mutation::Update {
        table: table(name),
        id,
        patch: fields("{}"),
        if_version: None,
    };
    let again = DocumentId::generate();
    let insert = Mutation::Insert {
        table: table("u"),
        fields: fields("{}"),
        id: Some(again),
    };
    let delete = Mutation::Delete {
        table: table("u"),
        id: again,
        if_version: None,
    };
    let batch = vec![insert.clone(), update("u", again), delete, insert];
    let _outcomes = store.apply_all(batch).await.unwrap();
    let _outcome = store.apply(update("t", ids[1])).await.unwrap();
    let documents = both(&store).await;
    let versions: Vec<i64> = documents.iter().map(|document| document.version).collect();
    assert_eq!(versions, [1, 8, 3, 7]);
    drop(store);
    tenants.close().await.unwrap();
    documents
}

/// The documents of both tables.
async fn both(store: &Arc<dyn TenantStore>) -> Vec<Document> {
    let mut documents = store.list(&table("t"), 10).await.unwrap();
    documents.extend(store.list(&table("u"), 10).await.unwrap());
    documents
}

#[tokio::test]
async fn files_of_every_earlier_version_are_opened_with_all_that_is_in_them() {
    for envelope in [encryption(), Envelope::plaintext()] {
        for layout in 1..=5 {
            let house = House::new(envelope.clone());
            let mut before = furnished(&house).await;
            age(&house, layout).await;
            let tenants = house.open().await;
            let store = tenants.open(&id("acme")).await.unwrap();
            let (latest, floor) = match layout {
                // Of what was written before, nobody kept more than the insertion.
                1 => {
                    before[1].version = 2;
                    (7, 7)
                }
                _ => (8, 0),
            };
            assert_eq!(both(&store).await, before, "layout {layout}");
            let page = store.journal(None, 10).await.unwrap();
            assert_eq!(
                (page.latest, page.floor),
                (latest, floor),
                "layout {layout}"
            );
            // Versions go on, and are what conditions are about.
            let update = |version| Mutation::Update {
                table: table("t"),
                id: before[1].id,
                patch: fields(r#"{"n":4}"#),
                if_version: Some(version),
            };
            let outcome = store.apply(update(before[1].version)).await.unwrap();
            assert_eq!(outcome.version(), Some(latest + 1));
            assert!(matches!(
                store.apply(update(before[1].version)).await,
                Err(StoreError::PreconditionFailed { version, .. }) if version == Some(latest + 1)
            ));
            if let Some(behind) = u64::try_from(floor)
                .ok()
                .and_then(|floor| floor.checked_sub(1))
            {
                assert!(matches!(
                    store.journal(Some(behind), 1).await,
                    Err(StoreError::JournalExpired { .. })
                ));
            }
        }
    }
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_finished_changes_nothing() {
    let house = House::new(encryption());
    let before = furnished(&house).await;
    age(&house, 3).await;
    // Its last table cannot be made: others have the name.
    let connection = house.connection("acme").await;
    connection
        .execute_batch("CREATE TABLE nimbus_remembered (x)")
        .unwrap();
    drop(connection);
    let tenants = house.open().await;
    let refused = tenants.open(&id("acme")).await;
    assert!(matches!(refused, Err(StoreError::Engine { .. })));
    tenants.close().await.unwrap();
    drop(tenants);
    let connection = house.connection("acme").await;
    let layout: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(layout, 3);
    assert!(
        connection
            .prepare("SELECT version FROM documents_1")
            .is_err()
    );
    connection
        .execute_batch("DROP TABLE nimbus_remembered")
        .unwrap();
    drop(connection);
    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(both(&store).await, before);
}

#[tokio::test]
async fn files_of_every_earlier_version_get_a_cursor_key_that_stays() {
    let query = Query::from_json(r#"{"table":"t","order":{"field":"n"}}"#).unwrap();
    for layout in 1..=5 {
        let house = House::new(encryption());
        let before = furnished(&house).await;
        age(&house, layout).await;
        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        assert_eq!(both(&store).await.len(), before.len());
        let page = store.query(query.clone(), None, 1).await.unwrap();
        let cursor = store
            .cursors()
            .seal_position(&query, &page.next.clone().unwrap())
            .unwrap();
        drop(store);
        // Neither a new data key nor a restart makes it worthless.
        tenants
            .rotate_dek(&id("acme"), Arc::new(|_, _| true))
            .await
            .unwrap();
        tenants.close().await.unwrap();
        drop(tenants);
        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        let position = store.cursors().open_position(&query, &cursor).unwrap();
        assert_eq!(Some(&position), page.next.as_ref());
        let page = store.query(query.clone(), Some(position), 5).await.unwrap();
        assert_eq!(bodies(&page.documents), [r#"{"n":2}"#, r#"{"n":3}"#]);
    }
}

#[tokio::test]
async fn two_tenants_have_two_cursor_keys() {
    let house = House::new(encryption());
    let tenants = house.open().await;
    let mut keys = BTreeSet::new();
    for tenant in ["acme", "other"] {
        tenants.create_tenant(&id(tenant)).await.unwrap();
        drop(tenants.open(&id(tenant)).await.unwrap());
    }
    tenants.close().await.unwrap();
    for tenant in ["acme", "other"] {
        let connection = house.connection(tenant).await;
        let key = tables::cursor_key(&connection).unwrap();
        assert_ne!(*key, [0; 32]);
        assert!(keys.insert(*key));
    }
}
