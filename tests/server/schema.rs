//! Schemas over HTTP. What they mean is tested beside the store; here is what clients see of them.

use nimbus_test_support::{Machine, Server, whole};
use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, send};

const SCHEMA: &str = "/api/tenants/demo/schema";
const TABLE: &str = "/api/tenants/demo/schema/places";

fn put(server: &Server, schema: &Value) -> (u16, Value) {
    server.request("PUT", TABLE, Some(schema))
}

#[track_caller]
fn assert_put(server: &Server, schema: &Value) {
    let (status, answer) = put(server, schema);
    assert_eq!(status, 204, "{answer}");
}

/// PUTs a body as it stands, which must be refused.
#[track_caller]
fn refused(machine: &Machine, server: &Server, body: &str) -> String {
    let line = format!("PUT {TABLE}");
    let json = "Content-Type: application/json\r\n";
    let answer = send(machine, server, &line, json, body.as_bytes());
    assert_refused(&answer, 400, "op.invalid_input")
}

#[test]
fn a_schema_is_set_read_and_taken_away() {
    let (machine, server) = demo();
    assert_eq!(server.get(SCHEMA), whole("tables", json!({})));
    for method in ["GET", "DELETE"] {
        let (status, answer) = server.request(method, TABLE, None);
        assert_error(status, &answer, (404, "op.schema_not_found"));
    }
    let schema = json!({
        "table": "places",
        "fields": [{"name": "name", "field_type": "string", "required": true}, {"name": "at.höhe", "field_type": "number", "required": false}],
        "indexes": [{"name": "by_name", "fields": ["name", "at.höhe"], "unique": true}],
        "json_schema": {"properties": {"name": {"minLength": 1}}},
    });
    assert_put(&server, &schema);
    assert_put(&server, &schema);
    assert_eq!(server.get(TABLE), schema);
    server.stop();
    let server = machine.start(&[]);
    assert_eq!(
        server.get(SCHEMA),
        whole("tables", json!({"places": schema}))
    );
    let (status, _) = server.request("DELETE", TABLE, None);
    assert_eq!(status, 204);
    assert_eq!(server.get(SCHEMA), whole("tables", json!({})));
    server.insert("demo", "places", &json!({"anything": []}));
}

#[test]
fn writes_that_do_not_fit_are_refused_and_say_where() {
    let (_machine, server) = demo();
    assert_put(
        &server,
        &json!({
            "table": "places",
            "fields": [{"name": "n", "field_type": "number", "required": true}],
            "indexes": [{"name": "only", "fields": ["n"], "unique": true}],
            "json_schema": {"properties": {"code": {"pattern": "^[A-Z]+$"}}},
        }),
    );
    let id = server.insert("demo", "places", &json!({"n": 1, "code": "CH"}));
    let documents = "/api/tenants/demo/documents";
    let insert = |fields: Value| {
        server.request(
            "POST",
            documents,
            Some(&json!({"table": "places", "fields": fields})),
        )
    };
    for (fields, words) in [
        (json!({}), "field \"n\" is required and missing"),
        (json!({"n": null}), "field \"n\" is required and null"),
        (
            json!({"n": "1"}),
            "field \"n\" must be a number and is a string",
        ),
        (json!({"n": 2, "code": "ch"}), "at \"/code\""),
    ] {
        let (status, answer) = insert(fields);
        let message = assert_error(status, &answer, (400, "op.schema_validation"));
        assert!(message.contains(words), "{message}");
    }
    let path = format!("{documents}/places/{id}");
    let (status, answer) = server.request("PATCH", &path, Some(&json!({"patch": {"n": []}})));
    assert_error(status, &answer, (400, "op.schema_validation"));
    let batch = json!({"mutations": [
        {"type": "insert", "table": "places", "fields": {"n": 2}},
        {"type": "insert", "table": "places", "fields": {"n": true}},
    ]});
    let (status, answer) = server.request("POST", "/api/tenants/demo/batch", Some(&batch));
    let message = assert_error(status, &answer, (400, "op.schema_validation"));
    assert!(message.starts_with("mutation 1 of the batch"), "{message}");
    let (status, answer) = insert(json!({"n": 1.0}));
    let message = assert_error(status, &answer, (409, "op.conflict"));
    assert!(
        message.contains("\"only\"") && message.contains(" n,"),
        "{message}"
    );
    let listed = server.get("/api/tenants/demo/documents/places");
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_check_that_takes_too_many_steps_is_refused_and_the_tenant_goes_on() {
    let (_machine, server) = demo();
    let insert = |values: usize| {
        let body = json!({"table": "places", "fields": {"a": vec![0; values]}});
        server.request("POST", "/api/tenants/demo/documents", Some(&body))
    };
    let schema = |items: Value| json!({"table": "places", "json_schema": {"properties": {"a": {"items": items}}}});
    let costly = [
        json!({"not": {"anyOf": vec![false; 9000]}}),
        json!({"allOf": vec![json!({"type": ["string", "integer"]}); 1000]}),
    ];
    for items in costly {
        assert_put(&server, &schema(items));
        let (status, answer) = insert(500_000);
        let message = assert_error(status, &answer, (400, "op.schema_validation"));
        assert!(
            message.contains("places") && message.contains("more than 20000000 steps"),
            "{message}"
        );
        assert_eq!(insert(10).0, 201);
    }
    assert_put(&server, &schema(json!({"type": "integer", "minimum": 0})));
    assert_eq!(insert(500_000).0, 201);
    // A document that is there is refused with the schema.
    let (status, answer) = put(
        &server,
        &schema(json!({"not": {"anyOf": vec![false; 9000]}})),
    );
    assert_error(status, &answer, (400, "op.schema_validation"));
}

#[test]
fn a_schema_that_documents_do_not_fit_names_them() {
    let (_machine, server) = demo();
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(server.insert("demo", "places", &json!({"n": n.to_string()})));
    }
    let schema = json!({"table": "places", "fields": [{"name": "n", "field_type": "number"}]});
    let (status, answer) = put(&server, &schema);
    let message = assert_error(status, &answer, (400, "op.schema_validation"));
    for id in &ids[..10] {
        assert!(message.contains(id), "{message}");
    }
    assert!(
        !message.contains(&ids[10]) && message.ends_with("and more"),
        "{message}"
    );
    let twice = server.insert("demo", "places", &json!({"n": "3"}));
    let schema =
        json!({"table": "places", "indexes": [{"name": "u", "fields": ["n"], "unique": true}]});
    let (status, answer) = put(&server, &schema);
    assert_error(status, &answer, (409, "op.conflict"));
    let (status, _) = server.request("GET", TABLE, None);
    assert_eq!(status, 404);
    let path = format!("/api/tenants/demo/documents/places/{twice}");
    assert_eq!(server.request("DELETE", &path, None).0, 204);
    assert_put(&server, &schema);
}

#[test]
fn what_is_no_schema_is_refused() {
    let (machine, server) = demo();
    let mut many: Vec<Value> = Vec::new();
    for n in 0..10_000 {
        many.push(json!({"name": format!("f{n}"), "field_type": "any"}));
    }
    let field = |name: &str| json!([{"name": name, "field_type": "any"}]);
    let index = |field: &str| json!([{"name": "i", "fields": [field]}]);
    let deep = ["a"; 100].join(".");
    let doubled = json!({"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}});
    for (schema, words) in [
        (json!({}), "\"table\" is missing"),
        (json!({"table": "other"}), "must be the same"),
        (json!({"table": "p'; --"}), "table name"),
        (json!({"table": "places", "fields": many}), "over the limit"),
        (
            json!({"table": "places", "fields": field(&deep)}),
            "deeper than",
        ),
        (
            json!({"table": "places", "fields": field("a\u{0}b")}),
            "is no path",
        ),
        (
            json!({"table": "places", "indexes": index("_id")}),
            "indexed already",
        ),
        (
            json!({"table": "places", "indexes": index("_creationTime")}),
            "the server's own",
        ),
        (
            json!({"table": "places", "json_schema": {"$ref": "http://127.0.0.1:1/x"}}),
            "nothing is fetched",
        ),
        (
            json!({"table": "places", "json_schema": {"$ref": "#"}}),
            "never end",
        ),
        (
            json!({"table": "places", "json_schema": doubled}),
            "could apply more than",
        ),
        (
            json!({"table": "places", "json_schema": {"pattern": "(?<=a)b"}}),
            "/pattern",
        ),
        (
            json!({"table": "places", "json_schema": {"description": "x".repeat(100_000)}}),
            "over the limit",
        ),
    ] {
        let message = refused(&machine, &server, &schema.to_string());
        assert!(message.contains(words), "{message}, not {words}");
    }
    for body in [
        r#"{"table":"places","table":"places"}"#,
        r#"{"table":"places","fields":[{"name":"a","name":"b","field_type":"any"}]}"#,
        r#"{"table":"places","json_schema":{"type":"object","type":"array"}}"#,
        r#"{"table":"places","json_schema":{"maximum":1e400}}"#,
        "[]",
        "null",
        "{",
        "",
    ] {
        let _ = refused(&machine, &server, body);
    }
    let abyss = format!(
        r#"{{"table":"places","json_schema":{}{}}}"#,
        r#"{"not":"#.repeat(50_000),
        "}".repeat(50_000)
    );
    let _ = refused(&machine, &server, &abyss);
    assert_eq!(server.get(SCHEMA), whole("tables", json!({})));
    // A pattern that other engines never finish is one like any other.
    assert_put(
        &server,
        &json!({"table": "places", "json_schema": {"properties": {"a": {"pattern": "^(a+)+$"}}}}),
    );
    let text = format!("{}!", "a".repeat(500_000));
    let body = json!({"table": "places", "fields": {"a": text}});
    let (status, answer) = server.request("POST", "/api/tenants/demo/documents", Some(&body));
    assert_error(status, &answer, (400, "op.schema_validation"));
}
