//! The work that a server does before it is killed: documents whose values, field names and tables
//! are canaries.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nimbus_test_support::{Machine, Server};
use serde_json::json;
use sha2::Digest as _;

/// One in a value, one in the name of a field, one in the name of a table.
pub(crate) const CANARIES: &[&str] = &[
    "canaryvalue-5b1f7c0d9e",
    "canaryfield-c81a44e2b7",
    "canarytable-90d3fe6a15",
];
/// In what is refused: names of tables and fields, ids, credentials.
pub(crate) const STRAY_CANARY: &str = "canarystray-27ab6f93d0";
/// Whom requests under an access key are for.
pub(crate) const IDENTITY_CANARY: &str = "canaryidentity-e47c05b1d8";
/// Made, made anew after a deletion, and made in two attempts.
pub(crate) const TENANTS: [&str; 3] = ["made", "made-anew", "made-twice"];

/// Makes the tenants, each in its own way, with a kill in between. Answers an access key of the
/// first, and one that was revoked.
pub(crate) fn settle(machine: &Machine, arguments: &[&str]) -> [String; 2] {
    let server = start(machine, arguments, "");
    for tenant in ["made", "made-anew"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, CANARIES[2], &document(0));
    }
    assert_eq!(
        server.request("DELETE", "/api/tenants/made-anew", None).0,
        204
    );
    server.create("/api/tenants", &json!({"id": "made-anew"}));
    server.kill();

    let server = start(machine, arguments, "sqlcipher::connected=return");
    let body = json!({"id": "made-twice"});
    let answer = server.try_request_as(&machine.token(), "POST", "/api/tenants", Some(&body));
    assert!(answer.is_err(), "{answer:?}");
    server.wait_until_killed();
    let server = start(machine, arguments, "");
    server.create("/api/tenants", &body);
    let keys = ["kept", "revoked"].map(|name| {
        let body = json!({"name": name, "scope": "write"});
        server.create("/api/tenants/made/keys", &body)
    });
    let revoke = format!(
        "/api/tenants/made/keys/{}",
        keys[1]["id"].as_str().expect("an id")
    );
    assert_eq!(server.request("DELETE", &revoke, None).0, 204);
    let keys = keys.map(|key| key["key"].as_str().expect("a key").to_owned());
    let visit = visit(&server, &keys[0]).expect("an answer");
    assert_eq!(visit.0, 200, "{}", visit.1);
    save(machine, &server);
    // An orderly end: it is counted.
    server.stop();
    keys
}

/// Makes a snapshot in a repository of the machine, which is searched like everything else. In
/// plaintext that is refused.
fn save(machine: &Machine, server: &Server) {
    let to = json!({"to": machine.path("repository")});
    let (status, begun) = server.request("POST", "/api/admin/backups", Some(&to));
    let Some(id) = begun["operation"].as_str() else {
        assert_eq!(status, 400, "{begun}");
        return;
    };
    loop {
        let operation = server.get(&format!("/api/admin/operations/{id}"));
        match operation["state"].as_str() {
            Some("running") => thread::sleep(std::time::Duration::from_millis(20)),
            state => {
                assert_eq!(state, Some("done"), "{operation}");
                return;
            }
        }
    }
}

/// Reads, inserts, changes, deletes and errs on all tenants at once, and is killed in the middle.
pub(crate) fn work_and_die(machine: &Machine, arguments: &[&str], keys: &[String; 2]) {
    let server = start(machine, arguments, "");
    let token = machine.token();
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for client in 0..6 {
            let (server, token, done) = (&server, &token, &done);
            let _ = scope.spawn(move || work(server, token, keys, TENANTS[client % 3], done));
        }
    });
    server.wait_until_killed();
}

/// Works until the server is gone; kills it when enough was done by all.
fn work(server: &Server, token: &str, keys: &[String; 2], tenant: &str, done: &AtomicU64) {
    let documents = format!("/api/tenants/{tenant}/documents");
    let table = format!("{documents}/{}", CANARIES[2]);
    let deploys = format!("/api/tenants/{tenant}/deploy");
    for n in 0.. {
        let ask = |method, path: &str, body| server.try_request_as(token, method, path, body);
        let body = json!({"table": CANARIES[2], "fields": document(n)});
        let Ok((status, answer)) = ask("POST", &documents, Some(&body)) else {
            return;
        };
        assert_eq!(status, 201, "{answer}");
        let id = answer["id"].as_str().expect("an id");
        let path = format!("{table}/{id}");
        let patch = json!({"patch": {"more": CANARIES[0].repeat(20)}});
        let deploy = app(n);
        let answers = [
            ask("GET", &path, None),
            ask("PATCH", &path, Some(&patch)),
            if n.is_multiple_of(3) {
                ask("DELETE", &path, None)
            } else {
                ask("GET", &path, None)
            },
            if n.is_multiple_of(10) {
                ask("POST", &deploys, Some(&deploy))
            } else {
                ask("POST", &format!("{deploys}/1/activate"), None)
            },
            ask(
                "POST",
                &deploys,
                Some(
                    &json!({"name": STRAY_CANARY, "schemas": [], "crons": [], "files": [{"path": STRAY_CANARY}]}),
                ),
            ),
            // What is wrong is said in the answer, and stays out of the log.
            ask(
                "POST",
                &documents,
                Some(&json!({"table": format!("_{STRAY_CANARY}"), "fields": {}})),
            ),
            ask(
                "POST",
                &documents,
                Some(&json!({"table": "t", "fields": {format!("_{STRAY_CANARY}"): 1}})),
            ),
            ask(
                "GET",
                &format!("{documents}/{STRAY_CANARY}/{STRAY_CANARY}"),
                None,
            ),
            ask("GET", &format!("/{STRAY_CANARY}?{STRAY_CANARY}=1"), None),
            server.try_request_as(STRAY_CANARY, "GET", "/api/tenants", None),
            // Under an access key, for somebody, and with one that counts no more.
            visit(server, &keys[0]),
            server.try_request_as(&keys[1], "GET", "/api/tenants/made/documents/t", None),
        ];
        if answers.iter().any(Result::is_err) {
            return;
        }
        if done.fetch_add(1, Ordering::SeqCst) == ROUNDS {
            server.send_kill();
        }
    }
}

/// A request under an access key, for somebody.
fn visit(server: &Server, key: &str) -> Result<(u16, serde_json::Value), ureq::Error> {
    let headers = [("x-nimbus-identity", IDENTITY_CANARY)];
    let path = "/api/tenants/made/documents/t";
    server.try_request_with(key, &headers, "GET", path, None)
}

/// A deploy of files whose contents and paths are canaries too.
pub(crate) fn app(n: u64) -> serde_json::Value {
    let content = format!("{n} {}", CANARIES[0].repeat(5000));
    let hash = data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(content.as_bytes()));
    let encoded = data_encoding::BASE64.encode(content.as_bytes());
    let path = format!("{}/{}.txt", CANARIES[1], CANARIES[2]);
    let file = json!({"path": path, "sha256": hash, "content_base64": encoded});
    let schema = json!({"table": CANARIES[2], "indexes": [{"name": CANARIES[1], "fields": [CANARIES[1]], "unique": false}]});
    json!({"name": CANARIES[0], "schemas": [schema], "crons": [], "files": [file]})
}

/// With overflow pages now and then.
pub(crate) fn document(n: u64) -> serde_json::Value {
    let filler = if n.is_multiple_of(5) { 400 } else { 1 };
    json!({
        "n": n,
        CANARIES[1]: CANARIES[0].repeat(filler),
        "deep": [{CANARIES[1]: CANARIES[0]}],
    })
}

fn start(machine: &Machine, arguments: &[&str], failpoints: &str) -> Server {
    let mut command: Command = machine.nimbus(&["start", "--port", "0"]);
    command
        .args(arguments)
        .env("FAILPOINTS", failpoints)
        .env("RUST_LOG", "trace")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test");
    machine.start_command(command)
}

/// Rounds of all clients before the kill.
const ROUNDS: u64 = 90;
