//! Files of earlier versions, and what is in them afterwards.

use super::*;
use crate::documents::query::Query;

/// Makes the file of `acme` one of an earlier version, and gives it back closed.
async fn age(house: &House, layout: i64) {
    let connection = house.connection("acme").await;
    let later = match layout {
        1 => later_tables(&connection, &["nimbus_tables", "nimbus_sequence"]),
        2 => later_tables(
            &connection,
            &["nimbus_tables", "nimbus_sequence", "nimbus_journal"],
        ),
        _ => vec!["nimbus_cursor_key".to_owned()],
    };
    for table in later {
        connection
            .execute_batch(&format!("DROP TABLE {table}"))
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

/// A tenant `acme` with three documents, closed again.
async fn furnished(house: &House) -> Vec<Document> {
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    for n in 1..=3 {
        let _there = add(&store, &format!(r#"{{"n":{n}}}"#)).await;
    }
    let documents = store.list(&table("t"), 10).await.unwrap();
    drop(store);
    tenants.close().await.unwrap();
    documents
}

#[tokio::test]
async fn a_file_from_before_the_journal_is_opened_with_all_that_is_in_it() {
    for envelope in [encryption(), Envelope::plaintext()] {
        let house = House::new(envelope);
        let before = furnished(&house).await;
        age(&house, 1).await;
        let connection = house.connection("acme").await;
        connection
            .execute_batch("UPDATE nimbus_sequence SET last = 3")
            .unwrap();
        drop(connection);

        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        assert_eq!(store.list(&table("t"), 10).await.unwrap(), before);
        let page = store.journal(None, 10).await.unwrap();
        assert_eq!((page.latest, page.floor, page.next_cursor()), (3, 3, 3));
        let _there = add(&store, r#"{"n":4}"#).await;
        let page = store.journal(Some(3), 10).await.unwrap();
        assert_eq!((page.records[0].sequence, page.floor), (4, 3));
        assert!(matches!(
            store.journal(Some(2), 10).await,
            Err(StoreError::JournalExpired { after: 2, floor: 3 })
        ));
        let list = store.list(&table("t"), 10).await.unwrap();
        assert_eq!(
            bodies(&list),
            [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#]
        );
    }
}

#[tokio::test]
async fn files_of_every_earlier_version_get_a_cursor_key_that_stays() {
    let query = Query::from_json(r#"{"table":"t","order":{"field":"n"}}"#).unwrap();
    for layout in 1..=3 {
        let house = House::new(encryption());
        let before = furnished(&house).await;
        age(&house, layout).await;
        let tenants = house.open().await;
        let store = tenants.open(&id("acme")).await.unwrap();
        assert_eq!(store.list(&table("t"), 10).await.unwrap(), before);
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
        let key = layout::cursor_key(&connection).unwrap();
        assert_ne!(*key, [0; 32]);
        assert!(keys.insert(*key));
    }
}
