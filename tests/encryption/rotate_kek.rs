use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nimbus_test_support::{Fault, FaultProxy, Machine, Moto};
use serde_json::{Value, json};

use super::{Ran, as_str, assert_audited, deployment, encryption, health, identity, run, snapshot};

/// A deployment of three files, and a second master key.
fn two_keys() -> (Machine, String) {
    let machine = deployment(&["alpha", "beta"], &[]);
    let key = machine.path("new.key");
    let made = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)]);
    let id = made.expect(0, &[]).out();
    let id = id.split_whitespace().next().expect("a key id").to_owned();
    (machine, id)
}

const ALL: &[&str] = &[
    "rotate-kek",
    "--path",
    "data",
    "--all",
    "--new-master-key-file",
    "new.key",
];

/// The environment of a deployment that has moved to the second key.
fn moved(mut command: Command, machine: &Machine) -> Command {
    command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", machine.path("new.key"));
    command
}

/// `status --verify open` with the second key alone, which must end with `code`.
fn status_moved(machine: &Machine, code: i32) -> Value {
    let command = machine.nimbus(&[
        "encryption",
        "status",
        "--format",
        "json",
        "--verify",
        "open",
    ]);
    run(moved(command, machine)).expect(code, &[]).json()
}

fn key_ids(status: &Value) -> Vec<String> {
    let files = status["files"].as_array().expect("files");
    let key = |file: &Value| {
        file["wraps"][0]["key_id"]
            .as_str()
            .expect("a key")
            .to_owned()
    };
    files.iter().map(key).collect()
}

#[test]
fn every_file_moves_to_the_new_key_and_the_old_one_opens_none() {
    let (machine, id) = two_keys();
    let before = snapshot(&machine.data_dir());
    let _ = encryption(&machine, ALL).expect(
        0,
        &["3 rewrapped, 0 had it already, 0 failed", &id, "settings"],
    );
    assert_audited(&machine, "rewrap", "db:sqlite:tenant:alpha:alpha.sqlite3");
    let found = status_moved(&machine, 0);
    assert_eq!(key_ids(&found), vec![id; 3]);
    assert!(
        found["files"]
            .as_array()
            .expect("files")
            .iter()
            .all(|file| file["revision"] == 3)
    );
    let old = super::status(&machine, &[], 3);
    assert_eq!(health(&old, "alpha.sqlite3"), "key-unavailable");
    // No page of a tenant was touched.
    let databases = |files: Vec<(String, u64)>| -> Vec<_> {
        files
            .into_iter()
            .filter(|(name, _)| name.ends_with(".sqlite3"))
            .collect()
    };
    assert_eq!(databases(before), databases(snapshot(&machine.data_dir())));
    // The copies in the control file moved, too: a lost sidecar comes back under the new key.
    fs::remove_file(machine.data_dir().join("alpha.sqlite3.nimbus-enc")).expect("a lost sidecar");
    let _ =
        run(moved(machine.nimbus(&["encryption", "repair"]), &machine)).expect(0, &["put back"]);
    assert_eq!(status_moved(&machine, 0)["summary"]["ok"], 3);
    let server = machine.start_command(moved(machine.nimbus(&["start", "--port", "0"]), &machine));
    assert_eq!(
        server.get("/api/tenants/alpha/documents/notes")["data"][0]["of"],
        "alpha"
    );
    server.stop();
    let _ = run({
        let mut command = moved(machine.nimbus(&["encryption"]), &machine);
        command.args(["rotate-kek", "--path", "data", "--all"]);
        command
    })
    .expect(0, &["0 rewrapped, 3 had it already"]);
}

/// The crash points of a rotation, and how often each lets pass first.
const POINTS: &[(&str, u32)] = &[
    ("manifests::announced", 0),
    ("manifests::written", 0),
    ("manifests::flushed", 0),
    ("manifests::renamed", 0),
    ("manifests::renamed", 1),
    ("manifests::renamed", 2),
    ("manifests::published", 0),
    ("manifests::mirrored", 0),
];

fn rotate_and_die(machine: &Machine, point: &str, passes: u32) {
    let mut killed = machine.nimbus(&["encryption"]);
    killed
        .args(ALL)
        .env("FAILPOINTS", format!("{point}={passes}*off->return"));
    assert_eq!(run(killed).0.status.code(), None, "{point} is met");
}

#[test]
fn after_a_crash_either_key_may_be_destroyed_and_lost_manifests_still_come_back() {
    let mut turned_back = 0;
    for (point, passes) in POINTS {
        let (machine, new) = two_keys();
        rotate_and_die(&machine, point, *passes);
        // The key that opens the control file is kept, whichever it is. The other one is destroyed,
        // with it the manifests that are under it.
        let data = machine.data_dir();
        let manifest = |name: &str| data.join(format!("{name}.nimbus-enc"));
        let control = fs::read_to_string(manifest("nimbus-control.db")).expect("its manifest");
        let keys = [machine.path("new.key"), machine.master_key()];
        let [kept, gone] = match control.contains(&new) {
            true => keys,
            false => {
                turned_back += 1;
                [&keys[1], &keys[0]].map(Clone::clone)
            }
        };
        fs::remove_file(gone).expect("the key destroyed");
        let with_kept = |arguments: &[&str]| {
            let mut command = machine.nimbus(arguments);
            command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &kept);
            command
        };
        machine
            .start_command(with_kept(&["start", "--port", "0"]))
            .stop();
        fs::remove_file(manifest("alpha.sqlite3")).expect("a lost manifest");
        let repaired = run(with_kept(&["encryption", "repair"]));
        let _ = repaired.expect(0, &["alpha.sqlite3: its manifest was put back"]);
        let found = run(with_kept(&["encryption", "status", "--verify", "open"]));
        let _ = found.expect(0, &["3 files, 3 ok"]);
        let server = machine.start_command(with_kept(&["start", "--port", "0"]));
        for tenant in ["alpha", "beta"] {
            let documents = server.get(&format!("/api/tenants/{tenant}/documents/notes"));
            assert_eq!(documents["data"][1]["of"], tenant, "{point} {passes}");
        }
        server.stop();
    }
    assert!((3..POINTS.len()).contains(&turned_back), "{turned_back}");
}

#[test]
fn a_rotation_that_is_killed_anywhere_leaves_every_file_openable_and_is_finished_by_the_next_run() {
    for (point, passes) in POINTS {
        let (machine, id) = two_keys();
        rotate_and_die(&machine, point, *passes);
        // With both keys configured, as during a rotation, everything opens.
        let mut both = moved(machine.nimbus(&["start", "--port", "0"]), &machine);
        both.env(
            "NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE",
            machine.master_key(),
        );
        let server = machine.start_command(both);
        for tenant in ["alpha", "beta"] {
            let documents = server.get(&format!("/api/tenants/{tenant}/documents/notes"));
            assert_eq!(documents["data"][1]["of"], tenant, "{point}");
        }
        server.stop();
        // Finished by the same command with the same settings, whichever key the control file has.
        let _ = encryption(&machine, ALL).expect(0, &["0 failed"]);
        assert_eq!(key_ids(&status_moved(&machine, 0)), vec![id; 3], "{point}");
    }
}

#[test]
fn goes_through_the_running_server_which_goes_on_serving() {
    let (machine, id) = two_keys();
    let server = machine.start(&[]);
    let _ = encryption(&machine, ALL).expect(0, &["3 rewrapped", &id]);
    let _id = server.insert("alpha", "notes", &json!({"after": true}));
    drop(server.create("/api/tenants", &json!({"id": "gamma"})));
    assert_eq!(server.request("GET", "/ready", None).0, 200);
    let found = server.get("/debug/encryption/status?verify=open");
    assert_eq!(found["summary"]["problems"], 0, "{found}");
    assert_eq!(
        found["provider"]["key_id"], id,
        "new files are wrapped by the new key"
    );
    assert_eq!(key_ids(&found), vec![id.clone(); 4]);
    let (code, body) = server.request("GET", "/api/admin/operations/none", None);
    assert_eq!(
        (code, body["error"]["code"].as_str()),
        (404, Some("op.scheduled_job_not_found"))
    );
    server.kill();
    assert_eq!(status_moved(&machine, 0)["summary"]["ok"], 4);
}

#[test]
fn tenants_that_come_and_go_meanwhile_are_moved_and_fail_no_rotation() {
    let (machine, _id) = two_keys();
    let server = machine.start(&[]);
    let path = machine.data_dir();
    let done = AtomicBool::new(false);
    let came = AtomicUsize::new(0);
    let answers = thread::scope(|scope| {
        let _churn = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let name = format!("t{}", came.load(Ordering::SeqCst) % 3);
                server.request("POST", "/api/tenants", Some(&json!({"id": name})));
                server.request("DELETE", &format!("/api/tenants/{name}"), None);
                came.fetch_add(1, Ordering::SeqCst);
            }
        });
        let rotate = |key: &PathBuf| {
            let request = json!({"path": path, "all": true, "new_master_key_file": key});
            let route = "/api/admin/encryption/rotate-kek";
            let (_status, begun) = server.request("POST", route, Some(&request));
            let operation = begun["operation"].as_str().unwrap_or_default().to_owned();
            loop {
                let route = format!("/api/admin/operations/{operation}");
                let (_status, answer) = server.request("GET", &route, None);
                if answer["state"] != "running" {
                    return answer;
                }
                thread::sleep(Duration::from_millis(5));
            }
        };
        let keys = [machine.path("new.key"), machine.master_key()];
        let enough = |_: &&PathBuf| came.load(Ordering::SeqCst) < 20;
        let rotations = keys.iter().cycle().take_while(enough);
        let answers: Vec<Value> = rotations.map(rotate).collect();
        done.store(true, Ordering::SeqCst);
        answers
    });
    for answer in answers {
        assert_eq!(answer["result"]["failed"], json!([]), "{answer}");
    }
    server.stop();
}

#[test]
fn reports_the_files_that_it_cannot_move_and_moves_the_rest() {
    let (machine, _) = two_keys();
    let manifest = machine.data_dir().join("alpha.sqlite3.nimbus-enc");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    fs::write(&manifest, text.replace("revision: 2", "revision: 7")).expect("an edited one");
    let _ = encryption(&machine, ALL).expect(
        1,
        &[
            "2 rewrapped, 0 had it already, 1 failed",
            "alpha.sqlite3: the manifest",
            "MAC mismatch",
            "Keep both keys",
        ],
    );
    fs::write(&manifest, text).expect("it is put right");
    let _ = encryption(&machine, ALL).expect(0, &["1 rewrapped, 2 had it already, 0 failed"]);
}

#[test]
fn moves_one_file_and_adds_and_drops_recovery_recipients() {
    let (machine, id) = two_keys();
    let (one, other) = (
        identity(&machine, "one.txt"),
        identity(&machine, "other.txt"),
    );
    let rotate = |arguments: &[&str]| -> Ran {
        encryption(&machine, &[&["rotate-kek"], arguments].concat())
    };
    let _ = rotate(&[
        "--path",
        "data",
        "--all",
        "--add-recipient",
        &one,
        "--add-recipient",
        &other,
    ])
    .expect(0, &["3 rewrapped"]);
    let _ = rotate(&["--path", "data", "--all", "--add-recipient", &one])
        .expect(0, &["0 rewrapped, 3 had"]);
    let drop = ["--path", "data/alpha.sqlite3", "--drop-recipient", &one];
    let dropped = rotate(&drop).expect(0, &["1 rewrapped"]).err().to_owned();
    assert!(!dropped.contains("nothing to drop"), "{dropped}");
    let again = format!("No data key here is wrapped to {one}");
    let _ = rotate(&drop).expect(3, &["0 rewrapped", &again]);
    let wraps = |file: &str| -> Vec<String> {
        let found = super::status(&machine, &["--verify", "open"], 0);
        let files = found["files"].as_array().expect("files").clone();
        let file = files
            .iter()
            .find(|one| one["path"] == file)
            .expect("the file")
            .clone();
        let wraps = file["wraps"].as_array().expect("wraps").clone();
        wraps
            .iter()
            .map(|wrap| wrap["key_id"].as_str().expect("a key").to_owned())
            .collect()
    };
    assert_eq!(wraps("alpha.sqlite3")[1..], *std::slice::from_ref(&other));
    assert_eq!(wraps("beta.sqlite3")[1..], [one, other.clone()]);
    // One file alone under the new key: the others, and the recipients, stay.
    let path = [
        "--path",
        "data/beta.sqlite3.nimbus-enc",
        "--new-master-key-file",
        "new.key",
    ];
    let _ = rotate(&path).expect(0, &["1 rewrapped", &id]);
    assert_eq!(super::status(&machine, &[], 3)["summary"]["problems"], 1);
    // What was added opens with stock age.
    let opened = Command::new(nimbus_python())
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/interop/unwrap_recovery.py"
        ))
        .args([
            "--identity",
            as_str(&machine.path("other.txt")),
            "--database",
            as_str(&machine.data_dir().join("beta.sqlite3")),
        ])
        .output()
        .expect("python");
    assert!(
        opened.status.success(),
        "{}",
        String::from_utf8_lossy(&opened.stderr)
    );
    assert!(String::from_utf8_lossy(&opened.stdout).contains("\"of\": \"beta\""));
}

fn nimbus_python() -> std::path::PathBuf {
    let venv = std::env::var_os("NIMBUS_TEST_VENV").expect("scripts/test sets NIMBUS_TEST_VENV");
    std::path::PathBuf::from(venv).join("bin/python")
}

#[test]
fn moves_between_any_two_providers() {
    type Settings = Vec<(&'static str, String)>;
    let moto = Moto::start();
    let (kms, other_kms) = (moto.create_key(), moto.create_key());
    let machine = deployment(&["alpha", "beta"], &[]);
    let ran = |arguments: &[&str], settings: &Settings| {
        let mut command = machine.nimbus(&[&["encryption"], arguments].concat());
        command
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .envs(settings.iter().cloned());
        run(command)
    };
    let in_kms = |key: &str| -> Settings {
        vec![
            ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms".to_owned()),
            ("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", key.to_owned()),
            ("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1".to_owned()),
            ("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", moto.url().to_owned()),
        ]
    };
    let to_kms = |key: &str| {
        let flags = ["--new-aws-kms-key-id", key, "--new-aws-region", "us-east-1"];
        [&flags[..], &["--new-aws-endpoint-url", moto.url()]]
            .concat()
            .join(" ")
    };
    let in_dir: Settings = vec![
        ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "key-dir".to_owned()),
        ("NIMBUS_ENCRYPTION_KEY_DIR", "keys".to_owned()),
    ];
    let master = format!("--new-master-key-file {}", as_str(&machine.master_key()));
    let steps = [
        (Settings::new(), to_kms(&kms), in_kms(&kms)),
        (in_kms(&kms), to_kms(&other_kms), in_kms(&other_kms)),
        (
            in_kms(&other_kms),
            "--new-key-dir keys".to_owned(),
            in_dir.clone(),
        ),
        (in_dir, master, Settings::new()),
    ];
    for (before, to, after) in steps {
        let flags: Vec<&str> = to.split(' ').collect();
        let rotate = [&["rotate-kek", "--path", "data", "--all"], &flags[..]].concat();
        let _ = ran(&rotate, &before).expect(0, &["3 rewrapped, 0 had it already, 0 failed"]);
        let look = ["status", "--verify", "pages"];
        let _ = ran(&look, &after).expect(0, &["3 files, 3 ok"]);
        let _ = ran(&look, &before).expect(3, &["key-unavailable"]);
    }
}

#[test]
fn a_kms_that_throttles_is_ridden_out_and_every_file_moves() {
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let key = moto.create_key();
    let machine = deployment(&["alpha", "beta"], &[]);
    let throttled = Fault::error(400, "ThrottlingException", "Rate exceeded");
    // One fewer than a call is tried, so that one file may meet them all.
    proxy.inject_times("Encrypt", throttled, 4);
    let of_aws = |mut command: Command| {
        command
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        command
    };
    let mut rotate = of_aws(machine.nimbus(&["encryption", "rotate-kek", "--path", "data"]));
    rotate
        .args(["--all", "--new-aws-kms-key-id", &key])
        .args(["--new-aws-region", "us-east-1"])
        .args(["--new-aws-endpoint-url", proxy.url()]);
    let _ = run(rotate).expect(0, &["3 rewrapped, 0 had it already, 0 failed"]);
    assert_eq!(
        proxy.calls("Encrypt").len(),
        1 + 3 + 4,
        "each was tried again, and the key once before"
    );
    let mut look = of_aws(machine.nimbus(&["encryption", "status", "--verify", "pages"]));
    look.env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms")
        .env("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", &key)
        .env("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1")
        .env("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", moto.url());
    let _ = run(look).expect(0, &["3 files, 3 ok"]);
}

#[test]
fn rejects_what_makes_no_sense_before_it_touches_anything() {
    let (machine, _) = two_keys();
    // redb writes to what it opens: the control file is left out.
    let files = || -> Vec<(String, u64)> {
        let all = snapshot(&machine.data_dir()).into_iter();
        all.filter(|(name, _)| name != "nimbus-control.db")
            .collect()
    };
    let before = files();
    let rotate = |arguments: &[&str], code: i32, words: &[&str]| {
        let _ = encryption(&machine, &[&["rotate-kek", "--path"], arguments].concat())
            .expect(code, words);
        assert_eq!(before, files());
    };
    rotate(&["data"], 2, &["data is a directory", "--all"]);
    rotate(&["data/alpha.sqlite3", "--all"], 2, &["leave --all out"]);
    rotate(
        &[
            "data",
            "--all",
            "--new-key-dir",
            "d",
            "--new-master-key-file",
            "new.key",
        ],
        2,
        &["name one new key"],
    );
    rotate(
        &["data", "--all", "--new-key-provider", "aws-kms"],
        2,
        &["--new-aws-kms-key-id"],
    );
    rotate(
        &["data", "--all", "--new-key-provider", "none"],
        2,
        &["export"],
    );
    rotate(
        &["data", "--all", "--new-aws-region", "x"],
        2,
        &["--new-aws-kms-key-id"],
    );
    rotate(
        &["data", "--all", "--add-recipient", "age1x"],
        2,
        &["age1x"],
    );
    rotate(
        &["data", "--all", "--new-master-key-file", "no.key"],
        1,
        &["no.key"],
    );
    let inside = machine.data_dir().join("inside.key");
    let _ = fs::copy(machine.path("new.key"), &inside).expect("a key beside the data");
    let ran = encryption(
        &machine,
        &[
            "rotate-kek",
            "--path",
            "data",
            "--all",
            "--new-master-key-file",
            as_str(&inside),
        ],
    );
    let _ = ran.expect(1, &["lies in the data directory"]);
}

#[test]
fn a_tenant_whose_manifest_is_lost_is_named_and_not_passed_over() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let data = machine.data_dir();
    let lost = data.join("beta.sqlite3.nimbus-enc");
    fs::remove_file(&lost).expect("the manifest");
    let new = machine.path("new.key");
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&new)]).expect(0, &[]);
    let rotate = ["rotate-kek", "--all", "--path", as_str(&data)];
    let to = ["--new-master-key-file", as_str(&new)];
    let words = ["2 rewrapped", "1 failed", "beta.sqlite3", "Keep both keys"];
    let _ = encryption(&machine, &[&rotate[..], &to].concat()).expect(1, &words);
    let rotate = ["rotate-dek", "--all", "--path", as_str(&data)];
    let mut command = machine.nimbus(&["encryption"]);
    command
        .args(rotate)
        .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &new);
    let _ = super::run(command).expect(1, &["beta.sqlite3"]);
}

#[test]
fn the_copy_of_a_creation_that_was_cut_short_moves_with_its_manifest() {
    let machine = deployment(&["alpha"], &[]);
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", "manifest::mirrored=return");
    let server = machine.start_command(command);
    let body = json!({"id": "beta"});
    drop(server.try_request_as(&machine.token(), "POST", "/api/tenants", Some(&body)));
    server.wait_until_killed();
    let manifest = machine.data_dir().join("beta.sqlite3.nimbus-enc");
    let text = || fs::read_to_string(&manifest).expect("a manifest");
    assert!(text().contains("state: new"), "{}", text());
    let new = machine.path("new.key");
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&new)]).expect(0, &[]);
    let rotate = ["rotate-kek", "--path", "data", "--all"];
    let rotate = [&rotate[..], &["--new-master-key-file", "new.key"]].concat();
    // Killed between the manifest and its copy: the next run drops the copy under the old key all
    // the same.
    let mut killed = machine.nimbus(&["encryption"]);
    killed
        .args(&rotate)
        .env("FAILPOINTS", "manifests::published=return");
    assert_eq!(super::run(killed).0.status.code(), None);
    let mut again = machine.nimbus(&["encryption"]);
    again
        .args(&rotate)
        .env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", &new);
    let _ = super::run(again).expect(0, &["0 failed"]);
    fs::remove_file(machine.master_key()).expect("the old key is destroyed");
    fs::rename(&new, machine.master_key()).expect("the new one is in its place");
    // The copy alone opens it now.
    fs::remove_file(&manifest).expect("lost");
    let _ =
        encryption(&machine, &["repair"]).expect(0, &["beta.sqlite3: its manifest was put back"]);
    super::status(&machine, &["--verify", "pages"], 0);
    assert_eq!(super::served(&machine, "beta"), json!([]));
}

#[test]
fn a_rotation_that_cannot_be_recorded_puts_no_key_in_force() {
    let (machine, id) = two_keys();
    let server = machine.start(&[]);
    let log = machine.data_dir().join("nimbus-audit.log");
    let kept = machine.path("kept.log");
    fs::rename(&log, &kept).expect("the log");
    let _ = encryption(&machine, ALL).expect(1, &["the audit log cannot be written"]);
    fs::rename(&kept, &log).expect("the log");
    drop(server.create("/api/tenants", &json!({"id": "gamma"})));
    let found = server.get("/debug/encryption/status?verify=open");
    assert_eq!(found["summary"]["problems"], 0, "{found}");
    assert!(!key_ids(&found).contains(&id), "{found}");
    server.stop();
}

#[test]
fn a_manifest_that_only_claims_the_new_key_is_not_taken_for_moved() {
    let (machine, id) = two_keys();
    let path = machine.data_dir().join("beta.sqlite3.nimbus-enc");
    let text = fs::read_to_string(&path).expect("a manifest");
    let forge = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        ["revision:", number] => {
            format!("revision: {}", number.parse::<u64>().expect("a number") + 1)
        }
        ["wrap:", kind, _, how, at] => format!("wrap: {kind} {id} {how} {at}"),
        _ => line.to_owned(),
    };
    let forged: Vec<String> = text.lines().map(forge).collect();
    fs::write(&path, forged.join("\n") + "\n").expect("a forged manifest");
    let words = ["2 rewrapped", "1 failed", "beta.sqlite3", "Keep both keys"];
    let _ = encryption(&machine, ALL).expect(1, &words);
    // The true one is moved once it is back.
    fs::write(&path, text).expect("it is put back");
    let _ = encryption(&machine, ALL).expect(0, &["1 rewrapped, 2 had it already, 0 failed"]);
    assert_eq!(key_ids(&status_moved(&machine, 0)), vec![id; 3]);
}

#[test]
fn what_is_no_recipient_and_what_is_added_and_dropped_at_once_is_refused() {
    let (machine, _) = two_keys();
    let one = identity(&machine, "one.txt");
    let rotate = |arguments: &[&str], code: i32, words: &[&str]| {
        let arguments = [&["rotate-kek", "--path", "data", "--all"], arguments].concat();
        let _ = encryption(&machine, &arguments).expect(code, words);
    };
    rotate(&["--drop-recipient", "nobody"], 2, &["nobody", "refused"]);
    let both = ["--add-recipient", &one, "--drop-recipient", &one];
    rotate(&both, 2, &["added and dropped"]);
}
