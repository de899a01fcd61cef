//! `nimbus encryption …`, run as an operator runs it: the real binary on real directories.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start threads of their own, and read and damage files by hand"
)]

mod audit;
mod deletions;
mod doctor;
mod export;
mod key_files;
mod memory;
mod migrate;
mod migrate_odd;
mod places;
mod proofs;
mod recover;
mod rejected_arguments;
mod repair;
mod rotate_dek;
mod rotate_dek_online;
mod rotate_kek;
mod shred;
mod status;
mod unprotected;

use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::Path;
use std::process::{Command, Output};

use nimbus_test_support::Machine;
use serde_json::{Value, json};

/// Has the tenant `alpha` get a new data key.
const RENEW_ALPHA: &[&str] = &[
    "rotate-dek",
    "--provider",
    "sqlite",
    "--tenant-id",
    "alpha",
    "--path",
    "data/alpha.sqlite3",
];

fn machine() -> Machine {
    Machine::new(env!("CARGO_BIN_EXE_nimbus"))
}

/// A stopped deployment with these tenants, two documents in each.
fn deployment(tenants: &[&str], arguments: &[&str]) -> Machine {
    let machine = machine();
    fill(&machine, tenants, arguments);
    machine
}

fn fill(machine: &Machine, tenants: &[&str], arguments: &[&str]) {
    let server = machine.start(arguments);
    for tenant in tenants {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
        for n in 0..2 {
            server.insert(tenant, "notes", &json!({"of": tenant, "n": n}));
        }
    }
    server.stop();
}

/// The documents of a tenant, from a server started for this.
fn served(machine: &Machine, tenant: &str) -> Value {
    let server = machine.start(&[]);
    let documents = server.get(&format!("/api/tenants/{tenant}/documents/notes"))["data"].clone();
    server.stop();
    documents
}

/// `nimbus encryption <arguments>`, to its end.
fn encryption(machine: &Machine, arguments: &[&str]) -> Ran {
    let mut command = machine.nimbus(&["encryption"]);
    command.args(arguments);
    run(command)
}

fn run(mut command: Command) -> Ran {
    Ran(command.output().expect("nimbus runs"))
}

/// A command that ended.
struct Ran(Output);

impl Ran {
    fn out(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).expect("an answer in UTF-8")
    }

    fn err(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).expect("messages in UTF-8")
    }

    /// Asserts the exit code, and that these words stand in what was said.
    fn expect(&self, code: i32, words: &[&str]) -> &Self {
        let said = self.out() + &self.err();
        assert_eq!(self.0.status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out()).unwrap_or_else(|error| panic!("{error}: {}", self.out()))
    }
}

/// Asserts that the audit log of a stopped deployment holds an event that is done, of this subject.
fn assert_audited(machine: &Machine, event: &str, subject: &str) {
    let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    let parts = [
        format!("\"event\":\"{event}\""),
        format!("\"subject\":\"{subject}\""),
        "\"outcome\":\"done\"".to_owned(),
    ];
    let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
    assert!(log.lines().any(is_it), "{event} of {subject} in: {log}");
}

/// `status --format json` with `arguments`, which must end with `code`.
fn status(machine: &Machine, arguments: &[&str], code: i32) -> Value {
    let ran = encryption(
        machine,
        &[&["status", "--format", "json"], arguments].concat(),
    );
    ran.expect(code, &[]).json()
}

/// What `status` says of one file.
fn health(status: &Value, path: &str) -> String {
    let files = status["files"].as_array().expect("files");
    let file = files
        .iter()
        .find(|file| file["path"] == path)
        .unwrap_or_else(|| panic!("no {path} in {files:?}"));
    if file["health"] != "ok" {
        let detail = file["detail"].as_str().expect("what to do next");
        assert!(!detail.is_empty());
    }
    file["health"].as_str().expect("its health").to_owned()
}

fn as_str(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Every file of a directory with a hash of its content.
fn snapshot(dir: &Path) -> Vec<(String, u64)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the directory")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let mut hash = DefaultHasher::new();
            hash.write(&fs::read(path).expect("its content"));
            (name, hash.finish())
        })
        .collect();
    files.sort();
    files
}

/// Makes an age identity in the file `name`, and gives its recipient.
fn identity(machine: &Machine, name: &str) -> String {
    let path = machine.path(name);
    let made = Command::new("age-keygen")
        .arg("-o")
        .arg(&path)
        .output()
        .expect("age-keygen");
    assert!(made.status.success(), "{made:?}");
    let shown = Command::new("age-keygen")
        .arg("-y")
        .arg(&path)
        .output()
        .expect("age-keygen");
    String::from_utf8(shown.stdout)
        .expect("a recipient")
        .trim()
        .to_owned()
}

/// Waits until a manifest that is made now is later than those that were made before: they count
/// whole seconds.
fn next_second() {
    let second = || std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let before = second();
    while second() == before {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
