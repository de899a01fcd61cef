//! Objects that are longer than any of their kind, or no files at all: each is named with its size,
//! and none is read.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nimbus_test_support::{Machine, files_under};

use super::shipping::{begun, now_ms, pass, ships};
use super::{add, as_str, backup, filled, machine, restore};

/// Longer than all memory.
const HUGE: u64 = 1 << 42;

/// A repository with two snapshots, packs and all else that there is, of a stopped deployment.
fn shipped() -> Machine {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    server.stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let server = ships(&machine, &[], &[]);
    begun(&server);
    // Two packs at least: that the last one is gone is known to nobody.
    for _pack in 0..2 {
        add(&server, "a", 2);
        pass(&server, now_ms());
    }
    server.stop();
    machine
}

/// The first object of a kind; of manifests that of a tenant.
fn one(machine: &Machine, kind: &str) -> PathBuf {
    let mut found = files_under(&machine.path("repo").join(kind));
    if kind == "keys" {
        let of_tenant = |path: &PathBuf| {
            let manifest = fs::read_to_string(path).expect("a manifest");
            manifest.contains("db:sqlite:tenant:")
        };
        found.retain(of_tenant);
    }
    found.sort();
    found.swap_remove(0)
}

/// Puts `put` in the place of an object of each kind, and asserts that it is named and that
/// everything ends.
fn named(put: impl Fn(&std::path::Path), words: &str, of_listed: &str) {
    let machine = shipped();
    for kind in ["snapshots", "epochs", "log", "base", "audit", "keys"] {
        let object = one(&machine, kind);
        let kept = machine.path("kept");
        fs::rename(&object, &kept).expect("it is kept");
        put(&object);
        let name = object.strip_prefix(machine.path("repo")).expect("a name");
        let is_listed = matches!(kind, "snapshots" | "log");
        let words = if is_listed { of_listed } else { words };
        let _ = backup(&machine, &["verify", "--from", "repo"])
            .expect(1, &["DAMAGED", as_str(name), words]);
        // Whatever comes of these, they end.
        for arguments in [
            &["list", "--from", "repo"][..],
            &["create", "--to", "repo"],
            &["restore", "--from", "repo", "--data-dir", "new"],
        ] {
            let said = backup(&machine, arguments).said();
            assert!(!said.contains("panicked"), "{said}");
        }
        drop(fs::remove_dir_all(machine.path("new")));
        fs::remove_file(&object).expect("it goes");
        fs::rename(&kept, &object).expect("it is back");
    }
    let _ = restore(&machine, "new", &[]).expect(0, &["Restored"]);
    let beginning = machine.path("repo/nimbus-repository");
    fs::remove_file(&beginning).expect("it goes");
    put(&beginning);
    for arguments in [&["list", "--from", "repo"], &["create", "--to", "repo"]] {
        let _ = backup(&machine, arguments).expect(1, &["nimbus-repository", words]);
    }
}

#[test]
fn an_object_longer_than_any_of_its_kind_is_named_with_its_size_and_not_read() {
    let put = |path: &std::path::Path| {
        let file = fs::File::create(path).expect("a file");
        file.set_len(HUGE).expect("a sparse file");
    };
    let words = "it has 4398046511104 bytes, and nothing of its kind has more than";
    named(put, words, words);
}

#[test]
fn a_pipe_in_the_place_of_an_object_is_named_and_nothing_waits_for_it() {
    let put = |path: &std::path::Path| {
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.expect("mkfifo").success());
    };
    // What is listed is files alone.
    named(put, "it is no file", "is missing");
}
