use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nimbus_test_support::Machine;
use serde_json::{Value, json};

use super::{as_str, deployment, identity, run};

fn doctor(machine: &Machine, code: i32) -> Value {
    let ran = run(machine.nimbus(&["doctor", "--format", "json"]));
    ran.expect(code, &[]).json()
}

/// What is said of one check.
fn verdict(found: &Value, name: &str) -> String {
    let checks = found["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no {name} in {found:#}"));
    let verdict = check["verdict"].as_str().expect("a verdict").to_owned();
    assert_eq!(verdict != "ok", check["remedy"].is_string(), "{check}");
    verdict
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn a_sound_deployment_has_no_problem_offline_and_through_the_server() {
    let machine = deployment(&["alpha"], &[]);
    let offline = doctor(&machine, 0);
    let server = machine.start(&[]);
    let online = doctor(&machine, 0);
    server.stop();
    let names = |found: &Value| {
        let checks = found["checks"].as_array().expect("checks").clone();
        checks
            .iter()
            .map(|check| check["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&offline), names(&online));
    for found in [&offline, &online] {
        assert_eq!(found["problems"], 0, "{found:#}");
        for name in [
            "key-provider",
            "files",
            "newest-key",
            "data-key-age",
            "pending",
            "key-modes",
            "data-modes",
            "clock",
            "audit-log",
            "backup-proofs",
        ] {
            assert_eq!(verdict(found, name), "ok", "{name}");
        }
        // Nobody could open it if the key were lost.
        assert_eq!(verdict(found, "recovery"), "warning");
    }
    let text = run(machine.nimbus(&["doctor"]));
    let _ = text.expect(
        0,
        &[
            "ok       key-provider",
            "warning  recovery",
            "checks",
            "0 problems",
        ],
    );
}

#[test]
fn unsafe_modes_and_a_broken_audit_log_are_problems() {
    let machine = deployment(&["alpha"], &[]);
    let keys = machine.master_key();
    let keys = keys.parent().expect("its directory");
    chmod(keys, 0o777);
    assert_eq!(verdict(&doctor(&machine, 3), "key-modes"), "problem");
    chmod(keys, 0o700);
    chmod(&machine.data_dir(), 0o755);
    assert_eq!(verdict(&doctor(&machine, 0), "data-modes"), "warning");
    chmod(&machine.data_dir(), 0o777);
    assert_eq!(verdict(&doctor(&machine, 3), "data-modes"), "problem");
    chmod(&machine.data_dir(), 0o700);
    fs::remove_file(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    assert_eq!(verdict(&doctor(&machine, 3), "audit-log"), "problem");
}

#[test]
fn what_is_left_of_a_rotation_or_in_plaintext_is_told() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let new = machine.path("new.key");
    let data = machine.data_dir();
    let keygen = ["encryption", "keygen", "--master-key-file", as_str(&new)];
    let _ = run(machine.nimbus(&keygen)).expect(0, &[]);
    let alpha = data.join("alpha.sqlite3");
    let rotate = [
        "encryption",
        "rotate-kek",
        "--path",
        as_str(&alpha),
        "--new-master-key-file",
        as_str(&new),
    ];
    let _ = run(machine.nimbus(&rotate)).expect(0, &[]);
    // The settings still name the old key: alpha is not under it.
    let found = doctor(&machine, 3);
    assert_eq!(verdict(&found, "newest-key"), "warning");
    assert_eq!(verdict(&found, "files"), "problem");
    fs::write(data.join("old.sqlite3.plaintext"), "left").expect("a file");
    assert_eq!(verdict(&doctor(&machine, 3), "plaintext-left"), "warning");
}

#[test]
fn a_recovery_recipient_on_every_file_is_what_recovery_asks_for() {
    let machine = super::machine();
    let recipient = identity(&machine, "recovery.txt");
    super::fill(
        &machine,
        &["alpha"],
        &["--encryption-recovery-recipient", &recipient],
    );
    let mut command = machine.nimbus(&["doctor", "--format", "json"]);
    command.env("NIMBUS_ENCRYPTION_RECOVERY_RECIPIENTS", &recipient);
    let found = run(command).expect(0, &[]).json();
    assert_eq!(verdict(&found, "recovery"), "ok");
}

#[test]
fn a_look_at_an_empty_directory_makes_nothing_in_it() {
    let machine = deployment(&["alpha"], &[]);
    let empty = machine.path("empty");
    fs::create_dir(&empty).expect("a directory");
    let look = ["doctor", "--data-dir", as_str(&empty)];
    let _ = run(machine.nimbus(&look)).expect(0, &["no server has run here"]);
    assert_eq!(fs::read_dir(&empty).expect("the directory").count(), 0);
}

#[test]
fn encryption_that_is_off_is_a_problem() {
    let machine = super::machine();
    let off = ["--encryption-key-provider", "none"];
    let server = machine.start(&off);
    server.create("/api/tenants", &json!({"id": "alpha"}));
    let found = doctor(&machine, 3);
    assert_eq!(verdict(&found, "key-provider"), "problem");
    server.stop();
}

#[test]
fn a_key_that_is_gone_is_one_problem_and_not_a_rotation_that_was_forgotten() {
    let machine = deployment(&["alpha"], &[]);
    fs::rename(machine.master_key(), machine.path("elsewhere.key")).expect("the key");
    let named = |command: &mut std::process::Command| {
        command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", machine.master_key());
    };
    let mut command = machine.nimbus(&["doctor", "--format", "json"]);
    named(&mut command);
    let ran = run(command);
    let found = ran.expect(3, &[]).json();
    assert_eq!(verdict(&found, "key-provider"), "problem");
    assert_eq!(verdict(&found, "newest-key"), "warning");
    let mut command = machine.nimbus(&["doctor"]);
    named(&mut command);
    let text = run(command);
    let _ = text.expect(3, &["put right what key-provider says"]);
    assert!(
        !text.out().contains("rotate-kek --all --path"),
        "{}",
        text.out()
    );
    // Who looked is known to the log of the process.
    let said = ran.err() + &text.err();
    assert!(!said.contains("unknown"), "{said}");
}

#[test]
fn a_key_that_is_named_by_a_bare_name_is_looked_at_where_it_lies() {
    let machine = deployment(&["alpha"], &[]);
    let _bytes = fs::copy(machine.master_key(), machine.path("bare.key")).expect("a copy");
    chmod(&machine.path("bare.key"), 0o400);
    let look = |code| {
        let mut command = machine.nimbus(&["doctor", "--format", "json"]);
        command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", "bare.key");
        run(command).expect(code, &[]).json()
    };
    assert_eq!(verdict(&look(0), "key-modes"), "ok");
    // Whoever may write the directory may put another key there.
    chmod(machine.root(), 0o777);
    assert_eq!(verdict(&look(3), "key-modes"), "problem");
    chmod(machine.root(), 0o700);
}

#[test]
fn what_no_configured_key_opens_is_not_sent_to_a_rotation_that_cannot_move_it() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let new = machine.path("new.key");
    let keygen = ["encryption", "keygen", "--master-key-file", as_str(&new)];
    let _ = run(machine.nimbus(&keygen)).expect(0, &[]);
    let rotate = ["encryption", "rotate-kek", "--path", "data/alpha.sqlite3"];
    let rotate = [&rotate[..], &["--new-master-key-file", "new.key"]].concat();
    let _ = run(machine.nimbus(&rotate)).expect(0, &[]);
    let newest = |found: &Value| {
        let checks = found["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == "newest-key");
        check.expect("the check").clone()
    };
    let check = newest(&doctor(&machine, 3));
    let remedy = check["remedy"].as_str().expect("a remedy");
    assert!(remedy.starts_with("name the key"), "{remedy}");
    assert!(
        check["found"]
            .as_str()
            .is_some_and(|found| found.contains("no configured key opens 1 file: alpha.sqlite3")),
        "{check}"
    );
    // Done as it says: then the rotation moves it.
    let mut command = machine.nimbus(&["doctor", "--format", "json"]);
    command.env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", &new);
    let check = newest(&run(command).expect(0, &[]).json());
    let remedy = check["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.starts_with("`nimbus encryption rotate-kek"),
        "{remedy}"
    );
}
