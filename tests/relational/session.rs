//! What applications do, over HTTP; and that none of it is lost in a restart.

use std::time::Duration;

use nimbus_test_support::Server;
use serde_json::{Value, json};

use super::{House, journal, make_tenant, tenants};

fn put(server: &Server, path: &str, body: &Value) {
    let (status, answer) = server.request("PUT", path, Some(body));
    assert_eq!(status, 204, "{path}: {answer}");
}

fn found(server: &Server, query: &Value) -> Vec<Value> {
    let (status, answer) = server.request("POST", "/api/tenants/a-b/query", Some(query));
    assert_eq!(status, 200, "{answer}");
    answer["data"].as_array().expect("a list").clone()
}

#[test]
fn a_whole_session_goes_over_the_wire_and_survives_a_restart() {
    let house = House::new();
    let server = house.start();
    assert!(
        server.log().contains("Nimbus does not encrypt them"),
        "{}",
        server.log()
    );
    make_tenant(&server, "a-b");
    make_tenant(&server, "a_b");
    let (status, _) = server.request("POST", "/api/tenants", Some(&json!({"id": "a-b"})));
    assert_eq!(status, 409);
    // What engines change: numbers, escapes, order of names.
    let text = r#"{"n":9007199254740993,"d":1.10,"nul":"\u0000","z":1,"a":{"b":[1,null]}}"#;
    let body = format!(r#"{{"table":"odd","fields":{text}}}"#);
    let body: Box<serde_json::value::RawValue> =
        serde_json::value::RawValue::from_string(body).expect("JSON");
    let token = house.machine.token();
    let request = format!(
        "POST /api/tenants/a-b/documents HTTP/1.1\r\nHost: nimbus\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{}",
        body.get().len(),
        body.get()
    );
    let inserted = server.raw(request.as_bytes()).expect("an answer");
    assert_eq!(inserted.status, 201, "{:?}", inserted.body);
    let odd = format!(
        "/api/tenants/a-b/documents/odd/{}",
        inserted.body["id"].as_str().expect("an id")
    );
    let read = |server: &Server| {
        let request = format!(
            "GET {odd} HTTP/1.1\r\nHost: nimbus\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        String::from_utf8(
            server
                .raw(request.as_bytes())
                .expect("an answer")
                .bytes()
                .to_vec(),
        )
        .expect("UTF-8")
    };
    let before = read(&server);
    assert!(before.contains(&text[1..]), "{before}");

    let schema = json!({"table": "people", "fields": [{"name": "name", "field_type": "string", "required": true}],
        "indexes": [{"name": "by_name", "fields": ["name"], "unique": true}, {"name": "by_age", "fields": ["age"]}]});
    put(&server, "/api/tenants/a-b/schema/people", &schema);
    for (name, age) in [("Ada", 36), ("Bob", 7), ("Cleo", 41)] {
        let _ = server.insert("a-b", "people", &json!({"name": name, "age": age}));
    }
    let twice = json!({"table": "people", "fields": {"name": "Ada"}});
    let (status, _) = server.request("POST", "/api/tenants/a-b/documents", Some(&twice));
    assert_eq!(status, 409);
    let grown = json!({"table": "people", "filters": [{"field": "age", "op": "gt", "value": 18}],
        "order": {"field": "age", "direction": "desc"}});
    let names = |people: &[Value]| -> Vec<String> {
        people
            .iter()
            .map(|one| one["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(names(&found(&server, &grown)), ["Cleo", "Ada"]);

    // A batch is done whole or not at all, and once under its key.
    let batch = json!({"mutations": [
        {"type": "insert", "table": "people", "fields": {"name": "Dan"}},
        {"type": "insert", "table": "people", "fields": {"name": "Ada"}}]});
    let (status, _) = server.request("POST", "/api/tenants/a-b/batch", Some(&batch));
    assert_eq!(status, 409);
    let once = json!({"table": "people", "fields": {"name": "Eve", "age": 5}});
    let send = |server: &Server| {
        let headers = [("Idempotency-Key", "\"a-key-of-a-client\"")];
        let answer = server.try_request_with(
            &token,
            &headers,
            "POST",
            "/api/tenants/a-b/documents",
            Some(&once),
        );
        answer.expect("an answer")
    };
    let first = send(&server);
    assert_eq!(first.0, 201, "{}", first.1);

    let job = json!({"run_after_ms": 0, "mutation": {"type": "insert", "table": "done", "fields": {"by": "job"}}});
    let _ = server.create("/api/tenants/a-b/schedule", &job);
    let late = json!({"run_after_ms": 3_600_000, "mutation": {"type": "insert", "table": "done", "fields": {"by": "late"}}});
    let late = server.create("/api/tenants/a-b/schedule", &late);
    let deploy = json!({"name": "app", "schemas": [schema], "crons": [], "files": [{"path": "index.html",
        "sha256": "e7fbb6fbbf4ce294913eb62b53ff03a7546649cfdc0d824d9e3a2b4541502f7f",
        "content_base64": "PGgxPmhpPC9oMT4="}]});
    let _ = server.create("/api/tenants/a-b/deploy", &deploy);
    while server.get("/api/tenants/a-b/documents/done")["data"]
        .as_array()
        .expect("a list")
        .is_empty()
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = server.insert("a_b", "people", &json!({"name": "another tenant's"}));
    let kept = |server: &Server| {
        let paths = [
            "documents/people",
            "documents/done",
            "schema",
            "journal",
            "deploy",
        ];
        paths.map(|path| server.get(&format!("/api/tenants/a-b/{path}")))
    };
    let all = kept(&server);
    server.stop();

    let server = house.start();
    assert_eq!(tenants(&server), ["a-b", "a_b"]);
    assert_eq!(kept(&server), all);
    assert_eq!(read(&server), before);
    assert_eq!(send(&server), first, "the answer is remembered");
    let file = format!(
        "GET /apps/a-b/index.html HTTP/1.1\r\nHost: nimbus\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(
        server.raw(file.as_bytes()).expect("an answer").bytes(),
        b"<h1>hi</h1>"
    );
    let numbers = journal(&server, "a-b");
    let expected: Vec<i64> = (1..=numbers.len() as i64).collect();
    assert_eq!(numbers, expected);
    let (status, _) = server.request(
        "DELETE",
        &format!(
            "/api/tenants/a-b/schedule/{}",
            late["job_id"].as_str().expect("an id")
        ),
        None,
    );
    assert_eq!(status, 204);
    let (status, _) = server.request("DELETE", "/api/tenants/a-b", None);
    assert_eq!(status, 204);
    assert_eq!(tenants(&server), ["a_b"]);
    make_tenant(&server, "a-b");
    assert!(
        journal(&server, "a-b").is_empty(),
        "a tenant of a reused name begins empty"
    );
    assert_eq!(
        server.get("/api/tenants/a_b/documents/people")["data"]
            .as_array()
            .expect("a list")
            .len(),
        1
    );
    server.stop();
}
