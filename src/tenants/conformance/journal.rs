//! The journal.

use std::sync::Arc;

use super::{Fixture, add, fields, id, insert, table};
use crate::documents::{Change, DocumentId, JournalPage, MAX_JOURNAL_PAGE, Mutation};
use crate::tenants::{StoreError, TenantProvider as _, TenantStore};

pub(in crate::tenants) async fn journal(
    store: &Arc<dyn TenantStore>,
    after: u64,
    limit: usize,
) -> JournalPage {
    store.journal(Some(after), limit).await.unwrap()
}

pub(in crate::tenants) fn numbers(page: &JournalPage) -> Vec<i64> {
    page.records.iter().map(|record| record.sequence).collect()
}

fn delete(id: DocumentId) -> Mutation {
    let table = table("t");
    Mutation::Delete {
        table,
        id,
        if_version: None,
    }
}

pub(in crate::tenants) async fn the_journal_has_every_applied_write_in_order_and_nothing_else<
    F: Fixture,
>() {
    let house = F::empty();
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let empty = store.journal(None, 10).await.unwrap();
    assert_eq!((empty.latest, empty.floor, empty.has_more), (0, 0, false));
    assert_eq!((empty.records.len(), empty.next_cursor()), (0, 0));

    let first = add(&store, r#"{"n":1}"#).await;
    let update = Mutation::Update {
        table: table("t"),
        id: first,
        patch: fields(r#"{"n":2}"#),
        if_version: None,
    };
    let other = Mutation::Insert {
        table: table("other"),
        fields: fields("{}"),
        id: None,
    };
    // Refused, alone and with all of its batch: neither leaves a record or takes a number.
    let absent = delete(DocumentId::generate());
    assert!(store.apply(absent.clone()).await.is_err());
    assert!(store.apply_all(vec![other.clone(), absent]).await.is_err());
    let batch = vec![update, other, delete(first)];
    let other = store.apply_all(batch).await.unwrap()[1].id();

    let page = store.journal(None, 10).await.unwrap();
    let found: Vec<_> = page
        .records
        .iter()
        .map(|record| {
            (
                record.sequence,
                record.change,
                record.table.as_str(),
                record.id,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (1, Change::Inserted, "t", first),
            (2, Change::Updated, "t", first),
            (3, Change::Inserted, "other", other),
            (4, Change::Deleted, "t", first),
        ]
    );
    assert_eq!(page.records[0].at_ms, first.unix_ms());
    assert!(page.records[3].at_ms >= first.unix_ms());
    assert_eq!((page.latest, page.floor, page.has_more), (4, 0, false));
}

pub(in crate::tenants) async fn the_journal_is_read_in_pages_and_survives_closing<F: Fixture>() {
    let house = F::empty();
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    let many = vec![insert("{}"); MAX_JOURNAL_PAGE + 5];
    let _outcomes = store.apply_all(many).await.unwrap();
    drop(store);
    tenants.close().await.unwrap();
    drop(tenants);

    let tenants = house.open().await;
    let store = tenants.open(&id("acme")).await.unwrap();
    let page = journal(&store, 1, 2).await;
    assert_eq!(
        (numbers(&page), page.has_more, page.next_cursor()),
        (vec![2, 3], true, 3)
    );
    let page = journal(&store, 0, usize::MAX).await;
    assert_eq!(
        (page.records.len(), page.has_more),
        (MAX_JOURNAL_PAGE, true)
    );
    let page = journal(&store, 1003, 2).await;
    assert_eq!((numbers(&page), page.has_more), (vec![1004, 1005], false));
    let page = journal(&store, 1005, 2).await;
    assert_eq!((numbers(&page), page.next_cursor()), (vec![], 1005));
    for beyond in [1006, u64::MAX] {
        assert!(matches!(
            store.journal(Some(beyond), 2).await,
            Err(StoreError::JournalCursor { after, latest: 1005 }) if after == beyond
        ));
    }
    // Numbers go on where they ended, also when the last documents are gone.
    let last = add(&store, "{}").await;
    let _outcome = store.apply(delete(last)).await.unwrap();
    assert_eq!(numbers(&journal(&store, 1005, 9).await), [1006, 1007]);
}
