//! Kill tests: the real server dies by `SIGKILL` at every crash point of the source, is started
//! again, and must open or repair what it finds by itself; nothing that was acknowledged is lost,
//! and no other tenant is disturbed.
//!
//! A crash point is armed with `FAILPOINTS="<name>=return"`; `<name>=2*off->return` lets it pass
//! twice first.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]
#![expect(
    clippy::print_stderr,
    reason = "a test of many cases says at which one it is"
)]

mod access_keys;
mod control_file;
mod creation;
mod deletion;
mod deploy;
mod load;
mod schedule;
mod schemas;
mod writer;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, Server, files_under};
use serde_json::{Value, json};

/// Crash points whose cases stand in `tests/encryption`, `tests/server`, `tests/backup`,
/// `tests/postgres` and `tests/mysql`.
const ELSEWHERE: &[&str] = &[
    "backup::repository-made",
    "bundle::created",
    "bundle::removed",
    "removal::pack-removed",
    "backup::frozen",
    "backup::run-stored",
    "backup::stored",
    "backup::committed",
    "ship::epoch-begun",
    "ship::anchored",
    "ship::base-stored",
    "ship::named",
    "ship::formed",
    "ship::stored",
    "restore::marked",
    "restore::tenants-written",
    "restore::written",
    "restore::tenant-written",
    "restore::recorded",
    "restore::finished",
    "restore::tenant-fetched",
    "restore::tenant-adopted",
    "adopt::copied",
    "adopt::verified",
    "adopt::renamed",
    "removal::announced",
    "removal::recorded",
    "removal::catalogues-removed",
    "removal::objects-removed",
    "rewrap::added",
    "rewrap::removed",
    "shred::here",
    "audit::appended",
    "audit::recorded",
    "audit::renamed",
    "audit::reapplied",
    "audit::reapplied-one",
    "audit::set-aside",
    "audit::accepted",
    "export::filled",
    "export::copied",
    "export::flushed",
    "export::named",
    "migrate::copied",
    "migrate::verified",
    "migrate::linked",
    "migrate::manifest-moved",
    "migrate::swapped",
    "migrate::retired",
    "manifests::announced",
    "manifests::written",
    "manifests::flushed",
    "manifests::renamed",
    "manifests::published",
    "manifests::mirrored",
    "rekey::begun",
    "rekey::copied",
    "rekey::verified",
    "rekey::renamed",
    "rekey::swapped",
    "shred::key-destroyed",
    "lock::recorded",
    "arrive::renamed",
    "tenants::copy::begun",
    "tenants::copy::put",
    "tenants::copy::compared",
    "tenants::copy::admitted",
    "tenants::copy::arrived",
    "tenants::relational::arrival-noted",
    "tenants::relational::create-noted",
    "tenants::relational::create-begun",
    "tenants::relational::create-made",
    "tenants::relational::delete-dropped",
    "tenants::relational::provider-begun",
    "tenants::relational::created",
    "tenants::relational::delete-noted",
    "tenants::relational::deleted",
    "tenants::relational::gone",
    "tenants::relational::held",
    "tenants::relational::manifest-held",
    "tenants::relational::manifest-replaced",
];

#[test]
fn every_crash_point_in_the_source_has_a_case() {
    let mut in_source = BTreeSet::new();
    for file in files_under(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let text = fs::read_to_string(&file).expect("a source file");
        let points = text.split("crash_point!(\"").skip(1);
        in_source.extend(points.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    let with_a_case: BTreeSet<String> = ELSEWHERE
        .iter()
        .copied()
        .chain(creation::POINTS.iter().map(|row| row.0))
        .chain(control_file::POINTS.iter().map(|row| row.0))
        .chain(deletion::POINTS.iter().map(|row| row.0))
        .chain(schedule::POINTS.iter().map(|row| row.0))
        .chain(schemas::POINTS.iter().map(|row| row.0))
        .chain(writer::POINTS.iter().map(|row| row.0))
        .chain(access_keys::POINTS.iter().map(|row| row.0))
        .map(str::to_owned)
        .collect();
    assert!(in_source.len() > 20, "{in_source:?}");
    assert_eq!(in_source, with_a_case);
}

fn machine() -> Machine {
    Machine::new(env!("CARGO_BIN_EXE_nimbus"))
}

/// `FAILPOINTS` for a point that lets `passes` go by and kills at the next.
fn armed(point: &str, passes: u32) -> String {
    match passes {
        0 => format!("{point}=return"),
        _ => format!("{point}={passes}*off->return"),
    }
}

/// A server that will die where `failpoints` says.
fn start_armed(machine: &Machine, arguments: &[&str], failpoints: &str) -> Server {
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.args(arguments).env("FAILPOINTS", failpoints);
    machine.start_command(command)
}

/// A start that dies before the server listens.
fn start_killed(machine: &Machine, arguments: &[&str], failpoints: &str) {
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.args(arguments).env("FAILPOINTS", failpoints);
    machine.run_to_end(command).expect_killed();
}

/// Sends a request to a server that dies of it.
fn send_to_death(
    machine: &Machine,
    server: Server,
    method: &str,
    path: &str,
    body: Option<&Value>,
) {
    let answer = server.try_request_as(&machine.token(), method, path, body);
    assert!(answer.is_err(), "{method} {path} was answered: {answer:?}");
    server.wait_until_killed();
}

/// A tenant that a test must not disturb, and all that can be seen of it.
struct Bystander {
    documents: Value,
    manifest: Option<Vec<u8>>,
}

const BYSTANDER: &str = "bystander";

impl Bystander {
    /// Makes the tenant, with documents, on a server without crash points.
    fn settle(machine: &Machine, arguments: &[&str]) -> Self {
        let server = machine.start(arguments);
        server.create("/api/tenants", &json!({"id": BYSTANDER}));
        for n in 0..5 {
            server.insert(BYSTANDER, "things", &json!({"n": n}));
        }
        let documents = Self::documents(&server);
        server.stop();
        let manifest = Self::manifest(machine);
        Self {
            documents,
            manifest,
        }
    }

    fn assert_undisturbed(&self, machine: &Machine, server: &Server) {
        assert_eq!(Self::documents(server), self.documents);
        assert_eq!(Self::manifest(machine), self.manifest);
    }

    fn documents(server: &Server) -> Value {
        server.get(&format!("/api/tenants/{BYSTANDER}/documents/things"))
    }

    fn manifest(machine: &Machine) -> Option<Vec<u8>> {
        fs::read(data_file(machine, "bystander.sqlite3.nimbus-enc")).ok()
    }
}

fn data_file(machine: &Machine, name: &str) -> PathBuf {
    machine.data_dir().join(name)
}

/// Names in the data directory that begin with `prefix`, sorted.
fn names(machine: &Machine, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(machine.data_dir())
        .expect("the data directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// The value of a field of a manifest, up to its first space.
fn manifest_field(machine: &Machine, file: &str, field: &str) -> Option<String> {
    let text = fs::read_to_string(data_file(machine, &format!("{file}.nimbus-enc"))).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))?;
    line.split(' ').next().map(str::to_owned)
}

/// File id and data key id of a file: what a creation that goes on must not change.
fn identity(machine: &Machine, file: &str) -> Option<(String, String)> {
    Some((
        manifest_field(machine, file, "file-id")?,
        manifest_field(machine, file, "dek")?,
    ))
}

const TEMPORARY: &str = ".nimbus-tmp-";

fn tenants(server: &Server) -> Vec<String> {
    serde_json::from_value(server.get("/api/tenants")["tenants"].take()).expect("a list of ids")
}

/// Stores a document, stops the server, starts another, and reads it back.
fn assert_keeps_documents(machine: &Machine, arguments: &[&str], server: Server, tenant: &str) {
    let id = server.insert(tenant, "after", &json!({"kept": true}));
    let path = format!("/api/tenants/{tenant}/documents/after/{id}");
    let document = server.get(&path);
    server.stop();
    let server = machine.start(arguments);
    assert_eq!(server.get(&path), document);
    server.stop();
}
