//! The very first start: master key, control file and its manifest come into being.

use std::fs;

use nimbus_test_support::{Machine, files_under};
use serde_json::json;

use super::{
    TEMPORARY, armed, assert_keeps_documents, data_file, identity, machine, manifest_field, names,
    start_killed, tenants,
};

/// Point, how often it is passed before, the manifest's state then, and whether the control file is
/// in its place.
pub(super) const POINTS: &[(&str, u32, Option<&str>, bool)] = &[
    ("manifest::temporary-created", 0, None, false),
    ("manifest::temporary-written", 0, None, false),
    ("manifest::temporary-flushed", 0, None, false),
    ("manifest::renamed", 0, Some("new"), false),
    ("manifest::published", 0, Some("new"), false),
    ("control::opened", 0, Some("new"), false),
    ("control::filled", 0, Some("new"), false),
    ("control::renamed", 0, Some("new"), true),
    ("manifest::temporary-created", 1, Some("new"), true),
    ("manifest::temporary-written", 1, Some("new"), true),
    ("manifest::temporary-flushed", 1, Some("new"), true),
    ("manifest::renamed", 1, Some("ready"), true),
    ("manifest::published", 1, Some("ready"), true),
    ("deployment::control-opened", 0, Some("ready"), true),
];

#[test]
fn a_first_start_killed_anywhere_is_finished_by_the_next_under_the_same_keys() {
    for (point, passes, state, file) in POINTS {
        eprintln!("killed at {point}, passed {passes} times before");
        let machine = machine();
        start_killed(&machine, &[], &armed(point, *passes));
        assert_eq!(manifest_field(&machine, FILE, "state").as_deref(), *state);
        assert_eq!(data_file(&machine, FILE).exists(), *file);
        let master_key = fs::read(machine.master_key()).expect("the master key was made first");
        let key = identity(&machine, FILE);

        assert_serves(&machine, &[]);
        assert_eq!(fs::read(machine.master_key()).expect("the key"), master_key);
        assert_eq!(keys(&machine), 1, "no second key is made");
        if key.is_some() {
            assert_eq!(identity(&machine, FILE), key);
        }
        assert_eq!(
            manifest_field(&machine, FILE, "state").as_deref(),
            Some("ready")
        );
        assert!(data_file(&machine, "nimbus.deployed").exists());
    }
}

#[test]
fn a_first_start_killed_again_and_again_ends_under_its_first_key() {
    let machine = machine();
    start_killed(&machine, &[], &armed("manifest::renamed", 0));
    let first = identity(&machine, FILE).expect("a key");
    // The manifest `new` is there: the only one that is still written is `ready`.
    for point in [
        "control::opened",
        "control::filled",
        "control::renamed",
        "manifest::temporary-written",
        "manifest::temporary-flushed",
    ] {
        start_killed(&machine, &[], &armed(point, 0));
        assert_eq!(
            identity(&machine, FILE).as_ref(),
            Some(&first),
            "killed at {point}"
        );
    }
    assert_serves(&machine, &[]);
    assert_eq!(identity(&machine, FILE), Some(first));
    assert_eq!(keys(&machine), 1);
}

#[test]
fn a_plaintext_control_file_is_absent_or_whole_after_a_kill() {
    for (point, exists) in [
        ("control::opened", false),
        ("control::filled", false),
        ("control::renamed", true),
    ] {
        eprintln!("killed at {point}");
        let machine = machine();
        let plaintext = &["--encryption-key-provider", "none"];
        start_killed(&machine, plaintext, &armed(point, 0));
        assert_eq!(data_file(&machine, FILE).exists(), exists);
        assert_serves(&machine, plaintext);
    }
}

/// Starts normally and works.
fn assert_serves(machine: &Machine, arguments: &[&str]) {
    let server = machine.start(arguments);
    assert_eq!(names(machine, TEMPORARY), [""; 0], "leftovers are removed");
    assert_eq!(names(machine, "nimbus-control.db.set-aside"), [""; 0]);
    assert_eq!(tenants(&server), [""; 0]);
    server.create("/api/tenants", &json!({"id": "tenant"}));
    assert_keeps_documents(machine, arguments, server, "tenant");
}

/// How many key files there are.
fn keys(machine: &Machine) -> usize {
    let directory = machine.master_key();
    let directory = directory.parent().expect("the directory of the key");
    files_under(directory).len()
}

const FILE: &str = "nimbus-control.db";
