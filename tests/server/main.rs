//! The real server from outside: what it answers, what it refuses, and how it stands trouble with
//! its disk, its keys and its clients.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]
#![expect(
    clippy::print_stderr,
    reason = "a test that cannot run on this machine says so"
)]

mod access;
mod access_keys;
mod apps;
mod batch;
mod bodies;
mod body_errors;
mod cities;
mod cloud;
mod commands;
mod control_lost;
mod damaged;
mod deploy;
mod disk;
mod documents;
mod files;
mod full;
mod insides;
mod journal;
mod keys;
mod leases;
mod lists;
mod lock;
mod locks;
mod logs;
mod mapped;
mod memory;
mod metrics;
mod names;
mod operations;
mod overload;
mod page_cache;
mod platform;
mod providers;
mod query;
mod removed;
mod replica;
mod rolled_back;
mod room;
mod schedule;
mod schema;
mod service;
mod start;
mod stop;
mod storage;
mod supervision;
mod temporary;
mod tls;
mod usage;
mod versions;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

use nimbus_test_support::{Answer, Machine, Server, files_under};
use serde_json::{Value, json};

fn machine() -> Machine {
    Machine::new(env!("CARGO_BIN_EXE_nimbus"))
}

/// A machine with a server and one empty tenant, `demo`.
fn demo() -> (Machine, Server) {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    (machine, server)
}

/// Sends a request exactly as given, with the admin token, headers (each with its line end) and a
/// body of an honest length.
fn send(machine: &Machine, server: &Server, line: &str, headers: &str, body: &[u8]) -> Answer {
    let token = machine.token();
    let headers = format!("Authorization: Bearer {token}\r\n{headers}");
    send_bare(server, line, &headers, body)
}

/// The same without a credential.
fn send_bare(server: &Server, line: &str, headers: &str, body: &[u8]) -> Answer {
    let address = server.address();
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    let answer = server.raw(&[head.as_bytes(), body].concat());
    answer.unwrap_or_else(|| panic!("{line} was not answered\n{}", server.log()))
}

/// POSTs a body, as JSON.
fn post(machine: &Machine, server: &Server, path: &str, body: &[u8]) -> Answer {
    let line = format!("POST {path}");
    send(
        machine,
        server,
        &line,
        "Content-Type: application/json\r\n",
        body,
    )
}

/// Asserts that an answer is the error envelope, whole, with this status and code; gives its
/// message.
#[track_caller]
fn assert_error(status: u16, body: &Value, expected: (u16, &str)) -> String {
    let error = body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("no envelope: {body}"));
    assert_eq!(
        (status, error["code"].as_str().unwrap_or_default()),
        expected,
        "{body}"
    );
    let fields: BTreeSet<&str> = error.keys().map(String::as_str).collect();
    let all = [
        "code",
        "detail",
        "message",
        "remediation",
        "requestId",
        "retryable",
        "severity",
        "timestamp",
    ];
    assert_eq!(fields, BTreeSet::from(all));
    for text in ["message", "remediation", "requestId", "timestamp"] {
        assert_ne!(error[text].as_str(), Some(""), "{body}");
    }
    let message = error["message"].as_str().expect("a message");
    assert!(!message.contains("panicked"), "{message}");
    message.to_owned()
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) -> String {
    assert_error(answer.status, &answer.body, (status, code))
}

/// Every file of the data directory but the lock: its name, its length and a checksum.
fn snapshot(machine: &Machine) -> Vec<(String, usize, u64)> {
    let files = files_under(&machine.data_dir());
    let mut files: Vec<_> = files
        .into_iter()
        .filter_map(|file| {
            let name = file.file_name()?.to_str()?.to_owned();
            (name != "nimbus.lock").then(|| {
                let content = fs::read(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
                let mut hasher = DefaultHasher::new();
                content.hash(&mut hasher);
                (name, content.len(), hasher.finish())
            })
        })
        .collect();
    files.sort();
    files
}

/// The same without the control file, whose header a start writes.
fn tenant_files(machine: &Machine) -> Vec<(String, usize, u64)> {
    let mut files = snapshot(machine);
    files.retain(|(name, ..)| name != "nimbus-control.db");
    files
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a new mode");
}
