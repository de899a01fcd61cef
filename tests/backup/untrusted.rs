//! What somebody who may write to a repository, or beside it, does to it.

use std::fs;

use super::{as_str, backup, backup_with, filled, machine};

#[test]
fn a_restoration_clears_no_control_directory_that_it_did_not_begin() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let control = machine.path("control");
    let mut other = machine.nimbus(&["start", "--port", "0"]);
    let _ = other
        .env("NIMBUS_DATA_DIR", machine.path("other"))
        .env("NIMBUS_CONTROL_DATA_DIR", &control);
    let other = machine.start_command(other);
    let before = fs::read(control.join("nimbus-control.db.nimbus-enc")).expect("a manifest");
    fs::create_dir(machine.path("new")).expect("a directory");
    fs::write(machine.path("new/nimbus-restore-unfinished"), "").expect("a mark");
    let _ran = backup_with(
        &machine,
        &["restore", "--from", "repo", "--data-dir", "new"],
        &[("NIMBUS_CONTROL_DATA_DIR", as_str(&control))],
    );
    let after = fs::read(control.join("nimbus-control.db.nimbus-enc")).expect("a manifest");
    other.kill();
    assert!(
        before == after,
        "the control file of a running server was replaced"
    );
}

#[test]
fn a_newest_snapshot_that_is_gone_is_missed_by_who_made_it() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 2"]);
    fs::remove_file(machine.path("repo/snapshots/0000000002")).expect("it goes");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(
        3,
        &[
            "Snapshot 3",
            "snapshots/0000000002, which this deployment made",
        ],
    );
    // The next one names it: now whoever verifies misses it, too.
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 4"]);
    let _ = backup(&machine, &["verify", "--from", "repo"])
        .expect(1, &["3 snapshots", "snapshots/0000000002 is missing"]);
    let _ = super::restore(&machine, "new", &[]).expect(0, &["Restored snapshot 4"]);
}

#[test]
fn a_destroyed_key_keeps_no_snapshot_from_being_made() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let new = ["--master-key-file", "keys/new.key"];
    let to_new = [
        "--path",
        "data",
        "--all",
        "--new-master-key-file",
        "keys/new.key",
    ];
    let with = [("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", "keys/new.key")];
    for (verb, arguments, environment) in [
        ("keygen", &new[..], &[][..]),
        ("rotate-kek", &to_new[..], &[][..]),
        ("rotate-dek", &["--path", "data", "--all"][..], &with[..]),
    ] {
        let mut command = machine.nimbus(&["encryption", verb]);
        let _ = command.args(arguments).envs(environment.iter().copied());
        let _ = super::run(command).expect(0, &[]);
    }
    fs::remove_file(machine.master_key()).expect("the old key is destroyed");
    for snapshot in ["Snapshot 2", "Snapshot 3"] {
        let _ = backup_with(&machine, &["create", "--to", "repo"], &with).expect(0, &[snapshot]);
    }
    let restore = ["restore", "--from", "repo", "--data-dir", "new"];
    let _ = backup_with(&machine, &restore, &with).expect(0, &["snapshot 3"]);
}
