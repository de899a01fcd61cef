//! Names and JSON that are not right.

use nimbus_test_support::whole;
use serde_json::json;

use super::{assert_refused, demo, post, send, snapshot};

pub(super) const DOCUMENTS: &str = "/api/tenants/demo/documents";

#[test]
fn a_tenant_id_that_is_none_is_refused_in_a_body_and_makes_no_file() {
    let (machine, server) = demo();
    let before = snapshot(&machine);
    let (long, longer) = ("a".repeat(49), "a".repeat(200));
    for id in [
        "",
        ".",
        "..",
        "../demo",
        "a/b",
        "a\\b",
        "a\0b",
        "/",
        "Demo",
        "DEMO",
        "-a",
        "_a",
        "a.b",
        "a b",
        " a",
        "a\n",
        "é",
        "demo.sqlite3",
        "a:b",
        "%2e%2e",
        &long,
        &longer,
    ] {
        let body = json!({"id": id}).to_string();
        let answer = post(&machine, &server, "/api/tenants", body.as_bytes());
        assert_eq!(answer.status, 400, "{id:?}");
        let message = assert_refused(&answer, 400, "op.invalid_input");
        assert!(
            message.contains("a tenant id is 1 to 48 of a-z"),
            "{id:?}: {message}"
        );
    }
    assert_eq!(snapshot(&machine), before);
    assert_eq!(
        server.get("/api/tenants"),
        whole("tenants", json!(["demo"]))
    );
    let longest = json!({"id": "a".repeat(48)});
    assert_eq!(server.create("/api/tenants", &longest), longest);
}

#[test]
fn a_tenant_id_that_is_none_is_refused_in_a_path() {
    let (machine, server) = demo();
    let before = snapshot(&machine);
    let longer = "a".repeat(200);
    for id in [
        ".",
        "..",
        "%2e%2e",
        "..%2fdemo",
        "a%2fb",
        "%2f",
        "%2Fetc%2Fpasswd",
        "a%00b",
        "%00",
        "Demo",
        "a%20b",
        "%ff",
        "a%5cb",
        "demo%0a",
        &longer,
    ] {
        for line in [
            format!("DELETE /api/tenants/{id}"),
            format!("GET /api/tenants/{id}/documents/places"),
        ] {
            let answer = send(&machine, &server, &line, "", b"");
            assert_eq!(answer.status, 400, "{line}");
            assert_refused(&answer, 400, "op.invalid_input");
        }
        let path = format!("/api/tenants/{id}/documents");
        let answer = post(&machine, &server, &path, br#"{"table":"t","fields":{}}"#);
        assert_refused(&answer, 400, "op.invalid_input");
    }
    // No id at all is no route; a slash in the id is another one.
    for line in [
        "DELETE /api/tenants/",
        "DELETE /api/tenants/a/b",
        "GET /api/tenants//documents/places",
    ] {
        let answer = send(&machine, &server, line, "", b"");
        assert!(
            matches!(answer.status, 400 | 404),
            "{line}: {}",
            answer.status
        );
    }
    assert_eq!(snapshot(&machine), before);
}

#[test]
fn table_names_and_document_ids_that_are_none_are_refused() {
    let (machine, server) = demo();
    let id = server.insert("demo", "places", &json!({}));
    let long = "t".repeat(65);
    for table in [
        "",
        "_t",
        "9t",
        "a b",
        "a.b",
        "..",
        "a/b",
        "é",
        "a\0",
        "a\"; DROP TABLE x",
        &long,
    ] {
        let body = json!({"table": table, "fields": {}}).to_string();
        let answer = post(&machine, &server, DOCUMENTS, body.as_bytes());
        let message = assert_refused(&answer, 400, "op.invalid_input");
        assert!(message.contains("table name"), "{table:?}: {message}");
    }
    for table in ["%2e%2e", "a%2fb", "a%00", "_t", &long] {
        let answer = send(
            &machine,
            &server,
            &format!("GET {DOCUMENTS}/{table}"),
            "",
            b"",
        );
        assert_refused(&answer, 400, "op.invalid_input");
    }
    let upper = id.to_uppercase();
    let version_4 = "017f22e2-79b0-4cc3-98c4-dc0c0c07398f";
    for id in ["1", "..%2f", "%00", &upper, version_4, &format!("{id}0")] {
        for method in ["GET", "DELETE"] {
            let line = format!("{method} {DOCUMENTS}/places/{id}");
            assert_refused(
                &send(&machine, &server, &line, "", b""),
                400,
                "op.invalid_input",
            );
        }
    }
}

#[test]
fn broken_json_is_refused_with_its_place_and_stores_nothing() {
    let (machine, server) = demo();
    for body in [
        "",
        "{",
        "null",
        "[]",
        r#"["places",{"a":1}]"#,
        "\"text\"",
        r#"{"table":"places"}"#,
        r#"{"fields":{}}"#,
        r#"{"table":1,"fields":{}}"#,
        r#"{"table":"places","fields":[]}"#,
        r#"{"table":"places","fields":"x"}"#,
        r#"{"table":"places","fields":null}"#,
        r#"{"table":"places","fields":{}}{}"#,
        r#"{"table":"places","fields":{},"unknown":1}"#,
        r#"{"table":"places","table":"places","fields":{}}"#,
        r#"{"table":"places","fields":{"a":}}"#,
        r#"{"table":"places","fields":{"a":01}}"#,
        r#"{"table":"places","fields":{"a":1e999}}"#,
        r#"{"table":"places","fields":{"a":NaN}}"#,
        r#"{"table":"places","fields":{"a":"\ud800"}}"#,
        r#"{"table":"places","fields":{"a":1,"a":2}}"#,
        r#"{"table":"places","fields":{"_id":"x"}}"#,
        r#"{"table":"places","fields":{"_mine":1}}"#,
        r#"{"table":"places","fields":{"\u005fmine":1}}"#,
    ] {
        let answer = post(&machine, &server, DOCUMENTS, body.as_bytes());
        assert_eq!(answer.status, 400, "{body}");
        assert_refused(&answer, 400, "op.invalid_input");
    }
    let answer = post(
        &machine,
        &server,
        DOCUMENTS,
        b"{\"table\":\"places\",\"fields\":{\"a\":\"\xff\"}}",
    );
    assert_refused(&answer, 400, "op.invalid_input");
    let answer = post(
        &machine,
        &server,
        "/api/tenants",
        br#"{"id":"x","admin":true}"#,
    );
    let message = assert_refused(&answer, 400, "op.invalid_input");
    assert!(message.contains("admin"), "{message}");
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/places")),
        whole("data", json!([]))
    );
}

#[test]
fn a_patch_that_is_not_right_changes_nothing() {
    let (machine, server) = demo();
    let id = server.insert("demo", "places", &json!({"a": 1}));
    let path = format!("{DOCUMENTS}/places/{id}");
    let before = server.get(&path);
    for body in [
        "",
        "{}",
        r#"{"patch":1}"#,
        r#"{"patch":{"_id":"x"}}"#,
        r#"{"a":2}"#,
        r#"{"patch":{"a":2},"b":1}"#,
    ] {
        let line = format!("PATCH {path}");
        let answer = send(
            &machine,
            &server,
            &line,
            "Content-Type: application/json\r\n",
            body.as_bytes(),
        );
        assert_eq!(answer.status, 400, "{body}");
        assert_refused(&answer, 400, "op.invalid_input");
    }
    assert_eq!(server.get(&path), before);
}

#[test]
fn nesting_is_accepted_to_64_levels_and_refused_beyond() {
    let (machine, server) = demo();
    let nested = |levels: usize| {
        let fields = format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        format!(r#"{{"table":"deep","fields":{fields}}}"#)
    };
    let answer = post(&machine, &server, DOCUMENTS, nested(64).as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.body);
    for levels in [65, 1000, 100_000] {
        let answer = post(&machine, &server, DOCUMENTS, nested(levels).as_bytes());
        let message = assert_refused(&answer, 400, "op.invalid_input");
        assert!(message.contains("64 levels"), "{message}");
    }
    // Deep enough to end a recursive parser, in the fields and around them.
    let abyss = "[".repeat(4_000_000);
    for body in [format!(r#"{{"table":"deep","fields":{{"a":{abyss}"#), abyss] {
        let answer = post(&machine, &server, DOCUMENTS, body.as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
    }
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/deep"))["data"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}
