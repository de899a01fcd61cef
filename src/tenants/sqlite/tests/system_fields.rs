//! Queries on the server's own fields, whatever the times and ids of documents are.

use std::cell::RefCell;

use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value as Json, json};

use super::*;
use crate::documents::query::{QueryPage, reference};
use crate::documents::schema::TableSchema;
use crate::tenants::conformance::queries::read;

/// A table `t` with an index on `a`, whose documents are put there past the server.
struct Furnished {
    reader: Reader,
    documents: Vec<Document>,
    _house: House,
}

impl Furnished {
    async fn new() -> Self {
        let house = House::new(encryption());
        let (tenants, store) = acme(&house).await;
        let _one = add(&store, "{}").await;
        let schema = json!({"table": "t", "indexes": [{"name": "a", "fields": ["a"]}]});
        let schema = TableSchema::from_json(&schema.to_string()).unwrap();
        store.put_schema(schema).await.unwrap();
        drop(store);
        tenants.close().await.unwrap();
        let connection = house.connection("acme").await;
        Self {
            reader: Reader::new(&id("acme"), connection, &Arc::default()),
            documents: Vec::new(),
            _house: house,
        }
    }

    /// Puts documents there: of each how much later it was created than the one before, how much
    /// later it was changed, and what `a` is.
    fn fill(&mut self, documents: &[(i64, i64, u8)], ascending: Option<bool>) {
        let connection = &self.reader.connection;
        connection.execute_batch("DELETE FROM documents_1").unwrap();
        self.documents.clear();
        let mut created_ms = TIME;
        for (seq, &(later, changed, a)) in documents.iter().enumerate() {
            created_ms += later;
            let document = Document {
                id: DocumentId::generate(),
                created_ms,
                updated_ms: created_ms + changed,
                version: seq as i64 * 3,
                fields: fields(&json!({ "a": a }).to_string()),
            };
            let insert = "INSERT INTO documents_1 (seq, id, created, updated, fields) VALUES (?1, ?2, ?3, ?4, jsonb(?5))";
            let values = rusqlite::params![
                document.version,
                document.id.as_bytes(),
                document.created_ms,
                document.updated_ms,
                document.fields.as_json()
            ];
            connection.execute(insert, values).unwrap();
            self.documents.push(document);
        }
        connection
            .execute("UPDATE nimbus_tables SET ascending = ?1", [ascending])
            .unwrap();
        self.reader.ascending = Arc::default();
    }

    fn ask(&mut self, query: &Query, page: usize) -> Vec<Document> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let QueryPage { documents, next } = self
                .reader
                .run_query(1, query, after.as_ref(), page, usize::MAX, &mut || true)
                .unwrap()
                .expect("it may scan");
            all.extend(documents);
            after = next;
            if after.is_none() {
                return all;
            }
        }
    }
}

const TIME: i64 = 1_700_000_000_000;

/// What `_creationTime`, `_updateTime` and `_id` are compared with: of ids a document's place, and
/// what is cut off or added.
#[derive(Debug, Clone)]
enum With {
    Json(Json),
    Id(usize, usize, &'static str),
}

fn with() -> impl Strategy<Value = With> {
    let time = prop_oneof![
        (TIME - 2..TIME + 40).prop_map(Json::from),
        (TIME - 2..TIME + 40).prop_map(|time| Json::from(time as f64 + 0.5)),
        (TIME - 2..TIME + 40).prop_map(|time| Json::from(time as f64)),
        prop::sample::select(vec![
            json!(1e300),
            json!(-1e300),
            json!(i64::MAX),
            json!(i64::MIN),
            json!("x"),
            json!(null),
            json!(true)
        ]),
    ];
    let id = (
        0usize..24,
        prop_oneof![3 => Just(0usize), 1 => 0usize..37],
        prop::sample::select(vec!["", "", "", "0", "f", "g", "-", "é"]),
    );
    prop_oneof![
        time.prop_map(With::Json),
        id.prop_map(|(place, cut, more)| With::Id(place, cut, more)),
    ]
}

fn field() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["_id", "_creationTime", "_updateTime", "_version", "a"])
}

type Asked = (
    Vec<(&'static str, &'static str, Vec<With>)>,
    Option<(&'static str, &'static str)>,
);

fn question() -> impl Strategy<Value = Asked> {
    let op = prop::sample::select(vec!["eq", "neq", "gt", "gte", "lt", "lte", "in", "in"]);
    let filter = (field(), op, prop::collection::vec(with(), 1..5));
    let order = (field(), prop::sample::select(vec!["asc", "desc"]));
    (prop::collection::vec(filter, 0..3), prop::option::of(order))
}

fn as_query((filters, order): &Asked, documents: &[Document]) -> Query {
    let value = |with: &With| match with {
        With::Json(json) => json.clone(),
        With::Id(place, cut, more) => {
            let id = documents.get(*place).map(|document| document.id);
            let mut text = id.unwrap_or_else(DocumentId::generate).to_string();
            text.truncate(text.len() - cut.min(&text.len()));
            text.push_str(more);
            text.into()
        }
    };
    let filters: Vec<Json> = filters
        .iter()
        .map(|(field, op, values)| match *op {
            "in" => json!({"field": field, "op": op, "value": values.iter().map(value).collect::<Vec<_>>()}),
            _ => json!({"field": field, "op": op, "value": value(&values[0])}),
        })
        .collect();
    let order = order.map(|(field, direction)| json!({"field": field, "direction": direction}));
    read(&json!({"table": "t", "filters": filters, "order": order}).to_string())
}

#[test]
fn questions_about_the_servers_fields_agree_with_the_reference() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let furnished = RefCell::new(runtime.block_on(Furnished::new()));
    // The clock moves forward, or now and then back.
    let forward = prop::collection::vec((0i64..4, 0i64..6, 0u8..3), 0..24);
    let back = prop::collection::vec((-3i64..4, 0i64..6, 0u8..3), 0..24);
    let strategy = (
        prop_oneof![forward, back],
        any::<bool>(),
        prop::collection::vec(question(), 1..8),
        1usize..6,
    );
    TestRunner::new(ProptestConfig::with_cases(400))
        .run(&strategy, |(documents, known, questions, size)| {
            let mut furnished = furnished.borrow_mut();
            let ascends = documents.iter().skip(1).all(|(later, ..)| *later >= 0);
            furnished.fill(&documents, known.then_some(ascends));
            for question in questions {
                let query = as_query(&question, &furnished.documents);
                let expected: Vec<Document> = reference::find(&furnished.documents, &query)
                    .into_iter()
                    .cloned()
                    .collect();
                prop_assert_eq!(furnished.ask(&query, 1000), &expected[..], "{:?}", query);
                prop_assert_eq!(furnished.ask(&query, size), &expected[..], "{:?}", query);
            }
            Ok(())
        })
        .unwrap();
}

/// What a table says of the order of creation.
fn said(connection: &rusqlite::Connection) -> Option<bool> {
    let sql = "SELECT ascending FROM nimbus_tables WHERE number = 1";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_table_of_an_earlier_layout_is_looked_through_once() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    for n in 0..3 {
        let _there = add(&store, &format!(r#"{{"n":{n}}}"#)).await;
    }
    let connection = house.connection("acme").await;
    assert_eq!(said(&connection), Some(true), "one that is new ascends");
    connection
        .execute_batch("UPDATE nimbus_tables SET ascending = NULL")
        .unwrap();
    let newest = read(r#"{"table":"t","order":{"field":"_creationTime","direction":"desc"}}"#);
    let page = store.query(newest.clone(), None, 2).await.unwrap();
    assert_eq!(bodies(&page.documents), [r#"{"n":2}"#, r#"{"n":1}"#]);
    assert_eq!(said(&connection), None, "a reader writes nothing");
    // The next transaction writes down what was found.
    let _there = add(&store, r#"{"n":3}"#).await;
    assert_eq!(said(&connection), Some(true));
    let page = store.query(newest, page.next, 5).await.unwrap();
    assert_eq!(bodies(&page.documents), [r#"{"n":0}"#]);
    drop(store);
    tenants.close().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_was_set_back_far_is_noticed_and_a_little_is_evened_out() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let _there = add(&store, r#"{"n":0}"#).await;
    let oldest = read(r#"{"table":"t","order":{"field":"_creationTime"}}"#);
    let _page = store.query(oldest.clone(), None, 2).await.unwrap();
    for (ahead_ms, ascends) in [(50_000, true), (3_600_000, false)] {
        store_closed(&tenants).await;
        let connection = house.connection("acme").await;
        // As if the clock had been ahead when the last document was inserted.
        let ahead = "UPDATE documents_1 SET created = created + ?1, updated = updated + ?1 WHERE seq = (SELECT max(seq) FROM documents_1)";
        connection.execute(ahead, [ahead_ms]).unwrap();
        drop(connection);
        let store = tenants.open(&id("acme")).await.unwrap();
        let before = store.list(&table("t"), 10).await.unwrap();
        let _there = add(&store, r#"{"n":1}"#).await;
        let all = store.list(&table("t"), 10).await.unwrap();
        let (new, last) = (all.last().unwrap(), before.last().unwrap());
        assert_eq!(new.created_ms == last.created_ms, ascends);
        assert_eq!(new.created_ms < last.created_ms, !ascends);
        assert!(new.updated_ms >= new.created_ms);
        let connection = house.connection("acme").await;
        assert_eq!(said(&connection), Some(ascends));
        let page = store.query(oldest.clone(), None, 10).await.unwrap();
        let expected: Vec<Document> = reference::find(&all, &oldest)
            .into_iter()
            .cloned()
            .collect();
        assert_eq!(page.documents, expected);
    }
    drop(store);
    tenants.close().await.unwrap();
}

async fn store_closed(tenants: &SqliteTenants) {
    let store = tenants.open(&id("acme")).await.unwrap();
    store.close().await.unwrap();
}
