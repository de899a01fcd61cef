//! `nimbus backup`, run as an operator runs it: the real binary, a server that runs or does not, a
//! directory or a bucket.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start threads of their own, and read and damage files by hand"
)]

mod attacked;
mod bounded;
mod cold;
mod counted;
mod crash;
mod faults;
mod foreign;
mod in_part;
mod lines;
mod listed;
mod model;
mod old_key;
mod one_tenant;
mod planted;
mod proofs;
mod pruned;
mod pruned_commits;
mod refused;
mod rewrapped;
mod s3;
mod shipped;
mod shipped_attacked;
mod shipped_crash;
mod shipping;
mod shredded;
mod snapshots;
mod stalled;
mod untrusted;
mod withheld;

use std::path::Path;
use std::process::{Command, Output};

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

/// A text that must be nowhere outside of the server's answers.
const CANARY: &str = "kanarienvogel-4711";

fn machine() -> Machine {
    Machine::new(env!("CARGO_BIN_EXE_nimbus"))
}

/// A running server with these tenants, some documents in each.
fn filled(machine: &Machine, tenants: &[&str]) -> Server {
    let server = machine.start(&[]);
    for tenant in tenants {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
        add(&server, tenant, 3);
    }
    server
}

fn add(server: &Server, tenant: &str, documents: usize) {
    for n in 0..documents {
        let _id = server.insert(
            tenant,
            "notes",
            &json!({"of": tenant, "n": n, "text": CANARY}),
        );
    }
}

fn notes(server: &Server, tenant: &str) -> Vec<Value> {
    server.list(
        &format!("/api/tenants/{tenant}/documents/notes"),
        "data",
        1000,
    )
}

/// `nimbus backup <arguments>`, to its end.
fn backup(machine: &Machine, arguments: &[&str]) -> Ran {
    backup_with(machine, arguments, &[])
}

fn backup_with(machine: &Machine, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let mut command = machine.nimbus(&["backup"]);
    let _ = command.args(arguments).envs(environment.iter().copied());
    run(command)
}

/// `nimbus backup restore --from repo --data-dir <dir> <arguments>`, to its end.
fn restore(machine: &Machine, dir: &str, arguments: &[&str]) -> Ran {
    let restore = ["restore", "--from", "repo", "--data-dir", dir];
    backup(machine, &[&restore[..], arguments].concat())
}

fn run(mut command: Command) -> Ran {
    Ran(command.output().expect("nimbus runs"))
}

/// How a bucket at `url` is reached.
fn s3(url: &str) -> Vec<(&str, &str)> {
    vec![
        ("NIMBUS_BACKUP_S3_ENDPOINT_URL", url),
        ("NIMBUS_BACKUP_S3_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
}

/// A server on the directory `data` of this machine.
fn start_on(machine: &Machine, data: &str, arguments: &[&str]) -> Server {
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    let _ = command
        .args(arguments)
        .env("NIMBUS_DATA_DIR", machine.path(data));
    machine.start_command(command)
}

/// A command that ended.
struct Ran(Output);

impl Ran {
    fn said(&self) -> String {
        let text = [&self.0.stdout[..], &self.0.stderr[..]].concat();
        String::from_utf8(text).expect("UTF-8")
    }

    /// Asserts the exit code, and that these words stand in what was said.
    fn expect(&self, code: i32, words: &[&str]) -> &Self {
        let said = self.said();
        assert_eq!(self.0.status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
        self
    }

    fn expect_killed(&self) {
        assert_eq!(self.0.status.code(), None, "{}", self.said());
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.said()))
    }
}

fn as_str(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
