use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use nimbus_test_support::{Server, files_under, until};
use serde_json::json;

use super::shipping::{
    begun, check, check_with, instant, is_within, now_ms, pass, ranges, restore_at, ships, stamp,
    standing,
};
use super::{CANARY, add, backup, backup_with, machine, notes, run, start_on};

#[test]
fn every_commit_that_was_acknowledged_is_restored_to_its_instant_and_none_after_it() {
    let machine = machine();
    let before = now_ms();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    let mut instants = Vec::new();
    for tenant in ["a", "b"] {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
    }
    for n in 0..8 {
        add(&server, if n % 2 == 0 { "a" } else { "b" }, 1);
        instants.push(instant(&server, &["a", "b"]));
    }
    let large = "x".repeat(100_000);
    let _id = server.insert("a", "notes", &json!({"large": large}));
    instants.push(instant(&server, &["a", "b"]));
    let last = now_ms();
    pass(&server, last);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"])
        .expect(0, &["pack", "over it was restored", "all authentic"]);
    let _ =
        backup(&machine, &["list", "--from", "repo"]).expect(0, &["Any commit from", "epoch 1"]);
    for instant in [&instants[0], &instants[3], &instants[4], &instants[8]] {
        check(&machine, instant);
    }
    let _ = restore_at(&machine, "new", instants[2].ms, &["--dry-run"])
        .expect(0, &["Would restore the instant", &stamp(instants[2].ms)]);
    assert!(!machine.path("new").exists());
    for outside in [before, now_ms() + 1_000_000] {
        let _ = restore_at(&machine, "new", outside, &[])
            .expect(1, &["cannot be restored to", "each instant from"]);
    }
    for file in files_under(&machine.path("repo")) {
        let bytes = fs::read(&file).expect("an object");
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(CANARY.as_bytes()), "{}", file.display());
    }
}

#[test]
fn an_orderly_end_ships_the_rest_and_the_next_start_goes_on_without_a_new_base() {
    let machine = machine();
    let server = ships(&machine, &["--backup-interval", "1h"], &[]);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    for n in 0..40 {
        let _id = server.insert("a", "notes", &json!({"n": n, "text": "y".repeat(20_000)}));
    }
    let before = notes(&server, "a");
    server.stop();
    let restore = ["restore", "--from", "repo", "--data-dir", "new"];
    let _ = backup(&machine, &restore).expect(0, &["Restored the instant"]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "a"));
    restored.stop();
    let size = || -> u64 {
        let files = files_under(&machine.path("repo/base"));
        files
            .iter()
            .map(|file| fs::metadata(file).expect("an object").len())
            .sum()
    };
    // The first start has a file of its own for the tenant; the second stores what changed since.
    let server = ships(&machine, &[], &[]);
    begun(&server);
    server.stop();
    let stored = size();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    add(&server, "a", 1);
    pass(&server, now_ms());
    server.stop();
    assert!(size() - stored < 400_000, "{} after {stored}", size());
    assert_eq!(ranges(&machine).len(), 3);
}

#[test]
fn nothing_is_stored_while_nothing_is_written() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    add(&server, "a", 3);
    pass(&server, now_ms());
    let objects = || files_under(&machine.path("repo")).len();
    let mut before = objects();
    let mut quiet = 0;
    // What was written last may be under way.
    for _look in 0..20 {
        std::thread::sleep(Duration::from_millis(500));
        let now = objects();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
        if quiet == 6 {
            break;
        }
    }
    assert_eq!(quiet, 6);
    let _ = notes(&server, "a");
    add(&server, "a", 1);
    pass(&server, now_ms());
    assert!(objects() > before);
    server.stop();
}

#[test]
fn shipping_goes_on_through_rotations_of_both_keys_deletion_creation_and_locks() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    for tenant in ["a", "b", "again"] {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
        add(&server, tenant, 2);
    }
    let mut instants = vec![instant(&server, &["a", "b", "again"])];
    let encryption = |arguments: &[&str]| {
        let mut command = machine.nimbus(&["encryption"]);
        let _ = command.args(arguments);
        run(command)
    };
    fs::create_dir(machine.path("keys")).expect("a directory");
    for round in 0..2 {
        pass(&server, now_ms());
        let _ = encryption(&["rotate-dek", "--path", "data", "--all"]).expect(0, &[]);
        instants.push(instant(&server, &["a", "b", "again"]));
        add(&server, "a", 1);
        instants.push(instant(&server, &["a", "b", "again"]));
        let new = format!("keys/new-{round}.key");
        let _ = encryption(&["keygen", "--master-key-file", &new]).expect(0, &[]);
        let rotate = [
            "rotate-kek",
            "--path",
            "data",
            "--all",
            "--new-master-key-file",
        ];
        let _ = encryption(&[&rotate[..], &[&new]].concat()).expect(0, &[]);
        add(&server, "b", 1);
        instants.push(instant(&server, &["a", "b", "again"]));
        pass(&server, now_ms());
        assert_eq!(server.request("DELETE", "/api/tenants/again", None).0, 204);
        drop(server.create("/api/tenants", &json!({"id": "again"})));
        add(&server, "again", 1);
        pass(&server, now_ms());
        instants.push(instant(&server, &["a", "b", "again"]));
    }
    let lock = json!({"tenant_id": "b"});
    let locked = server.request("POST", "/api/admin/encryption/lock", Some(&lock));
    assert_eq!(locked.0, 200);
    add(&server, "a", 1);
    pass(&server, now_ms());
    server.stop();
    fs::rename(machine.master_key(), machine.path("keys/old.key")).expect("the first key");
    fs::rename(machine.path("keys/new-1.key"), machine.master_key()).expect("the key in its place");
    // A data key that was replaced before a rotation of the master key is under the older one for
    // ever.
    let previous = "keys/old.key,keys/new-0.key";
    let previous = [("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", previous)];
    let _ = backup_with(&machine, &["verify", "--from", "repo", "--deep"], &previous)
        .expect(0, &["all authentic"]);
    for instant in &instants {
        check_with(&machine, instant, &previous);
    }
    // What is wrapped again is shipped again: with a snapshot of its own, the newest key is enough.
    let server = ships(&machine, &[], &[]);
    begun(&server);
    let last = instant(&server, &["a", "again"]);
    pass(&server, now_ms());
    server.stop();
    check(&machine, &last);
}

#[test]
fn a_store_that_is_away_delays_and_loses_nothing_and_one_away_for_long_costs_a_snapshot() {
    let machine = machine();
    let server = ships(&machine, &["--backup-max-lag-bytes", "1MiB"], &[]);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    add(&server, "a", 1);
    pass(&server, now_ms());
    let away = || {
        fs::rename(machine.path("repo"), machine.path("away")).expect("it goes");
        fs::write(machine.path("repo"), "none").expect("no directory");
    };
    let back = || {
        fs::remove_file(machine.path("repo")).expect("it comes back");
        fs::rename(machine.path("away"), machine.path("repo")).expect("it comes back");
    };
    let fails = || {
        for _try in 0..600 {
            if standing(&server)["ok"] == false {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it goes on: {}", server.log());
    };
    away();
    add(&server, "a", 2);
    let during = instant(&server, &["a"]);
    fails();
    assert_eq!(server.request("GET", "/ready", None).0, 200);
    back();
    pass(&server, now_ms());
    away();
    add(&server, "a", 1);
    fails();
    for n in 0..60 {
        let _id = server.insert("a", "notes", &json!({"n": n, "text": "z".repeat(20_000)}));
    }
    let lost = instant(&server, &["a"]);
    back();
    pass(&server, now_ms());
    let after = instant(&server, &["a"]);
    pass(&server, now_ms());
    let metrics = server.raw(b"GET /metrics HTTP/1.1\r\nHost: nimbus\r\nConnection: close\r\n\r\n");
    drop(metrics);
    let log = server.log();
    assert!(log.contains("more than --backup-max-lag-bytes"), "{log}");
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    let ranges = ranges(&machine);
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(!is_within(&ranges, lost.ms), "{ranges:?}");
    let _ = restore_at(&machine, "lost", lost.ms, &[])
        .expect(1, &["cannot be restored to", "and each instant from"]);
    check(&machine, &during);
    check(&machine, &after);
}

#[test]
fn a_server_that_another_has_replaced_ships_nothing_more() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    add(&server, "a", 2);
    pass(&server, now_ms());
    server.stop();
    let mut copy = std::process::Command::new("cp");
    let _ = copy
        .arg("-r")
        .arg(machine.data_dir())
        .arg(machine.path("other"));
    assert!(copy.status().expect("cp").success());
    let first = ships(&machine, &[], &[]);
    begun(&first);
    add(&first, "a", 1);
    pass(&first, now_ms());
    let second = start_on(&machine, "other", &["--backup-to", "repo"]);
    begun(&second);
    add(&second, "a", 5);
    for _try in 0..600 {
        add(&first, "a", 1);
        if standing(&first)["ok"] == false {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = standing(&first).to_string();
    assert!(said.contains("another server ships"), "{said}");
    assert!(first.log().contains("shipping ends"));
    add(&second, "a", 1);
    let last = instant(&second, &["a"]);
    pass(&second, now_ms());
    first.stop();
    second.stop();
    let verified = backup(&machine, &["verify", "--from", "repo"]);
    assert_ne!(verified.0.status.code(), Some(1), "{}", verified.said());
    check(&machine, &last);
}

#[test]
fn a_snapshot_beside_shipping_and_further_ones_are_part_of_the_same_range() {
    let machine = machine();
    let further = [("FAILPOINTS", "ship::most-packs=return")];
    let server = ships(&machine, &[], &further);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "a"})));
    let mut instants = Vec::new();
    for round in 0..5 {
        add(&server, "a", 1);
        instants.push(instant(&server, &["a"]));
        pass(&server, now_ms());
        if round == 2 {
            let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot"]);
            let _ = backup(&machine, &["create", "--to", "elsewhere"]).expect(0, &["Snapshot 1"]);
        }
    }
    pass(&server, now_ms());
    server.stop();
    let listed = backup(&machine, &["list", "--from", "repo", "--format", "json"]).json();
    let snapshots = listed["snapshots"].as_array().expect("snapshots").len();
    assert!(snapshots >= 3, "{listed}");
    assert_eq!(ranges(&machine).len(), 1);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    for instant in &instants {
        check(&machine, instant);
    }
}

#[test]
fn places_and_settings_that_cannot_be_meant_end_the_start() {
    let machine = machine();
    for (arguments, code, words) in [
        (
            &["--backup-to", "data/inside"][..],
            1,
            "lie one in the other",
        ),
        (&["--backup-to", "gs://x"], 2, "--backup-to is refused"),
        (
            &["--backup-to", "repo", "--backup-interval", "10ms"],
            2,
            "1s to 1h",
        ),
        (
            &["--backup-to", "repo", "--backup-max-lag-bytes", "1"],
            2,
            "at least 1MiB",
        ),
        (
            &["--backup-to", "repo", "--encryption-key-provider", "none"],
            1,
            "backups are of encrypted deployments",
        ),
    ] {
        machine.start_that_ends(arguments).expect(code, &[words]);
    }
    assert!(!machine.path("repo").exists());
}

/// Bytes that a process has read from files so far.
fn read_by(server: &Server) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", server.pid())).expect("its figures");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.expect("what it read").parse().expect("a number")
}

#[test]
fn a_start_reads_the_files_that_were_written_since_the_last_snapshot_and_no_others() {
    const BYTES: u64 = 6 << 20;
    let machine = machine();
    // Behind the time for which the times of a file say nothing.
    let starts = || {
        until("no file changed only now", || {
            let before = now_ms() / 1000 - SETTLED;
            let is_settled = |file: &std::path::PathBuf| {
                fs::metadata(file).is_ok_and(|found| found.ctime() < before)
            };
            let data = machine.data_dir();
            !data.exists() || files_under(&data).iter().all(is_settled)
        });
        let server = ships(&machine, &[], &[]);
        begun(&server);
        (read_by(&server), server)
    };
    let (_, server) = starts();
    for tenant in ["a", "b"] {
        let _ = server.create("/api/tenants", &json!({"id": tenant}));
        for n in 0..BYTES >> 18 {
            let text = "w".repeat(1 << 18);
            let _id = server.insert(tenant, "notes", &json!({"n": n, "text": text}));
        }
    }
    pass(&server, now_ms());
    server.stop();
    let (both, server) = starts();
    server.stop();
    let (none, server) = starts();
    add(&server, "a", 1);
    pass(&server, now_ms());
    server.stop();
    let (one, server) = starts();
    server.stop();
    assert!(both - none > 2 * BYTES, "{both} {none}");
    assert!(
        (BYTES..2 * BYTES).contains(&(one - none)),
        "{one} {none} {both}"
    );
}

/// For how many seconds the times of a file say nothing.
const SETTLED: i64 = 2;
