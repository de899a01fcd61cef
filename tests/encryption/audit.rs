use std::fs;

use nimbus_test_support::Machine;
use serde_json::{Value, json};

use super::{as_str, deployment, encryption};

/// What the log says happened: event, outcome, actor, subject.
fn events(machine: &Machine) -> Vec<[String; 4]> {
    let log = encryption(machine, &["audit", "--format", "json"]);
    let log = log.expect(0, &[]).json();
    let lines = log["events"].as_array().expect("events");
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or("-").to_owned();
    let fields = ["event", "outcome", "actor", "subject"];
    lines
        .iter()
        .map(|line| fields.map(|name| text(line, name)))
        .collect()
}

fn has(machine: &Machine, event: &str, outcome: &str, actor: &str, subject: &str) {
    let events = events(machine);
    let found = events.iter().any(|[e, o, a, s]| {
        e == event && o == outcome && a.starts_with(actor) && s.contains(subject)
    });
    assert!(
        found,
        "no {event} {outcome} {actor} {subject} in {events:#?}"
    );
}

fn verify(machine: &Machine, code: i32, words: &[&str]) {
    let _ = encryption(machine, &["audit", "--verify"]).expect(code, words);
}

fn export(machine: &Machine, tenant: &str, target: &str, code: i32) {
    let source = machine.data_dir().join(format!("{tenant}.sqlite3"));
    let target = machine.path(target);
    let arguments = ["export", "--provider", "sqlite", "--tenant-id", tenant];
    let paths = ["--source", as_str(&source), "--target", as_str(&target)];
    let _ = encryption(machine, &[&arguments[..], &paths].concat()).expect(code, &[]);
    assert_eq!(target.exists(), code == 0);
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().expect("a text").to_owned()
}

fn data_log(machine: &Machine) -> std::path::PathBuf {
    machine.data_dir().join("nimbus-audit.log")
}

#[test]
fn every_key_event_is_in_the_log_with_who_did_it() {
    let machine = super::machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "alpha"}));
    server.create("/api/tenants", &json!({"id": "beta"}));
    has(&machine, "create", "done", "admin:", "tenant:alpha:");
    let keys = "/api/tenants/alpha/keys";
    let key = server.create(keys, &json!({"name": "the shop", "scope": "read"}));
    let (id, secret) = (text(&key, "id"), text(&key, "key"));
    for status in [204, 404] {
        let revoke = server.request("DELETE", &format!("{keys}/{id}"), None);
        assert_eq!(revoke.0, status);
    }
    // Which also writes what was only noted.
    verify(&machine, 0, &["whole"]);
    for event in ["access-key-created", "access-key-revoked"] {
        has(&machine, event, "begun", "admin:", "tenant:alpha:");
        has(&machine, event, "done", "admin:", "tenant:alpha:");
    }
    let log = fs::read_to_string(data_log(&machine)).expect("the log");
    assert_eq!(log.matches("access-key-revoked").count(), 2, "{log}");
    assert_eq!(log.matches(&id).count(), 3, "{log}");
    assert!(!log.contains(&secret) && !log.contains("the shop"), "{log}");
    // Beside the server, which alone writes the log.
    export(&machine, "alpha", "out-1", 0);
    has(&machine, "export", "begun", "admin:", "tenant:alpha:");
    has(&machine, "export", "done", "admin:", "tenant:alpha:");
    assert!(
        events(&machine)
            .iter()
            .any(|[event, _, actor, _]| event == "export" && actor.contains(" for os:"))
    );
    let new = machine.path("new.key");
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&new)]).expect(0, &[]);
    let data = machine.data_dir();
    let rotate = ["rotate-kek", "--all", "--path", as_str(&data)];
    let to = ["--new-master-key-file", as_str(&new)];
    let _ = encryption(&machine, &[&rotate[..], &to].concat()).expect(0, &[]);
    has(&machine, "rewrap", "done", "admin:", "tenant:beta:");
    has(&machine, "rewrap", "done", "admin:", "control");
    verify(&machine, 0, &["whole"]);
    let _ = encryption(&machine, &["shred", "--tenant-id", "beta", "--yes"]).expect(0, &[]);
    has(&machine, "shred", "done", "admin:", "tenant:beta:");
    has(&machine, "delete", "done", "admin:", "tenant:beta:");
    server.stop();
    fs::rename(&new, machine.master_key()).expect("the new key in its place");

    // With the server stopped.
    verify(&machine, 0, &["whole"]);
    export(&machine, "alpha", "out-2", 0);
    has(&machine, "export", "done", "os:", "tenant:alpha:");
    let path = data.join("alpha.sqlite3");
    let path = [
        "rotate-dek",
        "--tenant-id",
        "alpha",
        "--path",
        as_str(&path),
    ];
    let _ = encryption(&machine, &path).expect(0, &[]);
    let _ = encryption(&machine, &["rotate-dek", "--all", "--path", as_str(&data)]).expect(0, &[]);
    has(&machine, "rekey", "done", "os:", "tenant:alpha:");
    has(&machine, "rekey", "done", "os:", "control");
    fs::remove_file(data.join("alpha.sqlite3.nimbus-enc")).expect("the manifest");
    let _ = encryption(&machine, &["repair"]).expect(0, &[]);
    has(&machine, "repair", "done", "os:", "tenant:alpha:");
    verify(&machine, 0, &["whole"]);
}

#[test]
fn a_changed_removed_or_cut_log_is_found_out_offline_and_by_the_server() {
    let machine = deployment(&["alpha"], &[]);
    let path = machine.data_dir().join("nimbus-audit.log");
    let text = fs::read_to_string(&path).expect("the log");
    let lines = text.lines().count();
    assert!(lines >= 2, "{text}");
    let cut: String = text.split_inclusive('\n').take(lines - 1).collect();
    for changed in [text.replacen("create", "delete", 1), cut, String::new()] {
        fs::write(&path, changed).expect("the log");
        verify(&machine, 3, &["tampered"]);
    }
    fs::write(&path, &text).expect("the log");
    let server = machine.start(&[]);
    verify(&machine, 0, &["whole"]);
    fs::write(&path, text.replacen("create", "delete", 1)).expect("the log");
    verify(&machine, 3, &["tampered", "line 2"]);
    server.stop();
}

#[test]
fn every_fault_of_the_log_is_counted_and_the_first_twenty_are_named() {
    let machine = deployment(&["alpha"], &[]);
    let path = machine.data_dir().join("nimbus-audit.log");
    let text = fs::read_to_string(&path).expect("the log");
    // Each is one fault, and what follows it another.
    let strange = "not a line\n".repeat(30);
    fs::write(&path, format!("{strange}{text}")).expect("the log");
    let _ = encryption(&machine, &["audit", "--verify"])
        .expect(3, &["30 faults in", "line 20: ", "and 10 faults more"]);
    let doctor = super::run(machine.nimbus(&["doctor"]));
    let _ = doctor.expect(3, &["not whole: 30 faults"]);
    let accept = ["audit", "--accept-broken"];
    let _ = encryption(&machine, &accept).expect(0, &["Before it there stay 30 faults"]);
    has(&machine, "log-accepted", "done", "os:", "-");
}

#[test]
fn a_server_that_finds_its_log_cut_off_serves_and_says_so() {
    let machine = deployment(&["alpha"], &[]);
    fs::remove_file(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    let server = machine.start(&[]);
    server.insert("alpha", "notes", &json!({}));
    assert!(server.log().contains("log-broken"), "{}", server.log());
    verify(&machine, 3, &["tampered"]);
    has(&machine, "log-broken", "failed", "nimbus", "-");
    let accept = ["audit", "--accept-broken"];
    let _ = encryption(&machine, &accept).expect(1, &["is in use by"]);
    server.stop();
    // Killed in between, it is recorded and not in force: the log is still not whole, and may be
    // accepted again.
    let mut killed = machine.nimbus(&["encryption"]);
    killed
        .args(accept)
        .env("FAILPOINTS", "audit::accepted=return");
    machine.run_to_end(killed).expect_killed();
    verify(&machine, 3, &["tampered"]);
    let _ = encryption(&machine, &accept).expect(0, &["Accepted, and recorded"]);
    has(&machine, "log-accepted", "done", "os:", "-");
    verify(&machine, 0, &["as an operator accepted"]);
    let doctor = super::run(machine.nimbus(&["doctor"]));
    let _ = doctor.expect(0, &["as an operator accepted"]);
    let _ = encryption(&machine, &accept).expect(0, &["nothing to accept"]);
    let server = machine.start(&[]);
    verify(&machine, 0, &["whole"]);
    fs::remove_file(data_log(&machine)).expect("the log");
    verify(&machine, 3, &["tampered", "--accept-broken"]);
    server.stop();
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    let machine = deployment(&["alpha"], &[]);
    let path = machine.data_dir().join("nimbus-audit.log");
    let kept = machine.path("kept.log");
    fs::rename(&path, &kept).expect("the log");
    fs::create_dir(&path).expect("a directory in its place");
    export(&machine, "alpha", "out", 1);
    fs::remove_dir(&path).expect("the directory");
    fs::rename(&kept, &path).expect("the log");
    export(&machine, "alpha", "out", 0);
    verify(&machine, 0, &["whole"]);
}

#[test]
fn since_shows_what_came_after_and_needs_no_key() {
    let machine = deployment(&["alpha"], &[]);
    fs::remove_file(machine.master_key()).expect("the key");
    let all = encryption(&machine, &["audit"]);
    let _ = all.expect(0, &["TIME", "create", "tenant:alpha:"]);
    let later = encryption(&machine, &["audit", "--since", "2099-01-01T00:00:00Z"]);
    let _ = later.expect(0, &["No key events"]);
    let _ = encryption(&machine, &["audit", "--since", "yesterday"]).expect(2, &["--since"]);
}

#[test]
fn a_kill_anywhere_leaves_a_log_that_goes_on() {
    for point in ["audit::appended", "audit::recorded"] {
        let machine = deployment(&["alpha"], &[]);
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        command.env("FAILPOINTS", format!("{point}=return"));
        let server = machine.start_command(command);
        let body = json!({"id": "beta"});
        let answer = server.try_request_as(&machine.token(), "POST", "/api/tenants", Some(&body));
        assert!(answer.is_err(), "{point}: {answer:?}");
        server.wait_until_killed();
        verify(&machine, 0, &["whole"]);
        let server = machine.start(&[]);
        server.create("/api/tenants", &body);
        verify(&machine, 0, &["whole"]);
        server.stop();
        // What was about to be done is there, done or not.
        has(&machine, "create", "done", "admin:", "tenant:beta:");
    }
}

#[test]
fn a_kill_between_two_parts_leaves_a_log_that_goes_on() {
    let machine = deployment(&["alpha"], &[]);
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", "audit::renamed=return");
    let server = machine.start_command(command);
    let event = json!({"event": "export", "outcome": "begun", "subject": null, "deks": [], "keys": [],
                       "actor": "os:ana", "detail": "x".repeat(16_000)});
    let token = machine.token();
    let send =
        || server.try_request_as(&token, "POST", "/api/admin/encryption/audit", Some(&event));
    let mut sent = 0;
    while let Ok((status, answer)) = send() {
        assert_eq!(status, 200, "{answer}");
        sent += 1;
        assert!(sent < 1200, "no part was ever full");
    }
    server.wait_until_killed();
    verify(&machine, 0, &["whole"]);
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "beta"}));
    server.stop();
    verify(&machine, 0, &["whole"]);
}

#[test]
fn nothing_is_done_with_keys_beside_the_log_of_a_control_file_that_is_gone() {
    let machine = deployment(&["alpha"], &[]);
    for name in ["nimbus-control.db", "nimbus-control.db.nimbus-enc"] {
        fs::remove_file(machine.data_dir().join(name)).expect("the control file");
    }
    let new_key = machine.path("new.key");
    let new_key = new_key.to_str().expect("UTF-8");
    let _ = encryption(&machine, &["keygen", "--master-key-file", new_key]).expect(0, &[]);
    let before = fs::read(data_log(&machine)).expect("the log");
    export(&machine, "alpha", "out", 1);
    let rotate = ["--path", "data", "--all"];
    let new_key = ["--new-master-key-file", new_key];
    for (verb, more) in [("rotate-dek", &[][..]), ("rotate-kek", &new_key)] {
        let command = [&[verb], &rotate[..], more].concat();
        let _ = encryption(&machine, &command).expect(1, &["gone"]);
    }
    assert_eq!(fs::read(data_log(&machine)).expect("the log"), before);
}

#[test]
fn a_lock_whose_line_could_not_be_written_is_recorded_by_the_next() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    let (path, kept) = (data_log(&machine), machine.path("kept.log"));
    fs::rename(&path, &kept).expect("the log");
    let lock = ["lock", "--tenant-id", "alpha"];
    let _ = encryption(&machine, &lock).expect(1, &["is locked now"]);
    fs::rename(&kept, &path).expect("the log");
    let _ = encryption(&machine, &lock).expect(0, &["was locked already"]);
    let said = encryption(&machine, &["audit"]).expect(0, &[]).out();
    assert!(said.lines().any(|line| line.contains(" lock ")), "{said}");
    server.stop();
}
