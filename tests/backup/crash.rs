use std::fs;

use super::{add, backup, backup_with, filled, machine, notes, restore, start_on};

/// Each step of a snapshot, and whether there is a new one after a kill there.
const CREATE: [(&str, bool); 6] = [
    ("backup::repository-made=return", false),
    ("backup::frozen=return", false),
    ("backup::run-stored=return", false),
    ("backup::run-stored=1*off->return", false),
    ("backup::stored=return", false),
    ("backup::committed=return", true),
];

/// Each step of a restoration, and whether it is finished after a kill there.
const RESTORE: [(&str, bool); 6] = [
    ("restore::marked=return", false),
    ("restore::tenants-written=return", false),
    ("restore::written=return", false),
    ("restore::tenant-written=return", false),
    ("restore::recorded=return", false),
    ("restore::finished=return", true),
];

#[test]
fn a_kill_at_each_step_of_a_snapshot_leaves_the_ones_before_and_the_next_goes_on() {
    let machine = machine();
    let server = filled(&machine, &["a", "b", "c"]);
    server.stop();
    let mut snapshots = 0;
    for (point, made) in CREATE {
        let server = machine.start(&[]);
        add(&server, "a", 2);
        server.stop();
        let killed = backup_with(
            &machine,
            &["create", "--to", "repo"],
            &[("FAILPOINTS", point)],
        );
        killed.expect_killed();
        snapshots += usize::from(made);
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
        snapshots += 1;
        let verified = backup(&machine, &["verify", "--from", "repo", "--format", "json"]);
        let _ = verified.expect(0, &[]);
        assert_eq!(
            verified.json()["snapshots"].as_array().map(Vec::len),
            Some(snapshots),
            "{point}"
        );
    }
    let before = {
        let server = machine.start(&[]);
        let before = notes(&server, "a");
        server.stop();
        before
    };
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "a"));
    restored.stop();
}

#[test]
fn a_server_that_is_killed_while_it_saves_loses_nothing_and_saves_again() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    server.stop();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    let _ = command.env("FAILPOINTS", "backup::run-stored=return");
    let server = machine.start_command(command);
    add(&server, "a", 3);
    let before = notes(&server, "a");
    let failed = backup(&machine, &["create", "--to", "repo"]);
    assert!(!failed.0.status.success(), "{}", failed.said());
    server.wait_until_killed();
    let server = machine.start(&[]);
    assert_eq!(before, notes(&server, "a"));
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1"]);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
}

#[test]
fn a_kill_at_each_step_of_a_restoration_leaves_nothing_that_starts_and_the_next_goes_through() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    let before = notes(&server, "a");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    // What is restored is older than the newest log.
    assert_eq!(server.request("DELETE", "/api/tenants/b", None).0, 204);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    server.stop();
    let arguments = [
        "restore",
        "--from",
        "repo",
        "--data-dir",
        "new",
        "--snapshot",
        "1",
    ];
    for (point, finished) in RESTORE {
        let killed = backup_with(&machine, &arguments, &[("FAILPOINTS", point)]);
        killed.expect_killed();
        if !finished {
            let mut command = machine.nimbus(&["start", "--port", "0"]);
            let _ = command.env("NIMBUS_DATA_DIR", machine.path("new"));
            machine
                .run_to_end(command)
                .expect(1, &["a restoration into", "was cut short"]);
            let _ =
                restore(&machine, "new", &["--snapshot", "1"]).expect(0, &["Restored snapshot 1"]);
        }
        let restored = start_on(&machine, "new", &[]);
        assert_eq!(before, notes(&restored, "a"), "{point}");
        restored.stop();
        fs::remove_dir_all(machine.path("new")).expect("the restored directory goes");
    }
}

#[test]
fn an_answer_of_the_store_that_is_lost_changes_nothing() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    server.stop();
    // Of every creation.
    let lost = [("FAILPOINTS", "backup::answer-lost=return")];
    for snapshot in ["Snapshot 1", "Snapshot 2"] {
        let _ = backup_with(&machine, &["create", "--to", "repo"], &lost).expect(0, &[snapshot]);
    }
    let _ = backup(&machine, &["verify", "--from", "repo"])
        .expect(0, &["2 snapshots", "all authentic"]);
}
