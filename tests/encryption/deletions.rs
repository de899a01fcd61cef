//! Deletions that something keeps from ending: who finishes one records it, and until then every
//! command says what is the matter.

use std::fs;

use nimbus_test_support::Machine;
use serde_json::{Value, json};

use super::{as_str, deployment, encryption, health, machine, run, status};

/// Outcome and detail of each line of the audit log about the deletion of `tenant`.
fn deletions(machine: &Machine, tenant: &str) -> Vec<(String, String)> {
    let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line"));
    let subject = format!("db:sqlite:tenant:{tenant}:{tenant}.sqlite3");
    lines
        .filter(|line: &Value| line["event"] == "delete" && line["subject"] == subject)
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            (text("outcome"), text("detail"))
        })
        .collect()
}

/// A directory in the place of a file of the tenant, which no deletion removes.
fn obstruct(machine: &Machine, tenant: &str) -> std::path::PathBuf {
    let stuck = machine
        .data_dir()
        .join(format!("{tenant}.sqlite3.plaintext"));
    fs::create_dir(&stuck).expect("a directory of that name");
    stuck
}

#[test]
fn whoever_finishes_a_deletion_records_it() {
    let machine = deployment(&["again", "restart", "create", "shred"], &[]);
    let server = machine.start(&[]);
    let delete = |tenant: &str| server.request("DELETE", &format!("/api/tenants/{tenant}"), None);
    let mut obstacles = Vec::new();
    for tenant in ["again", "restart", "create", "shred"] {
        obstacles.push(obstruct(&machine, tenant));
        // Twice: each failure is there with its cause.
        for _ in 0..2 {
            assert!(delete(tenant).0 >= 500);
        }
        let told = deletions(&machine, tenant);
        let outcomes: Vec<_> = told.iter().map(|(outcome, _)| &**outcome).collect();
        assert_eq!(outcomes, ["begun", "failed", "failed"]);
        assert!(told[2].1.contains(".plaintext"), "{told:?}");
    }
    for obstacle in &obstacles {
        fs::remove_dir(obstacle).expect("removed by hand");
    }
    let ended = |tenant: &str, said: &str| {
        let told = deletions(&machine, tenant);
        let (outcome, detail) = told.last().expect("lines");
        assert_eq!(outcome, "done", "{tenant}: {told:?}");
        assert!(detail.contains(said), "{tenant}: {told:?}");
    };
    assert_eq!(delete("again").0, 204);
    ended("again", "a later call finished it");
    server.create("/api/tenants", &json!({"id": "create"}));
    ended("create", "a later call finished it");
    let shred = ["shred", "--tenant-id", "shred", "--yes"];
    let _ = encryption(&machine, &shred).expect(0, &["is shredded"]);
    ended("shred", "a later call finished it");
    server.stop();
    machine.start(&[]).stop();
    ended("restart", "this start finished it");
    let _ = encryption(&machine, &["audit", "--verify"]).expect(0, &["whole"]);
}

#[test]
fn status_doctor_and_repair_name_a_deletion_that_has_not_ended_and_what_ends_it() {
    let machine = machine();
    super::fill(&machine, &["alpha", "beta"], &[]);
    let server = machine.start(&[]);
    let stuck = obstruct(&machine, "alpha");
    let name = "alpha.sqlite3.plaintext";
    let shred = ["shred", "--tenant-id", "alpha", "--yes"];
    let _ = encryption(&machine, &shred).expect(1, &[name]);
    let finishes = "`nimbus encryption shred --tenant-id alpha --yes` finishes it";
    let look = |with_server: bool| {
        let found = status(&machine, &[], 3);
        assert_eq!(health(&found, "alpha.sqlite3"), "deleting", "{found}");
        assert_eq!(health(&found, "beta.sqlite3"), "ok");
        let found = found.to_string();
        for words in ["cannot be removed", name, finishes] {
            assert!(found.contains(words), "{words}: {found}");
        }
        let doctor = run(machine.nimbus(&["doctor"]));
        let _ = doctor.expect(3, &["PROBLEM  pending", "cannot be removed", finishes]);
        let _ = doctor.expect(3, &["ok       newest-key"]);
        if !with_server {
            let words = [finishes, "cannot be removed", "Not all is repaired"];
            let repair = encryption(&machine, &["repair"]);
            let _ = repair.expect(3, &words);
        }
    };
    look(true);
    server.stop();
    look(false);
    // A start does not get on with it either, and says why.
    let server = machine.start(&[]);
    assert!(server.log().contains(as_str(&stuck)), "{}", server.log());
    look(true);
    fs::remove_dir(&stuck).expect("removed by hand");
    let _ = encryption(&machine, &shred).expect(0, &["is shredded"]);
    status(&machine, &[], 0);
    server.stop();
    let _ = encryption(&machine, &["repair"]).expect(0, &["No manifest is missing"]);
}
