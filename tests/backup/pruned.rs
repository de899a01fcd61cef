use std::fs;

use nimbus_test_support::{Machine, Server, files_under};

use super::{Ran, add, as_str, backup, backup_with, filled, machine, notes, restore, start_on};

/// Each step of a removal.
const STEPS: [&str; 4] = [
    "removal::announced=return",
    "removal::recorded=return",
    "removal::catalogues-removed=return",
    "removal::objects-removed=return",
];

/// What nobody refers to is removed however young it is.
const AT_ONCE: &str = "removal::safe-age=return";

fn prune(machine: &Machine, arguments: &[&str], failpoints: &str) -> Ran {
    let prune = ["prune", "--from", "repo"];
    backup_with(
        machine,
        &[&prune[..], arguments].concat(),
        &[("FAILPOINTS", failpoints)],
    )
}

/// So many snapshots, with something written before each.
fn snapshots(machine: &Machine, server: &Server, count: usize) {
    for _ in 0..count {
        add(server, "a", 2);
        let _ = backup(machine, &["create", "--to", "repo"]).expect(0, &[]);
    }
}

fn bytes(machine: &Machine) -> u64 {
    let files = files_under(&machine.path("repo"));
    files
        .iter()
        .map(|file| fs::metadata(file).expect("an object").len())
        .sum()
}

fn verified(machine: &Machine) -> Vec<u64> {
    let found = backup(machine, &["verify", "--from", "repo", "--format", "json"]);
    let _ = found.expect(0, &[]);
    let numbers = found.json()["snapshots"]
        .as_array()
        .expect("a list")
        .clone();
    numbers
        .iter()
        .filter_map(serde_json::Value::as_u64)
        .collect()
}

#[test]
fn snapshots_that_no_rule_keeps_go_and_what_is_kept_stays_whole() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    snapshots(&machine, &server, 3);
    let before = notes(&server, "a");
    // All of one day: the last of it is kept.
    let _ = prune(&machine, &["--keep-daily", "7", "--dry-run"], "").expect(
        0,
        &["Would remove", "snapshots 1, 2;", "Kept: snapshots 3."],
    );
    assert_eq!(verified(&machine), [1, 2, 3]);
    let _ = prune(&machine, &["--keep-within", "1h"], "")
        .expect(0, &["snapshots none", "Kept: snapshots 1, 2, 3."]);
    assert_eq!(
        verified(&machine),
        [1, 2, 3],
        "nothing is recorded where nothing goes"
    );
    let size = bytes(&machine);
    let _ = prune(&machine, &["--keep-daily", "7"], "").expect(0, &["Removed", "snapshots 1, 2;"]);
    assert!(bytes(&machine) < size, "{} of {size}", bytes(&machine));
    // The chain of what is left begins behind what was removed, and goes on.
    assert_eq!(verified(&machine), [3]);
    snapshots(&machine, &server, 2);
    assert_eq!(verified(&machine), [3, 5, 6]);
    let _ = prune(&machine, &["--keep-daily", "1"], "").expect(0, &["snapshots 3, 5;"]);
    assert_eq!(verified(&machine), [6]);
    let _ = prune(&machine, &["--keep-daily", "1"], "").expect(0, &["snapshots none"]);
    let now = notes(&server, "a");
    assert_eq!(now.len(), before.len() + 4);
    server.stop();
    let _ = backup(&machine, &["list", "--from", "repo"]).expect(0, &["6  "]);
    let _ = restore(&machine, "new", &["--snapshot", "3"]).expect(1, &["has no snapshot 3"]);
    let _ = restore(&machine, "new", &[]).expect(0, &["Restored snapshot 6"]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(now, notes(&restored, "a"));
    restored.stop();
    let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    assert!(log.contains("are removed from"), "{log}");
    // Without a rule nothing is removed.
    let _ = prune(&machine, &[], "").expect(2, &["--keep-daily"]);
}

#[test]
fn a_snapshot_that_somebody_removed_is_told_from_one_that_was_pruned() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    snapshots(&machine, &server, 2);
    let _ = prune(&machine, &["--keep-daily", "1"], "").expect(0, &[]);
    snapshots(&machine, &server, 2);
    server.stop();
    assert_eq!(verified(&machine), [2, 4, 5]);
    for number in ["0000000002", "0000000003", "0000000004"] {
        let object = machine.path("repo/snapshots").join(number);
        let text = fs::read(&object).expect("an entry");
        fs::remove_file(&object).expect("it goes");
        let missing = format!("snapshots/{number} is missing");
        let _ = backup(&machine, &["verify", "--from", "repo"]).expect(1, &[&missing]);
        // And nothing is pruned on the word of what is not whole: objects that it named may be
        // anybody's.
        fs::write(&object, &text).expect("it comes back");
    }
    // One that was pruned and is put back is no snapshot again.
    assert_eq!(verified(&machine), [2, 4, 5]);
}

#[test]
fn what_snapshots_that_were_cut_short_left_goes_once_it_is_old() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    snapshots(&machine, &server, 1);
    add(&server, "a", 3);
    server.stop();
    let cut = [("FAILPOINTS", "backup::stored=return")];
    backup_with(&machine, &["create", "--to", "repo"], &cut).expect_killed();
    let _ = prune(&machine, &["--keep-daily", "1"], "").expect(0, &["0 other objects"]);
    let _ =
        prune(&machine, &["--keep-daily", "1", "--dry-run"], AT_ONCE).expect(0, &["Would remove"]);
    let size = bytes(&machine);
    let _ = prune(&machine, &["--keep-daily", "1"], AT_ONCE).expect(0, &["snapshots none"]);
    assert!(bytes(&machine) < size);
    assert_eq!(verified(&machine), [1]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 3"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
}

#[test]
fn a_kill_at_each_step_leaves_what_is_kept_whole_and_the_next_goes_through() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    for point in STEPS {
        snapshots(&machine, &server, 2);
        let before = verified(&machine);
        prune(&machine, &["--keep-daily", "1"], point).expect_killed();
        // Snapshots go on meanwhile, and what is named as gone is known for it.
        snapshots(&machine, &server, 1);
        let found = backup(&machine, &["verify", "--from", "repo"]);
        let said = found.said();
        assert!(!said.contains("DAMAGED"), "{point}: {said}");
        let _ = prune(&machine, &["--keep-daily", "1"], "").expect(0, &[]);
        let after = verified(&machine);
        assert!(
            after.len() == 1 && after[0] > before[before.len() - 1],
            "{point}: {after:?}"
        );
    }
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
}

#[test]
fn a_snapshot_under_way_loses_nothing_to_a_removal_whoever_is_first() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    snapshots(&machine, &server, 2);
    // What a snapshot that was cut short left is used by the next one that would write the same.
    add(&server, "a", 3);
    let before = notes(&server, "a");
    server.stop();
    let cut = [("FAILPOINTS", "backup::stored=return")];
    backup_with(&machine, &["create", "--to", "repo"], &cut).expect_killed();
    let stored = || files_under(&machine.path("repo/audit")).len();
    let already = stored();
    // All is stored, and for a while the catalogue is not: most often the removal is first.
    let mut slow = machine.nimbus(&["backup", "create", "--to", "repo"]);
    let _ = slow.env("FAILPOINTS", "backup::stored=1*sleep(6000)->off");
    let slow = slow
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let slow = slow.spawn().expect("a snapshot that is slow");
    while stored() == already {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // From another machine: this one's directory is in use.
    let elsewhere = [("FAILPOINTS", AT_ONCE), ("NIMBUS_DATA_DIR", "elsewhere")];
    let removal = ["prune", "--from", "repo", "--keep-daily", "1"];
    let _ = backup_with(&machine, &removal, &elsewhere).expect(0, &["snapshots 1"]);
    let _ = Ran(slow.wait_with_output().expect("it ends")).expect(0, &["Snapshot"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "a"));
    restored.stop();
}

#[test]
fn names_that_a_removal_is_removing_are_not_used_until_it_is_at_its_end() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    snapshots(&machine, &server, 1);
    add(&server, "a", 3);
    let before = notes(&server, "a");
    server.stop();
    let cut = [("FAILPOINTS", "backup::stored=return")];
    backup_with(&machine, &["create", "--to", "repo"], &cut).expect_killed();
    // It is known what goes, and nothing has gone.
    let killed = format!("{AT_ONCE};removal::recorded=return");
    prune(&machine, &["--keep-daily", "1"], &killed).expect_killed();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 3"]);
    let renamed = files_under(&machine.path("repo/base"));
    let renamed = renamed.iter().filter(|path| as_str(path).ends_with(".2"));
    assert!(
        renamed.count() > 0,
        "the pages of a are there under a name that goes"
    );
    let _ = prune(&machine, &["--keep-daily", "1"], "").expect(0, &["snapshots 1;"]);
    assert_eq!(verified(&machine), [3]);
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "a"));
    restored.stop();
}
