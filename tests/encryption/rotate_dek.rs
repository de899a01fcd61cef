use std::fs;

use nimbus_test_support::Machine;
use serde_json::{Value, json};

use super::{
    RENEW_ALPHA, as_str, assert_audited, deployment, encryption, health, run, served, snapshot,
    status,
};

const CONTROL: &[&str] = &[
    "rotate-dek",
    "--provider",
    "redb",
    "--path",
    "data/nimbus-control.db",
];

fn file(status: &Value, path: &str) -> Value {
    let files = status["files"].as_array().expect("files");
    files
        .iter()
        .find(|file| file["path"] == path)
        .expect("the file")
        .clone()
}

#[test]
fn a_file_gets_a_new_data_key_and_the_old_one_opens_nothing_of_it() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let documents = served(&machine, "alpha");
    let before = status(&machine, &["--verify", "pages"], 0);
    let old_manifest =
        fs::read(machine.data_dir().join("alpha.sqlite3.nimbus-enc")).expect("a manifest");
    let old = snapshot(&machine.data_dir());
    let _ = encryption(&machine, RENEW_ALPHA).expect(0, &["has a new data key"]);
    assert_audited(&machine, "rekey", "db:sqlite:tenant:alpha:alpha.sqlite3");
    let after = status(&machine, &["--verify", "pages"], 0);
    let (one, other) = (
        file(&before, "alpha.sqlite3"),
        file(&after, "alpha.sqlite3"),
    );
    assert_ne!(one["dek_id"], other["dek_id"]);
    assert_eq!(one["file_id"], other["file_id"]);
    assert_eq!(other["state"], "ready");
    assert_eq!(other["revision"], 4, "rekeying, then ready");
    assert_eq!(file(&before, "beta.sqlite3"), file(&after, "beta.sqlite3"));
    assert_eq!(served(&machine, "alpha"), documents);
    let new = snapshot(&machine.data_dir());
    let names = |files: &[(String, u64)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&old), names(&new), "nothing is left over");
    // The old manifest put back: it is not the newest, nor does its key open the file.
    let manifest = machine.data_dir().join("alpha.sqlite3.nimbus-enc");
    let current = fs::read(&manifest).expect("the manifest");
    fs::write(&manifest, old_manifest).expect("the old manifest");
    assert_eq!(
        health(&status(&machine, &["--verify", "open"], 3), "alpha.sqlite3"),
        "manifest-corrupt"
    );
    let accept = ["repair", "--accept-older", "alpha"];
    let _ = encryption(&machine, &accept).expect(0, &["put back"]);
    assert_eq!(fs::read(&manifest).expect("the new one"), current);
    let aside = "alpha.sqlite3.nimbus-enc.set-aside-1";
    fs::remove_file(machine.data_dir().join(aside)).expect("what stood there");
    // The copy in the control file is the new one.
    fs::remove_file(&manifest).expect("a lost sidecar");
    let _ = encryption(&machine, &["repair"]).expect(0, &["put back"]);
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        3
    );
}

#[test]
fn everything_gets_a_new_data_key_the_control_file_too() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let before = status(&machine, &[], 0);
    let _ = encryption(&machine, &["rotate-dek", "--path", "data", "--all"]).expect(
        0,
        &[
            "alpha.sqlite3: db:sqlite:tenant:alpha",
            "beta.sqlite3: db:sqlite",
            "nimbus-control.db: db:redb",
        ],
    );
    let after = status(&machine, &["--verify", "pages"], 0);
    for path in ["alpha.sqlite3", "beta.sqlite3", "nimbus-control.db"] {
        assert_ne!(
            file(&before, path)["dek_id"],
            file(&after, path)["dek_id"],
            "{path}"
        );
    }
    assert_eq!(served(&machine, "beta")[0]["of"], "beta");
    // Later tenants are made as before.
    let server = machine.start(&[]);
    drop(server.create("/api/tenants", &json!({"id": "gamma"})));
    server.stop();
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        4
    );
}

#[test]
fn a_rekey_that_is_killed_anywhere_leaves_one_key_that_opens() {
    let points = [
        ("rekey::begun", false),
        ("rekey::copied", false),
        ("rekey::verified", false),
        ("rekey::renamed", true),
        ("rekey::swapped", true),
    ];
    for (path, command) in [
        ("alpha.sqlite3", RENEW_ALPHA),
        ("nimbus-control.db", CONTROL),
    ] {
        for (point, swapped) in points {
            let machine = deployment(&["alpha"], &[]);
            let documents = served(&machine, "alpha");
            let before = file(&status(&machine, &[], 0), path);
            kill(&machine, command, point);
            let between = status(&machine, &["--verify", "open"], 3);
            assert_eq!(health(&between, path), "rekeying", "{point}");
            assert_eq!(served(&machine, "alpha"), documents, "{path} {point}");
            let after = file(&status(&machine, &["--verify", "pages"], 0), path);
            assert_eq!(
                after["dek_id"] != before["dek_id"],
                swapped,
                "{path} {point}"
            );
            assert_eq!(after["state"], "ready");
            assert!(
                !machine.data_dir().join(format!("{path}.rekey")).exists(),
                "{path} {point}"
            );
        }
    }
}

#[test]
fn running_it_again_settles_what_was_cut_short_and_draws_another_key() {
    for (path, command) in [
        ("alpha.sqlite3", RENEW_ALPHA),
        ("nimbus-control.db", CONTROL),
    ] {
        for point in ["rekey::begun", "rekey::copied", "rekey::renamed"] {
            let machine = deployment(&["alpha"], &[]);
            let before = file(&status(&machine, &[], 0), path);
            kill(&machine, command, point);
            let _ = encryption(&machine, command).expect(0, &["has a new data key"]);
            let after = file(&status(&machine, &["--verify", "pages"], 0), path);
            assert_ne!(after["dek_id"], before["dek_id"], "{path} {point}");
            assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
        }
    }
}

fn as_text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn kill(machine: &Machine, command: &[&str], point: &str) {
    let mut killed = machine.nimbus(&["encryption"]);
    killed
        .args(command)
        .env("FAILPOINTS", format!("{point}=return"));
    assert_eq!(run(killed).0.status.code(), None, "{point} is met");
}

#[test]
fn takes_along_all_that_a_database_holds_and_the_recipients_of_its_key() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    for n in 0..2000 {
        server.insert("alpha", "more", &json!({"n": n, "text": "x".repeat(300)}));
    }
    // Killed: the last writes lie in the WAL.
    server.kill();
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let add = [
        "rotate-kek",
        "--path",
        "data/alpha.sqlite3",
        "--add-recipient",
        recipient,
    ];
    let _ = encryption(&machine, &add).expect(0, &["1 rewrapped"]);
    let _ = encryption(&machine, RENEW_ALPHA).expect(0, &[]);
    let found = file(
        &status(&machine, &["--verify", "pages"], 0),
        "alpha.sqlite3",
    );
    assert_eq!(found["wraps"][1]["key_id"], recipient);
    let server = machine.start(&[]);
    let more = server.get("/api/tenants/alpha/documents/more");
    assert_eq!(more["data"].as_array().expect("documents").len(), 1000);
    server.stop();
}

#[test]
fn rejects_what_it_should_not_touch() {
    let machine = deployment(&["alpha"], &[]);
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let before = snapshot(&machine.data_dir());
        let _ = encryption(&machine, &[&["rotate-dek", "--path"], arguments].concat())
            .expect(code, words);
        let tenant = |files: Vec<(String, u64)>| -> Vec<_> {
            files
                .into_iter()
                .filter(|(name, _)| name.starts_with("alpha"))
                .collect()
        };
        assert_eq!(tenant(before), tenant(snapshot(&machine.data_dir())));
    };
    refused(&["data/alpha.sqlite3"], 2, &["--tenant-id"]);
    refused(
        &["data/alpha.sqlite3", "--tenant-id", "beta"],
        1,
        &["not to tenant beta"],
    );
    refused(
        &[
            "data/alpha.sqlite3",
            "--tenant-id",
            "alpha",
            "--provider",
            "redb",
        ],
        1,
        &["--provider sqlite"],
    );
    refused(
        &["data/beta.sqlite3", "--tenant-id", "beta"],
        1,
        &["beta.sqlite3 does not exist"],
    );
    refused(
        &["data", "--all", "--tenant-id", "alpha"],
        2,
        &["cannot be used with"],
    );
    let server = machine.start(&[]);
    // A server serves its own directory, and nothing beside it.
    let elsewhere = machine.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    let request = json!({"path": elsewhere, "all": true});
    let (code, answer) = server.request("POST", "/api/admin/encryption/rotate-dek", Some(&request));
    assert_eq!(code, 400);
    assert!(as_text(&answer["error"]["message"]).contains("not a file of this server"));
    server.stop();
    // Beside a file that is not the deployment's: a copy elsewhere is rekeyed, too.
    let copy = machine.path("copy");
    fs::create_dir(&copy).expect("a directory");
    for name in ["alpha.sqlite3", "alpha.sqlite3.nimbus-enc"] {
        let _ = fs::copy(machine.data_dir().join(name), copy.join(name)).expect("a copy");
    }
    let path = copy.join("alpha.sqlite3");
    let _ = encryption(
        &machine,
        &[
            "rotate-dek",
            "--tenant-id",
            "alpha",
            "--path",
            as_str(&path),
        ],
    )
    .expect(0, &[]);
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        2
    );
    // And the copy of the manifest in the control file is still that of the file in its place.
    fs::remove_file(machine.data_dir().join("alpha.sqlite3.nimbus-enc")).expect("a lost sidecar");
    let _ = encryption(&machine, &["repair"]).expect(0, &["put back"]);
    assert_eq!(served(&machine, "alpha")[0]["of"], "alpha");
}
