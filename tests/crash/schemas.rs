//! Killed while a schema is set or taken away: it and its indexes are both there, or neither is.

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{Bystander, armed, assert_keeps_documents, machine, start_armed, writer};

/// Point, and whether a schema that is set survives.
pub(super) const POINTS: &[(&str, bool)] = &[("tenants::schemas::indexes-made", false)];

const SCHEMA: &str = "/api/tenants/tenant/schema/things";

fn points() -> impl Iterator<Item = (&'static str, bool)> {
    POINTS.iter().chain(writer::POINTS).copied()
}

fn unique() -> Value {
    json!({
        "table": "things",
        "fields": [{"name": "n", "field_type": "number", "required": true}],
        "indexes": [
            {"name": "by_name", "fields": ["name"], "unique": false},
            {"name": "only", "fields": ["n"], "unique": true},
        ],
    })
}

/// A server that dies at a point once that was passed by so many writes, with a tenant of two
/// documents.
fn prepared(machine: &Machine, point: &str, passes: u32) -> Server {
    let server = start_armed(machine, &[], &armed(point, passes));
    server.create("/api/tenants", &json!({"id": "tenant"}));
    for n in 0..2 {
        server.insert("tenant", "things", &json!({"n": n}));
    }
    server
}

fn die(machine: &Machine, server: Server, method: &str, body: Option<&Value>) {
    let _ = server.try_request_as(&machine.token(), method, SCHEMA, body);
    server.wait_until_killed();
}

/// Asserts that the schema and what it makes of writes agree.
fn assert_set(server: &Server, set: bool) {
    let (status, schema) = server.request("GET", SCHEMA, None);
    assert_eq!(status, if set { 200 } else { 404 });
    if set {
        assert_eq!(schema, unique());
    }
    let insert = |fields: Value| {
        let body = json!({"table": "things", "fields": fields});
        server
            .request("POST", "/api/tenants/tenant/documents", Some(&body))
            .0
    };
    assert_eq!(insert(json!({"n": 1})), if set { 409 } else { 201 });
    assert_eq!(insert(json!({"n": "x"})), if set { 400 } else { 201 });
}

#[test]
fn a_schema_killed_while_it_is_set_is_whole_or_absent() {
    for (point, survives) in points() {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, &[]);
        let of_writer = point.starts_with("tenants::writer");
        let server = prepared(&machine, point, if of_writer { 2 } else { 0 });
        die(&machine, server, "PUT", Some(&unique()));

        let server = machine.start(&[]);
        assert_set(&server, survives);
        bystander.assert_undisturbed(&machine, &server);
        server.request("DELETE", SCHEMA, None);
        assert_keeps_documents(&machine, &[], server, "tenant");
    }
}

#[test]
fn a_schema_killed_while_it_is_taken_away_is_whole_or_absent() {
    for (point, survives) in writer::POINTS {
        eprintln!("killed at {point}");
        let machine = machine();
        let server = prepared(&machine, point, 3);
        assert_eq!(server.request("PUT", SCHEMA, Some(&unique())).0, 204);
        die(&machine, server, "DELETE", None);

        let server = machine.start(&[]);
        assert_set(&server, !survives);
        server.stop();
    }
}
