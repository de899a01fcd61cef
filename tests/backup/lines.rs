//! A deployment that was restored from a backup, beside the one that it was restored from.

use std::fs;

use nimbus_test_support::{Machine, until};

use super::shipping::{begun, now_ms, pass, ships, standing};
use super::{Ran, add, backup, backup_with, filled, machine, notes, restore, start_on};

const CREATE: [&str; 3] = ["create", "--to", "repo"];

fn of(machine: &Machine, data: &str, arguments: &[&str]) -> Ran {
    backup_with(machine, arguments, &[("NIMBUS_DATA_DIR", data)])
}

/// Asserts that the repository is whole, and that `tenant` of the newest instant has so many notes.
fn whole(machine: &Machine, to: &str, expected: usize) {
    let _ = backup(machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    let _ = restore(machine, to, &[]).expect(0, &["Restored"]);
    let restored = start_on(machine, to, &[]);
    assert_eq!(notes(&restored, "a").len(), expected);
    restored.stop();
}

#[test]
fn a_drill_stores_nothing_beside_the_original_until_it_is_told_to_take_over() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let _ = backup(&machine, &CREATE).expect(0, &["Snapshot 1"]);
    let _ = restore(&machine, "drill", &[]).expect(0, &["stores nothing in repo", "--take-over"]);
    let refused = [
        "another line",
        "backup create --to",
        "--take-over",
        "a repository of its own",
    ];
    let _ = of(&machine, "drill", &CREATE).expect(1, &refused);
    let server = start_on(&machine, "drill", &["--backup-to", "repo"]);
    until("the drill is refused", || {
        let error = standing(&server)["error"].clone();
        error
            .as_str()
            .is_some_and(|error| error.contains("another line"))
    });
    add(&server, "a", 1);
    server.stop();
    assert!(!machine.path("repo/epochs").exists() && !machine.path("repo/log").exists());
    // The original does not notice.
    let server = machine.start(&[]);
    add(&server, "a", 2);
    server.stop();
    let _ = backup(&machine, &CREATE).expect(0, &["Snapshot 2"]);
    whole(&machine, "second", 5);
    // A repository of its own takes it as it is.
    let _ = of(&machine, "drill", &["create", "--to", "other"]).expect(0, &["Snapshot 1"]);
    // The original is gone for good.
    let over = [&CREATE[..], &["--take-over"]].concat();
    let _ = of(&machine, "drill", &over).expect(0, &["Snapshot 3"]);
    let _ = of(&machine, "drill", &CREATE).expect(0, &["Snapshot 4"]);
    whole(&machine, "third", 4);
    // Or it is not: then it is told, and nothing of it gets in between.
    let _ = backup(&machine, &CREATE).expect(1, &refused);
    let _ = of(&machine, "third", &CREATE).expect(1, &refused);
    let _ = backup(&machine, &over).expect(0, &["Snapshot 5"]);
    let _ = of(&machine, "drill", &CREATE).expect(1, &refused);
    whole(&machine, "fourth", 5);
}

#[test]
fn a_drill_that_takes_over_ships_and_the_original_stops() {
    let machine = machine();
    let original = ships(&machine, &[], &[]);
    begun(&original);
    let _ = original.create("/api/tenants", &serde_json::json!({"id": "a"}));
    add(&original, "a", 2);
    pass(&original, now_ms());
    let _ = restore(&machine, "drill", &[]).expect(0, &[]);
    let drill = start_on(&machine, "drill", &["--backup-to", "repo"]);
    until("the drill is refused", || {
        drill.log().contains("another line")
    });
    // The original ships on.
    add(&original, "a", 1);
    pass(&original, now_ms());
    let epochs = fs::read_dir(machine.path("repo/epochs")).expect("epochs");
    assert_eq!(epochs.count(), 1);
    // Told to a running server, which begins by itself then.
    let over = [&CREATE[..], &["--take-over"]].concat();
    let _ = of(&machine, "drill", &over).expect(0, &["Snapshot"]);
    begun(&drill);
    add(&drill, "a", 7);
    pass(&drill, now_ms());
    until("the original stops", || {
        add(&original, "a", 1);
        standing(&original)["ok"] == false
    });
    let why = standing(&original)["error"].clone();
    let why = why.as_str().expect("why");
    assert!(
        why.contains("another server ships") || why.contains("another line"),
        "{why}"
    );
    original.stop();
    drill.stop();
    let verified = backup(&machine, &["verify", "--from", "repo"]);
    assert!(!verified.said().contains("DAMAGED"), "{}", verified.said());
    let _ = restore(&machine, "new", &[]).expect(0, &["Restored"]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "a").len(), 9);
    restored.stop();
}
