//! Queries: the table of cases that every store answers alike, and random ones against the
//! evaluator in memory.

use std::{collections::BTreeSet, sync::Arc};

use proptest::{prelude::*, test_runner::TestRunner};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::blind::{BLIND_REFUSES, needs_order};
use super::{Fixture, acme, fields, id, table};
use crate::documents::query::{Field, MAX_PAGE, Query, reference};
use crate::documents::schema::TableSchema;
use crate::documents::{Document, Mutation};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{Cursors, MAX_TABLES, StoreError, TenantStore};

/// The documents that a table begins with, and the queries asked of it.
#[derive(Deserialize)]
struct Case {
    what: String,
    documents: Vec<Box<RawValue>>,
    queries: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    filters: Option<Box<RawValue>>,
    order: Option<Box<RawValue>>,
    limit: Option<usize>,
    /// Places in `documents`.
    found: Vec<usize>,
}

impl Asked {
    fn of(&self, table: &str) -> Query {
        let text = |json: &Option<Box<RawValue>>| {
            json.as_ref()
                .map_or("null".to_owned(), |json| json.get().to_owned())
        };
        let limit = self
            .limit
            .map_or("null".to_owned(), |limit| limit.to_string());
        let (filters, order) = (text(&self.filters), text(&self.order));
        read(&format!(
            r#"{{"table":"{table}","filters":{filters},"order":{order},"limit":{limit}}}"#
        ))
    }
}

pub(in crate::tenants) fn read(json: &str) -> Query {
    Query::from_json(json).unwrap()
}

async fn fill(store: &Arc<dyn TenantStore>, name: &str, documents: &[&str]) -> Vec<Document> {
    add_all(store, name, documents).await;
    store.list(&table(name), usize::MAX).await.unwrap()
}

async fn add_all(store: &Arc<dyn TenantStore>, name: &str, documents: &[&str]) {
    let batch = documents.iter().map(|json| Mutation::Insert {
        table: table(name),
        fields: fields(json),
        id: None,
    });
    let _outcomes = store.apply_all(batch.collect()).await.unwrap();
}

/// All pages of a query, each of this size.
async fn paged(store: &Arc<dyn TenantStore>, query: &Query, size: usize) -> Vec<Document> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.query(query.clone(), after, size).await.unwrap();
        assert!(page.documents.len() <= size);
        assert!(page.next.is_none() || page.documents.len() == size);
        all.extend(page.documents);
        let Some(next) = page.next else { return all };
        // As a client does it.
        let cursor = store.cursors().seal_position(query, &next).unwrap();
        after = Some(store.cursors().open_position(query, &cursor).unwrap());
    }
}

pub(in crate::tenants) async fn the_table_of_cases_is_answered_as_it_says<F: Fixture>() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../tests/queries/cases.json")).unwrap();
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let mut refused = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let name = format!("case{number}");
        let texts: Vec<&str> = case.documents.iter().map(|json| json.get()).collect();
        let documents = fill(&store, &name, &texts).await;
        let asked = case.queries.iter().enumerate();
        // Once without an index, and once with one on every field that is asked for.
        for (indexed, (place, asked)) in asked
            .clone()
            .map(|asked| (false, asked))
            .chain(asked.map(|asked| (true, asked)))
        {
            let query = asked.of(&name);
            if indexed && place == 0 {
                let fields = fields_of(case.queries.iter().map(|asked| asked.of(&name)));
                store.put_schema(indexes(&name, &fields)).await.unwrap();
            }
            let limit = query.limit.unwrap_or(MAX_PAGE);
            let at = format!("{}, query {place}, indexed: {indexed}", case.what);
            let expected: Vec<_> = asked.found.iter().map(|&found| &documents[found]).collect();
            let mut model = reference::find(&documents, &query);
            model.truncate(limit);
            assert_eq!(model, expected, "the reference: {at}");
            let page = match store.query(query.clone(), None, limit).await {
                Err(StoreError::BlindIndex { .. }) if F::BLIND && indexed => {
                    refused.push((case.what.as_str(), place));
                    continue;
                }
                page => page.unwrap(),
            };
            assert_eq!(page.documents.iter().collect::<Vec<_>>(), expected, "{at}");
            if query.limit.is_none() {
                for size in [1, 2, 3] {
                    let all = paged(&store, &query, size).await;
                    assert_eq!(
                        all.iter().collect::<Vec<_>>(),
                        expected,
                        "pages of {size}: {at}"
                    );
                }
            }
        }
    }
    let listed = BLIND_REFUSES.iter().filter(|_| F::BLIND);
    let listed = listed.flat_map(|(case, places)| places.iter().map(|place| (*case, *place)));
    let listed: Vec<(&str, usize)> = listed.collect();
    assert_eq!(refused, listed, "what an index without order refuses");
}

/// The paths in queries.
fn fields_of(queries: impl Iterator<Item = Query>) -> Vec<Vec<String>> {
    let mut paths = BTreeSet::new();
    for query in queries {
        let filters = query.filters.into_iter().map(|filter| filter.field);
        let order = query.order.map(|order| order.field);
        for field in filters.chain(order) {
            if let Field::Path(names) = field {
                paths.insert(names.join("."));
            }
        }
    }
    paths.into_iter().map(|path| vec![path]).collect()
}

/// A schema that has nothing but these indexes.
fn indexes(table: &str, fields: &[Vec<String>]) -> TableSchema {
    let indexes = fields.iter().enumerate();
    let indexes: Vec<_> = indexes
        .map(|(number, fields)| json!({"name": format!("i{number}"), "fields": fields}))
        .collect();
    TableSchema::from_json(&json!({"table": table, "indexes": indexes}).to_string()).unwrap()
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    let numbers = [
        "0",
        "-0.0",
        "1",
        "1.0",
        "-1",
        "1.5",
        "1e2",
        "100",
        "9007199254740992",
        "9007199254740993",
        "9007199254740992.0",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "1e300",
    ];
    let numbers = numbers.map(|text| serde_json::from_str(text).unwrap());
    let strings = [
        "", "a", "A", "ab", "é", "e\u{301}", "\u{ffff}", "😀", "a\0", "\\", "\"", "1", "null",
    ];
    prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        prop::sample::select(numbers.to_vec()),
        (-3i64..3).prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        prop::sample::select(strings.to_vec()).prop_map(serde_json::Value::from),
        "\\PC{0,3}".prop_map(serde_json::Value::from),
    ]
}

fn nested() -> impl Strategy<Value = serde_json::Value> {
    value().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(serde_json::Value::from),
            object(inner),
        ]
    })
}

/// Names from so few that paths and documents meet.
fn object(
    inner: impl Strategy<Value = serde_json::Value>,
) -> impl Strategy<Value = serde_json::Value> {
    let name = prop::sample::select(NAMES.to_vec());
    prop::collection::btree_map(name, inner, 0..4).prop_map(|members| {
        members
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    })
}

fn any_path() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4).prop_map(|names| names.join(".")),
        1 => prop::sample::select(vec!["_id", "_creationTime", "_updateTime", "_version"]).prop_map(str::to_owned),
    ]
}

fn filter(path: impl Strategy<Value = String> + Clone) -> impl Strategy<Value = serde_json::Value> {
    let compared = prop::sample::select(vec!["eq", "neq", "gt", "gte", "lt", "lte"]);
    prop_oneof![
        6 => (path.clone(), compared, value()).prop_map(|(field, op, value)| json!({"field": field, "op": op, "value": value})),
        2 => (path.clone(), prop::collection::vec(value(), 0..5))
            .prop_map(|(field, values)| json!({"field": field, "op": "in", "value": values})),
        1 => (path, any::<bool>()).prop_map(|(field, there)| json!({"field": field, "op": "exists", "value": there})),
    ]
}

fn question(
    path: impl Strategy<Value = String> + Clone,
) -> impl Strategy<Value = serde_json::Value> {
    let direction = prop::sample::select(vec!["asc", "desc"]);
    let order = prop::option::of((path.clone(), direction));
    (prop::collection::vec(filter(path), 0..3), order).prop_map(|(filters, order)| {
        let order = order.map(|(field, direction)| json!({"field": field, "direction": direction}));
        json!({"filters": filters, "order": order})
    })
}

/// Documents that are alike in what they have.
fn few_fields() -> impl Strategy<Value = serde_json::Value> {
    let small = prop_oneof![
        4 => prop::sample::select(vec![json!(0), json!(1), json!(1.0), json!("a"), json!(true), json!(null)]),
        1 => nested(),
        1 => value().prop_map(|value| json!({"b": value})),
    ];
    let member = prop::option::weighted(0.9, small);
    (member.clone(), member).prop_map(|(a, b)| {
        let members = [("a", a), ("b", b)];
        members
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    })
}

/// The fields of up to three indexes, no two alike.
fn index_fields() -> impl Strategy<Value = Vec<Vec<String>>> {
    let path = prop_oneof![
        prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..3)
            .prop_map(|names| names.join(".")),
        prop::sample::select(vec!["a", "b", "a.b"]).prop_map(str::to_owned),
    ];
    let fields =
        prop::collection::btree_set(path, 1..4).prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let fields = fields.prop_shuffle();
    prop::collection::btree_set(fields, 0..4).prop_map(|set| set.into_iter().collect())
}

const NAMES: &[&str] = &["a", "b", "c", "ä", "\"", "\\", "$[0]", "a b"];

pub(in crate::tenants) fn random_queries_over_random_documents_agree_with_the_reference<
    F: Fixture,
>() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let house = F::empty();
    let (_tenants, store) = runtime.block_on(acme(&house));
    let number = std::cell::Cell::new(0);
    // Half of them meet again and again in a few fields and values, as an index is for.
    let few = || {
        prop::sample::select(vec!["a", "b", "a.b"])
            .prop_map(str::to_owned)
            .boxed()
    };
    let any = || any_path().boxed();
    let documents = prop_oneof![
        prop::collection::vec(object(nested()), 0..24),
        prop::collection::vec(few_fields(), 0..24),
    ];
    let strategy = (
        documents,
        prop_oneof![
            prop::collection::vec(question(any()), 1..12),
            prop::collection::vec(question(few()), 1..12),
        ],
        1usize..6,
        index_fields(),
    );
    TestRunner::new(ProptestConfig::with_cases(CASES))
        .run(&strategy, |(documents, questions, size, fields)| {
            number.set(number.get() + 1);
            let name = format!("t{}", number.get() % MAX_TABLES);
            let texts: Vec<String> = documents.iter().map(ToString::to_string).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            // Half of the documents find the indexes there, and the other half makes them.
            let (before, after) = texts.split_at(texts.len() / 2);
            runtime.block_on(async {
                add_all(&store, &name, before).await;
                store.put_schema(indexes(&name, &fields)).await.unwrap();
            });
            let documents = runtime.block_on(fill(&store, &name, after));
            for mut question in questions {
                question["table"] = json!(name);
                let query = read(&question.to_string());
                let expected: Vec<Document> = reference::find(&documents, &query)
                    .into_iter()
                    .cloned()
                    .collect();
                let page = runtime.block_on(store.query(query.clone(), None, MAX_PAGE));
                if F::BLIND && needs_order(&query, &fields) {
                    prop_assert!(
                        matches!(page, Err(StoreError::BlindIndex { .. })),
                        "{page:?}"
                    );
                    continue;
                }
                let page = page.unwrap();
                prop_assert_eq!(&page.documents, &expected);
                prop_assert_eq!(page.next, None);
                prop_assert_eq!(runtime.block_on(paged(&store, &query, size)), expected);
            }
            Ok(())
        })
        .unwrap();
}

/// Fewer than there may be tables, for shrinking makes more.
const CASES: u32 = 200;

pub(in crate::tenants) async fn a_document_that_stays_is_seen_once_whatever_is_written_meanwhile<
    F: Fixture,
>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    for direction in ["asc", "desc"] {
        let texts: Vec<String> = (0..40)
            .map(|n| format!(r#"{{"n":{},"stays":{}}}"#, n / 4, n % 2 == 0))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let documents = fill(&store, direction, &texts).await;
        let query = read(&format!(
            r#"{{"table":"{direction}","order":{{"field":"n","direction":"{direction}"}}}}"#
        ));
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.query(query.clone(), after, 3).await.unwrap();
            // What the cursor came from is deleted, and more is added on both sides of it.
            let last = page.documents.last().unwrap().clone();
            let round = seen.len();
            seen.extend(page.documents);
            if last.fields.as_json().contains("false") {
                let delete = Mutation::Delete {
                    table: table(direction),
                    id: last.id,
                    if_version: None,
                };
                let _outcome = store.apply(delete).await.unwrap();
            }
            if round < 30 {
                for n in [-1, round as i64 / 4, 100] {
                    let more = format!(r#"{{"n":{n},"stays":null}}"#);
                    let insert = Mutation::Insert {
                        table: table(direction),
                        fields: fields(&more),
                        id: None,
                    };
                    let _outcome = store.apply(insert).await.unwrap();
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let stayed = |document: &&Document| document.fields.as_json().contains("true");
        let mut expected: Vec<_> = documents.iter().filter(stayed).collect();
        if direction == "desc" {
            expected.reverse();
        }
        assert_eq!(seen.iter().filter(stayed).collect::<Vec<_>>(), expected);
        let ids: BTreeSet<_> = seen.iter().map(|document| document.id).collect();
        assert_eq!(ids.len(), seen.len(), "none twice");
    }
}

pub(in crate::tenants) async fn pages_of_large_documents_end_early_and_lose_none<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(1_048_000));
    for _ in 0..7 {
        add_all(&store, "t", &[large.as_str(); 10]).await;
    }
    for order in ["null", r#"{"field":"x","direction":"desc"}"#] {
        let query = read(&format!(r#"{{"table":"t","order":{order}}}"#));
        let first = store.query(query.clone(), None, MAX_PAGE).await.unwrap();
        assert_eq!(first.documents.len(), 64);
        let second = store.query(query, first.next, MAX_PAGE).await.unwrap();
        assert_eq!((second.documents.len(), second.next), (6, None));
        let all = first.documents.iter().chain(&second.documents);
        let ids: BTreeSet<_> = all.map(|document| document.id).collect();
        assert_eq!(ids.len(), 70);
    }
}

pub(in crate::tenants) async fn a_table_that_is_not_there_has_no_documents<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let page = store
        .query(read(r#"{"table":"t"}"#), None, 10)
        .await
        .unwrap();
    assert_eq!((page.documents, page.next), (Vec::new(), None));
}

/// The same text as JSON with every character escaped.
fn escaped(text: &str) -> String {
    let units: String = text
        .encode_utf16()
        .map(|unit| format!("\\u{unit:04x}"))
        .collect();
    format!("\"{units}\"")
}

pub(in crate::tenants) fn any_name_and_any_text_is_found_however_it_was_escaped<F: Fixture>() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let house = F::empty();
    let (_tenants, store) = runtime.block_on(acme(&house));
    let number = std::cell::Cell::new(0);
    let name = any::<String>().prop_filter("a name that a path can have", |name| {
        !name.is_empty() && !name.starts_with('_') && !name.contains(['.', '\0'])
    });
    TestRunner::new(ProptestConfig::with_cases(CASES))
        .run(&(name, any::<String>()), |(name, text)| {
            number.set(number.get() + 1);
            let table = format!("t{}", number.get() % MAX_TABLES);
            let plain = json!({ &name: &text }).to_string();
            let other = format!("{{{}:{}}}", escaped(&name), escaped(&text));
            let wrong = json!({ &name: format!("{text}x"), format!("{name}x"): &text }).to_string();
            let documents = runtime.block_on(fill(&store, &table, &[&plain, &other, &wrong]));
            for (op, value) in [
                ("eq", json!(text)),
                ("in", json!([text])),
                ("lte", json!(text)),
            ] {
                let filter = json!({"field": name, "op": op, "value": value});
                let query = read(&json!({"table": table, "filters": [filter]}).to_string());
                let page = runtime
                    .block_on(store.query(query, None, MAX_PAGE))
                    .unwrap();
                prop_assert_eq!(&page.documents[..], &documents[..2], "{}", op);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_text_makes_the_parsers_panic() {
    let piece = prop_oneof![
        Just("{\"table\":\"t\",\"filters\":[".to_owned()),
        Just("{\"field\":\"a\",\"op\":\"in\",\"value\":[".to_owned()),
        Just("{\"type\":\"insert\",\"table\":\"t\",\"fields\":".to_owned()),
        prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\u", "-", "1e9", "null", "_id"
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let text = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    let query = read(r#"{"table":"t"}"#);
    let cursors = Cursors::new(&id("acme"), &[7; 32]);
    TestRunner::new(ProptestConfig::with_cases(5000))
        .run(&text, |text| {
            // What is accepted is complete: it names a table.
            if let Ok(query) = Query::from_json(&text) {
                prop_assert!(text.contains(query.table.as_str()));
            }
            let _mutation = Mutation::from_json(&text);
            prop_assert!(cursors.open_position(&query, &text).is_err());
            Ok(())
        })
        .unwrap();
}
