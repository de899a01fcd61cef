//! Tenant access keys: which route lets in whom, and for how long.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nimbus::server::{Needs, Route, route_table};
use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, machine, post, send_bare};

pub(super) const KEYS: &str = "/api/tenants/demo/keys";
const DOCUMENTS: &str = "/api/tenants/demo/documents";

/// Makes a key: its id and the key itself.
pub(super) fn make(server: &Server, tenant: &str, scope: &str) -> (String, String) {
    let body = json!({"name": "a test", "scope": scope});
    let made = server.create(&format!("/api/tenants/{tenant}/keys"), &body);
    let text = |field: &str| made[field].as_str().expect(field).to_owned();
    assert_eq!(
        made,
        json!({"id": text("id"), "key": text("key"), "name": "a test", "scope": scope})
    );
    (text("id"), text("key"))
}

fn ask(server: &Server, key: &str, method: &str, path: &str) -> (u16, Value) {
    let body = (method != "GET" && method != "DELETE").then(|| json!({}));
    server.request_as(key, method, path, body.as_ref())
}

/// The route's path with something in the place of each parameter.
fn filled(route: &Route, tenant: &str) -> String {
    let parts = route.path.split('/').map(|part| match part {
        "{t}" => tenant,
        "{id}" => "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10",
        part if part.starts_with('{') => "something",
        part => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn every_route_lets_in_whom_the_table_says_and_nobody_else() {
    let (machine, server) = demo();
    server.create("/api/tenants", &json!({"id": "other"}));
    let credentials: BTreeMap<&str, String> = BTreeMap::from([
        ("own read", make(&server, "demo", "read").1),
        ("own write", make(&server, "demo", "write").1),
        ("other read", make(&server, "other", "read").1),
        ("other write", make(&server, "other", "write").1),
    ]);
    let (id, revoked) = make(&server, "demo", "write");
    let (status, _) = server.request("DELETE", &format!("{KEYS}/{id}"), None);
    assert_eq!(status, 204);

    let routes = route_table();
    assert!(routes.len() > 20, "{routes:?}");
    for route in routes {
        let method = route.method.as_str();
        let path = filled(&route, "demo");
        let line = format!("{method} {path}");
        if route.needs == Needs::Nothing {
            assert_eq!(send_bare(&server, &line, "", b"").status, 200, "{line}");
            continue;
        }
        assert_refused(
            &send_bare(&server, &line, "", b""),
            401,
            "auth.unauthorized",
        );
        let (status, answer) = ask(&server, "nonsense", method, &path);
        assert_error(status, &answer, (401, "auth.unauthorized"));
        let (status, answer) = ask(&server, &revoked, method, &path);
        assert_error(status, &answer, (401, "auth.token_revoked"));
        for (whose, key) in &credentials {
            let allowed = match route.needs {
                Needs::Nothing | Needs::Credential => true,
                Needs::Reading => whose.starts_with("own"),
                Needs::Writing => *whose == "own write",
                Needs::Administration => false,
            };
            let (status, answer) = ask(&server, key, method, &path);
            if allowed {
                assert!(status != 401 && status != 403, "{whose}, {line}: {answer}");
            } else {
                assert_error(status, &answer, (403, "auth.forbidden"));
            }
        }
        // On a tenant that does not exist, so that it survives its own deletion; the token may have
        // been rotated by the route before.
        let (status, answer) = ask(&server, &machine.token(), method, &filled(&route, "nobody"));
        assert!(status != 401 && status != 403, "admin, {line}: {answer}");
    }
}

#[test]
fn what_no_route_knows_asks_for_a_credential_first() {
    let (_machine, server) = demo();
    let (_, key) = make(&server, "demo", "read");
    for line in [
        "GET /api/tenants/demo/nothing",
        "GET /",
        "PUT /api/tenants/demo/query",
    ] {
        assert_refused(&send_bare(&server, line, "", b""), 401, "auth.unauthorized");
    }
    let (status, answer) = ask(&server, &key, "GET", "/api/tenants/demo/nothing");
    assert_error(status, &answer, (404, "service.route_not_found"));
    let (status, answer) = ask(&server, &key, "PUT", "/api/tenants/demo/query");
    assert_error(status, &answer, (405, "service.route_not_found"));
}

#[test]
fn a_key_does_not_tell_whether_another_tenant_exists() {
    let (_machine, server) = demo();
    server.create("/api/tenants", &json!({"id": "there"}));
    let (_, key) = make(&server, "demo", "write");
    let answer = |tenant: &str, rest: &str| {
        let (status, mut answer) = ask(
            &server,
            &key,
            "GET",
            &format!("/api/tenants/{tenant}/{rest}"),
        );
        let error = answer["error"].as_object_mut().expect("an envelope");
        drop(error.remove("requestId"));
        drop(error.remove("timestamp"));
        (status, answer)
    };
    for rest in ["documents/places", "journal", "keys"] {
        let there = answer("there", rest);
        assert_eq!(there.0, 403);
        for tenant in [
            "not-there",
            "Demo",
            "demo%2e",
            "d%65mo2",
            "%ff",
            "demo%00",
            "..%2fdemo",
        ] {
            assert_eq!(answer(tenant, rest), there, "{tenant} {rest}");
        }
    }
    // The same tenant in another spelling of the URL is the same tenant.
    assert_eq!(
        ask(&server, &key, "GET", "/api/tenants/d%65mo/documents/places").0,
        200
    );
}

#[test]
fn a_key_is_shown_once_listed_without_its_secret_and_revoked_at_once() {
    let (machine, server) = demo();
    let (id, key) = make(&server, "demo", "write");
    let body = json!({"table": "places", "fields": {"n": 1}});
    assert_eq!(
        server.request_as(&key, "POST", DOCUMENTS, Some(&body)).0,
        201
    );
    let (read_id, read) = make(&server, "demo", "read");
    let (status, answer) = server.request_as(&read, "POST", DOCUMENTS, Some(&body));
    assert_error(status, &answer, (403, "auth.forbidden"));
    let query = json!({"table": "places"});
    for key in [&key, &read] {
        let (status, answer) =
            server.request_as(key, "POST", "/api/tenants/demo/query", Some(&query));
        assert_eq!(
            (status, answer["data"].as_array().expect("data").len()),
            (200, 1)
        );
    }

    let listed = server.get(KEYS);
    assert!(
        !listed.to_string().contains(&key[key.len() - 56..]),
        "{listed}"
    );
    let keys = listed["keys"].as_array().expect("keys");
    let ids: Vec<_> = keys
        .iter()
        .map(|key| key["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids, [&id, &read_id]);
    let fields: Vec<_> = keys[0].as_object().expect("a key").keys().collect();
    assert_eq!(fields, ["created", "id", "name", "scope"]);

    // Keys are for operators alone: no key makes another, or sees one.
    assert_eq!(ask(&server, &key, "GET", KEYS).0, 403);
    let more = json!({"name": "mine", "scope": "write"});
    assert_eq!(server.request_as(&key, "POST", KEYS, Some(&more)).0, 403);

    let revoke = format!("{KEYS}/{id}");
    assert_eq!(server.request("DELETE", &revoke, None).0, 204);
    let (status, answer) = server.request_as(&key, "POST", DOCUMENTS, Some(&body));
    assert_error(status, &answer, (401, "auth.token_revoked"));
    let (status, answer) = server.request("DELETE", &revoke, None);
    assert_error(status, &answer, (404, "op.document_not_found"));
    server.kill();

    let server = machine.start(&[]);
    assert_eq!(
        ask(&server, &key, "GET", &format!("{DOCUMENTS}/places")).0,
        401
    );
    assert_eq!(
        ask(&server, &read, "GET", &format!("{DOCUMENTS}/places")).0,
        200
    );
    for secret in [&key, &read] {
        assert!(!server.log().contains(&secret[secret.len() - 56..]));
    }
}

#[test]
fn a_key_of_a_deleted_tenant_is_unknown_also_to_its_successor() {
    let (machine, server) = demo();
    let (_, key) = make(&server, "demo", "write");
    let list = format!("{DOCUMENTS}/places");
    for round in ["once", "again"] {
        assert_eq!(server.request("DELETE", "/api/tenants/demo", None).0, 204);
        let (status, answer) = ask(&server, &key, "GET", &list);
        assert_error(status, &answer, (401, "auth.unauthorized"));
        server.create("/api/tenants", &json!({"id": "demo"}));
        let (status, answer) = ask(&server, &key, "GET", &list);
        assert_error(status, &answer, (401, "auth.unauthorized"));
        assert_eq!(server.get(KEYS), json!({"keys": []}), "{round}");
    }
    let (_, shredded) = make(&server, "demo", "write");
    let shred = machine.nimbus(&["encryption", "shred", "--tenant-id", "demo", "--yes"]);
    machine.run_to_end(shred).expect(0, &[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    assert_eq!(ask(&server, &shredded, "GET", &list).0, 401);
    server.stop();
    // With no server running.
    let server = machine.start(&[]);
    let (_, key) = make(&server, "demo", "read");
    server.stop();
    let shred = machine.nimbus(&["encryption", "shred", "--tenant-id", "demo", "--yes"]);
    machine.run_to_end(shred).expect(0, &[]);
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    assert_eq!(ask(&server, &key, "GET", &list).0, 401);
}

/// The body comes late: the key was good when the request began.
#[test]
fn a_key_that_ends_while_a_body_comes_writes_nothing_nor_into_the_next_tenant_of_the_name() {
    let (_machine, server) = demo();
    let body = json!({"table": "places", "fields": {"n": 1}}).to_string();
    let begin = |key: &str| {
        let mut stream = server.connect();
        let head = format!(
            "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("the head");
        // The body is asked for once the key was judged.
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).expect("to go on");
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    };
    let end = |mut stream: TcpStream| {
        stream.write_all(body.as_bytes()).expect("the body");
        Server::answer(&mut stream).expect("an answer")
    };
    let (id, key) = make(&server, "demo", "write");
    assert_eq!(end(begin(&key)).status, 201);
    let list = format!("{DOCUMENTS}/places");
    let written = || server.get(&list)["data"].as_array().map(Vec::len);

    let waiting = begin(&key);
    let revoked = server.request("DELETE", &format!("{KEYS}/{id}"), None);
    assert_eq!(revoked.0, 204);
    assert_refused(&end(waiting), 401, "auth.token_revoked");
    assert_eq!(written(), Some(1));

    let (_, key) = make(&server, "demo", "write");
    let waiting = begin(&key);
    assert_eq!(server.request("DELETE", "/api/tenants/demo", None).0, 204);
    server.create("/api/tenants", &json!({"id": "demo"}));
    assert_refused(&end(waiting), 401, "auth.token_revoked");
    assert_eq!(written(), Some(0));
}

#[test]
fn what_does_not_make_a_key_is_refused_with_its_reason() {
    let (machine, server) = demo();
    for (body, said) in [
        (r#"{}"#, "name"),
        (r#"{"name":"a"}"#, "scope"),
        (r#"{"scope":"read"}"#, "name"),
        (r#"{"name":"","scope":"read"}"#, "1 to 100 characters"),
        (r#"{"name":" a","scope":"read"}"#, "1 to 100 characters"),
        (r#"{"name":"a\nb","scope":"read"}"#, "1 to 100 characters"),
        (
            r#"{"name":"a\u202eb","scope":"read"}"#,
            "1 to 100 characters",
        ),
        (r#"{"name":1,"scope":"read"}"#, "text is expected"),
        (r#"{"name":"a","scope":"admin"}"#, r#""read", "write""#),
        (r#"{"name":"a","scope":"Read"}"#, r#""read", "write""#),
        (
            r#"{"name":"a","scope":"read","key":"nk_mine"}"#,
            "is not a field here",
        ),
        (
            r#"{"name":"a","name":"b","scope":"read"}"#,
            "is there twice",
        ),
        ("[]", "JSON object"),
    ] {
        let answer = post(&machine, &server, KEYS, body.as_bytes());
        let message = assert_refused(&answer, 400, "op.invalid_input");
        assert!(message.contains(said), "{body}: {message}");
    }
    let body = br#"{"name":"a","scope":"read"}"#;
    let answer = post(&machine, &server, "/api/tenants/nobody/keys", body);
    assert_refused(&answer, 404, "session.tenant_not_found");
    assert_eq!(
        server.request("GET", "/api/tenants/nobody/keys", None).0,
        404
    );
    for id in [
        "nothing",
        "aaaaaaaaaaaaaaaa",
        "%00",
        "%ff",
        &"a".repeat(5000),
    ] {
        let (status, _) = server.request("DELETE", &format!("{KEYS}/{id}"), None);
        assert!(status == 404 || status == 400, "{id}: {status}");
    }
    assert_eq!(server.get(KEYS), json!({"keys": []}));
}

#[test]
fn credentials_that_are_not_right_are_refused_and_nothing_else_happens() {
    let (machine, server) = demo();
    let (_, key) = make(&server, "demo", "write");
    let admin = machine.token();
    let line = format!("GET {DOCUMENTS}/places");
    let other = |at: usize| {
        let mut other = key.clone().into_bytes();
        other[at] = if other[at] == b'a' { b'b' } else { b'a' };
        String::from_utf8(other).expect("ASCII")
    };
    for headers in [
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: Bearer{key}\r\n"),
        format!("Authorization: Bearer\t{key}\r\n"),
        format!("Authorization: Basic {key}\r\n"),
        format!("Authorization: {key}\r\n"),
        format!("Authorization: Bearer {key}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &key[..key.len() - 1]),
        format!("Authorization: Bearer {}\r\n", key.to_uppercase()),
        format!("Authorization: Bearer {}\r\n", other(5)),
        format!("Authorization: Bearer {}\r\n", other(30)),
        format!("Authorization: Bearer {}\r\n", other(75)),
        format!("Authorization: Bearer {key}, Bearer {admin}\r\n"),
        format!("Authorization: Bearer {key}\r\nAuthorization: Bearer {key}\r\n"),
        format!("Authorization: Bearer {key}\r\nAuthorization: Bearer {admin}\r\n"),
        format!("Authorization: Bearer {key}\r\nX-Nimbus-Admin-Token: {admin}\r\n"),
        format!("Authorization: Bearer nonsense\r\nX-Nimbus-Admin-Token: {admin}\r\n"),
        format!("X-Nimbus-Admin-Token: {key}\r\n"),
        "Authorization: Bearer ключ\r\n".to_owned(),
        "Authorization: Bearer nk_é\r\n".to_owned(),
        format!("Authorization: Bearer nk_{}\r\n", "a".repeat(10_000)),
    ] {
        let answer = send_bare(&server, &line, &headers, b"");
        assert_refused(&answer, 401, "auth.unauthorized");
    }
    // What HTTP itself does not allow in a header: the connection ends with 400, before any of our
    // code sees it.
    let address = server.address();
    for bad in ["a\0b", "a\rb", "a\nb"] {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}{bad}\r\n\r\n"
        );
        let answer = server.raw(request.as_bytes()).expect("an answer");
        assert!(
            matches!(answer.status, 400 | 401),
            "{bad:?}: {}",
            answer.status
        );
    }
    let answer = send_bare(
        &server,
        &line,
        &format!("Authorization: Bearer {key}\r\n"),
        b"",
    );
    assert_eq!(answer.status, 200);
    assert!(!server.log().contains(&key[20..]));
}

#[test]
fn keys_work_while_the_admin_token_cannot_be_read() {
    let (machine, server) = demo();
    let (_, key) = make(&server, "demo", "read");
    super::set_mode(&machine.token_file(), 0o644);
    assert_eq!(
        ask(&server, &key, "GET", &format!("{DOCUMENTS}/places")).0,
        200
    );
    assert_eq!(ask(&server, "nonsense", "GET", "/ready").0, 503);
}

#[test]
fn keys_that_are_made_and_revoked_while_they_are_used_never_answer_anything_else() {
    let (_machine, server) = demo();
    let path = format!("{DOCUMENTS}/places");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (server, path) = (&server, &path);
            let _ = scope.spawn(move || {
                for _ in 0..10 {
                    let (id, key) = make(server, "demo", "read");
                    assert_eq!(ask(server, &key, "GET", path).0, 200);
                    assert_eq!(
                        server.request("DELETE", &format!("{KEYS}/{id}"), None).0,
                        204
                    );
                    assert_eq!(ask(server, &key, "GET", path).0, 401);
                }
            });
        }
    });
    assert_eq!(server.get(KEYS), json!({"keys": []}));
}

/// A machine that is used by [`super::usage`] too.
pub(super) fn machine_with_key() -> (Machine, Server, String) {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let (_, key) = make(&server, "demo", "read");
    (machine, server, key)
}

#[test]
fn what_a_revoked_key_left_is_listed_and_can_be_cancelled() {
    let (machine, server) = demo();
    let (id, key) = make(&server, "demo", "write");
    let mutation = json!({"type": "insert", "table": "left", "fields": {}});
    let job = json!({"run_after_ms": 3_600_000, "mutation": mutation});
    let cron = json!({"name": "nightly", "mutation": mutation,
        "schedule": {"type": "interval", "seconds": 3600}});
    for (path, body) in [("schedule", &job), ("crons", &cron)] {
        let path = format!("/api/tenants/demo/{path}");
        assert_eq!(server.request_as(&key, "POST", &path, Some(body)).0, 201);
    }
    assert_eq!(
        server.request("DELETE", &format!("{KEYS}/{id}"), None).0,
        204
    );
    // Of a job that the key can no longer see or cancel, the operator can do both, after a restart
    // too.
    let (status, answer) = ask(&server, &key, "GET", "/api/tenants/demo/schedule");
    assert_error(status, &answer, (401, "auth.token_revoked"));
    server.stop();
    let server = machine.start(&[]);
    let jobs = server.get("/api/tenants/demo/schedule")["jobs"].take();
    let crons = server.get("/api/tenants/demo/crons")["crons"].take();
    assert_eq!(jobs.as_array().map(Vec::len), Some(1), "{jobs}");
    assert_eq!(crons.as_array().map(Vec::len), Some(1), "{crons}");
    let job = jobs[0]["id"].as_str().expect("an id");
    for path in [format!("schedule/{job}"), "crons/nightly".to_owned()] {
        let path = format!("/api/tenants/demo/{path}");
        assert_eq!(server.request("DELETE", &path, None).0, 204, "{path}");
    }
    assert_eq!(server.get("/api/tenants/demo/schedule")["jobs"], json!([]));
    assert_eq!(server.get("/api/tenants/demo/crons")["crons"], json!([]));
}
