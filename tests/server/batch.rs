//! Batches over HTTP: all or nothing.

use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, post};

const BATCH: &str = "/api/tenants/demo/batch";

#[test]
fn a_batch_inserts_updates_and_deletes_at_once() {
    let (_machine, server) = demo();
    let old = server.insert("demo", "places", &json!({"name": "old"}));
    let gone = server.insert("demo", "places", &json!({"name": "gone"}));
    let chosen = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let batch = json!({"mutations": [
        {"type": "insert", "table": "visits", "fields": {"n": 1}, "id": chosen},
        {"type": "insert", "table": "visits", "fields": {"n": 2}},
        {"type": "update", "table": "visits", "id": chosen, "patch": {"n": 3}},
        {"type": "update", "table": "places", "id": old, "patch": {"name": "new"}},
        {"type": "delete", "table": "places", "id": gone},
    ]});
    let (status, answer) = server.request("POST", BATCH, Some(&batch));
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().expect("results");
    let drawn = results[1]["id"].as_str().expect("an id");
    let ids = [chosen, drawn, chosen, &old, &gone];
    let expected = ids.iter().zip(3..);
    let expected: Vec<Value> = expected
        .map(|(id, version)| json!({"id": id, "version": version}))
        .collect();
    assert_eq!(*results, expected);
    let list = |table: &str, field: &str| -> Vec<Value> {
        let listed = server.get(&format!("/api/tenants/demo/documents/{table}"));
        let documents = listed["data"].as_array().expect("a list").iter();
        documents.map(|document| document[field].clone()).collect()
    };
    assert_eq!(list("visits", "n"), [json!(3), json!(2)]);
    assert_eq!(list("places", "name"), [json!("new")]);

    let (status, answer) = server.request("POST", BATCH, Some(&json!({"mutations": []})));
    assert_eq!((status, answer), (200, json!({"results": []})));
}

#[test]
fn a_batch_with_a_bad_mutation_names_it_and_changes_nothing() {
    let (_machine, server) = demo();
    let there = server.insert("demo", "places", &json!({"name": "there"}));
    let absent = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let good = json!({"type": "insert", "table": "places", "fields": {}});
    let drop = json!({"type": "delete", "table": "places", "id": there});
    let large = json!({"x": "y".repeat(1 << 20)});
    for (bad, status, code) in [
        (
            json!({"type": "delete", "table": "places", "id": absent}),
            404,
            "op.document_not_found",
        ),
        (
            json!({"type": "update", "table": "places", "id": there, "patch": {}}),
            404,
            "op.document_not_found",
        ),
        (
            json!({"type": "insert", "table": "other", "fields": {"_x": 1}}),
            400,
            "op.invalid_input",
        ),
        (
            json!({"type": "insert", "table": "other", "fields": large}),
            413,
            "op.invalid_input",
        ),
        (
            json!({"type": "insert", "table": "1", "fields": {}}),
            400,
            "op.invalid_input",
        ),
        (
            json!({"type": "upsert", "table": "places", "fields": {}}),
            400,
            "op.invalid_input",
        ),
        (
            json!({"type": "insert", "table": "places"}),
            400,
            "op.invalid_input",
        ),
        (json!(7), 400, "op.invalid_input"),
    ] {
        let batch = json!({"mutations": [good, drop, bad, good]});
        let (got, answer) = server.request("POST", BATCH, Some(&batch));
        let message = assert_error(got, &answer, (status, code));
        assert!(message.starts_with("mutation 2 of the batch"), "{message}");
    }
    // An id that is taken, also by the batch itself.
    let taken = json!({"type": "insert", "table": "places", "fields": {}, "id": absent});
    let batch = json!({"mutations": [taken, taken]});
    let (got, answer) = server.request("POST", BATCH, Some(&batch));
    let message = assert_error(got, &answer, (409, "op.already_exists"));
    assert!(message.starts_with("mutation 1 of the batch"), "{message}");

    let listed = server.get("/api/tenants/demo/documents/places");
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["data"][0]["_id"], json!(there));
}

#[test]
fn batches_of_a_wrong_shape_or_size_are_refused() {
    let (machine, server) = demo();
    let many = format!(r#"{{"mutations":[{}1]}}"#, "1,".repeat(10_000));
    for body in [
        "{}",
        r#"{"mutations":{}}"#,
        r#"{"mutations":null}"#,
        r#"{"mutations":[],"more":1}"#,
        r#"{"mutations":[{]}"#,
        &many,
    ] {
        let answer = post(&machine, &server, BATCH, body.as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
    }
    let answer = post(
        &machine,
        &server,
        "/api/tenants/nobody/batch",
        br#"{"mutations":[]}"#,
    );
    assert_refused(&answer, 404, "session.tenant_not_found");
}
