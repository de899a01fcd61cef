//! Packs that are put together, and packs that are older than each commit is kept: the real binary,
//! while a server ships, and killed at each step.

use std::fs;
use std::time::Duration;

use nimbus_test_support::{Machine, Server, files_under, until};

use super::shipping::{
    Instant, begun, check, instant, is_within, now_ms, pass, ranges, restore_at, ships, standing,
};
use serde_json::{Value, json};

use super::{Ran, add, as_str, backup, backup_with, filled, machine, start_on};

/// The times whose packs are put together are two seconds and half a second, and not an hour and
/// five minutes.
const SHORT: &str = "bundle::short=return";
const ALL: [&str; 4] = ["--keep-commits", "1h", "--keep-within", "1h"];
const NEWEST: [&str; 4] = ["--keep-commits", "1s", "--keep-daily", "1"];

/// From another machine: this one's directory is in use.
fn prune(machine: &Machine, arguments: &[&str], failpoints: &str) -> Ran {
    let prune = ["prune", "--from", "repo"];
    let environment = [("FAILPOINTS", failpoints), ("NIMBUS_DATA_DIR", "elsewhere")];
    backup_with(machine, &[&prune[..], arguments].concat(), &environment)
}

/// A server that ships and makes a further snapshot after every third pack.
fn shipper(machine: &Machine) -> Server {
    let server = ships(machine, &[], &[("FAILPOINTS", "ship::most-packs=return")]);
    begun(&server);
    server
}

/// Writes for some seconds; what was acknowledged at some instants.
fn write(server: &Server, rounds: usize) -> Vec<Instant> {
    let mut instants = Vec::new();
    for _round in 0..rounds {
        add(server, "a", 1);
        instants.push(instant(server, &["a", "b"]));
        add(server, "b", 1);
        pass(server, now_ms());
    }
    instants
}

fn objects(machine: &Machine) -> Vec<String> {
    let found = files_under(&machine.path("repo/log"));
    let name = |path: &std::path::PathBuf| {
        let name = path.file_name().expect("a name");
        as_str(name.as_ref()).to_owned()
    };
    found.iter().map(name).collect()
}

fn verified(machine: &Machine) {
    let _ = backup(machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
}

#[test]
fn packs_that_are_put_together_keep_every_commit_and_those_before_the_time_leave_snapshots() {
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    let server = shipper(&machine);
    let mut instants = write(&server, 8);
    let before = objects(&machine).len();
    let _ = prune(&machine, &[&ALL[..], &["--dry-run"]].concat(), SHORT).expect(0, &["Would"]);
    assert_eq!(objects(&machine).len(), before);
    let _ = prune(&machine, &ALL, SHORT).expect(0, &["Put together: packs in"]);
    let after = objects(&machine);
    assert!(
        after.len() < before && after.iter().any(|name| name.contains('-')),
        "{after:?}"
    );
    // What goes on is put together with it later.
    instants.extend(write(&server, 4));
    let _ = prune(&machine, &ALL, SHORT).expect(0, &["Put together"]);
    let settled = objects(&machine);
    let again = prune(&machine, &ALL, SHORT);
    let _ = again.expect(0, &["snapshots none"]);
    assert!(!again.said().contains("Put together"), "{}", again.said());
    assert_eq!(objects(&machine), settled);
    verified(&machine);
    assert_eq!(ranges(&machine).len(), 1);
    for instant in [&instants[0], &instants[5], &instants[11]] {
        check(&machine, instant);
    }
    let begins = ranges(&machine)[0].0.clone();

    // What is older than a second goes but for snapshots; the server goes on meanwhile.
    let _ = prune(&machine, &NEWEST, SHORT).expect(0, &["packs; and"]);
    let kept = ranges(&machine);
    assert!(kept.len() == 1 && kept[0].0 > begins, "{kept:?}");
    assert!(!is_within(&kept, instants[0].ms));
    let _ = restore_at(&machine, "no", instants[0].ms, &[]).expect(1, &["cannot be restored to"]);
    verified(&machine);
    let nothing = prune(&machine, &["--keep-commits", "1h"], SHORT);
    let _ = nothing.expect(0, &["snapshots none; and 0 other objects"]);
    let more = write(&server, 3);
    for instant in instants.iter().chain(&more) {
        if is_within(&kept, instant.ms) || instant.ms >= more[0].ms {
            check(&machine, instant);
        }
    }
    server.stop();
    // The next epoch goes on from one of which most is gone.
    let server = shipper(&machine);
    let last = write(&server, 2);
    server.stop();
    verified(&machine);
    let _ = prune(&machine, &NEWEST, SHORT).expect(0, &[]);
    verified(&machine);
    check(&machine, &last[1]);
}

#[test]
fn a_kill_at_each_step_keeps_every_commit_that_is_kept_and_the_next_run_ends_it() {
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    let server = shipper(&machine);
    for (point, rules) in [
        ("bundle::created=return", &ALL),
        ("bundle::removed=return", &ALL),
        ("bundle::removed=2*off->return", &ALL),
        ("removal::recorded=return", &NEWEST),
        ("removal::objects-removed=return", &NEWEST),
        ("removal::pack-removed=return", &NEWEST),
        ("removal::pack-removed=2*off->return", &NEWEST),
    ] {
        let instants = write(&server, 6);
        std::thread::sleep(Duration::from_millis(1500));
        let ticked = write(&server, 1);
        prune(&machine, rules, &format!("{SHORT};{point}")).expect_killed();
        let found = backup(&machine, &["verify", "--from", "repo"]).said();
        assert!(!found.contains("DAMAGED"), "{point}: {found}");
        let kept = ranges(&machine);
        let last = if rules == &ALL {
            &instants[5]
        } else {
            &ticked[0]
        };
        assert!(is_within(&kept, last.ms), "{point}: {kept:?}");
        check(&machine, last);
        let _ = prune(&machine, rules, SHORT).expect(0, &[]);
        verified(&machine);
        check(&machine, last);
    }
    server.stop();
}

#[test]
fn a_server_that_stalled_while_its_epoch_was_pruned_stops_and_what_it_stores_late_is_told_and_goes()
{
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([machine.data_dir(), machine.path("other")])
        .status();
    assert!(copied.expect("cp").success());
    // It takes a while with each pack from its fourth on.
    let slow = [("FAILPOINTS", "ship::formed=3*off->sleep(15000)")];
    let first = ships(&machine, &[], &slow);
    begun(&first);
    for _pack in 0..3 {
        add(&first, "a", 1);
        std::thread::sleep(Duration::from_millis(1300));
    }
    let stored = objects(&machine).len();
    add(&first, "a", 1);
    std::thread::sleep(Duration::from_millis(1500));
    let second = start_on(&machine, "other", &["--backup-to", "repo"]);
    begun(&second);
    let _instants = write(&second, 2);
    std::thread::sleep(Duration::from_millis(1500));
    let last = write(&second, 1);
    let _ = prune(&machine, &NEWEST, SHORT).expect(0, &["pack"]);
    let late = || fs::read_dir(machine.path("repo/log/0000000001")).map_or(0, Iterator::count);
    assert!(stored >= 3 && late() == 0, "{:?}", objects(&machine));
    for _try in 0..1200 {
        if standing(&first)["ok"] == false {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = standing(&first).to_string();
    assert!(said.contains("another server ships"), "{said}");
    assert_eq!(late(), 1);
    first.stop();
    second.stop();
    let _ = backup(&machine, &["verify", "--from", "repo"])
        .expect(3, &["shipped by a server that another had replaced"]);
    check(&machine, &last[0]);
    let _ = prune(&machine, &NEWEST, SHORT).expect(0, &[]);
    assert_eq!(late(), 0);
    verified(&machine);
    check(&machine, &last[0]);
}

#[test]
fn a_bundle_that_is_changed_cut_or_put_there_is_told_and_a_pack_beside_it_is_still_read() {
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    let server = shipper(&machine);
    let instants = write(&server, 6);
    std::thread::sleep(Duration::from_millis(2500));
    let _last = write(&server, 1);
    server.stop();
    // Names that nobody wrote, before there is any.
    let log = machine.path("repo/log/0000000001");
    fs::write(log.join("0000000001-0000000400"), "what").expect("a file");
    let _ = backup(&machine, &["verify", "--from", "repo"])
        .expect(1, &["DAMAGED", "log/0000000001/0000000001-0000000400"]);
    check(&machine, &instants[2]);
    fs::remove_file(log.join("0000000001-0000000400")).expect("it goes");
    let _ = prune(&machine, &ALL, SHORT).expect(0, &["Put together"]);
    let bundle = objects(&machine)
        .into_iter()
        .find(|name| name.contains('-'))
        .expect("a bundle");
    let (path, name) = (log.join(&bundle), format!("log/0000000001/{bundle}"));
    let whole = fs::read(&path).expect("a bundle");
    for (what, changed) in [
        ("a byte of its head", flipped(&whole, 60)),
        ("a byte of a pack", flipped(&whole, whole.len() / 2)),
        ("its last byte", flipped(&whole, whole.len() - 1)),
        ("cut", whole[..whole.len() - 1].to_vec()),
        ("longer", [&whole[..], b"x"].concat()),
    ] {
        fs::write(&path, changed).expect("another one");
        let said = backup(&machine, &["verify", "--from", "repo"]);
        let _ = said.expect(1, &["DAMAGED", &name]);
        assert!(!said.said().contains("panicked"), "{what}");
    }
    fs::remove_file(&path).expect("it goes");
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(1, &["is missing"]);
    fs::write(&path, &whole).expect("it is back");
    verified(&machine);
    check(&machine, &instants[2]);
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

#[test]
fn a_server_that_ships_prunes_by_itself_and_says_when_it_cannot() {
    let machine = machine();
    let often = [(
        "FAILPOINTS",
        "retention::often=return;bundle::short=return;ship::most-packs=return",
    )];
    let keep = ["--backup-keep-commits", "10s", "--backup-keep-daily", "1"];
    let server = ships(&machine, &keep, &often);
    begun(&server);
    let _ = server.create("/api/tenants", &json!({"id": "a"}));
    let packs = || objects(&machine);
    let has_first = || packs().iter().any(|pack| pack.starts_with("0000000001"));
    add(&server, "a", 1);
    pass(&server, now_ms());
    assert!(has_first());
    let shipped_until = |what: &str, is_so: &dyn Fn() -> bool| {
        until(what, || {
            add(&server, "a", 1);
            pass(&server, now_ms());
            is_so()
        });
    };
    shipped_until("packs are put together", &|| {
        packs().iter().any(|pack| pack.contains('-'))
    });
    shipped_until("the first packs go", &|| !has_first());
    until("it is told", || standing(&server)["pruned"].is_string());
    assert_eq!(standing(&server)["not_pruned"], Value::Null);
    let metrics = server.get("/metrics").to_string();
    assert!(
        !metrics.contains("nimbus_backup_last_pruned_timestamp_seconds 0\\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("nimbus_backup_pruning_failed_total 0\\n"),
        "{metrics}"
    );
    let last = instant(&server, &["a"]);
    pass(&server, last.ms);
    // What is damaged is named, and shipping goes on.
    let planted = machine.path("repo/snapshots/9999999999");
    fs::write(&planted, "garbage").expect("an object");
    until("it is named", || {
        add(&server, "a", 1);
        let told = standing(&server)["not_pruned"].clone();
        told.as_str()
            .is_some_and(|told| told.contains("snapshots/9999999999"))
    });
    fs::remove_file(planted).expect("it goes");
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    check(&machine, &last);
    // One that may not removes nothing.
    let before = packs();
    let server = ships(&machine, &["--backup-keep-commits", "off"], &often);
    begun(&server);
    for _each in 0..3 {
        add(&server, "a", 1);
        pass(&server, now_ms());
    }
    assert_eq!(standing(&server)["pruned"], Value::Null);
    server.stop();
    let after = packs();
    assert!(
        before.iter().all(|pack| after.contains(pack)),
        "{before:?} {after:?}"
    );
    let mut alone = machine.nimbus(&["start", "--port", "0", "--backup-keep-daily", "3"]);
    let _ = super::Ran(alone.output().expect("nimbus runs"))
        .expect(2, &["--backup-keep-daily", "--backup-to"]);
}
