use std::fs;
use std::path::{Path, PathBuf};

use nimbus_test_support::{Machine, files_under};
use serde_json::json;

use super::shipping::{begun, now_ms, pass, ships};
use super::{add, as_str, backup, machine};

/// Two epochs of some packs each.
fn shipped() -> Machine {
    let machine = machine();
    for _epoch in 0..2 {
        let server = ships(&machine, &[], &[]);
        begun(&server);
        let _exists = server.request("POST", "/api/tenants", Some(&json!({"id": "a"})));
        for _pack in 0..2 {
            add(&server, "a", 1);
            pass(&server, now_ms());
        }
        server.stop();
    }
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    machine
}

fn objects(machine: &Machine, dir: &str) -> Vec<PathBuf> {
    let mut objects = files_under(&machine.path("repo").join(dir));
    objects.sort();
    objects
}

fn name(machine: &Machine, object: &Path) -> String {
    let name = object.strip_prefix(machine.path("repo"));
    as_str(name.expect("in the repository")).to_owned()
}

fn found(machine: &Machine, named: &str) {
    let _ = backup(machine, &["verify", "--from", "repo"]).expect(1, &["DAMAGED", named]);
}

#[test]
fn each_epoch_and_pack_that_is_changed_cut_gone_or_another_is_named() {
    let machine = shipped();
    let (epochs, packs) = (objects(&machine, "epochs"), objects(&machine, "log"));
    assert!(
        epochs.len() == 2 && packs.len() >= 4,
        "{epochs:?} {packs:?}"
    );
    let last_of = |epoch: &str| packs.iter().rev().find(|pack| as_str(pack).contains(epoch));
    let last =
        [last_of("log/0000000001/"), last_of("log/0000000002/")].map(|pack| pack.expect("a pack"));
    for (place, object) in epochs.iter().chain(&packs).enumerate() {
        // A test of its own for each byte is in the source; the first, some and the last packs do
        // here.
        if place > 4 && place % 3 > 0 && !last.contains(&object) {
            continue;
        }
        let whole = fs::read(object).expect("an object");
        let name = name(&machine, object);
        for at in [20, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(object, flipped).expect("a changed object");
            found(&machine, &name);
        }
        for cut in [0, whole.len() - 1] {
            fs::write(object, &whole[..cut]).expect("a cut object");
            found(&machine, &name);
        }
        fs::remove_file(object).expect("an object that goes");
        // Only who remembers it knows of the newest pack.
        if *object == *last[1] {
            let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
        } else {
            found(&machine, &name);
        }
        fs::write(object, &whole).expect("the object again");
    }
    // One in the place of another: of the same epoch, of the other one, an older one again.
    for (one, other) in [
        (&packs[0], &packs[1]),
        (&packs[0], last[1]),
        (&packs[1], &packs[0]),
    ] {
        let whole = fs::read(one).expect("one");
        let _ = fs::copy(other, one).expect("the other in its place");
        found(&machine, &name(&machine, one));
        fs::write(one, whole).expect("one again");
    }
    let next = machine.path("repo/log/0000000002/9999999999");
    let _ = fs::copy(&packs[0], &next).expect("a pack that was put there");
    found(&machine, "was put there");
    fs::remove_file(next).expect("it goes");
    let restore = ["restore", "--from", "repo", "--data-dir", "new"];
    let whole = fs::read(last[1]).expect("the last");
    let mut flipped = whole.clone();
    let end = flipped.len() - 1;
    flipped[end] ^= 1;
    fs::write(last[1], flipped).expect("changed");
    let damaged = backup(&machine, &restore);
    let code = damaged.0.status.code();
    assert!(matches!(code, Some(1 | 3)), "{}", damaged.said());
    assert!(damaged.said().contains("damaged"), "{}", damaged.said());
    fs::remove_dir_all(machine.path("new")).expect("it goes");
    fs::write(last[1], whole).expect("the last again");
    let _ = backup(&machine, &restore).expect(0, &["Restored the instant"]);
}
