//! Versions, conditions and keys of requests over HTTP: what a client says is honoured or refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nimbus_test_support::{Answer, Machine, Server, whole};
use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, send};

const DOCUMENTS: &str = "/api/tenants/demo/documents";
const JSON: &str = "Content-Type: application/json\r\n";

fn ask(machine: &Machine, server: &Server, line: &str, headers: &str, body: &Value) -> Answer {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    send(
        machine,
        server,
        line,
        &format!("{JSON}{headers}"),
        body.as_bytes(),
    )
}

fn version(body: &Value) -> u64 {
    body["version"]
        .as_u64()
        .unwrap_or_else(|| panic!("no version: {body}"))
}

#[test]
fn versions_and_tags_follow_the_journal() {
    let (machine, server) = demo();
    let new = json!({"table": "t", "fields": {"n": 1}});
    let answer = ask(&machine, &server, &format!("POST {DOCUMENTS}"), "", &new);
    assert_eq!((answer.status, version(&answer.body)), (201, 1));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    let path = format!(
        "{DOCUMENTS}/t/{}",
        answer.body["id"].as_str().expect("an id")
    );
    server.insert("demo", "other", &json!({}));
    let answer = ask(
        &machine,
        &server,
        &format!("PATCH {path}"),
        "",
        &json!({"patch": {"n": 2}}),
    );
    assert_eq!((answer.status, version(&answer.body)), (200, 3));
    assert_eq!(answer.header("etag"), Some("\"3\""));
    let answer = ask(&machine, &server, &format!("GET {path}"), "", &Value::Null);
    assert_eq!((answer.status, answer.header("etag")), (200, Some("\"3\"")));
    let document = server.get(&path)["document"].take();
    assert_eq!(document["_version"], json!(3));
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/t"))["data"],
        json!([document])
    );
    let query = json!({"table": "t", "filters": [{"field": "_version", "op": "eq", "value": 3}]});
    let (_, found) = server.request("POST", "/api/tenants/demo/query", Some(&query));
    assert_eq!(found["data"], json!([document]));
    // What the client has is not sent again.
    for (tags, status) in [
        ("\"3\"", 304),
        ("W/\"3\"", 304),
        ("\"1\", \"3\"", 304),
        ("*", 304),
        ("\"1\"", 200),
        ("\"nonsense\"", 200),
    ] {
        let header = format!("If-None-Match: {tags}\r\n");
        let answer = ask(
            &machine,
            &server,
            &format!("GET {path}"),
            &header,
            &Value::Null,
        );
        assert_eq!(
            (answer.status, answer.header("etag")),
            (status, Some("\"3\"")),
            "{tags}"
        );
        assert_eq!(answer.bytes().is_empty(), status == 304, "{tags}");
    }
    // Nobody sets a version.
    let own = json!({"table": "t", "fields": {"_version": 7}});
    let (status, answer) = server.request("POST", DOCUMENTS, Some(&own));
    assert_error(status, &answer, (400, "op.invalid_input"));
}

#[test]
fn no_increment_is_lost_by_twenty_clients() {
    let (machine, server) = demo();
    let id = server.insert("demo", "t", &json!({"n": 0}));
    let path = format!("{DOCUMENTS}/t/{id}");
    let failed = AtomicU64::new(0);
    let token = machine.token();
    let increment = || {
        loop {
            let (status, read) = server.request_as(&token, "GET", &path, None);
            assert_eq!(status, 200, "{read}");
            let document = &read["document"];
            let n = document["n"].as_u64().expect("a number");
            let tag = format!("\"{}\"", document["_version"]);
            let patch = json!({"patch": {"n": n + 1}});
            let headers = [("if-match", tag.as_str())];
            let answer = server.try_request_with(&token, &headers, "PATCH", &path, Some(&patch));
            match answer.expect("an answer") {
                (200, _) => return,
                (412, _) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..20 {
            let _client = scope.spawn(|| (0..20).for_each(|_| increment()));
        }
    });
    let document = server.get(&path)["document"].take();
    assert_eq!(document["n"], json!(400));
    assert_eq!(document["_version"], json!(401), "each was one write");
    assert!(failed.load(Ordering::Relaxed) > 0, "they met each other");
}

#[test]
fn a_condition_that_cannot_be_read_is_refused_and_nothing_is_done() {
    let (machine, server) = demo();
    let id = server.insert("demo", "t", &json!({"n": 0}));
    let path = format!("{DOCUMENTS}/t/{id}");
    for tags in [
        "\"nonsense\"",
        "nonsense",
        "W/\"1\"",
        "1",
        "\"01\"",
        "",
        "*, \"1\"",
        "\"1\", x",
    ] {
        let header = format!("If-Match: {tags}\r\n");
        for (method, body) in [
            ("PATCH", json!({"patch": {"n": 1}})),
            ("DELETE", Value::Null),
        ] {
            let answer = ask(
                &machine,
                &server,
                &format!("{method} {path}"),
                &header,
                &body,
            );
            let message = assert_refused(&answer, 400, "op.invalid_input");
            assert!(message.contains("If-Match"), "{message}");
        }
    }
    let document = server.get(&path)["document"].take();
    assert_eq!(
        (&document["n"], &document["_version"]),
        (&json!(0), &json!(1))
    );
}

#[test]
fn a_condition_that_fails_says_which_version_is_there() {
    let (machine, server) = demo();
    let id = server.insert("demo", "t", &json!({"n": 0}));
    let absent = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let patch = json!({"patch": {"n": 1}});
    let failed = |method: &str, id: &str, tags: &str, detail: Value| {
        let body = if method == "PATCH" {
            &patch
        } else {
            &Value::Null
        };
        let line = format!("{method} {DOCUMENTS}/t/{id}");
        let answer = ask(
            &machine,
            &server,
            &line,
            &format!("If-Match: {tags}\r\n"),
            body,
        );
        assert_refused(&answer, 412, "op.precondition_failed");
        assert_eq!(answer.body["error"]["detail"], detail, "{line} {tags}");
    };
    for method in ["PATCH", "DELETE"] {
        failed(method, &id, "\"2\"", json!("1"));
        failed(method, &id, "\"7\", \"8\"", json!("1"));
        failed(method, absent, "\"1\"", Value::Null);
        failed(method, absent, "*", Value::Null);
    }
    let path = format!("{DOCUMENTS}/t/{id}");
    for (tags, version_then) in [("*", 2), ("\"9\", \"2\"", 3), ("\"3\"", 4)] {
        let header = format!("If-Match: {tags}\r\n");
        let answer = ask(&machine, &server, &format!("PATCH {path}"), &header, &patch);
        assert_eq!(
            (answer.status, version(&answer.body)),
            (200, version_then),
            "{tags}"
        );
    }
    let answer = ask(
        &machine,
        &server,
        &format!("DELETE {path}"),
        "If-Match: \"4\"\r\n",
        &Value::Null,
    );
    assert_eq!(answer.status, 204);
}

#[test]
fn an_insert_may_ask_to_be_the_first_of_its_id() {
    let (machine, server) = demo();
    let id = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let new = json!({"table": "t", "fields": {"n": 0}, "id": id});
    let insert = |headers: &str, body: &Value| {
        ask(
            &machine,
            &server,
            &format!("POST {DOCUMENTS}"),
            headers,
            body,
        )
    };
    let first = "If-None-Match: *\r\n";
    let answer = insert(first, &new);
    assert_eq!(answer.body, json!({"id": id, "version": 1}));
    let answer = insert(first, &new);
    assert_refused(&answer, 412, "op.precondition_failed");
    assert_eq!(answer.body["error"]["detail"], json!("1"));
    assert_refused(&insert("", &new), 409, "op.already_exists");
    for (headers, body) in [
        (first, json!({"table": "t", "fields": {}})),
        ("If-None-Match: \"1\"\r\n", new.clone()),
        ("If-None-Match: \r\n", new.clone()),
    ] {
        assert_refused(&insert(headers, &body), 400, "op.invalid_input");
    }
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/t"))["data"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_batch_is_held_to_its_conditions() {
    let (_machine, server) = demo();
    let batch = |mutations: Value| {
        server.request(
            "POST",
            "/api/tenants/demo/batch",
            Some(&json!({"mutations": mutations})),
        )
    };
    let id = server.insert("demo", "t", &json!({"n": 0}));
    let absent = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let update =
        json!({"type": "update", "table": "t", "id": id, "patch": {"n": 1}, "if_version": 1});
    let check =
        |version: Value| json!({"type": "check", "table": "t", "id": absent, "version": version});
    let (status, answer) = batch(json!([check(Value::Null), update]));
    assert_eq!(
        (status, answer),
        (
            200,
            json!({"results": [{"id": absent, "version": null}, {"id": id, "version": 2}]})
        )
    );
    let (status, answer) = batch(json!([{"type": "insert", "table": "t", "fields": {}}, update]));
    let message = assert_error(status, &answer, (412, "op.precondition_failed"));
    assert!(message.starts_with("mutation 1 of the batch"), "{message}");
    assert_eq!(answer["error"]["detail"], json!("2"));
    let (status, answer) = batch(json!([update, check(json!(1))]));
    assert_error(status, &answer, (412, "op.precondition_failed"));
    let (status, answer) = batch(json!([check(json!(1))]));
    assert_error(status, &answer, (412, "op.precondition_failed"));
    assert_eq!(answer["error"]["detail"], Value::Null);
    for wrong in [
        json!({"type": "update", "table": "t", "id": id, "patch": {}, "if_version": null}),
        json!({"type": "update", "table": "t", "id": id, "patch": {}, "if_version": "2"}),
        json!({"type": "delete", "table": "t", "id": id, "if_version": 0}),
        json!({"type": "check", "table": "t", "id": id}),
        json!({"type": "check", "table": "t", "id": id, "version": "*"}),
    ] {
        let (status, answer) = batch(json!([wrong]));
        assert_error(status, &answer, (400, "op.invalid_input"));
    }
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/t/{id}"))["document"]["_version"],
        json!(2)
    );
}

#[test]
fn a_job_may_depend_on_a_version_and_a_cron_may_not() {
    let (_machine, server) = demo();
    let id = server.insert("demo", "t", &json!({"n": 0}));
    let delete =
        |version: u64| json!({"type": "delete", "table": "t", "id": id, "if_version": version});
    let schedule = |mutation: Value| {
        let job = json!({"run_after_ms": 0, "mutation": mutation});
        server.request("POST", "/api/tenants/demo/schedule", Some(&job))
    };
    let outcome = |version: u64| {
        let (status, answer) = schedule(delete(version));
        assert_eq!(status, 201, "{answer}");
        let job = answer["job_id"].as_str().expect("an id");
        let path = format!("/api/tenants/demo/schedule/history/{job}");
        loop {
            let (status, mut answer) = server.request("GET", &path, None);
            if status == 200 {
                return answer["result"].take();
            }
            assert_error(status, &answer, (404, "op.scheduled_job_not_found"));
            thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let result = outcome(9);
    assert_eq!(result["outcome"], "failed");
    assert!(
        result["error"].as_str().expect("why").contains("version 1"),
        "{result}"
    );
    assert_eq!(outcome(1)["outcome"], "succeeded");
    let check = json!({"type": "check", "table": "t", "id": id, "version": 1});
    let (status, answer) = schedule(check.clone());
    assert_error(status, &answer, (400, "op.invalid_input"));
    for mutation in [check, delete(1)] {
        let cron = json!({"name": "c", "schedule": {"type": "interval", "seconds": 9}, "mutation": mutation});
        let (status, answer) = server.request("POST", "/api/tenants/demo/crons", Some(&cron));
        let message = assert_error(status, &answer, (400, "op.invalid_input"));
        assert!(message.contains("again and again"), "{message}");
    }
}

#[test]
fn a_request_that_is_sent_again_under_its_key_is_answered_again_and_not_done_again() {
    let (machine, server) = demo();
    let key = "Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324\r\n";
    let insert = json!({"type": "insert", "table": "t", "fields": {}});
    for (number, (path, body, status)) in [
        (DOCUMENTS, json!({"table": "t", "fields": {"n": 1}}), 201),
        (
            "/api/tenants/demo/batch",
            json!({"mutations": [insert, insert]}),
            200,
        ),
        (
            "/api/tenants/demo/schedule",
            json!({"run_after_ms": 900_000, "mutation": insert}),
            201,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let key = key.replace("8e03", &format!("8e{number:02}"));
        let line = format!("POST {path}");
        let first = ask(&machine, &server, &line, &key, &body);
        assert_eq!(
            (first.status, first.header("idempotency-replayed")),
            (status, None)
        );
        let again = ask(&machine, &server, &line, &key, &body);
        assert_eq!(
            (again.status, again.header("idempotency-replayed")),
            (status, Some("true"))
        );
        assert_eq!(
            (&again.body, again.header("etag")),
            (&first.body, first.header("etag"))
        );
        let mut other = body.clone();
        other["surprise"] = json!(1);
        let refused = ask(&machine, &server, &line, &key, &other);
        assert_refused(&refused, 400, "op.invalid_input");
    }
    let listed = server.get(&format!("{DOCUMENTS}/t"));
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(3), "{listed}");
    assert_eq!(
        server.get("/api/tenants/demo/schedule")["jobs"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_key_names_one_request_of_one_caller() {
    let (machine, server) = demo();
    server.create("/api/tenants", &json!({"id": "other"}));
    let mut tokens = vec![machine.token()];
    for name in ["one", "two"] {
        let new = json!({"name": name, "scope": "write"});
        let key = server.create("/api/tenants/demo/keys", &new);
        tokens.push(key["key"].as_str().expect("the key").to_owned());
    }
    let id = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let body = json!({"table": "t", "fields": {}, "id": id});
    let send = |token: &str, headers: &[(&str, &str)], path: &str, body: &Value| {
        let headers = [&[("idempotency-key", "k")][..], headers].concat();
        let answer = server.try_request_with(token, &headers, "POST", path, Some(body));
        answer.expect("an answer")
    };
    let first = send(&tokens[1], &[], DOCUMENTS, &body);
    assert_eq!(first.0, 201);
    assert_eq!(send(&tokens[1], &[], DOCUMENTS, &body), first);
    let batch = json!({"mutations": []});
    for (token, headers, path, body) in [
        (
            &tokens[1],
            &[][..],
            DOCUMENTS,
            json!({"table": "t", "fields": {"n": 1}, "id": id}),
        ),
        (
            &tokens[1],
            &[("if-none-match", "*")],
            DOCUMENTS,
            body.clone(),
        ),
        (&tokens[1], &[], "/api/tenants/demo/batch", batch.clone()),
        (&tokens[2], &[], DOCUMENTS, body.clone()),
        (&tokens[0], &[], DOCUMENTS, body.clone()),
    ] {
        let (status, answer) = send(token, headers, path, &body);
        let message = assert_error(status, &answer, (409, "op.conflict"));
        assert!(message.contains("Idempotency-Key"), "{message}");
    }
    // Another tenant has its own memory.
    assert_eq!(
        send(&tokens[0], &[], "/api/tenants/other/batch", &batch).0,
        200
    );
    // The admin token is rotated, and who holds it stays who they were.
    let body = json!({"table": "t", "fields": {}});
    let headers = [("idempotency-key", "admin")];
    let insert =
        |token: &str| server.try_request_with(token, &headers, "POST", DOCUMENTS, Some(&body));
    let before = insert(&tokens[0]).expect("an answer");
    let (status, _) = server.request("POST", "/api/admin/token/rotate", None);
    assert_eq!((status, before.0), (200, 201));
    assert_eq!(insert(&machine.token()).expect("an answer"), before);
}

#[test]
fn a_key_that_is_none_is_refused_and_nothing_is_done() {
    let (machine, server) = demo();
    let long = format!("Idempotency-Key: {}\r\n", "x".repeat(256));
    for header in [
        "Idempotency-Key: \r\n",
        "Idempotency-Key: two words\r\n",
        "Idempotency-Key: é\r\n",
        "Idempotency-Key: a\r\nIdempotency-Key: a\r\n",
        &long,
    ] {
        for (path, body) in [
            (DOCUMENTS, json!({"table": "t", "fields": {}})),
            ("/api/tenants/demo/batch", json!({"mutations": []})),
            (
                "/api/tenants/demo/schedule",
                json!({"run_after_ms": 900_000, "mutation": {"type": "insert", "table": "t", "fields": {}}}),
            ),
        ] {
            let answer = ask(&machine, &server, &format!("POST {path}"), header, &body);
            let message = assert_refused(&answer, 400, "op.invalid_input");
            assert!(message.contains("Idempotency-Key"), "{message}");
        }
    }
    assert_eq!(
        server.get(&format!("{DOCUMENTS}/t")),
        whole("data", json!([]))
    );
}

/// The document says which route honours which header; every other one of them is refused on every
/// route.
#[test]
fn a_header_that_would_change_the_meaning_is_honoured_or_refused_on_every_route() {
    let (machine, server) = demo();
    let document = server.get("/openapi.json");
    let special = [
        ("If-Match", "\"1\""),
        ("If-None-Match", "\"1\""),
        ("If-Modified-Since", "Sun, 29 Nov 2026 03:00:00 GMT"),
        ("If-Unmodified-Since", "Sun, 29 Nov 2026 03:00:00 GMT"),
        ("Range", "bytes=0-1"),
        ("If-Range", "\"1\""),
        ("Idempotency-Key", "a"),
    ];
    let (mut honoured, mut refused) = (0, 0);
    for (pattern, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            let parameters = operation["parameters"].as_array().expect("parameters");
            let id = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
            let path = pattern.replace("{t}", "demo").replace("{table}", "t");
            let path = path
                .replace("{generation}", "1")
                .replace("{name}", "c")
                .replace("{path}", "x");
            let path = path.replace("{id}", id).replace("{job}", id);
            for (name, value) in special {
                if parameters.iter().any(|one| one["name"] == name) {
                    honoured += 1;
                    continue;
                }
                let line = format!("{} {path}", method.to_uppercase());
                let answer = ask(
                    &machine,
                    &server,
                    &line,
                    &format!("{name}: {value}\r\n"),
                    &json!({}),
                );
                let message = assert_refused(&answer, 400, "op.invalid_input");
                assert!(
                    message.contains(&format!("`{name}` is not honoured here")),
                    "{line}: {message}"
                );
                refused += 1;
            }
        }
    }
    assert_eq!(honoured, 19, "of {refused}");
    assert_eq!(server.get("/api/tenants")["tenants"], json!(["demo"]));
}
