use std::fs;

use nimbus_test_support::{Machine, Server, files_under, until};
use serde_json::{Value, json};

use super::shipping::{begun, instant, pass, ships, stamp};
use super::{Ran, add, as_str, backup, machine, notes, restore};

fn proofs(machine: &Machine) -> Value {
    let list = ["list", "--from", "repo", "--format", "json"];
    backup(machine, &list).json()["proofs"].clone()
}

fn check(server: &Server) -> Value {
    let found = server.get("/debug/doctor");
    let checks = found["checks"].as_array().expect("checks").clone();
    let ours = checks
        .into_iter()
        .find(|one| one["name"] == "backup-proofs");
    ours.expect("the check")
}

fn operate(server: &Server, path: &str, body: &Value) -> Value {
    let (status, begun) = server.request("POST", path, Some(body));
    assert_eq!(status, 202, "{begun}");
    let operation = begun["operation"].as_str().expect("its id");
    let operation = format!("/api/admin/operations/{operation}");
    until("it ends", || server.get(&operation)["state"] != "running");
    server.get(&operation)
}

#[test]
fn each_tenant_is_restored_and_proven_in_turn_and_one_that_does_not_restore_is_named() {
    let machine = machine();
    let server = ships(&machine, &["--backup-verify-every", "2s"], &[]);
    for tenant in ["a", "b"] {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
        add(&server, tenant, 3);
    }
    begun(&server);
    let now = instant(&server, &["a"]).ms;
    pass(&server, now);
    until("both are proven", || {
        let proofs = proofs(&machine);
        proofs["a"]["at"].is_string() && proofs["b"]["at"].is_string()
    });
    let listed = server.get("/api/admin/backups");
    assert!(listed["proofs"]["a"]["taken"].is_string(), "{listed}");
    let status = server.get("/debug/encryption/status");
    let files = status["files"].as_array().expect("files").clone();
    let a = files.iter().find(|file| file["path"] == "a.sqlite3");
    assert!(a.expect("a")["restored"].is_string(), "{status}");
    until("nothing is missing", || check(&server)["verdict"] == "ok");
    let found = check(&server)["found"].to_string();
    assert!(found.contains("restored and proven, between 20"), "{found}");
    let shown = super::run(machine.nimbus(&["encryption", "status"]));
    let _ = shown.expect(0, &["PROVEN RESTORE"]);
    let shown = shown.said();
    let line = shown.lines().find(|line| line.starts_with("a.sqlite3"));
    assert!(line.is_some_and(|line| line.ends_with('Z')), "{shown}");
    let (status, metrics) = server.request("GET", "/metrics", None);
    assert_eq!(status, 200, "{metrics}");
    let verified = operate(&server, "/api/admin/backups/verify", &json!({"deep": true}));
    assert_eq!(verified["result"]["damage"], json!([]), "{verified}");
    // Its pages are gone: the next proof fails, and says so.
    let manifest = machine.data_dir().join("b.sqlite3.nimbus-enc");
    let manifest = fs::read_to_string(manifest).expect("a manifest");
    let line = manifest.lines().find(|line| line.starts_with("file-id"));
    let file_id = line
        .and_then(|line| line.rsplit(' ').next())
        .expect("its id");
    for object in files_under(&machine.path("repo/keys")) {
        if as_str(&object).contains(file_id) {
            fs::remove_file(object).expect("a manifest that goes");
        }
    }
    until("it is named", || {
        let check = check(&server);
        check["verdict"] == "problem" && check["found"].to_string().contains("b: ")
    });
    server.stop();
}

#[test]
fn proofs_need_a_repository() {
    let machine = machine();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    let _ = command.args(["--backup-verify-every", "1h"]);
    machine
        .run_to_end(command)
        .expect(2, &["--backup-verify-every", "--backup-to"]);
}

#[test]
fn a_tenant_is_restored_as_it_was_at_any_instant_while_the_server_ships() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    begun(&server);
    add(&server, "a", 2);
    let then = instant(&server, &["a"]);
    add(&server, "a", 3);
    pass(&server, instant(&server, &["a"]).ms);
    assert_eq!(server.request("DELETE", "/api/tenants/a", None).0, 204);
    pass(&server, instant(&server, &[]).ms);
    let data = machine.data_dir();
    let at = stamp(then.ms);
    let bring_back = |more: &[&str]| -> Ran {
        let one = ["--tenant-id", "a"];
        restore(&machine, as_str(&data), &[&one[..], more].concat())
    };
    let _ = bring_back(&["--at", &at]).expect(0, &["Restored tenant a of the instant"]);
    assert_eq!(then.notes["a"], notes(&server, "a"));
    let _ = bring_back(&["--at", "2001-01-01T00:00:00Z", "--as", "b"]).expect(1, &["2001-01-01"]);
    server.stop();
}

#[test]
fn what_packs_name_is_never_pruned() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    begun(&server);
    add(&server, "a", 2);
    // Its pages are stored for the packs, and for the snapshots after it under the same names.
    drop(server.create("/api/tenants", &json!({"id": "later"})));
    add(&server, "later", 2);
    let then = instant(&server, &["a", "later"]);
    pass(&server, then.ms);
    for _ in 0..3 {
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
        add(&server, "a", 1);
    }
    let now = instant(&server, &["a", "later"]);
    pass(&server, now.ms);
    server.stop();
    let prune = ["prune", "--from", "repo", "--keep-daily", "1"];
    let at_once = [("FAILPOINTS", "removal::safe-age=return")];
    // The first is where the packs begin.
    let _ = super::backup_with(&machine, &prune, &at_once)
        .expect(0, &["Removed", "Kept: snapshots 1, 4"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    super::shipping::check(&machine, &then);
    super::shipping::check(&machine, &now);
}
