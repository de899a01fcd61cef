//! How SQLite goes about a query: into the index where one fits, and without sorting where the
//! index has the order.

use rusqlite::{Connection, params_from_iter};
use serde_json::{Value as Json, json};

use super::*;
use crate::documents::query::{Key, Position, Query, TypeRank};
use crate::documents::schema::TableSchema;
use crate::tenants::conformance::queries::read;
use crate::tenants::sqlite::plans::Plans;
use crate::tenants::sqlite::statement::Statement;
use crate::tenants::sqlite::system_fields::{Ascending, Seqs};

/// A file whose table `t` has indexes on `a`, on `b` and then `c`, and on `d.e`, which is unique.
struct Planned {
    connection: Connection,
    _house: House,
}

impl Planned {
    async fn new() -> Self {
        let house = House::new(encryption());
        let (tenants, store) = acme(&house).await;
        let schema = json!({"table": "t", "indexes": [
            {"name": "a", "fields": ["a"]},
            {"name": "bc", "fields": ["b", "c"]},
            {"name": "de", "fields": ["d.e"], "unique": true},
        ]});
        let schema = TableSchema::from_json(&schema.to_string()).unwrap();
        store.put_schema(schema).await.unwrap();
        drop(store);
        tenants.close().await.unwrap();
        let connection = house.connection("acme").await;
        Self {
            connection,
            _house: house,
        }
    }

    fn statements(&self, query: &Query, after: Option<&Position>) -> Vec<Statement> {
        let indexes = Plans::default().indexes(&self.connection, 1).unwrap();
        let ascending = Ascending::default();
        let seqs = Seqs::of(query, &self.connection, 1, &ascending).unwrap();
        Statement::all(1, query, after, 20, &indexes, seqs)
    }

    /// The plan of each statement of a query.
    fn plans(&self, query: &Json, after: Option<&Position>) -> Vec<String> {
        let statements = self.statements(&asked(query), after);
        let plan = |statement: &Statement| {
            let sql = format!("EXPLAIN QUERY PLAN {}", statement.places());
            let mut explained = self.connection.prepare(&sql).unwrap();
            let parameters = params_from_iter(&statement.parameters);
            let steps = explained.query_map(parameters, |row| row.get::<_, String>(3));
            let steps: Vec<_> = steps.unwrap().map(Result::unwrap).collect();
            steps.join("\n")
        };
        statements.iter().map(plan).collect()
    }

    #[track_caller]
    fn assert_searched(&self, query: &Json, after: Option<&Position>, by: &str) -> Vec<String> {
        let plans = self.plans(query, after);
        for plan in &plans {
            let step = plan.lines().next().unwrap();
            assert!(
                step.contains("USING INDEX nimbus_index_")
                    || step.contains("USING COVERING INDEX nimbus_index_"),
                "{query}: {plan}"
            );
            assert!(step.contains(by), "{query}: {plan}, not by {by}");
        }
        plans
    }

    #[track_caller]
    fn assert_unsorted(&self, query: &Json, after: Option<&Position>, by: &str) {
        for plan in self.assert_searched(query, after, by) {
            assert!(!plan.contains("TEMP B-TREE"), "{query}: {plan}");
        }
    }
}

/// Which queries may look at every document, and so have fewer places.
#[tokio::test]
async fn what_may_look_at_every_document_is_a_scan_and_nothing_else_is() {
    let file = Planned::new().await;
    let scans = |query: Json, after: Option<&Position>| {
        let statements = file.statements(&asked(&query), after);
        let mut plans = Plans::default();
        let scans = |statement| plans.plan(&file.connection, statement).unwrap().scans;
        statements.iter().any(scans)
    };
    let order = |field: &str| json!({"field": field, "direction": "desc"});
    let five = position(TypeRank::Number, Key::Integer(5));
    for (query, is_scan) in [
        (json!({}), false),
        (json!({"order": order("a")}), false),
        (json!({"order": order("_id")}), false),
        (json!({"order": order("_creationTime")}), false),
        (
            json!({"filters": [filter("a", "eq", json!(1)), filter("x", "eq", json!(1))]}),
            false,
        ),
        (json!({"filters": [filter("a", "gt", json!(1))]}), false),
        (
            json!({"filters": [filter("_creationTime", "lt", json!(1))]}),
            false,
        ),
        (
            json!({"filters": [filter("_id", "in", json!(["x"])), filter("x", "eq", json!(1))]}),
            false,
        ),
        (json!({"filters": [filter("x", "eq", json!(1))]}), true),
        (json!({"filters": [filter("c", "eq", json!(1))]}), true),
        (
            json!({"filters": [filter("x", "eq", json!(1))], "order": order("a")}),
            true,
        ),
        (json!({"filters": [filter("a", "neq", json!(1))]}), true),
        (json!({"order": order("x")}), true),
        (json!({"order": order("_version")}), true),
    ] {
        assert_eq!(scans(query.clone(), None), is_scan, "{query}");
    }
    assert!(!scans(json!({"order": order("a")}), Some(&five)));
    assert!(scans(json!({"order": order("x")}), Some(&five)));
}

fn asked(query: &Json) -> Query {
    let mut query = query.clone();
    query["table"] = json!("t");
    read(&query.to_string())
}

fn filter(field: &str, op: &str, value: Json) -> Json {
    json!({"field": field, "op": op, "value": value})
}

fn position(rank: TypeRank, key: Key) -> Position {
    Position { rank, key, seq: 7 }
}

#[tokio::test]
async fn filters_go_into_the_index() {
    let file = Planned::new().await;
    for value in [json!(1), json!(1.5), json!("x"), json!(true), json!(null)] {
        for field in ["a", "b", "d.e"] {
            // In the order of insertion, which the index has among equals.
            let query = json!({"filters": [filter(field, "eq", value.clone())]});
            if field == "b" {
                file.assert_searched(&query, None, "(<expr>=? AND <expr>=?");
            } else {
                file.assert_unsorted(&query, None, "(<expr>=? AND <expr>=?");
            }
        }
    }
    for value in [json!(1), json!("x"), json!(true)] {
        for (op, by) in [("gt", ">?"), ("gte", ">?"), ("lt", "<?"), ("lte", "<?")] {
            let query = json!({"filters": [filter("a", op, value.clone())]});
            let by = format!("(<expr>=? AND <expr>{by}");
            file.assert_searched(&query, None, &by);
        }
    }
    let between = json!({"filters": [filter("a", "gte", json!(1)), filter("a", "lt", json!(9))]});
    file.assert_searched(&between, None, "(<expr>=? AND <expr>>? AND <expr><?)");
    for values in [json!([1, 2.5]), json!(["x", "y"]), json!([true, false])] {
        let query = json!({"filters": [filter("a", "in", values)]});
        file.assert_searched(&query, None, "(<expr>=? AND <expr>=?)");
    }
    let missing = json!({"filters": [filter("a", "exists", json!(false))]});
    file.assert_unsorted(&missing, None, "(<expr>=? AND <expr>=?)");
    // The rest of the filters are looked at in the documents that the index finds.
    let query = json!({"filters": [filter("x", "gt", json!(1)), filter("a", "eq", json!(1)), filter("a", "neq", json!(2))]});
    file.assert_unsorted(&query, None, "(<expr>=? AND <expr>=?)");
}

#[tokio::test]
async fn compound_indexes_serve_equality_and_then_a_range() {
    let file = Planned::new().await;
    let b = || filter("b", "eq", json!("x"));
    let query = json!({"filters": [filter("c", "gt", json!(1)), b()]});
    file.assert_searched(
        &query,
        None,
        "(<expr>=? AND <expr>=? AND <expr>=? AND <expr>>?)",
    );
    let query = json!({"filters": [b(), filter("c", "eq", json!(1))]});
    file.assert_unsorted(
        &query,
        None,
        "(<expr>=? AND <expr>=? AND <expr>=? AND <expr>=?)",
    );
    let query = json!({"filters": [b(), filter("c", "in", json!([1, 2]))]});
    file.assert_searched(
        &query,
        None,
        "(<expr>=? AND <expr>=? AND <expr>=? AND <expr>=?)",
    );
    for direction in ["asc", "desc"] {
        let order = json!({"field": "c", "direction": direction});
        let query = json!({"filters": [b()], "order": order});
        file.assert_unsorted(&query, None, "(<expr>=? AND <expr>=?)");
        let query = json!({"filters": [b(), filter("c", "gte", json!(1))], "order": order});
        file.assert_unsorted(
            &query,
            None,
            "(<expr>=? AND <expr>=? AND <expr>=? AND <expr>>?)",
        );
    }
}

#[tokio::test]
async fn an_order_with_a_limit_is_read_off_the_index() {
    let file = Planned::new().await;
    for field in ["a", "b", "d.e"] {
        for direction in ["asc", "desc"] {
            let order = json!({"field": field, "direction": direction});
            if field != "b" {
                file.assert_unsorted(&json!({"order": order, "limit": 20}), None, "SCAN");
                let there = filter(field, "exists", json!(true));
                file.assert_unsorted(
                    &json!({"filters": [there], "order": order}),
                    None,
                    "(<expr>>?)",
                );
            }
            let filters = [filter("x", "eq", json!(1)), filter(field, "gt", json!("m"))];
            let query = json!({"filters": filters, "order": order});
            if field == "b" {
                file.assert_searched(&query, None, "(<expr>=? AND <expr>>?)");
            } else {
                file.assert_unsorted(&query, None, "(<expr>=? AND <expr>>?)");
            }
        }
    }
}

#[tokio::test]
async fn a_cursor_seeks_its_place_in_the_index() {
    let file = Planned::new().await;
    for (direction, beyond) in [("asc", ">?"), ("desc", "<?")] {
        let order = json!({"field": "a", "direction": direction});
        let [ties, same_type, later] = &file.plans(
            &json!({"order": order}),
            Some(&position(TypeRank::Number, Key::Integer(5))),
        )[..] else {
            panic!("three parts");
        };
        for (plan, by) in [
            (ties, format!("(<expr>=? AND <expr>=? AND rowid{beyond})")),
            (same_type, format!("(<expr>=? AND <expr>{beyond})")),
            (later, format!("(<expr>{beyond})")),
        ] {
            assert!(plan.contains(&by), "{plan}, not by {by}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
        // Missing, null, lists and objects have no values that could follow.
        let plans = file.plans(
            &json!({"order": order}),
            Some(&position(TypeRank::Missing, Key::Integer(0))),
        );
        assert_eq!(plans.len(), 2);
        assert!(
            plans[0].contains(&format!("(<expr>=? AND <expr>=? AND rowid{beyond})")),
            "{plans:?}"
        );

        // With a filter on the same field, the position is the way in, and what bounds the other
        // end stays one.
        let filters = [
            filter("a", "gte", json!("b")),
            filter("a", "lte", json!("y")),
        ];
        let query = json!({"filters": filters, "order": order});
        let after = position(TypeRank::String, Key::Text("k".to_owned()));
        let [ties, same_type] = &file.plans(&query, Some(&after))[..] else {
            panic!("no other types");
        };
        assert!(ties.contains("AND rowid"), "{ties}");
        assert!(
            same_type.contains("(<expr>=? AND <expr>>? AND <expr><?)"),
            "{same_type}"
        );
        assert!(!same_type.contains("TEMP B-TREE"), "{same_type}");
        let equal = json!({"filters": [filter("a", "eq", json!("k"))], "order": order});
        let plans = file.plans(&equal, Some(&after));
        assert_eq!(plans.len(), 1);
        assert!(
            plans[0].contains(&format!("AND rowid{beyond}")),
            "{plans:?}"
        );

        let compound = json!({"filters": [filter("b", "eq", json!(1))], "order": {"field": "c", "direction": direction}});
        for plan in file.plans(&compound, Some(&after)) {
            assert!(plan.contains("(<expr>=? AND <expr>=? AND <expr>"), "{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
        let equal = json!({"filters": [filter("a", "eq", json!(1))]});
        file.assert_unsorted(&equal, Some(&after), "(<expr>=? AND <expr>=? AND rowid>?)");
    }
}

#[tokio::test]
async fn the_text_of_a_statement_does_not_depend_on_values() {
    let file = Planned::new().await;
    let texts = |query: &Json, after: Option<&Position>| -> Vec<String> {
        let statements = file.statements(&asked(query), after);
        statements
            .into_iter()
            .map(|statement| statement.places())
            .collect()
    };
    for field in ["a", "x"] {
        let with = |value: Json, values: Json| {
            let filters = [
                filter(field, "gte", value.clone()),
                filter(field, "neq", value),
                filter("y", "in", values),
            ];
            json!({"filters": filters, "order": {"field": field}})
        };
        let one = with(json!("k'"), json!([1]));
        let two = with(
            json!("\"; DROP TABLE t; --"),
            json!([1, 2, 3.5, "x", null, true]),
        );
        for after in [None, Some(("a", 3)), Some(("zz", 900))] {
            let after = after.map(|(text, seq)| Position {
                rank: TypeRank::String,
                key: Key::Text(text.to_owned()),
                seq,
            });
            assert_eq!(texts(&one, after.as_ref()), texts(&two, after.as_ref()));
        }
    }
    // A field without an index is a parameter, too.
    let named = |name: &str| texts(&json!({"filters": [filter(name, "eq", json!(1))]}), None);
    assert_eq!(named("x"), named("y.z"));
}

#[tokio::test]
async fn without_an_index_nothing_is_as_it_would_be_with_one() {
    let file = Planned::new().await;
    // The second field of an index, without the first, is no way in: it is asked for as cheaply as
    // any other.
    let query = json!({"filters": [filter("c", "eq", json!(1))]});
    let [statement] = &file.statements(&asked(&query), None)[..] else {
        panic!("one statement");
    };
    let sql = statement.places();
    assert!(!sql.contains("CASE"), "{sql}");
    assert_eq!(file.plans(&query, None), ["SCAN documents_1"]);
}

/// What each plan of a query begins with; none of them sorts.
#[track_caller]
fn assert_begins(file: &Planned, query: &Json, after: Option<&Position>, with: &str) {
    for plan in file.plans(query, after) {
        // The places alone may be in the index.
        let plan = plan.replace(" COVERING", "");
        assert!(plan.starts_with(with), "{query}: {plan}, not {with}");
        assert!(!plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

#[tokio::test]
async fn ids_are_found_by_the_index_that_every_table_has() {
    let file = Planned::new().await;
    const INDEX: &str = "SEARCH documents_1 USING INDEX sqlite_autoindex_documents_1_1";
    let id = json!(DocumentId::generate().to_string());
    for (op, value, by) in [
        ("eq", id.clone(), "(id=?)"),
        ("eq", json!("no id"), "(id=?)"),
        ("gt", id.clone(), "(id>?)"),
        ("gte", json!("01"), "(id>?)"),
        ("lt", json!("zz"), "(id<?)"),
        ("lte", id.clone(), "(id<?)"),
    ] {
        for direction in ["asc", "desc"] {
            let order = json!({"field": "_id", "direction": direction});
            let query = json!({"filters": [filter("_id", op, value.clone())], "order": order});
            assert_begins(&file, &query, None, &format!("{INDEX} {by}"));
        }
    }
    // Whatever else is asked, and in whatever order.
    for order in [
        json!(null),
        json!({"field": "_id"}),
        json!({"field": "a"}),
        json!({"field": "_creationTime"}),
    ] {
        for op in ["eq", "in"] {
            let ids = if op == "in" {
                json!([id, "no id", 1])
            } else {
                id.clone()
            };
            let filters = [filter("a", "eq", json!(1)), filter("_id", op, ids)];
            let query = json!({"filters": filters, "order": order});
            for plan in file.plans(&query, None) {
                let plan = plan.replace(" COVERING", "");
                assert!(
                    plan.starts_with(&format!("{INDEX} (id=?)")),
                    "{query}: {plan}"
                );
            }
        }
    }
    // In their order, from a cursor on.
    for (direction, beyond) in [("asc", "(id>?)"), ("desc", "(id<?)")] {
        let query = json!({"order": {"field": "_id", "direction": direction}});
        assert_begins(
            &file,
            &query,
            None,
            "SCAN documents_1 USING INDEX sqlite_autoindex",
        );
        let after = position(TypeRank::String, Key::Text(id.as_str().unwrap().to_owned()));
        assert_begins(&file, &query, Some(&after), &format!("{INDEX} {beyond}"));
    }
}

#[tokio::test]
async fn creation_is_the_order_of_insertion_while_the_clock_moves_forward() {
    let file = Planned::new().await;
    const KEY: &str = "SEARCH documents_1 USING INTEGER PRIMARY KEY";
    let after = position(TypeRank::Number, Key::Integer(5));
    for (direction, beyond) in [("asc", "(rowid>?)"), ("desc", "(rowid<?)")] {
        let order = json!({"field": "_creationTime", "direction": direction});
        assert_begins(&file, &json!({"order": order}), None, "SCAN documents_1");
        assert_begins(
            &file,
            &json!({"order": order}),
            Some(&after),
            &format!("{KEY} {beyond}"),
        );
        for op in ["eq", "gt", "lte", "in"] {
            let value = if op == "in" {
                json!([5, 7.5, "x"])
            } else {
                json!(5)
            };
            let filters = [
                filter("_creationTime", op, value),
                filter("x", "eq", json!(1)),
            ];
            for order in [order.clone(), json!(null)] {
                let query = json!({"filters": filters, "order": order});
                assert_begins(&file, &query, None, &format!("{KEY} (rowid>? AND rowid<?)"));
            }
        }
        // Every index of one field is one of this field and then of the time.
        let filters = [
            filter("a", "eq", json!(1)),
            filter("_creationTime", "gt", json!(5)),
        ];
        let query = json!({"filters": filters, "order": order});
        file.assert_unsorted(
            &query,
            None,
            "(<expr>=? AND <expr>=? AND rowid>? AND rowid<?)",
        );
        file.assert_unsorted(
            &query,
            Some(&after),
            "(<expr>=? AND <expr>=? AND rowid>? AND rowid<?)",
        );
    }
    // Once it was set back, times are compared and sorted.
    let disorder = "UPDATE nimbus_tables SET ascending = 0";
    file.connection
        .pragma_update(None, "query_only", false)
        .unwrap();
    file.connection.execute_batch(disorder).unwrap();
    let plans = file.plans(&json!({"order": {"field": "_creationTime"}}), None);
    assert!(plans[0].contains("TEMP B-TREE FOR ORDER BY"), "{plans:?}");
}
