use std::fs;

use nimbus_test_support::{Machine, Moto};
use serde_json::{Value, json};

use super::{deployment, encryption, health, machine, snapshot, status};

#[test]
fn says_of_every_file_who_it_belongs_to_and_which_key_wraps_it() {
    let machine = deployment(&["alpha", "beta"], &[]);
    let before = snapshot(&machine.data_dir());
    for verify in ["none", "unwrap", "open", "pages"] {
        let status = status(&machine, &["--verify", verify], 0);
        assert_eq!(status["enabled"], true);
        assert_eq!(status["verify"], verify);
        assert_eq!(status["provider"]["kind"], "master-key-file");
        assert_eq!(
            status["provider"]["path"],
            machine.master_key().to_str().expect("a path")
        );
        assert_eq!(
            status["summary"],
            json!({"files": 3, "ok": 3, "problems": 0})
        );
        let file = &status["files"][0];
        assert_eq!(file["path"], "alpha.sqlite3");
        assert_eq!(file["subject"], "db:sqlite:tenant:alpha:alpha.sqlite3");
        assert_eq!(file["cipher"], "sqlcipher4");
        assert_eq!(file["state"], "ready");
        assert_eq!(file["revision"], 2);
        assert_eq!(file["wraps"][0]["provider"], "master-key-file");
        assert_eq!(file["wraps"][0]["key_id"], status["provider"]["key_id"]);
        for field in ["file_id", "dek_id", "dek_created"] {
            assert!(file[field].is_string(), "{field}: {file}");
        }
        assert_eq!(
            status["files"][2]["subject"],
            "db:redb:control:nimbus-control.db"
        );
    }
    assert_eq!(
        before,
        snapshot(&machine.data_dir()),
        "status changes nothing"
    );
}

#[test]
fn prints_a_table_for_people() {
    let machine = deployment(&["alpha"], &[]);
    let said = encryption(&machine, &["status"]).expect(0, &[]).out();
    let lines: Vec<&str> = said.lines().collect();
    let column = lines[2].find("HEALTH").expect("a heading");
    assert_eq!(&lines[3][column..], "ok");
    assert_eq!(&lines[4][column..], "ok");
    assert!(said.contains("2 files, 2 ok, 0 problems"), "{said}");
}

#[test]
fn names_what_is_wrong_with_each_file_and_what_to_do() {
    let names = [
        "gone", "empty", "lost", "cut", "edited", "swapped", "plain", "torn", "other", "fine",
    ];
    let machine = deployment(&names, &[]);
    // So that its last page holds documents, which opening it does not read.
    let server = machine.start(&[]);
    for _ in 0..20 {
        server.insert("torn", "notes", &json!({"text": "x".repeat(3000)}));
    }
    server.stop();
    let data = machine.data_dir();
    let database = |tenant: &str| data.join(format!("{tenant}.sqlite3"));
    let manifest = |tenant: &str| data.join(format!("{tenant}.sqlite3.nimbus-enc"));

    fs::remove_file(database("gone")).expect("no database");
    fs::write(database("empty"), b"").expect("an empty database");
    fs::remove_file(manifest("lost")).expect("no manifest");
    let whole = fs::read(manifest("cut")).expect("a manifest");
    fs::write(manifest("cut"), &whole[..whole.len() / 2]).expect("half of it");
    let text = fs::read_to_string(manifest("edited")).expect("a manifest");
    let edited = text.replace("revision: 2", "revision: 3");
    assert_ne!(text, edited);
    fs::write(manifest("edited"), edited).expect("an edited manifest");
    let _bytes = fs::copy(manifest("fine"), manifest("swapped")).expect("another's manifest");
    fs::write(database("plain"), b"SQLite format 3\0 and so on").expect("plaintext");
    let mut torn = fs::read(database("torn")).expect("a database");
    let last = torn.len() - 2000;
    torn[last] ^= 1;
    fs::write(database("torn"), torn).expect("one bit changed");
    let _bytes = fs::copy(database("fine"), database("other")).expect("another's database");
    fs::write(data.join("stray.sqlite3.old.nimbus-enc"), &text).expect("an orphan");
    fs::write(data.join("notes.txt"), "none of ours").expect("a text");

    let found = |verify: &str| {
        let status = status(&machine, &["--verify", verify], 3);
        let files = status["files"].as_array().expect("files").len();
        assert_eq!(files, names.len() + 2, "the control file, and the orphan");
        assert_eq!(status["summary"]["files"], files);
        status
    };
    let at_every_look = |status: &Value| {
        assert_eq!(health(status, "gone.sqlite3"), "database-missing");
        assert_eq!(health(status, "empty.sqlite3"), "page-corrupt");
        assert_eq!(health(status, "lost.sqlite3"), "manifest-missing");
        assert_eq!(health(status, "cut.sqlite3"), "manifest-corrupt");
        assert_eq!(health(status, "swapped.sqlite3"), "subject-mismatch");
        assert_eq!(health(status, "plain.sqlite3"), "plaintext");
        assert_eq!(health(status, "stray.sqlite3.old"), "orphan-manifest");
        assert_eq!(health(status, "fine.sqlite3"), "ok");
        assert_eq!(health(status, "nimbus-control.db"), "ok");
    };
    let none = found("none");
    at_every_look(&none);
    assert_eq!(health(&none, "edited.sqlite3"), "ok", "a MAC needs the key");
    let unwrap = found("unwrap");
    at_every_look(&unwrap);
    assert_eq!(health(&unwrap, "edited.sqlite3"), "manifest-corrupt");
    assert_eq!(health(&unwrap, "other.sqlite3"), "ok", "only opening tells");
    let open = found("open");
    at_every_look(&open);
    assert_eq!(health(&open, "other.sqlite3"), "key-mismatch");
    assert_eq!(health(&open, "torn.sqlite3"), "ok", "page 1 is whole");
    let pages = found("pages");
    at_every_look(&pages);
    assert_eq!(health(&pages, "torn.sqlite3"), "page-corrupt");
    assert_eq!(pages["summary"]["problems"], 10);

    // The running server says the same of its tenants; only the default look is compared.
    let server = machine.start(&[]);
    let through_server = status(&machine, &["--verify", "pages"], 3);
    assert_eq!(through_server["files"], pages["files"]);
    assert_eq!(
        server.get("/debug/encryption/status?verify=pages")["files"],
        pages["files"]
    );
    server.stop();
}

#[test]
fn finds_plaintext_under_any_name() {
    let machine = deployment(&["alpha"], &[]);
    fs::write(machine.data_dir().join("copy.bak"), b"SQLite format 3\0").expect("a plaintext copy");
    let found = status(&machine, &[], 3);
    assert_eq!(health(&found, "copy.bak"), "plaintext");
    let ran = encryption(&machine, &["status"]);
    let _ = ran.expect(3, &["copy.bak: ", "move it away or remove it"]);
}

#[test]
fn shows_what_is_there_when_the_key_is_not() {
    let machine = deployment(&["alpha"], &[]);
    fs::rename(machine.master_key(), machine.path("master.key")).expect("the key is taken away");
    for verify in ["none", "unwrap", "open"] {
        let found = status(&machine, &["--verify", verify], 3);
        assert_eq!(health(&found, "alpha.sqlite3"), "key-unavailable");
        assert_eq!(found["files"][0]["state"], "ready");
        let error = found["provider"]["error"].as_str().expect("why");
        assert!(error.contains("master.key is missing"), "{error}");
    }
    assert!(!machine.master_key().exists(), "no new key is made");
}

#[test]
fn tells_a_wrong_key_by_its_id_alone() {
    let machine = deployment(&["alpha"], &[]);
    let key = machine.path("other.key");
    let _ = encryption(
        &machine,
        &["keygen", "--master-key-file", key.to_str().expect("a path")],
    )
    .expect(0, &[]);
    let mut command = machine.nimbus(&[
        "encryption",
        "status",
        "--verify",
        "none",
        "--format",
        "json",
    ]);
    command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &key);
    let ran = super::run(command);
    assert_eq!(
        health(&ran.expect(3, &[]).json(), "alpha.sqlite3"),
        "key-unavailable"
    );
}

#[test]
fn says_that_encryption_is_off_where_it_is() {
    let machine = deployment(&["alpha"], &["--encryption-key-provider", "none"]);
    let ran = |arguments: &[&str]| {
        let mut command = machine.nimbus(&["encryption", "status"]);
        command
            .args(arguments)
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "none");
        super::run(command)
    };
    let found = ran(&["--format", "json"]).expect(0, &[]).json();
    assert_eq!(found["enabled"], false);
    assert_eq!(found["provider"], Value::Null);
    assert!(
        found["files"]
            .as_array()
            .expect("files")
            .iter()
            .all(|file| file["health"] == "plaintext")
    );
    let _ = ran(&[]).expect(0, &["Encryption is OFF"]);
    // With encryption on, the same directory is all trouble, with the command to run.
    let _ = encryption(&machine, &["status"]).expect(
        3,
        &[
            "nimbus encryption migrate --provider sqlite --tenant-id alpha --source",
            "--in-place",
        ],
    );
}

#[test]
fn looks_at_another_directory_when_told_to() {
    let machine = deployment(&["alpha"], &[]);
    let copy = machine.path("elsewhere");
    fs::rename(machine.data_dir(), &copy).expect("the data moves");
    let path = copy.to_str().expect("a path");
    assert_eq!(
        status(&machine, &["--data-dir", path, "--verify", "open"], 0)["summary"]["ok"],
        2
    );
    let _ = encryption(&machine, &["status"]).expect(1, &["cannot read", "--data-dir"]);
    let _ = encryption(&machine, &["status", "--verify", "all"]).expect(2, &["possible values"]);
}

#[test]
fn shows_a_kms_key_by_its_arn_and_unwraps_only_when_told_to() {
    let moto = Moto::start();
    let key = moto.create_key();
    let machine = machine();
    let with_kms = |mut command: std::process::Command| {
        command
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms")
            .env("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", &key)
            .env("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1")
            .env("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", moto.url());
        command
    };
    let server = machine.start_command(with_kms(machine.nimbus(&["start", "--port", "0"])));
    drop(server.create("/api/tenants", &json!({"id": "alpha"})));
    server.stop();
    let look = |machine: &Machine, arguments: &[&str]| {
        let mut command = machine.nimbus(&["encryption", "status", "--format", "json"]);
        command.args(arguments);
        super::run(with_kms(command)).expect(0, &[]).json()
    };
    let found = look(&machine, &[]);
    assert_eq!(found["verify"], "none");
    assert_eq!(found["provider"]["kind"], "aws-kms");
    let arn = found["provider"]["key_id"].as_str().expect("a key id");
    assert!(arn.starts_with("arn:aws:kms:us-east-1:"), "{arn}");
    assert_eq!(found["files"][0]["wraps"][0]["key_id"], arn);
    assert_eq!(look(&machine, &["--verify", "pages"])["summary"]["ok"], 2);
}
