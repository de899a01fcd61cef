//! A part of the repository is damaged: what is not is restored, and what is is named.

use std::fs;
use std::path::PathBuf;

use nimbus_test_support::{Machine, files_under};
use serde_json::json;

use super::{add, as_str, backup, backup_with, filled, machine, notes, restore, run, start_on};

fn snapshot(machine: &Machine, number: u64) -> PathBuf {
    machine.path(&format!("repo/snapshots/{number:010}"))
}

/// The objects of pages of a tenant.
fn pages_of(machine: &Machine, tenant: &str) -> Vec<PathBuf> {
    let manifest = machine
        .data_dir()
        .join(format!("{tenant}.sqlite3.nimbus-enc"));
    let manifest = fs::read_to_string(manifest).expect("a manifest");
    let line = manifest.lines().find(|line| line.starts_with("file-id"));
    let id = line.and_then(|line| line.rsplit(' ').next());
    let base = machine.path("repo/base").join(id.expect("its id"));
    files_under(&base)
}

#[test]
fn what_lies_between_the_snapshot_and_the_newest_is_proven_and_what_is_not_there_is_named() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    for _ in 0..4 {
        add(&server, "a", 1);
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    }
    server.stop();
    let whole = fs::read(snapshot(&machine, 2)).expect("a catalogue");
    let says = |code: i32, words: &[&str]| {
        let _ = restore(&machine, "new", &["--snapshot", "1", "--dry-run"]).expect(code, words);
    };
    says(0, &[]);
    fs::remove_file(snapshot(&machine, 2)).expect("it goes");
    says(3, &["snapshots/0000000002 is missing", "Would restore"]);
    let _ = fs::copy(snapshot(&machine, 3), snapshot(&machine, 2)).expect("another in its place");
    says(3, &["snapshots/0000000002", "it is snapshot 3"]);
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(snapshot(&machine, 2), flipped).expect("a changed one");
    says(3, &["snapshots/0000000002"]);
    let data = machine.data_dir();
    let one = ["--tenant-id", "a", "--as", "c", "--snapshot", "1"];
    let _ = restore(&machine, as_str(&data), &one)
        .expect(3, &["Restored tenant a", "snapshots/0000000002"]);
    // Where the newest was asked for, and something that may be newer is none, that is named.
    let newest = fs::read(snapshot(&machine, 4)).expect("the newest");
    fs::write(snapshot(&machine, 4), "what").expect("something else");
    let _ = restore(&machine, "new", &["--dry-run"])
        .expect(3, &["Would restore snapshot 3", "snapshots/0000000004"]);
    let listed = backup(&machine, &["list", "--from", "repo"]);
    let _ = listed.expect(3, &["DAMAGED", "snapshots/0000000004"]);
    for proof in ["none", "chain"] {
        let chosen = ["--snapshot", "3", "--dry-run", "--verify", proof];
        let _ = restore(&machine, "new", &chosen).expect(3, &["snapshots/0000000004"]);
    }
    fs::write(snapshot(&machine, 4), newest).expect("the newest again");
    fs::write(snapshot(&machine, 2), &whole).expect("the whole one again");
    let _ = restore(&machine, "new", &["--snapshot", "1"]).expect(0, &["Restored snapshot 1"]);
}

#[test]
fn snapshots_in_between_that_were_pruned_are_no_damage() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let create = ["create", "--to", "repo"];
    let _ = backup(&machine, &create).expect(0, &[]);
    for _ in 0..3 {
        add(&server, "a", 1);
        let alone = [&create[..], &["--tenant-id", "a"]].concat();
        let _ = backup(&machine, &alone).expect(0, &[]);
    }
    server.stop();
    let prune = ["prune", "--from", "repo", "--keep-daily", "1"];
    let _ = backup(&machine, &prune).expect(0, &["snapshots 2, 3;"]);
    let _ = restore(&machine, "new", &["--snapshot", "1"]).expect(0, &["Restored snapshot 1"]);
    // The newest of one tenant is no longer there, and nobody pruned it.
    fs::remove_file(snapshot(&machine, 4)).expect("it goes");
    let _ = restore(&machine, "newer", &["--snapshot", "1"])
        .expect(3, &["snapshots/0000000004 is missing"]);
}

#[test]
fn a_snapshot_that_was_exchanged_for_another_authentic_one_of_its_number_is_refused() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let copy = |from: &str, to: &str| {
        let mut cp = std::process::Command::new("cp");
        let _ = cp.arg("-r").args([machine.path(from), machine.path(to)]);
        let _ = run(cp).expect(0, &[]);
    };
    copy("data", "twin");
    let server = machine.start(&[]);
    let create = |to: &str| {
        add(&server, "a", 1);
        let _ = backup(&machine, &["create", "--to", to]).expect(0, &[]);
    };
    // In a copy of the repository a copy of the deployment gives the number to another snapshot.
    let fork = |name: &str, number: u64| {
        copy("repo", name);
        let taken = machine.path(&format!("{name}/snapshots/{number:010}"));
        drop(fs::remove_file(&taken));
        let twin = [("NIMBUS_DATA_DIR", "twin")];
        let ran = super::backup_with(&machine, &["create", "--to", name], &twin);
        // It misses the one that it made in the other.
        assert!(matches!(ran.0.status.code(), Some(0 | 3)), "{}", ran.said());
        fs::read(taken).expect("another")
    };
    create("repo");
    let first = fork("first", 1);
    create("repo");
    let second = fork("second", 2);
    for _ in 0..2 {
        create("repo");
    }
    let put = |number: u64, object: &[u8], words: &[&str]| {
        let whole = fs::read(snapshot(&machine, number)).expect("a catalogue");
        fs::write(snapshot(&machine, number), object).expect("the other");
        let chosen = number.to_string();
        let name = format!("snapshots/{number:010}");
        let _ = backup(&machine, &["verify", "--from", "repo"]).expect(1, &["DAMAGED", &name]);
        let words = [&[&name[..]], words].concat();
        let _ = restore(&machine, "new", &["--snapshot", &chosen]).expect(1, &words);
        fs::write(snapshot(&machine, number), whole).expect("it again");
    };
    put(2, &second, &["was replaced"]);
    let alone = ["create", "--to", "repo", "--tenant-id", "a"];
    for _ in 0..2 {
        let _ = backup(&machine, &alone).expect(0, &[]);
    }
    server.stop();
    // What was removed between two that stay takes nothing from what is known of the one before.
    let prune = ["prune", "--from", "repo", "--keep-daily", "1"];
    let _ = backup(&machine, &prune).expect(0, &["snapshots 1, 2, 3, 5;"]);
    let whole = fs::read(snapshot(&machine, 4)).expect("the one that stays");
    fs::remove_file(snapshot(&machine, 4)).expect("it goes");
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(
        1,
        &["snapshots/0000000004 is missing, and no removal took it"],
    );
    let forged = String::from_utf8(first).expect("text");
    fs::write(snapshot(&machine, 4), forged).expect("something else");
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(1, &["it is snapshot 1"]);
    fs::write(snapshot(&machine, 4), whole).expect("it again");
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
}

#[test]
fn one_damaged_tenant_keeps_no_other_from_being_restored_and_comes_back_from_before() {
    let machine = machine();
    let server = filled(&machine, &["a", "b", "c"]);
    let before = notes(&server, "b");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let first = pages_of(&machine, "b");
    for tenant in ["a", "b", "c"] {
        add(&server, tenant, 2);
    }
    let others = [notes(&server, "a"), notes(&server, "c")];
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    server.stop();
    let mut second = pages_of(&machine, "b");
    second.retain(|object| !first.contains(object));
    fs::remove_file(second.first().expect("pages that changed")).expect("they go");
    for proof in ["pages", "chain", "none"] {
        let ran = restore(&machine, proof, &["--verify", proof]);
        let _ = ran.expect(
            3,
            &["2 tenants", "DAMAGED, and left out: b: ", "--snapshot"],
        );
        assert!(!machine.path(proof).join("b.sqlite3").exists());
        assert!(!machine.path(proof).join("b.sqlite3.nimbus-enc").exists());
    }
    let json = restore(&machine, "json", &["--format", "json"]);
    let damaged = json.json()["damaged"].clone();
    assert_eq!(damaged.as_array().map(Vec::len), Some(1), "{damaged}");
    // It is missed, and not forgotten.
    let on = |arguments: &[&str]| {
        let mut command = machine.nimbus(arguments);
        let _ = command.env("NIMBUS_DATA_DIR", machine.path("pages"));
        run(command)
    };
    let _ = on(&["encryption", "status"]).expect(3, &["b.sqlite3", "database-missing"]);
    let _ = on(&["doctor"]).expect(3, &["files"]);
    let restored = start_on(&machine, "pages", &[]);
    assert_eq!(others, [notes(&restored, "a"), notes(&restored, "c")]);
    let (status, answer) = restored.request("GET", "/api/tenants/b/documents/notes", None);
    assert!(status >= 500, "{status} {answer}");
    let listed = restored.list("/api/tenants", "tenants", 100);
    assert!(listed.contains(&json!("b")), "{listed:?}");
    // The newest snapshot has no more of it than before.
    let one = ["--tenant-id", "b"];
    let _ = restore(&machine, "pages", &one).expect(1, &["is damaged"]);
    let earlier = [&one[..], &["--snapshot", "1"]].concat();
    let _ = restore(&machine, "pages", &earlier).expect(0, &["Restored tenant b of snapshot 1"]);
    assert_eq!(before, notes(&restored, "b"));
    assert_eq!(others, [notes(&restored, "a"), notes(&restored, "c")]);
    restored.stop();
    let _ = on(&["encryption", "status", "--verify", "pages"]).expect(0, &[]);
    // Without a server, too; a kill leaves no tenant, and the next goes through.
    let killed = [("FAILPOINTS", "adopt::copied=return")];
    let of = ["restore", "--from", "repo", "--data-dir", "json"];
    backup_with(&machine, &[&of[..], &earlier].concat(), &killed).expect_killed();
    let log = fs::read_to_string(machine.path("json/nimbus-audit.log")).expect("the log");
    assert!(
        log.contains(r#""event":"restore","outcome":"begun""#),
        "{log}"
    );
    let _ = restore(&machine, "json", &earlier).expect(0, &["Restored tenant b of snapshot 1"]);
    let log = fs::read_to_string(machine.path("json/nimbus-audit.log")).expect("the log");
    assert!(log.contains("damaged there, and not restored: b"), "{log}");
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"])
        .expect(1, &["it was not restored: b: "]);
}

#[test]
fn a_lost_tenant_stays_missed_where_its_restoration_does_not_prove() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    server.stop();
    let path = machine.data_dir().join("b.sqlite3");
    let whole = fs::read(&path).expect("a database");
    let mut flipped = whole;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&path, flipped).expect("a damaged database");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    fs::remove_file(&path).expect("it is lost");
    let data = machine.data_dir();
    let _ = restore(&machine, as_str(&data), &["--tenant-id", "b"])
        .expect(1, &["does not pass verification"]);
    let status = ["encryption", "status"];
    let _ = run(machine.nimbus(&status)).expect(3, &["b.sqlite3", "database-missing"]);
}

/// Where a rotation of the master key leaves the manifests in a repository.
struct Keys {
    machine: Machine,
    new: String,
    /// Of snapshot 1, under the old key, by their names.
    old: Vec<(PathBuf, Vec<u8>)>,
}

impl Keys {
    fn rotated() -> Self {
        let machine = machine();
        let server = filled(&machine, &["a"]);
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
        let keys = files_under(&machine.path("repo/keys"));
        let old = keys
            .into_iter()
            .map(|path| (path.clone(), fs::read(path).expect("a manifest")));
        let old = old.collect();
        fs::create_dir(machine.path("keys")).expect("a directory");
        let new = as_str(&machine.path("keys/new.key")).to_owned();
        let keygen = ["encryption", "keygen", "--master-key-file", &new];
        let _ = run(machine.nimbus(&keygen)).expect(0, &[]);
        let rotate = ["encryption", "rotate-kek", "--path", "data", "--all"];
        let rotate = [&rotate[..], &["--new-master-key-file", &new]].concat();
        let _ = run(machine.nimbus(&rotate)).expect(0, &[]);
        server.stop();
        let made = Self { machine, new, old };
        let _ = made.with(&["create", "--to", "repo"], false, 0, &["Snapshot 2"]);
        made
    }

    fn with(&self, arguments: &[&str], both: bool, code: i32, words: &[&str]) -> String {
        let old = self.machine.master_key();
        let mut environment = vec![
            ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file"),
            ("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &self.new[..]),
        ];
        if both {
            environment.push(("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", as_str(&old)));
        }
        let ran = backup_with(&self.machine, arguments, &environment);
        ran.expect(code, words).said()
    }

    /// Manifests under the new key.
    fn newer(&self) -> Vec<PathBuf> {
        let mut keys = files_under(&self.machine.path("repo/keys"));
        keys.retain(|key| self.old.iter().all(|(old, _)| old != key));
        keys
    }

    fn of_tenant(&self, keys: &[PathBuf]) -> PathBuf {
        let of = |key: &&PathBuf| {
            let text = fs::read_to_string(key).expect("a manifest");
            text.contains("db:sqlite:tenant:a:")
        };
        keys.iter().find(of).expect("that of the tenant").clone()
    }
}

const RESTORE: [&str; 5] = ["restore", "--from", "repo", "--data-dir", "new"];

#[test]
fn where_the_manifest_that_a_snapshot_names_does_not_open_another_of_its_data_key_does() {
    let keys = Keys::rotated();
    let first = [&RESTORE[..], &["--snapshot", "1"]].concat();
    let _ = keys.with(&first, false, 0, &["Restored snapshot 1"]);
    let sidecar = keys.machine.path("new/a.sqlite3.nimbus-enc");
    let restored = fs::read(sidecar).expect("its manifest");
    let newer = keys.of_tenant(&keys.newer());
    assert_eq!(restored, fs::read(newer).expect("the newer manifest"));
}

#[test]
fn a_manifest_in_the_place_of_another_of_its_data_key_is_damage() {
    let keys = Keys::rotated();
    let names: Vec<PathBuf> = keys.old.iter().map(|(name, _)| name.clone()).collect();
    let (old, newer) = (keys.of_tenant(&names), keys.of_tenant(&keys.newer()));
    let whole = fs::read(&newer).expect("the newer");
    let _ = fs::copy(&old, &newer).expect("the older in its place");
    let name = newer.file_name().expect("a name");
    let name = name.to_str().expect("hex");
    let _ = keys.with(&["verify", "--from", "repo"], true, 1, &["DAMAGED", name]);
    // The copy in the control file of the snapshot is as good.
    let _ = keys.with(&RESTORE, false, 0, &["Restored snapshot 2"]);
    let sidecar = keys.machine.path("new/a.sqlite3.nimbus-enc");
    assert_eq!(whole, fs::read(sidecar).expect("its manifest"));
}

#[test]
fn an_older_manifest_that_was_put_back_is_told_and_not_restored() {
    let keys = Keys::rotated();
    let newer = keys.of_tenant(&keys.newer());
    let whole = fs::read(&newer).expect("the newer");
    fs::remove_file(&newer).expect("the newer goes, and the old one is there");
    let said = keys.with(&["verify", "--from", "repo"], true, 1, &["DAMAGED"]);
    assert!(said.contains("it was put back"), "{said}");
    let _ = keys.with(&RESTORE, true, 0, &["Restored snapshot 2"]);
    let sidecar = keys.machine.path("new/a.sqlite3.nimbus-enc");
    assert_eq!(whole, fs::read(sidecar).expect("its manifest"));
    // After a rewrap the old one says which key it needs.
    fs::write(&newer, whole).expect("the newer again");
    let _ = keys.with(&["rewrap", "--from", "repo"], true, 0, &[]);
    let _ = keys.with(&["verify", "--from", "repo"], false, 0, &["all authentic"]);
    for key in files_under(&keys.machine.path("repo/keys")) {
        fs::remove_file(key).expect("what was rewrapped goes");
    }
    for (name, text) in &keys.old {
        fs::write(name, text).expect("an old manifest");
    }
    let said = keys.with(&["verify", "--from", "repo"], false, 3, &["NOT PROVEN"]);
    assert!(said.contains("master-key-file"), "{said}");
}
