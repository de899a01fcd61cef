//! A client generated from `/openapi.json` against the running server: no fault, and no answer outside the document.

use std::process::Command;

use nimbus_test_support::Machine;
use serde_json::json;

/// Left out, by their names in the document:
/// - `rotateAdminToken` takes the client's own credential away;
/// - `rotateKek`, `rotateDek` and `shred` change keys for good, and take paths on this machine;
/// - `lockTenant` takes the tenant away that the others ask for;
/// - `activateGeneration` has a tenant and a number and nothing else: where the client makes up a wrong tenant, that of its settings
///   takes its place, and what it takes for a wrong request is a right one;
/// - `encryptionStatus` with made-up queries reads every page of every tenant, which takes the time that others need.
const LEFT_OUT: [&str; 7] = [
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
        let _ = server.create("/api/tenants", &json!({"id": tenant}));
    }
    for n in 0..5 {
        let _ = server.insert("demo", "places", &json!({"n": n, "name": "Wengen"}));
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
        // Which hosts may ask is the proxy's and the operator's to say; a key of one tenant has tests of its own.
        .args([
            "--exclude-checks",
            "ignored_auth,object_level_authorization",
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
