//! Somebody has an old data key of the control file, and writes to the repository.

use std::fs;

use nimbus_test_support::{Machine, until};

use super::shipping::{begun, instant, pass, ships};
use super::{
    Ran, add, as_str, backup, backup_with, filled, machine, notes, restore, run, start_on,
};

/// A deployment whose control file got another data key between snapshots 1 and 2, and in `stolen`
/// a copy of it from before.
fn rotated() -> Machine {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1"]);
    server.stop();
    copy(&machine, "stolen");
    rotate(&machine, "data");
    let server = machine.start(&[]);
    add(&server, "a", 2);
    server.stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 2"]);
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    machine
}

fn copy(machine: &Machine, to: &str) {
    fs::create_dir(machine.path(to)).expect("a directory");
    for entry in fs::read_dir(machine.data_dir()).expect("the data directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        let _ = fs::copy(&path, machine.path(to).join(name)).expect("a copy");
    }
}

fn rotate(machine: &Machine, data: &str) {
    let control = machine.path(data).join("nimbus-control.db");
    let rotate = ["encryption", "rotate-dek", "--provider", "redb", "--path"];
    let mut command = machine.nimbus(&[&rotate[..], &[as_str(&control)]].concat());
    let _ = command.env("NIMBUS_DATA_DIR", machine.path(data));
    let _ = run(command).expect(0, &[]);
}

/// A snapshot of the deployment in `data`, with whatever key it has.
fn forge(machine: &Machine, data: &str) -> Ran {
    let environment = [
        ("NIMBUS_DATA_DIR", data),
        ("FAILPOINTS", "backup::old-key-seals=return"),
    ];
    backup_with(machine, &["create", "--to", "repo"], &environment)
}

const OLD: &str = "which another one had replaced";

#[test]
fn a_snapshot_under_a_data_key_that_was_replaced_is_refused_by_who_restores_verifies_and_goes_on() {
    let machine = rotated();
    let _ = forge(&machine, "stolen").expect(0, &["Snapshot 3"]);
    let named = "snapshots/0000000003";
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(1, &["DAMAGED", named, OLD]);
    let _ = restore(&machine, "new", &["--snapshot", "3"]).expect(1, &[named, OLD]);
    assert!(!machine.path("new").exists());
    // What counts is restored: without what the forged one says of the time after it.
    for (to, arguments) in [("new", &[][..]), ("chosen", &["--snapshot", "2"])] {
        let _ = restore(&machine, to, arguments).expect(
            3,
            &["Restored snapshot 2", "NOT AS IT WAS WRITTEN", named, OLD],
        );
    }
    let data = machine.data_dir();
    let one = |more: &[&str]| -> Ran {
        restore(
            &machine,
            as_str(&data),
            &[&["--tenant-id", "a"], more].concat(),
        )
    };
    let _ = one(&["--as", "c", "--snapshot", "3"]).expect(1, &[named, OLD]);
    let _ = one(&["--as", "c"]).expect(3, &["Restored tenant a", "snapshot 2", named, OLD]);
    let _ = one(&["--as", "d", "--snapshot", "2"]).expect(3, &["Restored tenant a", named]);
    let create = ["create", "--to", "repo"];
    let _ = backup(&machine, &create).expect(3, &["Snapshot 4", named, OLD]);
    let prune = ["prune", "--from", "repo", "--keep-within", "1d"];
    let _ = backup(&machine, &prune).expect(3, &["DAMAGED", named, OLD]);
    // A second one under it, which says that the newer key was replaced.
    let _ = forge(&machine, "stolen").expect(0, &["Snapshot 5"]);
    let verified = backup(&machine, &["verify", "--from", "repo"]);
    let _ = verified.expect(1, &[named, "snapshots/0000000005", OLD]);
    assert!(
        !verified.said().contains("goes on from"),
        "{}",
        verified.said()
    );
    let _ = restore(&machine, "newer", &[])
        .expect(3, &["Restored snapshot 4", "snapshots/0000000005", OLD]);
    for forged in ["0000000003", "0000000005"] {
        fs::remove_file(machine.path("repo/snapshots").join(forged)).expect("it is moved away");
    }
    let _ = backup(&machine, &create).expect(0, &["Snapshot 5"]);
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
}

#[test]
fn a_removal_under_a_data_key_that_was_replaced_is_refused() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    for _ in 0..2 {
        add(&server, "a", 1);
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    }
    server.stop();
    // The removal that the old key seals is made in a copy of the repository, and is the next entry
    // of both.
    let _ = run(copied(&machine, "repo", "before")).expect(0, &[]);
    let prune = ["prune", "--from", "before", "--keep-daily", "1"];
    let _ = backup(&machine, &prune).expect(0, &["snapshots 1;"]);
    rotate(&machine, "data");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 3"]);
    let removal = machine.path("before/snapshots/0000000003");
    let to = machine.path("repo/snapshots/0000000004");
    let _ = fs::copy(removal, to).expect("the removal under another number");
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(1, &["snapshots/0000000004"]);
    let _ =
        restore(&machine, "new", &[]).expect(3, &["Restored snapshot 3", "snapshots/0000000004"]);
}

fn copied(machine: &Machine, from: &str, to: &str) -> std::process::Command {
    let mut command = std::process::Command::new("cp");
    let _ = command
        .arg("-r")
        .arg(machine.path(from))
        .arg(machine.path(to));
    command
}

#[test]
fn a_deployment_that_was_restored_from_before_gets_a_key_of_its_own_and_goes_on() {
    let machine = rotated();
    let _ = restore(&machine, "new", &["--snapshot", "1"]).expect(0, &["Restored snapshot 1"]);
    let of = |data| [("NIMBUS_DATA_DIR", data)];
    let create = ["create", "--to", "repo"];
    // A copy of the files, which has the old key, adds nothing.
    let _ = backup_with(&machine, &create, &of("stolen"))
        .expect(1, &["newer data keys", "rotate-dek --provider redb"]);
    let over = [&create[..], &["--take-over"]].concat();
    let _ = backup_with(&machine, &over, &of("new")).expect(0, &["Snapshot 3"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    // The deployment that was there before learns of it.
    let _ = backup(&machine, &create).expect(1, &["another line", "--take-over"]);
    let _ = backup(&machine, &over).expect(1, &["newer data keys", "let no other copy"]);
    rotate(&machine, "data");
    let _ = backup(&machine, &over).expect(0, &["Snapshot 4"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
}

#[test]
fn what_is_shipped_goes_on_through_a_new_data_key_and_not_under_the_old_one() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    let _ = server.create("/api/tenants", &serde_json::json!({"id": "a"}));
    begun(&server);
    add(&server, "a", 2);
    let first = instant(&server, &["a"]);
    pass(&server, first.ms);
    server.stop();
    copy(&machine, "stolen");
    let server = ships(&machine, &[], &[]);
    begun(&server);
    rotate(&machine, "data");
    add(&server, "a", 2);
    let second = instant(&server, &["a"]);
    pass(&server, second.ms);
    // A snapshot under the new key is made at once.
    let snapshots = || {
        let listed = backup(&machine, &["list", "--from", "repo", "--format", "json"]);
        listed.json()["snapshots"].as_array().map_or(0, Vec::len)
    };
    until("a snapshot under the new key", || snapshots() > 2);
    server.stop();
    assert_eq!(snapshots(), 3);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    super::shipping::check(&machine, &first);
    super::shipping::check(&machine, &second);
    // A server on the copy ships nothing, and begins no epoch.
    let epochs = || {
        let epochs = fs::read_dir(machine.path("repo/epochs"));
        epochs.expect("epochs").count()
    };
    let before = epochs();
    let server = start_on(&machine, "stolen", &["--backup-to", "repo"]);
    until("the copy is refused", || {
        server.log().contains("newer data keys")
    });
    assert_eq!(notes(&server, "a"), first.notes["a"]);
    server.stop();
    assert_eq!(epochs(), before);
    // One that is made to ship all the same: nothing of it is taken.
    let mut command = machine.nimbus(&["start", "--port", "0", "--backup-to", "repo"]);
    let _ = command
        .env("NIMBUS_DATA_DIR", machine.path("stolen"))
        .env("FAILPOINTS", "backup::old-key-seals=return");
    let server = machine.start_command(command);
    begun(&server);
    add(&server, "a", 1);
    let forged = instant(&server, &["a"]);
    pass(&server, forged.ms);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo"])
        .expect(1, &["DAMAGED: snapshots/", "DAMAGED: epochs/", OLD]);
    let _ = restore(&machine, "newest", &[]).expect(3, &["Restored", "snapshots/", OLD]);
    let _ = super::shipping::restore_at(&machine, "new", forged.ms, &[]).expect(1, &[OLD]);
    // What was shipped before is restored, and the forged is named.
    let _ = super::shipping::restore_at(&machine, "new", second.ms, &[])
        .expect(3, &["Restored the instant", "snapshots/", OLD]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "a"), second.notes["a"]);
    restored.stop();
}

#[test]
fn packs_that_somebody_with_an_old_data_key_exchanges_are_not_restored() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let _ = run(copied(&machine, "repo", "forged")).expect(0, &[]);
    copy(&machine, "stolen");
    // One pack of an epoch in the repository, and another one under the same name and key
    // elsewhere.
    let ship = |data: &str, repo: &str, failpoints: &str| {
        let mut command = machine.nimbus(&["start", "--port", "0", "--backup-to", repo]);
        let _ = command
            .env("NIMBUS_DATA_DIR", machine.path(data))
            .env("FAILPOINTS", failpoints);
        let server = machine.start_command(command);
        begun(&server);
        add(&server, "a", 1);
        let shipped = instant(&server, &["a"]);
        pass(&server, shipped.ms);
        server.stop();
        shipped
    };
    let first = ship("data", "repo", "");
    super::shipping::check(&machine, &first);
    let forged = ship("stolen", "forged", "");
    rotate(&machine, "data");
    let second = ship("data", "repo", "");
    for at in [&first, &second] {
        super::shipping::check(&machine, at);
    }
    let exchange = |epoch: u64| {
        let name = format!("log/{epoch:010}");
        let path = machine.path("repo").join(&name);
        fs::rename(&path, machine.path("kept")).expect("it is kept");
        let others = format!("forged/{name}");
        let _ = run(copied(&machine, &others, &format!("repo/{name}"))).expect(0, &[]);
        name
    };
    let name = exchange(1);
    let _ = super::shipping::restore_at(&machine, "new", forged.ms, &[]).expect(1, &[&name]);
    assert!(!machine.path("new").exists());
    fs::remove_dir_all(machine.path("repo").join(&name)).expect("it goes");
    fs::rename(machine.path("kept"), machine.path("repo").join(&name)).expect("it is back");
    super::shipping::check(&machine, &first);
    // And behind a snapshot that is under the new key.
    let forged = ship("stolen", "forged", "backup::old-key-seals=return");
    let name = exchange(2);
    let _ = super::shipping::restore_at(&machine, "newer", forged.ms, &[]).expect(1, &[&name, OLD]);
    assert!(!machine.path("newer").exists());
}
