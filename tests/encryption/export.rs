use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::{RENEW_ALPHA, as_str, assert_audited, deployment, encryption, served, snapshot};

const SQLITE: &[&str] = &["export", "--provider", "sqlite", "--source"];

#[test]
fn writes_a_tenant_out_for_its_owner_alone() {
    let machine = deployment(&["alpha"], &[]);
    let target = machine.path("out/of/here/alpha.sqlite3");
    let ran = encryption(
        &machine,
        &[
            SQLITE,
            &[
                "data/alpha.sqlite3",
                "--tenant-id",
                "alpha",
                "--target",
                as_str(&target),
            ],
        ]
        .concat(),
    );
    let subject = "db:sqlite:tenant:alpha:alpha.sqlite3";
    let said = ran.expect(0, &["PLAINTEXT", subject]).err();
    // The record for the auditor is in the log, and no line of it between what is said.
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_audited(&machine, "export", subject);
    let mode = |path: &std::path::Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(&target), 0o600);
    assert_eq!(mode(&machine.path("out/of/here")), 0o700);
    assert_eq!(mode(&machine.path("out")), 0o700);
    // With encryption off, the plaintext is a deployment like any other: the same documents come
    // out of it.
    let expected = served(&machine, "alpha");
    let plain = super::machine();
    fs::create_dir(plain.data_dir()).expect("a data directory");
    let _bytes = fs::copy(&target, plain.data_dir().join("alpha.sqlite3")).expect("a copy");
    let server = plain.start(&["--encryption-key-provider", "none"]);
    assert_eq!(
        server.get("/api/tenants/alpha/documents/notes")["data"],
        expected
    );
    server.stop();
}

#[test]
fn exports_a_tenant_of_a_running_server_and_not_its_control_file() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    server.insert("alpha", "notes", &serde_json::json!({"n": 3}));
    let target = machine.path("out.sqlite3");
    let arguments = [
        "data/alpha.sqlite3",
        "--tenant-id",
        "alpha",
        "--target",
        as_str(&target),
    ];
    let _ = encryption(&machine, &[SQLITE, &arguments].concat()).expect(0, &[]);
    let content = fs::read(&target).expect("the plaintext");
    assert!(content.windows(5).any(|bytes| bytes == b"notes"));
    let control = [
        "export",
        "--provider",
        "redb",
        "--source",
        "data/nimbus-control.db",
        "--target",
        "c.db",
    ];
    let _ =
        encryption(&machine, &control).expect(1, &["nimbus-control.db is in use", "stop it first"]);
    assert!(!machine.path("c.db").exists());
    server.stop();
    let _ = encryption(&machine, &control).expect(0, &["PLAINTEXT"]);
    assert!(
        fs::read(machine.path("c.db"))
            .expect("it")
            .starts_with(b"redb")
    );
}

#[test]
fn accepts_a_copy_under_another_name_and_refuses_another_tenant() {
    let machine = deployment(&["alpha"], &[]);
    let copy = machine.path("backup-of-monday");
    let _bytes = fs::copy(machine.data_dir().join("alpha.sqlite3"), &copy).expect("a copy");
    let _bytes = fs::copy(
        machine.data_dir().join("alpha.sqlite3.nimbus-enc"),
        machine.path("backup-of-monday.nimbus-enc"),
    )
    .expect("its manifest");
    let export = |tenant: &[&str]| {
        let arguments = [SQLITE, &[as_str(&copy), "--target", "plain"], tenant].concat();
        encryption(&machine, &arguments)
    };
    let _ = export(&["--tenant-id", "beta"]).expect(
        1,
        &["belongs to db:sqlite:tenant:alpha", "not to tenant beta"],
    );
    let _ = export(&[]).expect(2, &["--tenant-id"]);
    let _ = export(&["--tenant-id", "../alpha"]).expect(2, &["--tenant-id"]);
    assert!(!machine.path("plain").exists());
    let _ = export(&["--tenant-id", "alpha"]).expect(0, &[]);
    let _ = export(&["--tenant-id", "alpha"]).expect(1, &["plain already exists"]);
}

#[test]
fn rejects_what_is_not_there_not_encrypted_or_of_another_kind() {
    let machine = deployment(&["alpha"], &[]);
    fs::write(
        machine.path("plain.sqlite3"),
        b"SQLite format 3\0 and so on",
    )
    .expect("a plaintext file");
    fs::write(machine.path("noise.sqlite3"), [9; 8192]).expect("noise");
    let before = snapshot(&machine.data_dir());
    for (source, words) in [
        (
            "data/beta.sqlite3",
            &["data/beta.sqlite3 does not exist"][..],
        ),
        ("plain.sqlite3", &["is not encrypted"]),
        (
            "noise.sqlite3",
            &["noise.sqlite3.nimbus-enc is missing", "repair"],
        ),
        ("data/nimbus-control.db", &["--provider redb"]),
    ] {
        let arguments = [SQLITE, &[source, "--tenant-id", "alpha", "--target", "out"]].concat();
        let _ = encryption(&machine, &arguments).expect(1, words);
        assert!(!machine.path("out").exists(), "{source}");
    }
    assert_eq!(before, snapshot(&machine.data_dir()));
}

/// The crash points of an export: before its file has a name, and after.
const POINTS: &[(&str, bool)] = &[
    ("export::filled", false),
    ("export::copied", false),
    ("export::flushed", false),
    ("export::named", true),
];

#[test]
fn leaves_nothing_when_it_is_killed_before_the_whole_plaintext_has_its_name() {
    for (kind, source, tenant) in [
        (
            "sqlite",
            "data/alpha.sqlite3",
            &["--tenant-id", "alpha"][..],
        ),
        ("redb", "data/nimbus-control.db", &[]),
    ] {
        let machine = deployment(&["alpha"], &[]);
        let export = |target: &str, failpoints: &str| {
            let mut command = machine.nimbus(&["encryption", "export", "--provider", kind]);
            command
                .args(["--source", source, "--target", target])
                .args(tenant)
                .env("FAILPOINTS", failpoints);
            super::run(command)
        };
        let _ = export("whole", "").expect(0, &[]);
        let whole = fs::read(machine.path("whole")).expect("the plaintext");
        let points = POINTS.iter();
        // redb is copied block by block, with no point between.
        for (point, named) in
            points.filter(|(point, _)| kind == "sqlite" || *point != "export::filled")
        {
            let killed = export("out/plain", &format!("{point}=return"));
            assert_eq!(killed.0.status.code(), None, "{point}: killed");
            let left = snapshot(&machine.path("out"));
            if *named {
                let content = fs::read(machine.path("out/plain")).expect("the plaintext");
                assert_eq!(
                    (left.len(), content.len()),
                    (1, whole.len()),
                    "{kind} {point}"
                );
                let _ = export("out/plain", "").expect(1, &["out/plain already exists"]);
            } else {
                assert_eq!(left, [], "{kind} {point}");
            }
        }
    }
}

#[test]
fn an_export_beside_a_server_takes_nothing_from_what_the_server_goes_on_writing() {
    let machine = super::machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "alpha"}));
    server.insert("alpha", "notes", &json!({"n": 0}));
    // The server opens and closes the file beside SQLite, which costs it the POSIX locks that
    // SQLite holds there. That whoever closes the database next does not take itself for the last,
    // and the WAL with it, is SQLite's doing since 3.51: it asks for the locks on the shared
    // memory, too. Should that change, acknowledged writes would be lost here.
    let _ = server.get("/debug/encryption/status?verify=unwrap");
    let source = machine.data_dir().join("alpha.sqlite3");
    let target = machine.path("out.sqlite3");
    let arguments = ["export", "--provider", "sqlite", "--tenant-id", "alpha"];
    let paths = ["--source", as_str(&source), "--target", as_str(&target)];
    let _ = encryption(&machine, &[&arguments[..], &paths].concat()).expect(0, &[]);
    for n in 1..5 {
        server.insert("alpha", "notes", &json!({"n": n}));
    }
    server.kill();
    let found = served(&machine, "alpha");
    assert_eq!(found.as_array().expect("documents").len(), 5, "{found}");
}

#[test]
fn an_export_that_opens_the_file_while_it_gets_a_new_data_key_looks_again() {
    let machine = deployment(&["alpha"], &[]);
    let server = machine.start(&[]);
    let mut command = machine.nimbus(&["encryption"]);
    let target = machine.path("out.sqlite3");
    command
        .args(SQLITE)
        .args(["data/alpha.sqlite3", "--tenant-id", "alpha", "--target"])
        .arg(&target)
        // It has the old file, and has not read it yet.
        .env("FAILPOINTS", "sqlcipher::opened=1*sleep(8000)->off");
    let exporting = std::thread::spawn(move || super::run(command));
    while !server.log().contains("event=\"export\"") {
        std::thread::yield_now();
    }
    let path = machine.data_dir().join("alpha.sqlite3");
    while !is_open_elsewhere(&path, server.pid()) {
        std::thread::yield_now();
    }
    let _ = encryption(&machine, RENEW_ALPHA).expect(0, &["has a new data key"]);
    server.insert("alpha", "notes", &json!({"n": "after"}));
    let _ = exporting.join().expect("it ran").expect(0, &["PLAINTEXT"]);
    let content = fs::read(&target).expect("the plaintext");
    assert!(content.windows(5).any(|bytes| bytes == b"notes"));
    let before = server.get("/api/tenants/alpha/documents/notes")["data"].clone();
    server.stop();
    assert_eq!(served(&machine, "alpha"), before);
    assert_eq!(
        super::status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        2
    );
}

/// Whether a process other than this one and the server has the file open.
fn is_open_elsewhere(path: &std::path::Path, server: u32) -> bool {
    let path = path.canonicalize().expect("the file");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let others = processes.filter(|process| {
        let number = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        number.is_some_and(|number: u32| number != server && number != std::process::id())
    });
    // One that ends meanwhile has nothing open.
    let files = others.filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
    files
        .flatten()
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|target| target == path))
}

/// SECURITY.md says so: a copy elsewhere is none of the deployment's files, and any tool with the
/// key opens it.
#[test]
fn an_export_of_a_copy_elsewhere_is_not_in_the_log() {
    let machine = deployment(&["alpha"], &[]);
    fs::create_dir(machine.path("elsewhere")).expect("a directory");
    for name in ["alpha.sqlite3", "alpha.sqlite3.nimbus-enc"] {
        let to = machine.path("elsewhere").join(name);
        let _bytes = fs::copy(machine.data_dir().join(name), to).expect("a copy");
    }
    let log = || fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    let before = log();
    let arguments = [
        "elsewhere/alpha.sqlite3",
        "--tenant-id",
        "alpha",
        "--target",
        "out.sqlite3",
    ];
    let _ = encryption(&machine, &[SQLITE, &arguments].concat()).expect(0, &["PLAINTEXT"]);
    assert!(machine.path("out.sqlite3").is_file());
    assert_eq!(log(), before);
    assert!(!machine.path("elsewhere/nimbus-audit.log").exists());
}
