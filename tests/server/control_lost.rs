//! The control file is removed while tenants and their audit log stay: it is missed, and what the
//! log says is locked stays locked.

use std::fs;
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::access_keys::make;
use super::{assert_error, machine};

const CONTROL: [&str; 2] = ["nimbus-control.db", "nimbus-control.db.nimbus-enc"];
const LOG: &str = "nimbus-audit.log";
const STATUS: &[&str] = &["encryption", "status"];

/// A stopped deployment, and an access key of its tenant `stays`.
fn town() -> (Machine, String) {
    let machine = machine();
    let server = machine.start(&[]);
    for tenant in ["stays", "locked", "unlocked", "gone"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "notes", &json!({"n": 1}));
    }
    let (_, key) = make(&server, "stays", "read");
    for (verb, tenant) in [
        ("lock", "locked"),
        ("lock", "unlocked"),
        ("unlock", "unlocked"),
    ] {
        let path = format!("/api/admin/encryption/{verb}");
        let (status, answer) = server.request("POST", &path, Some(&json!({"tenant_id": tenant})));
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(server.request("DELETE", "/api/tenants/gone", None).0, 204);
    server.stop();
    (machine, key)
}

fn file(machine: &Machine, name: &str) -> PathBuf {
    machine.data_dir().join(name)
}

fn move_all(names: &[&str], from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for name in names {
        fs::rename(from.join(name), to.join(name)).expect("moved");
    }
}

/// What a command says, which ends with this code.
fn says(machine: &Machine, arguments: &[&str], code: i32) -> String {
    let ran = machine.nimbus(arguments).output().expect("it runs");
    let said = String::from_utf8([ran.stdout, ran.stderr].concat()).expect("UTF-8");
    assert_eq!(ran.status.code(), Some(code), "{said}");
    said
}

fn list(server: &Server, tenant: &str) -> (u16, Value) {
    let path = format!("/api/tenants/{tenant}/documents/notes");
    server.request("GET", &path, None)
}

fn assert_as_the_log_says(server: &Server, key: &str) {
    let (status, answer) = list(server, "locked");
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    for tenant in ["stays", "unlocked"] {
        assert_eq!(list(server, tenant).0, 200, "{tenant}");
    }
    assert_eq!(list(server, "gone").0, 404);
    let by_key = server.request_as(key, "GET", "/api/tenants/stays/documents/notes", None);
    assert_eq!(by_key.0, 401, "{}", by_key.1);
}

fn check<'a>(doctor: &'a Value, name: &str) -> &'a Value {
    let checks = doctor["checks"].as_array().expect("checks");
    let found = checks.iter().find(|check| check["name"] == name);
    found.expect("the check")
}

#[test]
fn it_is_missed_and_the_new_one_locks_what_the_log_says_is_locked() {
    let (machine, key) = town();
    move_all(&CONTROL, &machine.data_dir(), &machine.path("lost"));

    let said = says(&machine, STATUS, 3);
    for words in ["database-missing", "nimbus start", "runbook"] {
        assert!(said.contains(words), "{said}");
    }
    let said = says(&machine, &["doctor", "--format", "json"], 3);
    let doctor: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(check(&doctor, "files")["verdict"], "problem");
    assert_eq!(check(&doctor, "audit-log")["verdict"], "problem");
    // No command makes a new one without a word.
    for command in [
        &["encryption", "lock", "--tenant-id", "stays"][..],
        &["encryption", "shred", "--tenant-id", "stays", "--yes"],
        &["encryption", "audit", "--verify"],
        &["encryption", "repair"],
    ] {
        let said = says(&machine, command, 1);
        assert!(said.contains("gone"), "{said}");
        assert!(!file(&machine, CONTROL[0]).exists());
    }
    says(&machine, &["encryption", "audit"], 0);

    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("RUST_LOG", "error");
    let server = machine.start_command(command);
    let log = server.log();
    for words in [
        "was gone, and a new one was made",
        "1 tenant locked again",
        "access keys are gone",
    ] {
        assert!(log.contains(words), "no {words} in {log}");
    }
    assert_as_the_log_says(&server, &key);
    server.stop();
    let said = says(&machine, &["encryption", "audit"], 0);
    for event in ["log-broken", "lock", "restore"] {
        assert!(said.contains(event), "{said}");
    }
    says(&machine, &["encryption", "audit", "--verify"], 0);
    says(&machine, STATUS, 0);
    let server = machine.start(&[]);
    assert!(!server.log().contains("was gone"), "it is said once");
    assert_as_the_log_says(&server, &key);
    server.stop();
}

#[test]
fn a_kill_while_the_new_one_is_made_forgets_no_lock() {
    let (machine, key) = town();
    for (n, point) in [
        "audit::reapplied-one",
        "audit::reapplied",
        "audit::set-aside",
        "audit::appended",
        "audit::recorded",
    ]
    .into_iter()
    .enumerate()
    {
        // As at the beginning.
        let kept = machine.path("kept");
        if n == 0 {
            let names = [&CONTROL[..], &[LOG]].concat();
            move_all(&names, &machine.data_dir(), &kept);
        }
        for name in CONTROL {
            let _none = fs::remove_file(file(&machine, name));
        }
        let _ = fs::copy(kept.join(LOG), file(&machine, LOG)).expect("the log");
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        command.env("FAILPOINTS", format!("{point}=return"));
        machine.run_to_end(command).expect_killed();
        // A command may come before the next start.
        says(&machine, &["encryption", "lock", "--tenant-id", "stays"], 0);
        says(
            &machine,
            &["encryption", "unlock", "--tenant-id", "stays"],
            0,
        );
        let server = machine.start(&[]);
        assert_as_the_log_says(&server, &key);
        server.stop();
        let said = says(&machine, &["encryption", "audit"], 0);
        assert!(said.contains("log-broken"), "{point}: {said}");
        says(&machine, &["encryption", "audit", "--verify"], 0);
    }
}

#[test]
fn without_a_log_it_is_said_what_cannot_be_known() {
    let (machine, _) = town();
    let names = [&CONTROL[..], &[LOG]].concat();
    move_all(&names, &machine.data_dir(), &machine.path("lost"));
    let said = says(&machine, STATUS, 3);
    assert!(said.contains("database-missing"), "{said}");
    assert!(said.contains("is not known"), "{said}");
    let server = machine.start(&[]);
    let log = server.log();
    assert!(
        log.contains("whichever were locked are served now"),
        "{log}"
    );
    assert_eq!(list(&server, "locked").0, 200);
    server.stop();
    let text = fs::read_to_string(file(&machine, LOG)).expect("the log");
    assert!(text.contains("there are tenants already"), "{text}");
}

#[test]
fn a_tenant_that_was_brought_to_a_new_place_misses_nothing() {
    let (machine, _) = town();
    let new = machine.path("new");
    fs::create_dir(&new).expect("a directory");
    for name in ["stays.sqlite3", "stays.sqlite3.nimbus-enc"] {
        let _ = fs::copy(file(&machine, name), new.join(name)).expect("a copy");
    }
    let path = new.to_str().expect("a path");
    let said = says(&machine, &[STATUS, &["--data-dir", path]].concat(), 0);
    assert!(!said.contains("nimbus-control.db"), "{said}");
    // Nor after commands used it: only a control file that was there is missed.
    let source = new.join("stays.sqlite3");
    let source = source.to_str().expect("a path");
    let rotate = [
        "encryption",
        "rotate-dek",
        "--tenant-id",
        "stays",
        "--path",
        source,
    ];
    says(&machine, &rotate, 0);
    assert!(new.join("nimbus.lock").exists());
    let said = says(&machine, &[STATUS, &["--data-dir", path]].concat(), 0);
    assert!(!said.contains("nimbus-control.db"), "{said}");
}

#[test]
fn a_directory_whose_mark_was_lost_is_marked_again_by_the_next_opening() {
    let (machine, _) = town();
    fs::remove_file(file(&machine, "nimbus.deployed")).expect("the mark");
    says(&machine, &["encryption", "lock", "--tenant-id", "stays"], 0);
    assert!(file(&machine, "nimbus.deployed").exists());
    let names = [&CONTROL[..], &[LOG]].concat();
    move_all(&names, &machine.data_dir(), &machine.path("lost"));
    let said = says(&machine, STATUS, 3);
    assert!(said.contains("database-missing"), "{said}");
}

#[test]
fn a_running_server_says_that_it_was_taken_away() {
    let (machine, _) = town();
    let server = machine.start(&[]);
    let lost = machine.path("lost");
    move_all(&CONTROL, &machine.data_dir(), &lost);
    let said = says(&machine, STATUS, 3);
    assert!(said.contains("database-missing"), "{said}");
    assert!(said.contains("while this server has them open"), "{said}");
    move_all(&CONTROL, &lost, &machine.data_dir());
    says(&machine, STATUS, 0);
    server.stop();
    says(&machine, STATUS, 0);
}
