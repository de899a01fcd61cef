use std::fs;
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, files_under};
use serde_json::json;

use super::{add, as_str, backup, filled, machine, restore};

/// Two snapshots of two tenants, of a stopped deployment.
fn saved() -> Machine {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    add(&server, "a", 4);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["2 snapshots"]);
    machine
}

fn objects(machine: &Machine) -> Vec<PathBuf> {
    let mut objects = files_under(&machine.path("repo"));
    objects.retain(|object| !object.ends_with("nimbus-repository"));
    objects.sort();
    assert!(objects.len() > 10, "{objects:?}");
    objects
}

fn name(machine: &Machine, object: &Path) -> String {
    let name = object
        .strip_prefix(machine.path("repo"))
        .expect("in the repository");
    as_str(name).to_owned()
}

/// Asserts that the damage is found and that `named` is part of what is said of it; and that
/// nothing comes of a restoration that reads it.
fn found(machine: &Machine, named: &str) {
    let verified = backup(machine, &["verify", "--from", "repo"]);
    let _ = verified.expect(1, &["DAMAGED", named]);
}

#[test]
fn each_object_that_is_changed_cut_longer_or_gone_is_named() {
    let machine = saved();
    for object in objects(&machine) {
        let whole = fs::read(&object).expect("an object");
        let name = name(&machine, &object);
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let named = match name.starts_with("snapshots/") {
            true => &name[..],
            false => name.rsplit('/').next().expect("a name"),
        };
        for changed in [&flipped[..], &whole[..whole.len() - 1], &[]] {
            fs::write(&object, changed).expect("a changed object");
            found(&machine, named);
        }
        fs::remove_file(&object).expect("an object that goes");
        // Of the newest catalogue, and of it alone, only who remembers it knows.
        if name == "snapshots/0000000002" {
            let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["1 snapshot"]);
        } else {
            found(&machine, named);
        }
        fs::write(&object, &whole).expect("the object again");
    }
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["2 snapshots"]);
}

#[test]
fn pages_of_another_tenant_and_of_before_are_not_taken() {
    let machine = saved();
    let bases: Vec<PathBuf> = objects(&machine)
        .into_iter()
        .filter(|object| name(&machine, object).starts_with("base/"))
        .collect();
    // Of two tenants, of the control file, and of one tenant at two times.
    for (one, other) in bases.iter().zip(bases.iter().skip(1)) {
        let (first, second) = (fs::read(one).expect("one"), fs::read(other).expect("other"));
        fs::write(one, &second).expect("the other in its place");
        fs::write(other, &first).expect("and the reverse");
        found(
            &machine,
            as_str(Path::new(one.file_name().expect("a name"))),
        );
        let restored = restore(&machine, "new", &[]);
        // Of the control file nothing is restored, and of tenants the other one.
        match restored.0.status.code() {
            Some(3) => {
                let _ = restored.expect(3, &["DAMAGED, and left out", "is damaged"]);
                assert!(left(&machine).contains(&"nimbus-control.db".to_owned()));
                fs::remove_dir_all(machine.path("new")).expect("it goes");
            }
            _ => {
                let _ = restored.expect(1, &["is damaged"]);
                assert_eq!(left(&machine), ["nimbus.lock"], "nothing looks finished");
            }
        }
        fs::write(one, &first).expect("one again");
        fs::write(other, &second).expect("the other again");
    }
}

fn left(machine: &Machine) -> Vec<String> {
    let files = files_under(&machine.path("new"));
    let name = |path: &PathBuf| as_str(Path::new(path.file_name().expect("a name"))).to_owned();
    files.iter().map(name).collect()
}

#[test]
fn an_old_catalogue_in_the_place_of_a_newer_one_is_told() {
    let machine = saved();
    let catalogue = |number: &str| machine.path("repo/snapshots").join(number);
    let (first, second) = (catalogue("0000000001"), catalogue("0000000002"));
    let newer = fs::read(&second).expect("the newer");
    let _ = fs::copy(&first, &second).expect("the older in its place");
    found(&machine, "it is snapshot 1");
    let _ = restore(&machine, "older", &[]).expect(
        3,
        &[
            "Restored snapshot 1",
            "snapshots/0000000002",
            "it is snapshot 1",
        ],
    );
    fs::write(&second, newer).expect("the newer again");
    // One that says what it should, and that nobody sealed.
    let text = fs::read_to_string(&first).expect("a catalogue");
    fs::write(&first, text.replacen("\"taken\":\"2", "\"taken\":\"1", 1)).expect("another time");
    found(&machine, "its MAC is wrong");
    let _ = restore(&machine, "new", &["--snapshot", "1"]).expect(1, &["its MAC is wrong"]);
    fs::remove_file(&first).expect("the first goes");
    found(&machine, "snapshots/0000000001 is missing");
}

#[test]
fn a_page_that_authenticates_nowhere_is_found_when_the_catalogue_does_not_tell() {
    // Saved as it was: the disk was damaged before the snapshot.
    let machine = machine();
    let server = filled(&machine, &["a"]);
    server.stop();
    let path = machine.data_dir().join("a.sqlite3");
    let mut bytes = fs::read(&path).expect("a database");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("a damaged database");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"])
        .expect(1, &["it was not restored: a", "page-corrupt"]);
    let _ = restore(&machine, "new", &[]).expect(3, &["DAMAGED, and left out: a: page-corrupt"]);
    assert!(!left(&machine).contains(&"a.sqlite3".to_owned()));
    // Whoever needs what is left of it says so.
    let _ = restore(&machine, "chain", &["--verify", "chain"]).expect(0, &["Restored"]);
    assert!(machine.path("chain/a.sqlite3").exists());
}

#[test]
fn a_damaged_page_is_left_out_also_where_no_document_lies() {
    let machine = machine();
    let server = filled(&machine, &["a", "whole"]);
    let large = "x".repeat(30_000);
    let ids: Vec<String> = (0..20)
        .map(|n| server.insert("a", "notes", &json!({"n": n, "text": large})))
        .collect();
    for id in ids {
        let path = format!("/api/tenants/a/documents/notes/{id}");
        assert_eq!(server.request("DELETE", &path, None).0, 204);
    }
    server.stop();
    let path = machine.data_dir().join("a.sqlite3");
    let sound = fs::read(&path).expect("a database");
    let flipped = |page: usize| {
        let mut bytes = sound.clone();
        bytes[page * 4096 + 2000] ^= 1;
        bytes
    };
    let pages = sound.len() / 4096;
    assert!(pages > 100, "what was deleted left its pages: {pages}");
    // Of the tables and indexes, of what was deleted, and behind the end.
    let damaged = [
        flipped(1),
        flipped(pages / 2),
        flipped(pages * 3 / 4),
        flipped(pages - 1),
        [&sound[..], &[7; 4096]].concat(),
    ];
    for (place, bytes) in damaged.iter().enumerate() {
        fs::write(&path, bytes).expect("a damaged database");
        let repository = format!("repo-{place}");
        let _ = backup(&machine, &["create", "--to", &repository]).expect(0, &[]);
        let restore = ["restore", "--from", &repository, "--data-dir", "new"];
        let _ = backup(&machine, &restore)
            .expect(3, &["DAMAGED, and left out: a: page-corrupt", "1 tenant"]);
        let left = left(&machine);
        assert!(left.contains(&"whole.sqlite3".to_owned()), "{left:?}");
        assert!(!left.contains(&"a.sqlite3".to_owned()), "{left:?}");
        fs::remove_dir_all(machine.path("new")).expect("it goes");
    }
    fs::write(&path, sound).expect("the database as it was");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let _ = restore(&machine, "new", &[]).expect(0, &["2 tenants"]);
}
