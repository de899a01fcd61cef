//! `rotate-dek` through a running server: the tenant is written and read all the while, and nothing
//! that was acknowledged is lost.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{RENEW_ALPHA, as_str, deployment, encryption, machine, run, status};

#[test]
fn a_tenant_gets_new_data_keys_while_it_is_written_and_read() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let server = machine.start(&[]);
    fill(&server);
    let mut old = Vec::new();
    let acknowledged = under_load(&server, &machine, |_load| {
        for _ in 0..3 {
            old.push(manifest(&machine, "alpha.sqlite3"));
            let _ =
                encryption(&machine, RENEW_ALPHA).expect(0, &["alpha.sqlite3 has a new data key"]);
        }
    });
    assert_kept(&server, &acknowledged);
    assert_eq!(
        server.log().matches("event=\"rekey\"").count(),
        6,
        "begun and done"
    );
    assert_eq!(server.log().matches("held_us=").count(), 3);
    server.stop();
    let now = manifest(&machine, "alpha.sqlite3");
    for old in &old {
        assert_forgotten(&machine, old);
    }
    assert!(now.contains("state: ready") && now.matches("\ndek: ").count() == 1);
    assert!(!machine.data_dir().join("alpha.sqlite3.rekey").exists());
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        3
    );
    // The copy in the control file is that of the new key.
    fs::remove_file(machine.data_dir().join("alpha.sqlite3.nimbus-enc")).expect("a lost sidecar");
    let _ = encryption(&machine, &["repair"]).expect(0, &["put back"]);
    assert_eq!(manifest(&machine, "alpha.sqlite3"), now);
    let server = machine.start(&[]);
    assert_kept(&server, &acknowledged);
    server.stop();
}

#[test]
fn everything_gets_a_new_data_key_the_control_file_too() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let files = ["alpha.sqlite3", "beta.sqlite3", "nimbus-control.db"];
    let before = files.map(|file| manifest(&machine, file));
    let server = machine.start(&[]);
    let acknowledged = under_load(&server, &machine, |_load| {
        let _ = encryption(&machine, &["rotate-dek", "--path", "data", "--all"]).expect(
            0,
            &[
                "db:sqlite:tenant:alpha",
                "db:sqlite:tenant:beta",
                "nimbus-control.db: db:redb",
            ],
        );
    });
    assert_kept(&server, &acknowledged);
    drop(server.create("/api/tenants", &json!({"id": "gamma"})));
    server.insert("gamma", "notes", &json!({}));
    server.stop();
    for (file, before) in files.into_iter().zip(&before) {
        assert_ne!(dek(before), dek(&manifest(&machine, file)), "{file}");
        assert_forgotten(&machine, before);
    }
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        4
    );
    let server = machine.start(&[]);
    assert_kept(&server, &acknowledged);
    server.stop();
}

#[test]
fn a_server_that_is_killed_at_any_step_under_load_loses_nothing() {
    let points = [
        ("rekey::begun", false),
        ("rekey::copied", false),
        ("rekey::verified", false),
        ("rekey::renamed", true),
        ("rekey::swapped", true),
        ("manifest::mirrored", true),
        ("manifest::renamed", true),
    ];
    for (point, swapped) in points {
        let machine = deployment(&["alpha"], &[]);
        let before = manifest(&machine, "alpha.sqlite3");
        // The first manifest that is written is `rekeying`, the second `ready`.
        let passes = if point.starts_with("manifest::") {
            "1*off->"
        } else {
            ""
        };
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        command.env("FAILPOINTS", format!("{point}={passes}return"));
        let server = machine.start_command(command);
        let acknowledged = under_load(&server, &machine, |load| {
            load.until(50);
            let request =
                json!({"path": machine.data_dir().join("alpha.sqlite3"), "tenant_id": "alpha"});
            let path = "/api/admin/encryption/rotate-dek";
            let answer = server.try_request_as(&machine.token(), "POST", path, Some(&request));
            assert!(matches!(answer, Ok((202, _)) | Err(_)), "{answer:?}");
            load.until_refused();
        });
        server.wait_until_killed();
        let server = machine.start(&[]);
        assert_kept(&server, &acknowledged);
        server.stop();
        let after = manifest(&machine, "alpha.sqlite3");
        assert_eq!(dek(&before) != dek(&after), swapped, "{point}");
        assert!(after.contains("state: ready"), "{point}: {after}");
        assert!(!machine.data_dir().join("alpha.sqlite3.rekey").exists());
        assert_eq!(
            status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
            2,
            "{point}"
        );
        if swapped {
            assert_forgotten(&machine, &before);
        }
    }
}

#[test]
fn a_tenant_that_is_deleted_meanwhile_is_gone_and_others_are_refused_by_name() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    let refused = |arguments: &[&str], words: &[&str]| {
        let arguments = [&["rotate-dek", "--path"], arguments].concat();
        let _ = encryption(&machine, &arguments).expect(1, words);
    };
    refused(&["data/alpha.sqlite3"], &["--tenant-id"]);
    refused(
        &["data/alpha.sqlite3", "--tenant-id", "beta"],
        &["not to tenant beta"],
    );
    refused(
        &["data/beta.sqlite3", "--tenant-id", "beta"],
        &["does not exist"],
    );
    fill(&server);
    let request = json!({"path": machine.data_dir(), "all": true});
    let (code, _) = server.request("POST", "/api/admin/encryption/rotate-dek", Some(&request));
    assert_eq!(code, 202);
    let (code, _) = server.request("DELETE", "/api/tenants/alpha", None);
    assert_eq!(code, 204);
    let left: Vec<_> = fs::read_dir(machine.data_dir())
        .expect("the data directory")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.starts_with("alpha"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    server.stop();
}

#[test]
fn data_keys_that_are_too_old_are_replaced_in_the_background_closed_tenants_included() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let files = ["alpha.sqlite3", "beta.sqlite3", "nimbus-control.db"];
    let before = files.map(|file| manifest(&machine, file));
    let young = status(&machine, &[], 0);
    assert!(young["files"][0]["dek_overdue"].is_null());
    // Any key is older than a second, soon.
    let server = machine.start(&["--encryption-dek-max-age", "1s"]);
    let replaced = || {
        let now = files.map(|file| manifest(&machine, file));
        now.iter()
            .zip(&before)
            .all(|(now, before)| dek(now) != dek(before) && now.contains("state: ready"))
    };
    while !replaced() {
        thread::yield_now();
    }
    // An operator's work comes before it.
    let _ = encryption(&machine, RENEW_ALPHA).expect(0, &["has a new data key"]);
    assert!(server.log().contains("an old data key was replaced"));
    assert!(
        !server.log().contains("was not replaced"),
        "{}",
        server.log()
    );
    server.stop();
    for before in &before {
        assert_forgotten(&machine, before);
    }
    let mut command = machine.nimbus(&["encryption", "status", "--format", "json"]);
    command.env("NIMBUS_ENCRYPTION_DEK_MAX_AGE", "90d");
    let ran = run(command);
    assert!(ran.expect(0, &[]).json()["files"][0]["dek_overdue"].is_null());
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        3
    );
    // Killed in the middle, it goes on with the next start.
    let mut command = machine.nimbus(&["start", "--port", "0", "--encryption-dek-max-age", "1s"]);
    command.env("FAILPOINTS", "rekey::copied=return");
    if let Ok(server) = machine.try_start(command) {
        server.wait_until_killed();
    }
    let between = files.map(|file| manifest(&machine, file));
    let server = machine.start(&["--encryption-dek-max-age", "1s"]);
    let again = || {
        let now = files.map(|file| manifest(&machine, file));
        now.iter()
            .zip(&between)
            .all(|(now, before)| dek(now) != dek(before))
    };
    while !again() {
        thread::yield_now();
    }
    server.stop();
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        3
    );
}

#[test]
fn a_plaintext_deployment_has_no_data_keys() {
    let machine = machine();
    let plain = &["--encryption-key-provider", "none"];
    let server = machine.start(plain);
    drop(server.create("/api/tenants", &json!({"id": "alpha"})));
    let mut command = machine.nimbus(&["encryption"]);
    command
        .args(RENEW_ALPHA)
        .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "none");
    let _ = run(command).expect(1, &["not encrypted"]);
    server.stop();
}

/// Some thousand pages.
fn fill(server: &Server) {
    for n in 0..10 {
        let insert = |m: u64| json!({"type": "insert", "table": "filling", "fields": {"n": n * 100 + m, "text": "x".repeat(9000)}});
        let mutations: Vec<_> = (0..100).map(insert).collect();
        let (code, answer) = server.request(
            "POST",
            "/api/tenants/alpha/batch",
            Some(&json!({"mutations": mutations})),
        );
        assert_eq!(code, 200, "{answer}");
    }
}

struct Load {
    acknowledged: AtomicU64,
    refused: AtomicBool,
}

impl Load {
    fn until(&self, count: u64) {
        while !self.refused.load(Ordering::SeqCst)
            && self.acknowledged.load(Ordering::SeqCst) < count
        {
            thread::yield_now();
        }
    }

    fn until_refused(&self) {
        while !self.refused.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Clients that insert into, change and read `alpha` while `work` runs, until it has ended or the
/// server is gone. Each request that is answered succeeds. The documents that were acknowledged.
fn under_load(
    server: &Server,
    machine: &Machine,
    work: impl FnOnce(&Load),
) -> BTreeSet<(u64, u64)> {
    let (token, done) = (machine.token(), AtomicBool::new(false));
    let load = Load {
        acknowledged: AtomicU64::new(0),
        refused: AtomicBool::new(false),
    };
    let all = Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for client in 0..4_u64 {
            let (token, done, load, all) = (&token, &done, &load, &all);
            let _thread = scope.spawn(move || {
                // When it panics, too.
                let _refused = Done(&load.refused);
                for n in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let fields = json!({"client": client, "n": n, "text": "y".repeat(3000)});
                    let body = json!({"table": format!("load{client}"), "fields": fields});
                    let path = "/api/tenants/alpha/documents";
                    match server.try_request_as(token, "POST", path, Some(&body)) {
                        Ok((201, _)) => {
                            all.lock().expect("the set").insert((client, n));
                            load.acknowledged.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok((code, answer)) => panic!("{code} {answer}"),
                        Err(_gone) => return,
                    }
                    let path = "/api/tenants/alpha/documents/notes";
                    match server.try_request_as(token, "GET", path, None) {
                        Ok((200, answer)) => {
                            assert_eq!(answer["data"].as_array().map(Vec::len), Some(2));
                        }
                        Ok((code, answer)) => panic!("{code} {answer}"),
                        Err(_gone) => return,
                    }
                }
            });
        }
        // Ends the clients when `work` panics, too.
        let _done = Done(&done);
        work(&load);
    });
    let all = all.into_inner().expect("the set");
    assert!(!all.is_empty());
    all
}

fn assert_kept(server: &Server, acknowledged: &BTreeSet<(u64, u64)>) {
    let mut there = BTreeSet::new();
    for client in 0..4 {
        let mut cursor = Value::Null;
        loop {
            let query = json!({"query": {"table": format!("load{client}")}, "page_size": 500, "after": cursor});
            let path = "/api/tenants/alpha/query/paginated";
            let (code, page) = server.request("POST", path, Some(&query));
            assert_eq!(code, 200, "{page}");
            for document in page["data"].as_array().expect("documents") {
                let number = |field: &str| document[field].as_u64().expect("a number");
                assert!(
                    there.insert((number("client"), number("n"))),
                    "{document}: twice"
                );
            }
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
    }
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert_eq!(lost, Vec::<&(u64, u64)>::new());
}

fn manifest(machine: &Machine, file: &str) -> String {
    let path = machine.data_dir().join(format!("{file}.nimbus-enc"));
    fs::read_to_string(path).expect("a manifest")
}

/// The id of the first data key of a manifest.
fn dek(manifest: &str) -> &str {
    let line = manifest.split("\ndek: ").nth(1).expect("a data key");
    line.split_whitespace().next().expect("its id")
}

/// No wrap of the data key of an old manifest stands in any file of the data directory, nor in what
/// the control file holds in the clear once it is opened; and its id, but for the audit log, which
/// names it and holds no key.
fn assert_forgotten(machine: &Machine, old: &str) {
    let wrap = old
        .lines()
        .skip_while(|line| !line.starts_with("wrap: "))
        .nth(1)
        .expect("a wrapped key");
    let wanted = [dek(old).as_bytes(), wrap.trim().as_bytes()];
    let plain = machine.path("control-in-plaintext.db");
    drop(fs::remove_file(&plain));
    let export = [
        "export",
        "--provider",
        "redb",
        "--source",
        "data/nimbus-control.db",
        "--target",
        as_str(&plain),
    ];
    let _ = encryption(machine, &export).expect(0, &[]);
    let entries = fs::read_dir(machine.data_dir()).expect("the data directory");
    let files = entries.map(|entry| entry.expect("an entry").path());
    for path in files.chain([plain]) {
        let bytes = fs::read(&path).expect("a file");
        let names = path.ends_with("nimbus-audit.log");
        for wanted in &wanted[usize::from(names)..] {
            assert!(
                !bytes.windows(wanted.len()).any(|window| window == *wanted),
                "{} in {}",
                String::from_utf8_lossy(wanted),
                path.display()
            );
        }
    }
}

#[test]
fn a_file_beside_which_anothers_manifest_lies_is_not_said_to_have_a_new_data_key() {
    let machine = super::deployment(&["alpha", "beta"], &[]);
    let data = machine.data_dir();
    let manifest = |tenant: &str| data.join(format!("{tenant}.sqlite3.nimbus-enc"));
    let _bytes = std::fs::copy(manifest("beta"), manifest("alpha")).expect("a copy");
    let server = machine.start(&[]);
    let all = ["rotate-dek", "--path", "data", "--all"];
    let _ = super::encryption(&machine, &all).expect(1, &["the manifest beside"]);
    server.stop();
}
