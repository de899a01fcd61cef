//! A tenant opened by others: Python's `cryptography` and `sqlcipher3-wheels`, and stock `age`. No
//! code of ours is in the loop.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nimbus_test_support::Machine;
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn second_reader_passes_its_own_tests() {
    let output = python(
        "-m",
        &["unittest", "discover", "--start-directory", SCRIPTS],
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn python_opens_a_tenant_from_key_manifest_and_database_alone() {
    let tenant = stored_tenant();
    let output = script(
        "open_tenant.py",
        &["--key", &tenant.key, "--database", &tenant.database],
    );
    assert_eq!(tenant.documents, documents_in(&output));
}

#[test]
fn python_takes_a_tenant_out_of_a_backup_and_opens_it() {
    let tenant = stored_tenant();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("out.sqlite3");
    let out = out.to_str().expect("a path in UTF-8");
    let of = [
        "--key",
        &tenant.key,
        "--repository",
        &tenant.repository,
        "--tenant",
        "demo",
        "--out",
        out,
    ];
    let output = script("restore_tenant.py", &of);
    assert!(output.status.success(), "{output:?}");
    let output = script("open_tenant.py", &["--key", &tenant.key, "--database", out]);
    assert_eq!(tenant.documents, documents_in(&output));
    // The older of two snapshots has fewer.
    let output = script(
        "restore_tenant.py",
        &[&of[..], &["--snapshot", "1"]].concat(),
    );
    assert!(output.status.success(), "{output:?}");
    let output = script("open_tenant.py", &["--key", &tenant.key, "--database", out]);
    assert_eq!(tenant.documents[..1], documents_in(&output)[..]);
    let catalogue = format!("{}/snapshots/0000000002", tenant.repository);
    let text = fs::read_to_string(&catalogue).expect("a catalogue");
    fs::write(&catalogue, text.replacen("\"bytes\":", "\"bytes\":1", 1)).expect("a changed one");
    let second = [&of[..], &["--snapshot", "2"]].concat();
    assert_refused(&script("restore_tenant.py", &second), "wrong MAC");
    // What does not prove is passed over, and named, and so is what somebody put there.
    let planted = format!("{}/snapshots/9999999999", tenant.repository);
    fs::write(planted, "what").expect("an object");
    let output = script("restore_tenant.py", &of);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for name in ["snapshots/0000000002", "snapshots/9999999999"] {
        assert!(said.contains(name), "{said}");
    }
    let output = script("open_tenant.py", &["--key", &tenant.key, "--database", out]);
    assert_eq!(tenant.documents[..1], documents_in(&output)[..]);
}

#[test]
fn python_takes_a_tenant_as_it_was_at_an_instant_out_of_what_was_shipped() {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let server = machine.start(&["--backup-to", "repository"]);
    while server.get("/ready")["backup"]["ok"] != true {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let now = || {
        let date = std::process::Command::new("date")
            .args(["-u", "+%FT%T.%3NZ"])
            .output();
        let text = String::from_utf8(date.expect("date").stdout).expect("ASCII");
        std::thread::sleep(std::time::Duration::from_millis(5));
        text.trim().to_owned()
    };
    server.create("/api/tenants", &json!({"id": "demo"}));
    let mut instants = Vec::new();
    let mut documents = Vec::new();
    for fields in samples() {
        let id = server.insert("demo", "places", &fields);
        let path = format!("/api/tenants/demo/documents/places/{id}");
        documents.push(server.get(&path)["document"].take());
        instants.push(now());
    }
    server.stop();
    // Most packs lie in one object, some alone.
    let mut prune = machine.nimbus(&["backup", "prune", "--from", "repository"]);
    let _ = prune.args(["--keep-commits", "1h", "--keep-daily", "1"]);
    let pruned = prune.env("FAILPOINTS", "bundle::short=return").output();
    let pruned = pruned.expect("nimbus runs");
    assert!(pruned.status.success(), "{pruned:?}");
    let (key, repository) = (machine.master_key(), machine.path("repository"));
    let text = |path: &std::path::Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (key, repository) = (text(&key), text(&repository));
    for (count, at) in (1..).zip(&instants) {
        let out = text(&machine.path(&format!("out-{count}.sqlite3")));
        let of = [
            "--key",
            &key,
            "--repository",
            &repository,
            "--tenant",
            "demo",
        ];
        let of = [&of[..], &["--out", &out, "--at", at]].concat();
        let output = script("restore_tenant.py", &of);
        assert!(output.status.success(), "{output:?}");
        let output = script("open_tenant.py", &["--key", &key, "--database", &out]);
        assert_eq!(documents[..count], documents_in(&output)[..]);
    }
    let packs = fs::read_dir(machine.path("repository/log/0000000001")).expect("packs");
    let mut packs: Vec<_> = packs.map(|entry| entry.expect("a pack").path()).collect();
    packs.sort();
    let pack = &packs[0];
    let mut bytes = fs::read(pack).expect("a pack");
    let at = match text(pack).ends_with("0000000001") {
        true => 30,
        false => bytes.len() / 2,
    };
    bytes[at] ^= 1;
    fs::write(pack, bytes).expect("a changed one");
    let out = text(&machine.path("out.sqlite3"));
    let of = [
        "--key",
        &key,
        "--repository",
        &repository,
        "--tenant",
        "demo",
    ];
    let of = [&of[..], &["--out", &out, "--at", &instants[0]]].concat();
    assert_refused(&script("restore_tenant.py", &of), "");
}

#[test]
fn age_opens_a_tenant_from_its_recovery_wrap_alone() {
    let tenant = stored_tenant();
    fs::remove_file(&tenant.key).expect("the master key is lost");
    let output = script(
        "unwrap_recovery.py",
        &[
            "--identity",
            &tenant.identity,
            "--database",
            &tenant.database,
        ],
    );
    assert_eq!(tenant.documents, documents_in(&output));
}

#[test]
fn python_refuses_a_key_that_is_not_the_tenants() {
    let tenant = stored_tenant();
    fs::write(&tenant.other_key, [7; 32]).expect("another key");
    let output = script(
        "open_tenant.py",
        &["--key", &tenant.other_key, "--database", &tenant.database],
    );
    assert_refused(&output, "this key is");
}

#[test]
fn python_refuses_a_manifest_that_was_edited() {
    let tenant = stored_tenant();
    let manifest = format!("{}.nimbus-enc", tenant.database);
    let text = fs::read_to_string(&manifest).expect("the manifest");
    let edited = text.replace("\ncreated: 202", "\ncreated: 201");
    assert_ne!(text, edited);
    fs::write(&manifest, edited).expect("an edited manifest");
    let output = script(
        "open_tenant.py",
        &["--key", &tenant.key, "--database", &tenant.database],
    );
    assert_refused(&output, "mac does not match");
}

#[test]
fn age_refuses_an_identity_that_is_no_recipient() {
    let tenant = stored_tenant();
    let stranger = format!("{}.stranger", tenant.identity);
    let _ = age_keygen(Path::new(&stranger));
    let output = script(
        "unwrap_recovery.py",
        &["--identity", &stranger, "--database", &tenant.database],
    );
    assert_refused(&output, "can be recovered by");
}

/// What an operator would carry to another machine: a key, a manifest, a database; and what was
/// stored.
struct StoredTenant {
    _directory: TempDir,
    key: String,
    other_key: String,
    identity: String,
    repository: String,
    database: String,
    documents: Vec<Value>,
}

/// Runs the real server, stores documents in a tenant, stops the server, and carries three files
/// and the identity away.
fn stored_tenant() -> StoredTenant {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let identity = machine.path("recovery.txt");
    let recipient = age_keygen(&identity);

    let server = machine.start(&["--encryption-recovery-recipient", &recipient]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let backup = || {
        let ran = machine
            .nimbus(&["backup", "create", "--to", "repository"])
            .output();
        let ran = ran.expect("nimbus runs");
        assert!(ran.status.success(), "{ran:?}");
    };
    let mut ids = Vec::new();
    for fields in samples() {
        ids.push(server.insert("demo", "places", &fields));
        if ids.len() == 1 {
            backup();
        }
    }
    backup();
    let documents = ids
        .iter()
        .map(|id| {
            server.get(&format!("/api/tenants/demo/documents/places/{id}"))["document"].take()
        })
        .collect();
    server.stop();

    let directory = tempfile::tempdir().expect("a temporary directory");
    let repository = directory.path().join("repository");
    fs::rename(machine.path("repository"), &repository).expect("the repository, apart");
    let carry = |from: PathBuf| {
        let name = from.file_name().expect("a file name");
        let to = directory.path().join(name);
        let _ = fs::copy(&from, &to).unwrap_or_else(|error| panic!("{from:?}: {error}"));
        to.into_os_string().into_string().expect("a path in UTF-8")
    };
    let _ = carry(machine.find("demo.sqlite3.nimbus-enc"));
    let key = carry(machine.master_key());
    StoredTenant {
        other_key: format!("{key}.other"),
        key,
        repository: repository
            .into_os_string()
            .into_string()
            .expect("a path in UTF-8"),
        identity: carry(identity),
        database: carry(machine.find("demo.sqlite3")),
        documents,
        _directory: directory,
    }
}

fn samples() -> Vec<Value> {
    vec![
        json!({"name": "Sant Julià de Lòria", "lat": 42.46372, "lng": 1.49129}),
        json!({"name": "東京", "country": "JP", "nested": {"deep": [1, true, null, "x"]}}),
        json!({"name": "quote \" and \\ and \u{1}", "empty": {}}),
    ]
}

/// The documents in what a script printed, one JSON line each.
fn documents_in(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("a JSON line");
            assert_eq!(line["table"], "places");
            line["document"].take()
        })
        .collect()
}

fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(reason), "{said}");
    assert!(!said.contains("Traceback"), "{said}");
    assert_eq!(output.stdout, b"", "nothing is printed of what is refused");
}

/// Makes an identity at `path`, as an operator does for the safe, and gives its recipient.
fn age_keygen(path: &Path) -> String {
    let output = Command::new("age-keygen").arg("-o").arg(path).output();
    let output = output.expect("age-keygen (Debian package age; scripts/test installs it)");
    assert!(output.status.success(), "{output:?}");
    let output = Command::new("age-keygen").arg("-y").arg(path).output();
    let recipient = String::from_utf8(output.expect("age-keygen").stdout).expect("ASCII");
    recipient.trim().to_owned()
}

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");

fn script(name: &str, arguments: &[&str]) -> Output {
    python(&format!("{SCRIPTS}/{name}"), arguments)
}

fn python(what: &str, arguments: &[&str]) -> Output {
    let venv = std::env::var_os("NIMBUS_TEST_VENV").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-env/venv"),
        PathBuf::from,
    );
    let python = venv.join("bin/python");
    assert!(
        python.exists(),
        "{python:?} is missing: scripts/test --setup makes it"
    );
    Command::new(python)
        .arg(what)
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python runs")
}
