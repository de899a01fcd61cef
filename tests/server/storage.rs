//! A disk that is full or read-only, and a stop under load.

use std::fs;
use std::thread;

use nimbus_test_support::{Machine, Server, whole};
use serde_json::{Value, json};

use super::disk::Disk;
use super::{assert_error, demo, machine, names, snapshot};

/// The disk must be full, and not nearly so.
const NO_RESERVE: &[&str] = &["--disk-reserve-bytes", "0"];

#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_serves_again_once_there_is_space() {
    let machine = machine();
    let Some(_disk) = Disk::mount(&machine.data_dir(), "size=12m,mode=0700") else {
        return;
    };
    // Once it is gone, there must be space for what the WAL holds, which is folded into the
    // database then.
    let ballast = machine.data_dir().join("ballast");
    fs::write(&ballast, vec![1; 7 << 20]).expect("ballast");
    let server = machine.start(NO_RESERVE);
    for tenant in ["demo", "other"] {
        server.create("/api/tenants", &json!({"id": tenant}));
    }
    let kept = server.insert("other", "things", &json!({"kept": true}));

    let stored = fill(&server);
    // Writes go on being refused, small ones too; reads and other tenants are served.
    let refused = (0..20)
        .filter(|n| insert(&server, "demo", *n, 100).is_err())
        .count();
    assert!(refused > 0);
    assert_eq!(
        server.get(&format!("/api/tenants/other/documents/things/{kept}"))["document"]["kept"],
        true
    );
    assert_eq!(server.get("/health"), json!({"ok": true}));
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "late"})));
    assert_error(status, &answer, (503, "service.unavailable"));
    assert_eq!(
        server.get("/api/tenants"),
        whole("tenants", json!(["demo", "other"]))
    );
    assert_stored(&server, &stored);

    fs::remove_file(&ballast).expect("space is freed");
    let after = insert(&server, "demo", 1000, 64 << 10).expect("writes work again");
    server.create("/api/tenants", &json!({"id": "late"}));
    server.insert("late", "things", &json!({}));
    assert_eq!(server.request("DELETE", "/api/tenants/late", None).0, 204);
    assert_stored(&server, &stored);
    server.stop();
    let server = machine.start(NO_RESERVE);
    assert_stored(&server, &stored);
    let path = format!("/api/tenants/demo/documents/fill/{after}");
    assert_eq!(server.get(&path)["document"]["n"], 1000);
    server.stop();
}

#[test]
fn a_server_killed_on_a_full_disk_finds_everything_once_there_is_space() {
    let machine = machine();
    let Some(_disk) = Disk::mount(&machine.data_dir(), "size=8m,mode=0700") else {
        return;
    };
    let ballast = machine.data_dir().join("ballast");
    fs::write(&ballast, vec![1; 3 << 20]).expect("ballast");
    let server = machine.start(NO_RESERVE);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let stored = fill(&server);
    server.kill();
    // A start needs no space. What does is refused with the reason, and nothing is taken for
    // damage.
    let server = machine.start(NO_RESERVE);
    let (status, answer) = server.request("GET", "/api/tenants/demo/documents/fill", None);
    if status != 200 {
        let message = assert_error(status, &answer, (503, "service.unavailable"));
        assert!(message.contains("no space left"), "{message}");
    }
    fs::remove_file(&ballast).expect("space is freed");
    assert_stored(&server, &stored);
    insert(&server, "demo", 1000, 64 << 10).expect("writes work again");
    server.stop();
}

/// Inserts large documents until the disk is full; what was acknowledged.
fn fill(server: &Server) -> Vec<(u64, String)> {
    let mut stored = Vec::new();
    for n in 0..1000 {
        match insert(server, "demo", n, 64 << 10) {
            Ok(id) => stored.push((n, id)),
            Err((status, answer)) => {
                let message = assert_error(status, &answer, (503, "service.unavailable"));
                assert!(
                    message.contains("no space left") && message.contains("free some"),
                    "{message}"
                );
                assert!(stored.len() > 5, "{}", stored.len());
                return stored;
            }
        }
    }
    panic!("the disk does not get full")
}

fn insert(server: &Server, tenant: &str, n: u64, bytes: usize) -> Result<String, (u16, Value)> {
    let fields = json!({"n": n, "filler": "x".repeat(bytes)});
    let body = json!({"table": "fill", "fields": fields});
    let path = format!("/api/tenants/{tenant}/documents");
    let (status, answer) = server.request("POST", &path, Some(&body));
    match status {
        201 => Ok(answer["id"].as_str().expect("an id").to_owned()),
        _ => Err((status, answer)),
    }
}

/// Everything acknowledged is there, with its content, and nothing is there twice.
fn assert_stored(server: &Server, stored: &[(u64, String)]) {
    for (n, id) in stored {
        let document = server.get(&format!("/api/tenants/demo/documents/fill/{id}"));
        assert_eq!(document["document"]["n"], json!(n));
    }
    let listed = server.list("/api/tenants/demo/documents/fill", "data", 1000);
    let numbers = listed
        .iter()
        .filter(|document| {
            document["filler"]
                .as_str()
                .is_some_and(|filler| filler.len() > 1000)
        })
        .map(|document| document["n"].as_u64().expect("a number"));
    let numbers: Vec<u64> = numbers.filter(|n| *n < 1000).collect();
    let expected: Vec<u64> = stored.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_read_only_file_system_is_refused_by_name_and_loses_nothing() {
    let machine = machine();
    let Some(disk) = Disk::mount(&machine.data_dir(), "size=8m,mode=0700") else {
        return;
    };
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let id = server.insert("demo", "things", &json!({"n": 1}));
    server.stop();
    let before = snapshot(&machine);
    disk.remount("ro");
    machine
        .start_that_ends(&[])
        .expect(1, &["nimbus.lock", "Read-only file system", "--data-dir"]);
    assert_eq!(snapshot(&machine), before);
    disk.remount("rw");
    let server = machine.start(&[]);
    assert_eq!(
        server.get(&format!("/api/tenants/demo/documents/things/{id}"))["document"]["n"],
        1
    );
    server.stop();
}

#[test]
fn a_stop_under_load_answers_what_it_took_and_keeps_what_it_answered() {
    let (machine, server) = demo();
    let answered = insert_until_stopped(&machine, server);
    assert_eq!(
        names_beside(&machine),
        ["demo.sqlite3", "demo.sqlite3.nimbus-enc"],
        "its WAL is empty and gone"
    );
    let server = machine.start(&[]);
    for (client, answered) in answered.iter().enumerate() {
        let path = format!("/api/tenants/demo/documents/client{client}");
        let listed = server.list(&path, "data", 1000);
        let there: Vec<u64> = listed
            .iter()
            .map(|document| document["n"].as_u64().expect("a number"))
            .collect();
        assert_eq!(
            there,
            (0..*answered).collect::<Vec<u64>>(),
            "client {client}"
        );
    }
    server.stop();
}

/// How many inserts were answered to each client, once SIGTERM came in the middle.
fn insert_until_stopped(machine: &Machine, server: Server) -> Vec<u64> {
    let token = machine.token();
    let answered = thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|client| {
                let (server, token) = (&server, &token);
                scope.spawn(move || {
                    for n in 0.. {
                        let fields = json!({"n": n});
                        let body = json!({"table": format!("client{client}"), "fields": fields});
                        match server.try_request_as(token, "POST", names::DOCUMENTS, Some(&body)) {
                            Ok((201, _)) if client == 0 && n == 30 => server.send_stop(),
                            Ok((201, _)) => {}
                            Ok((status, answer)) => panic!("{status} {answer}"),
                            Err(_stopped) => return n,
                        }
                    }
                    unreachable!("numbers do not end")
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    });
    server.wait_until_stopped();
    answered
}

/// What lies in the data directory of the tenant `demo`.
fn names_beside(machine: &Machine) -> Vec<String> {
    let entries = fs::read_dir(machine.data_dir()).expect("the data directory");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8")
    });
    let mut names: Vec<String> = names.filter(|name| name.starts_with("demo")).collect();
    names.sort();
    names
}
