//! Somebody who may write to the repository, and has no key, puts things there that are none of
//! this deployment's.

use std::fs;

use nimbus_test_support::{Machine, files_under, until};

use super::shipping::{begun, check, instant, now_ms, pass, ships, standing};
use super::{add, as_str, backup, filled, machine, restore, start_on};

fn plant(machine: &Machine, object: &str, content: impl AsRef<[u8]>) {
    let path = machine.path("repo").join(object);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(path, content).expect("an object");
}

fn take_away(machine: &Machine, object: &str) {
    fs::remove_file(machine.path("repo").join(object)).expect("it goes");
}

fn read(machine: &Machine, object: &str) -> String {
    let bytes = fs::read(machine.path("repo").join(object)).expect("an object");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What somebody makes of an entry: another number, another time, and a MAC that is not right.
fn forged(machine: &Machine, object: &str, was: u64, number: u64, field: &str) -> String {
    let text = read(machine, object);
    let renumbered = text.replacen(
        &format!("\"number\":{was},"),
        &format!("\"number\":{number},"),
        1,
    );
    let at = renumbered.find(field).expect("a time") + field.len();
    let forged = format!("{}2999{}", &renumbered[..at], &renumbered[at + 4..]);
    assert_ne!(forged, text);
    forged
}

const CREATE: [&str; 3] = ["create", "--to", "repo"];
const VERIFY: [&str; 3] = ["verify", "--from", "repo"];

#[test]
fn what_is_no_snapshot_is_named_and_stops_nothing() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    for number in ["Snapshot 1", "Snapshot 2"] {
        let _ = backup(&machine, &CREATE).expect(0, &[number]);
        add(&server, "a", 1);
    }
    server.stop();
    let huge = "snapshots/9999999999";
    let newer = forged(
        &machine,
        "snapshots/0000000002",
        2,
        9_999_999_998,
        "\"taken\":\"",
    );
    let planted = [
        (huge, "garbage".to_owned()),
        ("snapshots/9999999998", newer),
        (
            "snapshots/0000000003",
            read(&machine, "snapshots/0000000001"),
        ),
        (
            "snapshots/0000000000",
            read(&machine, "snapshots/0000000001"),
        ),
        ("snapshots/18446744073709551615", "x".to_owned()),
        ("removing/9999999999", "x".to_owned()),
        ("proofs/9999999999", "x".to_owned()),
    ];
    for (object, content) in &planted {
        plant(&machine, object, content);
    }
    // The next one has the next number that is free.
    let _ = backup(&machine, &CREATE).expect(
        3,
        &[
            "Snapshot 4",
            huge,
            "snapshots/9999999998",
            "it is passed over",
        ],
    );
    let list = ["list", "--from", "repo"];
    let _ = backup(&machine, &list).expect(3, &["DAMAGED", huge, "\n4  "]);
    let json = backup(&machine, &[&list[..], &["--format", "json"]].concat());
    let damage = json.json()["damage"].clone();
    assert_eq!(damage.as_array().map(Vec::len), Some(2), "{damage}");
    let verified = backup(&machine, &VERIFY);
    let _ = verified.expect(1, &["3 snapshots", "DAMAGED", huge, "snapshots/0000000003"]);
    assert!(
        !verified.said().contains("goes on from"),
        "{}",
        verified.said()
    );
    let _ = restore(&machine, "new", &[]).expect(3, &["Restored snapshot 4", huge]);
    let data = machine.data_dir();
    let one = ["--tenant-id", "a", "--as", "b"];
    let _ = restore(&machine, as_str(&data), &one).expect(3, &["Restored tenant a", huge]);
    // One of them could be a snapshot that was damaged: what only that names stays.
    let prune = ["prune", "--from", "repo", "--keep-daily", "1"];
    let _ = backup(&machine, &prune).expect(
        3,
        &[
            "snapshots 1, 2;",
            "0 other objects",
            "Kept: snapshots 4",
            huge,
        ],
    );
    let shred = [
        "encryption",
        "shred",
        "--tenant-id",
        "b",
        "--yes",
        "--from",
        "repo",
    ];
    let _ = super::run(machine.nimbus(&shred)).expect(0, &[]);
    for (object, _) in &planted {
        if machine.path("repo").join(object).exists() {
            take_away(&machine, object);
        }
    }
    // Numbers may be passed over: nothing is missing.
    let _ = backup(&machine, &VERIFY).expect(0, &["1 snapshot", "all authentic"]);
    let _ = backup(&machine, &prune).expect(0, &["other object"]);
    let _ = backup(&machine, &CREATE).expect(0, &["Snapshot"]);
    let _ = backup(&machine, &[&VERIFY[..], &["--deep"]].concat()).expect(0, &["all authentic"]);
    let _ = restore(&machine, "again", &[]).expect(0, &[]);
}

#[test]
fn what_is_no_epoch_and_no_pack_stops_no_shipping_and_sets_no_clock() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    let _ = server.create("/api/tenants", &serde_json::json!({"id": "a"}));
    add(&server, "a", 1);
    let first = instant(&server, &["a"]);
    pass(&server, first.ms);
    plant(&machine, "epochs/0000000002", "garbage");
    plant(&machine, "epochs/9999999999", "garbage");
    add(&server, "a", 1);
    let second = instant(&server, &["a"]);
    pass(&server, second.ms);
    until("it is told", || server.log().contains("epochs/0000000002"));
    // In the place of its next packs: it goes on behind them, from a snapshot.
    let packs = files_under(&machine.path("repo/log"));
    let last = packs
        .iter()
        .filter_map(|pack| as_str(pack).rsplit('/').next()?.parse::<u64>().ok());
    let last = last.max().expect("a pack");
    for ahead in 5..8 {
        plant(
            &machine,
            &format!("log/0000000001/{:010}", last + ahead),
            "garbage",
        );
    }
    for _each in 0..8 {
        add(&server, "a", 1);
        pass(&server, now_ms());
    }
    until("it goes on", || {
        add(&server, "a", 1);
        server.log().contains("it was put there") && standing(&server)["ok"] == true
    });
    let third = instant(&server, &["a"]);
    pass(&server, third.ms);
    server.stop();
    // A time that nobody sealed is none.
    let snapshot = forged(
        &machine,
        "snapshots/0000000001",
        1,
        9_999_999_999,
        "\"taken\":\"",
    );
    plant(&machine, "snapshots/9999999999", snapshot);
    let name = format!("log/0000000001/{:010}", 1);
    let pack = forged(&machine, &name, 1, 9_999_999_999, "\"at\":\"");
    plant(&machine, "log/0000000001/9999999999", pack);
    let server = ships(&machine, &[], &[]);
    begun(&server);
    add(&server, "a", 1);
    let fourth = instant(&server, &["a"]);
    pass(&server, fourth.ms);
    let shipped = standing(&server)["shipped"].clone();
    assert!(
        shipped.as_str().is_some_and(|shipped| shipped < "2999"),
        "{shipped}"
    );
    server.stop();
    assert!(machine.path("repo/epochs/0000000003").exists());
    let verified = backup(&machine, &VERIFY);
    let _ = verified.expect(
        1,
        &["epochs/0000000002", "epochs/9999999999", "log/0000000001/"],
    );
    assert!(
        !verified.said().contains("goes on from it"),
        "{}",
        verified.said()
    );
    take_away(&machine, "snapshots/9999999999");
    for at in [&first, &second, &third, &fourth] {
        check(&machine, at);
    }
    let _ = restore(&machine, "newest", &[]).expect(0, &["Restored the instant"]);
}

#[test]
fn a_server_is_replaced_also_where_something_stands_before_the_epoch_that_replaces_it() {
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let mut copy = std::process::Command::new("cp");
    let _ = copy
        .arg("-r")
        .arg(machine.data_dir())
        .arg(machine.path("other"));
    let _ = super::run(copy).expect(0, &[]);
    let server = ships(&machine, &[], &[]);
    begun(&server);
    plant(&machine, "epochs/0000000002", "garbage");
    add(&server, "a", 1);
    pass(&server, now_ms());
    let other = start_on(&machine, "other", &["--backup-to", "repo"]);
    begun(&other);
    assert!(machine.path("repo/epochs/0000000003").exists());
    until("the first one stops", || {
        add(&server, "a", 1);
        server.log().contains("another server ships")
    });
    server.stop();
    add(&other, "a", 1);
    pass(&other, now_ms());
    other.stop();
}
