//! The newest snapshot is under a key that is not at hand: it may be a newer one, or somebody put
//! it there. Nothing skips it in silence, and each refusal says how to go on.

use std::fs;

use nimbus_test_support::Machine;

use super::shipping::{begun, instant, pass, ships};
use super::{Ran, as_str, backup, filled, machine, notes, restore, run, start_on};

const WITHHELD: &str = "snapshots/0000000002";

/// Gives the stopped deployment another master key, and makes a snapshot under that.
fn withhold(machine: &Machine, number: &str) {
    fs::create_dir(machine.path("keys")).expect("a directory");
    let key = machine.path("keys/new.key");
    let new = as_str(&key);
    let keygen = ["encryption", "keygen", "--master-key-file", new];
    let _ = run(machine.nimbus(&keygen)).expect(0, &[]);
    let rotate = ["encryption", "rotate-kek", "--path", "data", "--all"];
    let rotate = [&rotate[..], &["--new-master-key-file", new]].concat();
    let _ = run(machine.nimbus(&rotate)).expect(0, &[]);
    // Its data key is in the repository under the old master key, too.
    let control = machine.data_dir().join("nimbus-control.db");
    let rotate = ["encryption", "rotate-dek", "--provider", "redb", "--path"];
    let _ = with_the_key(machine, &[&rotate[..], &[as_str(&control)]].concat()).expect(0, &[]);
    let _ = with_the_key(machine, &["backup", "create", "--to", "repo"]).expect(0, &[number]);
}

fn with_the_key(machine: &Machine, arguments: &[&str]) -> Ran {
    let mut command = machine.nimbus(arguments);
    let _ = command
        .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file")
        .env(
            "NIMBUS_ENCRYPTION_MASTER_KEY_FILE",
            machine.path("keys/new.key"),
        );
    run(command)
}

/// The flag that a refusal says to go on with.
fn flag_in(refused: &Ran) -> Vec<String> {
    let said = refused.said();
    let begin = said.find("run this again with `").expect("what to run") + 21;
    let flag = said[begin..].split('`').next().expect("its end");
    flag.split(' ').map(str::to_owned).collect()
}

/// Runs what a refused restoration says, and asserts that it restores and names what it passes
/// over.
fn goes_on(machine: &Machine, data: &str, arguments: &[&str], expected: &str) {
    let refused = restore(machine, data, arguments);
    let named = [WITHHELD, "may be the newest", "no configured key opens"];
    let _ = refused.expect(1, &named);
    let flag = flag_in(&refused);
    let flag: Vec<&str> = flag.iter().map(String::as_str).collect();
    let _ = restore(machine, data, &[arguments, &flag].concat()).expect(3, &[expected, WITHHELD]);
}

#[test]
fn what_may_be_the_newest_snapshot_is_not_skipped_and_the_command_that_goes_on_is_said() {
    let machine = machine();
    filled(&machine, &["a", "b"]).stop();
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1"]);
    withhold(&machine, "Snapshot 2");
    goes_on(&machine, "new", &[], "Restored snapshot 1");
    let one = ["--tenant-id", "a", "--as", "c"];
    goes_on(&machine, "new", &one, "Restored tenant a");
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "a").len(), 3);
    assert_eq!(notes(&restored, "c").len(), 3);
    restored.stop();
    let deep = ["verify", "--from", "repo", "--deep"];
    let _ = backup(&machine, &deep).expect(3, &["nothing was restored", "`--snapshot 1`"]);
    // It may name what would go.
    let prune = ["prune", "--from", "repo", "--keep-daily", "1"];
    let next = format!("move {WITHHELD} out of the repository, and run this again");
    let _ = backup(&machine, &prune).expect(1, &[WITHHELD, &next]);
    // It was genuine: with its key nothing is withheld.
    let newest = [
        "backup",
        "restore",
        "--from",
        "repo",
        "--data-dir",
        "newest",
    ];
    let _ = with_the_key(&machine, &newest).expect(0, &["Restored snapshot 2"]);
    fs::rename(machine.path("repo").join(WITHHELD), machine.path("kept")).expect("it is moved");
    let _ = backup(&machine, &prune).expect(0, &["Kept: snapshots 1"]);
    let _ = restore(&machine, "last", &[]).expect(0, &["Restored snapshot 1"]);
}

#[test]
fn an_instant_to_which_proven_packs_lead_is_restored_whatever_may_be_newer() {
    let machine = machine();
    let server = ships(&machine, &[], &[]);
    begun(&server);
    drop(server.create("/api/tenants", &serde_json::json!({"id": "a"})));
    super::add(&server, "a", 2);
    let first = instant(&server, &["a"]);
    super::add(&server, "a", 2);
    let last = instant(&server, &["a"]);
    pass(&server, last.ms);
    server.stop();
    withhold(&machine, "Snapshot 2");
    // Somebody says that it is from before all that.
    goes_on(&machine, "new", &[], "Restored the instant");
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "a"), last.notes["a"]);
    restored.stop();
    let path = machine.path("repo").join(WITHHELD);
    let text = fs::read_to_string(&path).expect("a catalogue");
    let begin = text.find("\"taken\":\"").expect("a time") + 9;
    let older = format!("{}2001{}", &text[..begin], &text[begin + 4..]);
    for content in [older, text] {
        fs::write(&path, content).expect("a catalogue");
        let at = super::shipping::restore_at(&machine, "at", first.ms, &["--as-it-was"]);
        let _ = at.expect(3, &["Restored the instant", WITHHELD]);
        let restored = start_on(&machine, "at", &[]);
        assert_eq!(notes(&restored, "a"), first.notes["a"]);
        restored.stop();
        fs::remove_dir_all(machine.path("at")).expect("it goes");
    }
}
