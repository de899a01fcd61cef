//! The running server held to `/openapi.json`: by a client that is generated from it, and by
//! answers that such a client does not come to.

#![expect(
    clippy::disallowed_methods,
    reason = "tests write the files that generators read"
)]

mod clients;
mod strict;

use std::process::Command;

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

/// Left out, by their names in the document:
/// - `rotateAdminToken` takes the client's own credential away;
/// - `rotateKek`, `rotateDek` and `shred` change keys for good, and take paths on this machine;
/// - `createBackup` makes repositories wherever a path that is made up leads;
/// - `lockTenant` takes the tenant away that the others ask for;
/// - `activateGeneration` has a tenant and a number and nothing else: where the client makes up a
///   wrong tenant, that of its settings takes its place, and what it takes for a wrong request is a
///   right one;
/// - `encryptionStatus` with made-up queries reads every page of every tenant, which takes the time
///   that others need.
const LEFT_OUT: [&str; 8] = [
    "createBackup",
    "rotateAdminToken",
    "rotateKek",
    "rotateDek",
    "shred",
    "lockTenant",
    "activateGeneration",
    "encryptionStatus",
];

#[test]
fn the_server_answers_a_generated_client_as_its_document_says() {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let server = machine.start(&[]);
    for tenant in ["demo", "gone"] {
        server.create("/api/tenants", &json!({"id": tenant}));
    }
    for n in 0..5 {
        server.insert("demo", "places", &json!({"n": n, "name": "Wengen"}));
    }
    let venv = std::env::var("NIMBUS_TEST_VENV")
        .unwrap_or_else(|_| panic!("NIMBUS_TEST_VENV is not set: run scripts/test"));
    let config = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/openapi/schemathesis.toml"
    );
    let mut client = Command::new(format!("{venv}/bin/schemathesis"));
    let _ = client
        .args([
            "--config-file",
            config,
            "run",
            "--no-color",
            "--checks",
            "all",
        ])
        // Which hosts may ask is the proxy's and the operator's to say; a key of one tenant has
        // tests of its own. A machine may rest at any moment: no answer is timed.
        .args([
            "--exclude-checks",
            "ignored_auth,object_level_authorization",
            "--max-response-time",
            "3600",
        ])
        .args(["--report", "junit", "--report-dir"])
        .arg(machine.path("report"))
        .args(
            LEFT_OUT
                .iter()
                .flat_map(|name| ["--exclude-operation-id", name]),
        )
        .arg(format!("http://{}/openapi.json", server.address()))
        .current_dir(machine.root())
        .env("NIMBUS_TEST_TOKEN", machine.token())
        .env("HOME", machine.path("home"));
    let ended = client.output().expect("schemathesis runs");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success(),
        "{said}\n{}\n{}",
        String::from_utf8_lossy(&ended.stderr),
        server.log()
    );
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.stop();
}

/// What the generated client leaves out, and answers whose shape depends on what was done before.
#[test]
fn answers_about_keys_operations_and_schedules_have_the_shapes_of_the_document() {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let server = machine.start(&[]);
    for tenant in ["demo", "gone"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "notes", &json!({}));
    }
    let held = Held {
        document: server.get("/openapi.json"),
        server: &server,
    };
    let status = "/debug/encryption/status";
    for verify in ["none", "unwrap", "open"] {
        let _ = held.ask("GET", status, &format!("{status}?verify={verify}"), None);
    }
    for (path, locked) in [("lock", true), ("unlock", false)] {
        let path = format!("/api/admin/encryption/{path}");
        let answer = held.ask("POST", &path, &path, Some(json!({"tenant_id": "demo"})));
        assert_eq!(answer["locked"], locked);
        let found = held.ask("GET", status, status, None);
        let is_locked = |file: &Value| file["locked"] == true;
        let files = found["files"].as_array().expect("files");
        assert_eq!(files.iter().any(is_locked), locked, "{found}");
    }
    let path = "/debug/doctor";
    let _ = held.ask("GET", path, path, None);

    let key = machine.path("new.key");
    let mut keygen = machine.nimbus(&["encryption", "keygen", "--master-key-file"]);
    assert!(keygen.arg(&key).status().expect("nimbus runs").success());
    let data = machine.data_dir();
    for (kind, request) in [
        ("rotate-dek", json!({"path": data, "all": true})),
        (
            "rotate-kek",
            json!({"path": data, "all": true, "new_master_key_file": key}),
        ),
        ("shred", json!({"tenant_id": "gone"})),
    ] {
        let path = format!("/api/admin/encryption/{kind}");
        let begun = held.ask("POST", &path, &path, Some(request));
        let operation = begun["operation"].as_str().expect("an id");
        let path = format!("/api/admin/operations/{operation}");
        let ended = loop {
            let answer = held.ask("GET", "/api/admin/operations/{id}", &path, None);
            if answer["state"] != "running" {
                break answer;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert_eq!(ended["state"], "done", "{ended}");
    }
    let path = "/api/admin/encryption/audit";
    let _ = held.ask("GET", path, path, None);

    let mutation = json!({"type": "insert", "table": "notes", "fields": {"n": 1}});
    let crons = "/api/tenants/{t}/crons";
    for (name, schedule) in [
        ("often", json!({"type": "interval", "seconds": 1})),
        (
            "nightly",
            json!({"type": "cron", "expression": "30 3 * * *", "timezone": "UTC"}),
        ),
    ] {
        let cron = json!({"name": name, "schedule": schedule, "mutation": mutation});
        let _ = held.ask("POST", crons, "/api/tenants/demo/crons", Some(cron));
    }
    // Once with a cron that never ran, and once with one that did.
    while held.ask("GET", crons, "/api/tenants/demo/crons", None)["crons"]
        .as_array()
        .expect("crons")
        .iter()
        .all(|cron| cron["last_run"].is_null())
    {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let path = "/api/admin/token/rotate";
    let _ = held.ask("POST", path, path, None);
    server.stop();
}

/// A server and what it says of itself.
struct Held<'a> {
    document: Value,
    server: &'a Server,
}

impl Held<'_> {
    /// What is answered, which is a success, and as the document has it for `route`.
    fn ask(&self, method: &str, route: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.server.request(method, path, body.as_ref());
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        let operation = &self.document["paths"][route][method.to_lowercase()];
        let schema =
            &operation["responses"][status.to_string()]["content"]["application/json"]["schema"];
        assert!(
            schema.is_object(),
            "{method} {route} says nothing of {status}"
        );
        let whole = json!({"allOf": [schema], "components": self.document["components"]});
        let shape = jsonschema::validator_for(&whole).expect("a schema");
        if let Some(error) = shape.iter_errors(&answer).next() {
            panic!(
                "{method} {path}: at {}: {error}\n{answer:#}",
                error.instance_path()
            );
        }
        answer
    }
}
