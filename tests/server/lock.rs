//! Tenants that an operator locks by hand.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nimbus_test_support::{Ended, Machine, Server};
use serde_json::{Value, json};

use super::{assert_error, machine};

const THINGS: &str = "/api/tenants/demo/documents/things";

fn run(machine: &Machine, verb: &str, tenant: &str) -> Ended {
    machine.run_to_end(machine.nimbus(&["encryption", verb, "--tenant-id", tenant]))
}

fn populated() -> (Machine, Server, Value) {
    let machine = machine();
    let server = machine.start(&[]);
    for tenant in ["demo", "other"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"n": 1}));
    }
    let before = server.get(THINGS);
    (machine, server, before)
}

#[track_caller]
fn assert_locked(server: &Server) {
    for (method, path, body) in [
        ("GET", THINGS, None),
        (
            "POST",
            "/api/tenants/demo/documents",
            Some(json!({"table": "things", "fields": {}})),
        ),
    ] {
        let (status, answer) = server.request(method, path, body.as_ref());
        let message = assert_error(status, &answer, (503, "encryption.key_revoked"));
        assert!(message.contains("locked by an operator"), "{message}");
        let remedy = answer["error"]["remediation"].as_str().expect("a remedy");
        assert!(remedy.contains("nimbus encryption unlock"), "{remedy}");
    }
    let other = server.get("/api/tenants/other/documents/things");
    assert_eq!(other["data"][0]["n"], 1, "others are served");
}

fn locked_in_status(server: &Server) -> Vec<String> {
    let status = server.get("/debug/encryption/status");
    assert_eq!(status["summary"]["problems"], 0, "{status}");
    let files = status["files"].as_array().expect("files");
    let locked = files.iter().filter(|file| file["locked"] == json!(true));
    locked
        .map(|file| file["path"].as_str().expect("a path").to_owned())
        .collect()
}

#[test]
fn a_locked_tenant_is_refused_over_restarts_until_it_is_unlocked() {
    let (machine, server, before) = populated();
    run(&machine, "lock", "demo").expect(0, &["demo is locked", "unlock"]);
    run(&machine, "lock", "demo").expect(0, &["locked already"]);
    assert_locked(&server);
    assert_eq!(locked_in_status(&server), ["demo.sqlite3"]);
    let log = std::fs::read_to_string(machine.find("nimbus-audit.log")).expect("the audit log");
    assert!(log.contains(r#""lock""#) && log.contains("admin:"), "{log}");
    server.stop();
    let server = machine.start(&[]);
    assert_locked(&server);
    run(&machine, "unlock", "demo").expect(0, &["unlocked"]);
    run(&machine, "unlock", "demo").expect(0, &["was not locked"]);
    assert_eq!(server.get(THINGS), before);
    assert_eq!(locked_in_status(&server), [""; 0]);
    server.stop();
    assert_eq!(machine.start(&[]).get(THINGS), before);
}

#[test]
fn a_lock_is_recorded_for_the_next_start_when_no_server_runs() {
    let (machine, server, before) = populated();
    server.stop();
    run(&machine, "lock", "demo").expect(0, &["demo is locked"]);
    let server = machine.start(&[]);
    assert_locked(&server);
    server.stop();
    run(&machine, "unlock", "demo").expect(0, &["unlocked"]);
    assert_eq!(machine.start(&[]).get(THINGS), before);
}

#[test]
fn a_server_killed_between_the_record_of_a_lock_and_the_lock_starts_with_it() {
    let (machine, server, _before) = populated();
    server.stop();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", "lock::recorded=return");
    let server = machine.start_command(command);
    run(&machine, "lock", "demo").expect(1, &["does not answer"]);
    server.wait_until_killed();
    assert_locked(&machine.start(&[]));
}

/// Whoever may write cannot keep the tenant open by work that takes long.
#[test]
fn a_lock_ends_the_making_of_indexes_and_nothing_of_it_is_there_after_it() {
    let (machine, server, _) = populated();
    let large = json!({"table": "fat", "fields": {"text": "x".repeat(900_000)}});
    let documents = "/api/tenants/demo/documents";
    let ids: Vec<Value> = (0..12)
        .map(|_| server.create(documents, &large)["id"].take())
        .collect();
    let index = |n| json!({"name": format!("i{n}"), "fields": ["text", format!("f{n}")]});
    let schema = json!({"table": "fat", "indexes": (0..32).map(index).collect::<Vec<_>>()});
    let path = "/api/tenants/demo/schema/fat";
    let size = |name| fs::metadata(machine.data_dir().join(name)).map_or(0, |file| file.len());
    let grown = || size("demo.sqlite3-wal") + size("demo.sqlite3");
    let before = grown();
    let (status, answer) = thread::scope(|scope| {
        let put = scope.spawn(|| server.request("PUT", path, Some(&schema)));
        let patience = Instant::now() + Duration::from_secs(60);
        // The indexes would take 350 MB.
        while grown() < before + (20 << 20) {
            assert!(!put.is_finished() && Instant::now() < patience);
            thread::sleep(Duration::from_millis(1));
        }
        run(&machine, "lock", "demo").expect(0, &["demo is locked"]);
        put.join().expect("an answer")
    });
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    assert_locked(&server);
    run(&machine, "unlock", "demo").expect(0, &["unlocked"]);
    let (status, answer) = server.request("GET", path, None);
    assert_error(status, &answer, (404, "op.schema_not_found"));
    for id in &ids {
        let id = id.as_str().expect("an id");
        let document = server.get(&format!("{documents}/fat/{id}"));
        assert_eq!(document["document"]["text"], large["fields"]["text"]);
    }
    server.stop();
}

#[test]
fn a_tenant_that_is_not_there_is_not_locked() {
    let (machine, server, _before) = populated();
    run(&machine, "lock", "nobody").expect(1, &["no tenant nobody"]);
    let body = json!({"tenant_id": "nobody"});
    let (status, answer) = server.request("POST", "/api/admin/encryption/lock", Some(&body));
    assert_error(status, &answer, (404, "session.tenant_not_found"));
    server.stop();
    run(&machine, "unlock", "nobody").expect(1, &["no tenant nobody"]);
}

#[test]
fn a_lock_ends_with_its_tenant() {
    let (machine, server, _before) = populated();
    run(&machine, "lock", "demo").expect(0, &[]);
    let (status, _none) = server.request("DELETE", "/api/tenants/demo", None);
    assert_eq!(status, 204);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.insert("demo", "things", &json!({"n": 2}));
    server.stop();
    assert_eq!(machine.start(&[]).get(THINGS)["data"][0]["n"], 2);
}

#[test]
fn a_lock_and_an_unlock_at_once_leave_core_control_file_and_log_of_one_mind() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.stop();
    for round in 0..4 {
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        // Whichever is first dwells between control file and core: the other must wait for it.
        command.env("FAILPOINTS", "lock::recorded=1*sleep(1500)->off");
        let server = machine.start_command(command);
        thread::scope(|scope| {
            for verb in ["lock", "unlock", "lock", "unlock"] {
                let server = &server;
                let _ = scope.spawn(move || {
                    let path = format!("/api/admin/encryption/{verb}");
                    let body = json!({"tenant_id": "demo"});
                    let (status, answer) = server.request("POST", &path, Some(&body));
                    assert_eq!(status, 200, "{answer}");
                });
            }
        });
        let of_core = !locked_in_status(&server).is_empty();
        let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
        let last = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("a line"))
            .filter(|line| line["outcome"] == "done")
            .filter_map(|line| line["event"].as_str().map(str::to_owned))
            .rfind(|event| event == "lock" || event == "unlock");
        server.stop();
        let server = machine.start(&[]);
        let of_control = !locked_in_status(&server).is_empty();
        server.stop();
        assert_eq!(of_core, of_control, "round {round}: core and control file");
        assert_eq!(
            last.as_deref() == Some("lock"),
            of_core,
            "round {round}: log and core"
        );
    }
}
