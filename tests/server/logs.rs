//! Logs in JSON: every line of a request says which one it is of.

use std::fs;

use serde_json::{Value, json};

use super::{demo, machine, send};

fn lines(log: &str) -> Vec<Value> {
    let lines = log.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

#[test]
fn a_filter_that_cannot_be_understood_is_said_to_be_ignored() {
    let machine = machine();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("RUST_LOG", "info,nimbus=loud");
    let server = machine.start_command(command);
    let log = server.log();
    assert!(log.contains("cannot be understood and is ignored"), "{log}");
    assert!(log.contains("process hardened"), "as without it: {log}");
    server.stop();
    let mut command = machine.nimbus(&["encryption", "status"]);
    command.env("RUST_LOG", "nimbus=loud");
    machine
        .run_to_end(command)
        .expect(0, &["cannot be understood and is ignored"]);
}

#[test]
fn every_line_of_a_request_carries_its_id_route_and_method() {
    let (machine, server) = demo();
    server.stop();
    // What the opening of a damaged tenant says is said on other threads.
    let manifest = machine.find("demo.sqlite3.nimbus-enc");
    fs::write(&manifest, "damaged").expect("written");
    let mut command = machine.nimbus(&["start", "--port", "0", "--log-format", "json"]);
    command.env("RUST_LOG", "nimbus=debug");
    let server = machine.start_command(command);
    let before = lines(&server.log()).len();
    let header = "X-Request-Id: of-this-test\r\n";
    let line = "GET /api/tenants/demo/documents/places";
    let answer = send(&machine, &server, line, header, b"");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("x-request-id"), Some("of-this-test"));
    assert_eq!(answer.body["error"]["requestId"], "of-this-test");
    let log = lines(&server.log());
    let of_request = &log[before..];
    let said = |words: &str| {
        let is = |line: &&Value| line["fields"]["message"] == words;
        of_request
            .iter()
            .find(is)
            .unwrap_or_else(|| panic!("no {words:?} in {of_request:?}"))
    };
    let _ = (said("a tenant does not open"), said("answered"));
    for line in of_request {
        assert_eq!(line["span"]["id"], "of-this-test", "{line}");
        assert_eq!(line["span"]["method"], "GET", "{line}");
        let route = "/api/tenants/{t}/documents/{table}";
        assert_eq!(line["span"]["route"], route, "{line}");
        assert!(!line.to_string().contains("places"), "{line}");
    }
    server.stop();
}

#[test]
fn an_answer_that_took_over_a_second_is_logged() {
    let machine = machine();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", "tenants::writer::batch-taken=sleep(1100)");
    let server = machine.start_command(command);
    server.create("/api/tenants", &json!({"id": "demo"}));
    assert!(!server.log().contains("answered slowly"));
    server.insert("demo", "places", &json!({}));
    assert!(server.log().contains("answered slowly"), "{}", server.log());
    server.stop();
}
