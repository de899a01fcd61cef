//! What lies in the data directory when a snapshot is made, and does not belong there: a link to a
//! key, another control file, another manifest, plaintext. None of it leaves, and none of it keeps
//! the rest from being saved.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, files_under};
use serde_json::json;

use super::{add, as_str, backup, backup_with, filled, machine, notes, restore, start_on};

fn holds(dir: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut files = files_under(dir);
    files.retain(|file| {
        let bytes = fs::read(file).expect("an object");
        bytes.windows(needle.len()).any(|window| window == needle)
    });
    files
}

#[test]
fn the_master_key_does_not_get_into_a_repository_by_a_link_in_place_of_a_part_of_the_log() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let part = machine.data_dir().join("nimbus-audit.000000000001.log");
    symlink(machine.master_key(), part).expect("a link");
    let _ran = backup(&machine, &["create", "--to", "repo"]);
    server.stop();
    let key = fs::read(machine.master_key()).expect("the key");
    assert_eq!(holds(&machine.path("repo"), &key), [] as [PathBuf; 0]);
}

#[test]
fn the_master_key_does_not_get_into_a_repository_by_a_link_in_place_of_the_control_file() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let path = machine.data_dir().join("nimbus-control.db");
    fs::rename(&path, machine.path("kept")).expect("it is moved");
    symlink(machine.master_key(), &path).expect("a link");
    let _ran = backup(&machine, &["create", "--to", "repo"]);
    fs::rename(machine.path("kept"), &path).expect("it is back");
    server.stop();
    let key = fs::read(machine.master_key()).expect("the key");
    assert_eq!(holds(&machine.path("repo"), &key), [] as [PathBuf; 0]);
}

#[test]
fn a_snapshot_holds_the_control_file_that_the_server_has_and_no_older_one() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let path = machine.data_dir().join("nimbus-control.db");
    let _ = fs::copy(&path, machine.path("older")).expect("a copy");
    let server = machine.start(&[]);
    let key = server.create(
        "/api/tenants/a/keys",
        &json!({"name": "app", "scope": "read"}),
    );
    fs::rename(&path, machine.path("kept")).expect("it is moved");
    let _ = fs::copy(machine.path("older"), &path).expect("the older one");
    let made = backup(&machine, &["create", "--to", "repo"]);
    fs::rename(machine.path("kept"), &path).expect("it is back");
    server.stop();
    if made.0.status.code() != Some(0) {
        return; // Refused: as good.
    }
    let _ = backup(
        &machine,
        &["restore", "--from", "repo", "--data-dir", "new"],
    )
    .expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    let token = key["key"].as_str().expect("the key");
    let (status, _) = restored.request_as(token, "GET", "/api/tenants/a/documents/notes", None);
    restored.stop();
    assert_eq!(status, 200, "the key was made before the snapshot");
}

/// Makes snapshots 1 and 2, the second while `tamper` had its way, and asserts that the repository
/// is as good as before.
fn goes_on(tamper: impl Fn(&Path), undo: impl Fn(&Path)) {
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    tamper(&machine.data_dir());
    let tampered = backup(&machine, &["create", "--to", "repo"]);
    undo(&machine.data_dir());
    let restore = |number: &str, data: &str| {
        let from = ["restore", "--from", "repo", "--snapshot", number];
        backup(&machine, &[&from[..], &["--data-dir", data]].concat())
    };
    if tampered.0.status.code() == Some(0) {
        let _ = restore("2", "second").expect(0, &[]);
    }
    let _ = restore("1", "first").expect(0, &[]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
}

#[test]
fn a_planted_part_of_the_log_makes_no_snapshot_that_nobody_can_read() {
    let part = |dir: &Path| dir.join("nimbus-audit.1.log");
    goes_on(
        |dir| fs::write(part(dir), "").expect("a part"),
        |dir| fs::remove_file(part(dir)).expect("it goes"),
    );
}

#[test]
fn a_manifest_beside_another_tenant_makes_no_snapshot_that_nobody_can_read() {
    let of = |dir: &Path, tenant: &str| dir.join(format!("{tenant}.sqlite3.nimbus-enc"));
    goes_on(
        |dir| {
            fs::rename(of(dir, "b"), dir.join("kept")).expect("it is kept");
            let _ = fs::copy(of(dir, "a"), of(dir, "b")).expect("that of a");
        },
        |dir| fs::rename(dir.join("kept"), of(dir, "b")).expect("it is back"),
    );
}

/// Changes a byte of a page of `b`, or changes it back: IV and MAC stay.
fn flip(dir: &Path) {
    let path = dir.join("b.sqlite3");
    let mut bytes = fs::read(&path).expect("a database");
    let at = bytes.len() / 4096 / 2 * 4096 + 100;
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("another byte");
}

/// A snapshot in which a page of `b` is wrong that is right on the disk since.
fn wrong_once() -> Machine {
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    flip(&machine.data_dir());
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    flip(&machine.data_dir());
    machine
}

const DEEP: [&str; 4] = ["verify", "--from", "repo", "--deep"];

#[test]
fn a_page_that_was_wrong_once_is_not_wrong_in_every_later_snapshot() {
    let machine = wrong_once();
    // Of two pages, one is hashed in each.
    let environment = [("FAILPOINTS", "backup::each-hashed-within=return")];
    for _snapshot in 0..2 {
        let path = machine.data_dir().join("b.sqlite3");
        let bytes = fs::read(&path).expect("a database");
        fs::write(path, bytes).expect("it does not stand as it was");
        let _ = backup_with(&machine, &["create", "--to", "repo"], &environment).expect(0, &[]);
    }
    let _ = backup(&machine, &DEEP).expect(0, &["all authentic"]);
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
}

#[test]
fn a_wrong_page_with_the_iv_and_mac_of_the_right_one_is_found_and_replaced_where_all_is_read() {
    let machine = wrong_once();
    let found = ["it was not restored: b", "page-corrupt"];
    let _ = backup(&machine, &DEEP).expect(1, &found);
    // By its tag it is the page that is stored.
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 2"]);
    let _ = backup(&machine, &DEEP).expect(1, &found);
    let _ = backup(&machine, &["create", "--to", "repo", "--read-all"]).expect(0, &["Snapshot 3"]);
    let _ = backup(&machine, &DEEP).expect(0, &["snapshot 3 was restored", "all authentic"]);
    // A page that is changed on the disk since does not get into the repository.
    flip(&machine.data_dir());
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 4"]);
    let _ = backup(&machine, &DEEP).expect(0, &["snapshot 4 was restored", "all authentic"]);
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "b").len(), 3);
    restored.stop();
}

#[test]
fn a_database_in_plaintext_beside_a_manifest_is_in_no_repository() {
    // As a migration leaves it that was killed after its manifest was moved.
    let machine = machine();
    let server = machine.start(&["--encryption-key-provider", "none"]);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    add(&server, "a", 1);
    server.stop();
    let key = machine.master_key();
    let migrate = |source: &[&str], failpoints: &str| {
        let mut command = machine.nimbus(&["encryption", "migrate", "--in-place", "--provider"]);
        let _ = command.args(source).env("FAILPOINTS", failpoints);
        super::run(command)
    };
    let mut keygen = machine.nimbus(&["encryption", "keygen", "--master-key-file", as_str(&key)]);
    assert!(keygen.status().expect("keygen").success());
    let _ = migrate(&["redb", "--source", "data/nimbus-control.db"], "").expect(0, &[]);
    migrate(
        &["sqlite", "--tenant-id", "a", "--source", "data/a.sqlite3"],
        "migrate::manifest-moved=return",
    )
    .expect_killed();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(3, &["NOT in the snapshot: a"]);
    let found = holds(&machine.path("repo"), super::CANARY.as_bytes());
    assert_eq!(found, [] as [PathBuf; 0]);
}

#[test]
fn what_somebody_wrote_into_a_repository_or_the_log_moves_no_cursor() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let wild = "\u{1b}[2J\u{9b}x\r\n";
    let proof = json!({"file_id": wild, "snapshot": 1, "taken": wild, "at": wild});
    let proofs = json!({"tenants": {"a": proof, wild: proof}});
    fs::create_dir(machine.path("repo/proofs")).expect("a directory");
    let proofs = serde_json::to_vec(&proofs).expect("JSON");
    fs::write(machine.path("repo/proofs/0000000001"), proofs).expect("a file");
    fs::write(machine.path("repo/snapshots/\u{1b}[31m"), "x").expect("a file");
    for arguments in [
        &["list", "--from", "repo"][..],
        &["list", "--from", "repo", "--format", "json"],
        &["verify", "--from", "repo"],
        &["create", "--to", "repo"],
    ] {
        let said = backup(&machine, arguments).said();
        assert!(!said.contains(['\u{1b}', '\u{9b}', '\r']), "{said:?}");
    }
    let log = machine.data_dir().join("nimbus-audit.log");
    let text = fs::read_to_string(&log).expect("the log");
    let line = text.lines().last().expect("a line");
    let forged = line.replacen("\"actor\":\"", "\"actor\":\"\\u001b[2J\\u009bx\\nTIME", 1);
    assert_ne!(line, forged);
    fs::write(&log, format!("{text}{forged}\n")).expect("a line more");
    let audit = super::run(machine.nimbus(&["encryption", "audit"]));
    let said = audit.said();
    assert!(said.contains("\\u001b[2J"), "{said}");
    assert!(!said.contains(['\u{1b}', '\u{9b}']), "{said:?}");
    assert!(
        !said
            .lines()
            .any(|line| line.starts_with("TIME") && !line.contains("EVENT")),
        "{said}"
    );
}
