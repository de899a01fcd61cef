//! Tenants and documents over HTTP, `/health`, `/ready`, and the error envelope.

use nimbus_test_support::whole;
use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, machine, post, send, send_bare};

const DOCUMENTS: &str = "/api/tenants/demo/documents";

#[test]
fn a_document_lives_through_insert_get_list_patch_and_delete() {
    let (_machine, server) = demo();
    let first = server.insert(
        "demo",
        "places",
        &json!({"name": "Lauterbrunnen", "visits": 1}),
    );
    let second = server.insert("demo", "places", &json!({"name": "東京"}));
    assert_eq!(first.as_bytes()[14], b'7', "a UUIDv7: {first}");
    assert!(first < second, "ids ascend");

    let path = format!("{DOCUMENTS}/places/{first}");
    let document = server.get(&path)["document"].take();
    assert_eq!(document["_id"], json!(first));
    assert_eq!(document["name"], "Lauterbrunnen");
    let created = document["_creationTime"].as_i64().expect("milliseconds");
    assert!(created > 1_600_000_000_000, "{document}");
    assert_eq!(document["_updateTime"], document["_creationTime"]);

    let patch = json!({"patch": {"visits": 2, "tags": ["alps"], "name": null}});
    let (status, answer) = server.request("PATCH", &path, Some(&patch));
    assert_eq!((status, answer), (200, json!({"id": first, "version": 3})));
    let document = server.get(&path)["document"].take();
    assert_eq!(document["visits"], 2);
    assert_eq!(document["tags"], json!(["alps"]));
    assert_eq!(document["name"], Value::Null);
    assert_eq!(document["_creationTime"], json!(created));
    assert!(document["_updateTime"].as_i64().expect("milliseconds") >= created);

    let listed = server.get(&format!("{DOCUMENTS}/places"));
    let ids: Vec<&str> = listed["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|document| document["_id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids, [&first, &second], "oldest first");

    assert_eq!(server.request("DELETE", &path, None), (204, Value::Null));
    for (method, body) in [("GET", None), ("PATCH", Some(&patch)), ("DELETE", None)] {
        let (status, answer) = server.request(method, &path, body);
        let message = assert_error(status, &answer, (404, "op.document_not_found"));
        assert!(message.contains(&first), "{message}");
    }
}

#[test]
fn a_tenant_is_created_listed_and_deleted_with_all_its_documents() {
    let (_machine, server) = demo();
    let tenant = json!({"id": "another-one_2"});
    assert_eq!(server.create("/api/tenants", &tenant), tenant);
    assert_eq!(
        server.get("/api/tenants"),
        whole("tenants", json!(["another-one_2", "demo"]))
    );
    server.insert("demo", "places", &json!({"n": 1}));

    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "demo"})));
    let message = assert_error(status, &answer, (409, "op.already_exists"));
    assert!(message.contains("demo"), "{message}");

    assert_eq!(
        server.request("DELETE", "/api/tenants/demo", None),
        (204, Value::Null)
    );
    assert_eq!(
        server.get("/api/tenants"),
        whole("tenants", json!(["another-one_2"]))
    );
    let (status, answer) = server.request("DELETE", "/api/tenants/demo", None);
    assert_error(status, &answer, (404, "session.tenant_not_found"));
    server.create("/api/tenants", &json!({"id": "demo"}));
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/places")),
        whole("data", json!([]))
    );
}

#[test]
fn documents_keep_numbers_and_text_as_they_were_written() {
    let (machine, server) = demo();
    let fields = r#"{"n":[1.10,1e5,-0,18446744073709551616],"größe":"ein \" und \\","nul":"\u0000","empty":{}}"#;
    let body = format!(r#"{{"table":"places","fields":{fields}}}"#);
    let answer = post(&machine, &server, DOCUMENTS, body.as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.body);
    let id = answer.body["id"].as_str().expect("an id");
    let answer = send(
        &machine,
        &server,
        &format!("GET {DOCUMENTS}/places/{id}"),
        "",
        b"",
    );
    let text = String::from_utf8(answer.bytes().to_vec()).expect("UTF-8");
    let inner = fields.trim_start_matches('{');
    assert!(text.contains(inner.trim_end_matches('}')), "{text}");
}

#[test]
fn a_list_has_the_oldest_thousand_documents() {
    let (machine, server) = demo();
    let token = machine.token();
    // Many clients, so that commits are shared.
    std::thread::scope(|scope| {
        for client in 0..24 {
            let (server, token) = (&server, &token);
            let _ = scope.spawn(move || {
                for n in 0..42 {
                    let body = json!({"table": "many", "fields": {"client": client, "n": n}});
                    let (status, answer) = server.request_as(token, "POST", DOCUMENTS, Some(&body));
                    assert_eq!(status, 201, "{answer}");
                }
            });
        }
    });
    let last = server.insert("demo", "many", &json!({"last": true}));
    let listed = server.get(&format!("{DOCUMENTS}/many"));
    assert_eq!(listed["has_more"], true);
    let ids: Vec<&str> = listed["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|document| document["_id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.is_sorted_by(|a, b| a < b) && !ids.contains(&last.as_str()));
}

#[test]
fn health_says_exactly_ok_and_asks_for_no_credential() {
    let machine = machine();
    let server = machine.start(&[]);
    let answer = send_bare(&server, "GET /health", "", b"");
    assert_eq!(
        (answer.status, answer.bytes()),
        (200, &br#"{"ok":true}"#[..])
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn ready_names_each_check() {
    let machine = machine();
    let server = machine.start(&[]);
    let ready = server.get("/ready");
    assert_eq!(ready["ready"], json!(true));
    for check in ["control_file", "key_provider", "storage"] {
        assert_eq!(ready["checks"][check]["ok"], json!(true), "{ready}");
    }
    assert_eq!(ready["tenants_in_trouble"], json!({}));
}

#[test]
fn ready_says_no_when_the_key_is_withheld() {
    let machine = machine();
    let server = machine.start(&[]);
    let key = machine.master_key();
    let away = machine.path("withheld.key");
    std::fs::rename(&key, &away).expect("the key is taken away");
    let (status, ready) = server.request("GET", "/ready", None);
    assert_eq!((status, &ready["ready"]), (503, &json!(false)));
    let error = ready["checks"]["key_provider"]["error"]
        .as_str()
        .expect("why");
    assert!(error.contains("master.key"), "{error}");
    std::fs::rename(&away, &key).expect("and put back");
    assert_eq!(server.get("/ready")["ready"], json!(true));
}

#[test]
fn what_is_not_there_is_not_found_and_a_wrong_method_is_told() {
    let (machine, server) = demo();
    let id = server.insert("demo", "places", &json!({}));
    let absent = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10";
    for (line, status, code) in [
        (
            "GET /api/tenants/nobody/documents/places",
            404,
            "session.tenant_not_found",
        ),
        (
            "DELETE /api/tenants/nobody",
            404,
            "session.tenant_not_found",
        ),
        (
            &format!("GET {DOCUMENTS}/places/{absent}"),
            404,
            "op.document_not_found",
        ),
        (
            &format!("GET {DOCUMENTS}/elsewhere/{id}"),
            404,
            "op.document_not_found",
        ),
        ("GET /", 404, "service.route_not_found"),
        ("GET /api", 404, "service.route_not_found"),
        ("GET /api/tenants/", 404, "service.route_not_found"),
        ("GET /API/tenants", 404, "service.route_not_found"),
        ("POST /health", 405, "service.route_not_found"),
        ("PUT /api/tenants", 405, "service.route_not_found"),
        ("POST /api/tenants/demo", 405, "service.route_not_found"),
        (
            &format!("PUT {DOCUMENTS}/places/{id}"),
            405,
            "service.route_not_found",
        ),
    ] {
        let answer = send(&machine, &server, line, "", b"");
        assert_eq!(answer.status, status, "{line}");
        assert_refused(&answer, status, code);
    }
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/elsewhere")),
        whole("data", json!([])),
        "no table yet"
    );
}

#[test]
fn an_error_carries_the_request_id_that_the_client_gave_or_a_new_one() {
    let (machine, server) = demo();
    let ask = |header: &str| send(&machine, &server, "GET /nowhere", header, b"");
    let answer = ask("X-Request-Id: my-id.1\r\n");
    assert_eq!(answer.header("x-request-id"), Some("my-id.1"));
    assert_eq!(answer.body["error"]["requestId"], "my-id.1");
    let long = format!("X-Request-Id: {}\r\n", "x".repeat(200));
    for header in [
        "",
        "X-Request-Id: a b\r\n",
        "X-Request-Id: <script>\r\n",
        &long,
    ] {
        let answer = ask(header);
        let id = answer.header("x-request-id").expect("an id");
        assert_eq!(id.len(), 36, "a new one: {id}");
        assert_eq!(answer.body["error"]["requestId"], json!(id));
    }
}
