use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};

use nimbus_test_support::Machine;
use serde_json::{Value, json};

use super::{assert_audited, deployment, encryption, health, run, served, snapshot, status};

const OFF: &[&str] = &["--encryption-key-provider", "none"];
const TENANT: &[&str] = &[
    "migrate",
    "--provider",
    "sqlite",
    "--tenant-id",
    "alpha",
    "--source",
    "data/alpha.sqlite3",
];
const CONTROL: &[&str] = &[
    "migrate",
    "--provider",
    "redb",
    "--source",
    "data/nimbus-control.db",
];

/// A plaintext deployment with one tenant, a master key to encrypt it with, and what it served.
fn plaintext() -> (Machine, Value) {
    let machine = deployment(&["alpha"], OFF);
    let server = machine.start(OFF);
    let documents = server.get("/api/tenants/alpha/documents/notes")["data"].clone();
    server.stop();
    let key = machine.master_key();
    let _ = encryption(
        &machine,
        &["keygen", "--master-key-file", super::as_str(&key)],
    )
    .expect(0, &[]);
    (machine, documents)
}

#[test]
fn a_plaintext_deployment_becomes_an_encrypted_one() {
    let (machine, documents) = plaintext();
    for command in [CONTROL, TENANT] {
        let _ = encryption(
            &machine,
            &[command, &["--in-place", "--retire-source"]].concat(),
        )
        .expect(0, &["is encrypted", "The plaintext file is removed"]);
    }
    assert_audited(&machine, "migrate", "db:sqlite:tenant:alpha:alpha.sqlite3");
    let found = status(&machine, &["--verify", "pages"], 0);
    assert_eq!(found["summary"]["files"], 2);
    assert_eq!(served(&machine, "alpha"), documents);
}

#[test]
fn keeps_the_plaintext_until_it_is_told_to_remove_it() {
    let (machine, documents) = plaintext();
    let _ = encryption(
        &machine,
        &[CONTROL, &["--in-place", "--retire-source"]].concat(),
    )
    .expect(0, &[]);
    let in_place = [TENANT, &["--in-place"]].concat();
    let _ = encryption(&machine, &in_place).expect(0, &["data/alpha.sqlite3.plaintext"]);
    let found = status(&machine, &[], 3);
    assert_eq!(health(&found, "alpha.sqlite3.plaintext"), "plaintext");
    assert_eq!(health(&found, "alpha.sqlite3"), "ok");
    assert_eq!(served(&machine, "alpha"), documents);
    let _ = encryption(&machine, &[&in_place[..], &["--retire-source"]].concat())
        .expect(0, &["removed"]);
    assert_eq!(
        status(&machine, &["--verify", "open"], 0)["summary"]["files"],
        2
    );
    let _ = encryption(&machine, &in_place).expect(1, &["encrypted already"]);
}

#[test]
fn writes_the_copy_beside_the_source_and_it_opens_once_renamed_into_place() {
    let (machine, documents) = plaintext();
    let before = fs::read(machine.data_dir().join("alpha.sqlite3")).expect("the plaintext");
    let _ = encryption(&machine, TENANT).expect(
        0,
        &[
            "alpha.sqlite3.encrypted",
            "opens under the name alpha.sqlite3",
        ],
    );
    let data = machine.data_dir();
    assert_eq!(
        fs::read(data.join("alpha.sqlite3")).expect("the plaintext"),
        before
    );
    let _ = encryption(&machine, TENANT).expect(1, &["alpha.sqlite3.encrypted already exists"]);
    let inspected = encryption(
        &machine,
        &[
            "inspect",
            "--format",
            "json",
            "data/alpha.sqlite3.encrypted",
        ],
    );
    assert_eq!(
        inspected.expect(0, &[]).json()["subject"],
        "db:sqlite:tenant:alpha:alpha.sqlite3"
    );
    let _ = encryption(
        &machine,
        &[CONTROL, &["--in-place", "--retire-source"]].concat(),
    )
    .expect(0, &[]);
    for suffix in ["", ".nimbus-enc"] {
        fs::rename(
            data.join(format!("alpha.sqlite3.encrypted{suffix}")),
            data.join(format!("alpha.sqlite3{suffix}")),
        )
        .expect("a rename into place");
    }
    assert_eq!(served(&machine, "alpha"), documents);
}

#[test]
fn takes_any_database_that_sqlite_makes() {
    let machine = deployment(&[], &[]);
    let source = machine.path("legacy.db");
    let python = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript('''
PRAGMA page_size = 1024; PRAGMA encoding = 'UTF-16le'; PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT, twice INT GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO t (id, v) VALUES (7, 'väl'), (9, zeroblob(5000));
CREATE TABLE w (k TEXT PRIMARY KEY, x) WITHOUT ROWID; INSERT INTO w VALUES ('a', 1);
CREATE VIEW seen AS SELECT v FROM t; CREATE INDEX by_v ON t (v) WHERE v IS NOT NULL;
CREATE TRIGGER g AFTER DELETE ON t BEGIN DELETE FROM w; END;
CREATE VIRTUAL TABLE f USING fts5(body); INSERT INTO f VALUES ('needle in hay');
CREATE TABLE \"odd \"\"name\" (\"a b\"); INSERT INTO \"odd \"\"name\" VALUES (x'00ff');
PRAGMA user_version = 41; PRAGMA application_id = 4242; PRAGMA journal_mode = WAL;
INSERT INTO w VALUES ('in the wal', 2);
''')
import os; os._exit(0)
";
    let made = Command::new("python3")
        .args(["-c", python, super::as_str(&source)])
        .status();
    assert!(made.expect("python runs").success());
    assert!(
        machine.path("legacy.db-wal").exists(),
        "the last row lies in the WAL"
    );
    let before = fs::read(&source).expect("the source");
    let target = machine.path("new/data/beta.sqlite3");
    let migrate = |more: &[&str]| {
        let arguments = [
            "migrate",
            "--provider",
            "sqlite",
            "--tenant-id",
            "beta",
            "--source",
            "legacy.db",
            "--target",
        ];
        encryption(
            &machine,
            &[&arguments[..], &[super::as_str(&target)], more].concat(),
        )
    };
    let _ = migrate(&[]).expect(0, &["as db:sqlite:tenant:beta:beta.sqlite3"]);
    assert_eq!(
        fs::read(&source).expect("the source"),
        before,
        "it is only read"
    );
    let there = machine.path("new/data");
    let look = ["--verify", "pages", "--data-dir", super::as_str(&there)];
    assert_eq!(health(&status(&machine, &look, 0), "beta.sqlite3"), "ok");
    let _ = encryption(
        &machine,
        &[
            "export",
            "--provider",
            "sqlite",
            "--tenant-id",
            "beta",
            "--source",
            super::as_str(&target),
            "--target",
            "back.db",
        ],
    )
    .expect(0, &[]);
    let compare = "
import sqlite3, sys
a, b = (sqlite3.connect(p) for p in sys.argv[1:])
for q in ['SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2', 'SELECT * FROM t', 'SELECT * FROM w ORDER BY k',
          'SELECT * FROM f', 'SELECT * FROM seen', 'SELECT * FROM \"odd \"\"name\"', 'SELECT * FROM sqlite_sequence',
          'PRAGMA user_version', 'PRAGMA application_id', 'PRAGMA encoding']:
    x, y = a.execute(q).fetchall(), b.execute(q).fetchall()
    assert x == y and x, (q, x, y)
assert b.execute(\"SELECT count(*) FROM f WHERE f MATCH 'needle'\").fetchone() == (1,)
assert a.execute('PRAGMA auto_vacuum').fetchone() == (2,) and b.execute('PRAGMA auto_vacuum').fetchone() == (0,)
";
    let same = Command::new("python3")
        .args([
            "-c",
            compare,
            super::as_str(&source),
            super::as_str(&machine.path("back.db")),
        ])
        .output()
        .expect("python runs");
    assert!(
        same.status.success(),
        "{}",
        String::from_utf8_lossy(&same.stderr)
    );
}

#[test]
fn rejects_what_it_should_not_touch_and_changes_nothing() {
    let (machine, _) = plaintext();
    fs::write(machine.path("noise.db"), [3; 4096]).expect("noise");
    let before = snapshot(&machine.data_dir());
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let _ = encryption(&machine, &[&["migrate", "--provider"], arguments].concat())
            .expect(code, words);
        assert_eq!(before, snapshot(&machine.data_dir()));
    };
    refused(
        &["sqlite", "--source", "data/alpha.sqlite3"],
        2,
        &["--tenant-id"],
    );
    refused(
        &["sqlite", "--tenant-id", "alpha", "--source", "nothing.db"],
        1,
        &["nothing.db does not exist"],
    );
    refused(
        &["sqlite", "--tenant-id", "alpha", "--source", "noise.db"],
        1,
        &["not a plaintext sqlite database"],
    );
    refused(
        &["redb", "--source", "data/alpha.sqlite3"],
        1,
        &["not a plaintext redb database"],
    );
    refused(
        &[
            "redb",
            "--tenant-id",
            "alpha",
            "--source",
            "data/nimbus-control.db",
        ],
        1,
        &["belongs to"],
    );
    refused(
        &[
            "sqlite",
            "--tenant-id",
            "Alpha",
            "--source",
            "data/alpha.sqlite3",
        ],
        2,
        &["Alpha"],
    );
    refused(
        &[
            "sqlite",
            "--tenant-id",
            "alpha",
            "--source",
            "data/alpha.sqlite3",
            "--skip-validation",
            "--retire-source",
        ],
        2,
        &["cannot be used with"],
    );
    refused(
        &[
            "sqlite",
            "--tenant-id",
            "alpha",
            "--source",
            "data/alpha.sqlite3",
            "--in-place",
            "--target",
            "x",
        ],
        2,
        &["cannot be used with"],
    );
    let mut command = machine.nimbus(&["encryption"]);
    command
        .args(TENANT)
        .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "none");
    let _ = run(command).expect(1, &["no key provider is configured"]);
    assert_eq!(before, snapshot(&machine.data_dir()));
    let server = machine.start(OFF);
    let _ = encryption(&machine, &[TENANT, &["--in-place"]].concat())
        .expect(1, &["a server (process", "stop it first"]);
    server.stop();
}

#[test]
fn removes_no_source_that_another_process_has_open() {
    let (machine, _) = plaintext();
    let source = machine.data_dir().join("alpha.sqlite3");
    let python = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('SELECT count(*) FROM sqlite_schema').fetchall()
print('open', flush=True)
sys.stdin.read()
";
    let mut reader = Command::new("python3")
        .args(["-c", python, super::as_str(&source)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut said = [0; 4];
    let mut out = reader.stdout.take().expect("its output");
    out.read_exact(&mut said).expect("it has the database open");
    let migrate = [TENANT, &["--retire-source"]].concat();
    let _ = encryption(&machine, &migrate).expect(1, &["alpha.sqlite3", "locked"]);
    assert!(source.exists());
    drop(reader.stdin.take());
    assert!(reader.wait().expect("it ends").success());
}

#[test]
fn removes_no_source_whose_plaintext_stays_under_another_name() {
    let (machine, documents) = plaintext();
    let _ = encryption(&machine, &[CONTROL, &["--in-place"]].concat()).expect(0, &[]);
    let source = machine.data_dir().join("alpha.sqlite3");
    let link = machine.path("snapshot");
    fs::hard_link(&source, &link).expect("a hard link");
    for way in [&["--retire-source"][..], &["--in-place", "--retire-source"]] {
        let _ =
            encryption(&machine, &[TENANT, way].concat()).expect(1, &["1 hard link", "-samefile"]);
    }
    let _ = encryption(&machine, &[TENANT, &["--in-place"]].concat()).expect(0, &[".plaintext"]);
    let finish = [TENANT, &["--in-place", "--retire-source"]].concat();
    let _ = encryption(&machine, &finish).expect(1, &["1 hard link", "alpha.sqlite3.plaintext"]);
    fs::remove_file(link).expect("its other name");
    let _ = encryption(&machine, &finish).expect(0, &["removed"]);
    assert_eq!(served(&machine, "alpha"), documents);
}

#[test]
fn no_server_starts_where_a_migration_is_writing() {
    let (old, _) = plaintext();
    let machine = deployment(&["beta"], &[]);
    let source = old.data_dir().join("alpha.sqlite3");
    let mut migrating = machine
        .nimbus(&["encryption", "migrate", "--provider", "sqlite"])
        .args(["--tenant-id", "alpha", "--target", "data/alpha.sqlite3"])
        .args(["--source", super::as_str(&source)])
        .env("FAILPOINTS", "migrate::copied=pause")
        .spawn()
        .expect("nimbus runs");
    let manifest = machine.data_dir().join("alpha.sqlite3.nimbus-enc");
    while !manifest.exists() {
        std::thread::yield_now();
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", migrating.id()));
    let limits = limits.expect("a Linux with /proc");
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let hard = core.and_then(|line| line.split_whitespace().nth(5));
    assert_eq!(hard, Some("0"), "a process that holds keys dumps no core");
    let pid = format!("in use by process {}", migrating.id());
    machine.start_that_ends(&[]).expect(1, &[&pid]);
    migrating.kill().expect("it waits");
    let _status = migrating.wait().expect("and ends");
    machine.start(&[]).stop();
}

#[test]
fn a_migration_in_place_that_is_killed_anywhere_is_finished_by_the_next_run() {
    let points = [
        "manifest::renamed",
        "migrate::copied",
        "export::flushed",
        "export::named",
        "manifest::published",
        "migrate::verified",
        "migrate::linked",
        "migrate::manifest-moved",
        "migrate::swapped",
        "migrate::retired",
    ];
    for (kind, command) in [("sqlite", TENANT), ("redb", CONTROL)] {
        for point in points
            .iter()
            .filter(|point| kind == "sqlite" || !point.starts_with("export"))
        {
            // The manifest is published twice: `new`, then `ready`.
            for passes in if point.starts_with("manifest::") {
                0..2
            } else {
                0..1
            } {
                let (machine, documents) = plaintext();
                if kind == "sqlite" {
                    let _ = encryption(
                        &machine,
                        &[CONTROL, &["--in-place", "--retire-source"]].concat(),
                    )
                    .expect(0, &[]);
                }
                let arguments = [command, &["--in-place", "--retire-source"]].concat();
                let mut killed = machine.nimbus(&["encryption"]);
                killed
                    .args(&arguments)
                    .env("FAILPOINTS", format!("{point}={passes}*off->return"));
                assert_eq!(run(killed).0.status.code(), None, "{point} is met");
                let again = encryption(&machine, &arguments);
                if *point == "migrate::retired" {
                    let _ = again.expect(1, &["encrypted already"]);
                } else {
                    let _ = again.expect(0, &["is encrypted"]);
                }
                if kind == "redb" {
                    let _ = encryption(
                        &machine,
                        &[TENANT, &["--in-place", "--retire-source"]].concat(),
                    )
                    .expect(0, &[]);
                }
                let found = status(&machine, &["--verify", "pages"], 0);
                assert_eq!(found["summary"]["files"], 2, "{point}: {found}");
                assert_eq!(served(&machine, "alpha"), documents, "{point}");
                let mut left: Vec<String> = snapshot(&machine.data_dir())
                    .into_iter()
                    .map(|(name, _)| name)
                    .collect();
                left.retain(|name| name.contains("migrating") || name.contains("plaintext"));
                assert!(left.is_empty(), "{point}: {left:?}");
            }
        }
    }
}

#[test]
fn a_tenant_between_two_steps_of_a_migration_is_refused_and_says_so() {
    let (machine, documents) = plaintext();
    let _ = encryption(
        &machine,
        &[CONTROL, &["--in-place", "--retire-source"]].concat(),
    )
    .expect(0, &[]);
    let arguments = [TENANT, &["--in-place"]].concat();
    let mut killed = machine.nimbus(&["encryption"]);
    killed
        .args(&arguments)
        .env("FAILPOINTS", "migrate::manifest-moved=return");
    assert_eq!(run(killed).0.status.code(), None);
    let found = status(&machine, &[], 3);
    assert_eq!(health(&found, "alpha.sqlite3"), "plaintext");
    let server = machine.start(&[]);
    let (code, body) = server.request("GET", "/api/tenants/alpha/documents/notes", None);
    assert_eq!(code, 503, "{body}");
    server.stop();
    let _ = encryption(&machine, &arguments).expect(0, &[]);
    assert_eq!(served(&machine, "alpha"), documents);
}

#[test]
fn begins_only_when_the_disk_has_room() {
    // A sparse file claims more than any disk here has; only its first bytes are looked at before
    // its size is.
    let (machine, _) = plaintext();
    let source = machine.path("huge.db");
    fs::write(&source, b"SQLite format 3\0").expect("a header");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&source)
        .expect("it opens");
    file.set_len(1 << 43).expect("a sparse file");
    let arguments = [
        "migrate",
        "--provider",
        "sqlite",
        "--tenant-id",
        "huge",
        "--source",
        "huge.db",
    ];
    let _ = encryption(&machine, &arguments).expect(1, &["bytes free", "make room"]);
    assert!(!machine.path("huge.db.encrypted.nimbus-enc").exists());
}

/// Makes an SQLite file, by another program than Nimbus.
fn make(path: &std::path::Path, sql: &str) {
    let python = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript(sys.argv[2])
db.close()
";
    let made = Command::new("python3")
        .args(["-c", python, super::as_str(path), sql])
        .status();
    assert!(made.expect("python runs").success());
}

#[test]
fn what_is_migrated_is_served_whatever_its_source_was_called() {
    let (machine, documents) = plaintext();
    let data = machine.data_dir();
    let _ = encryption(
        &machine,
        &[CONTROL, &["--in-place", "--retire-source"]].concat(),
    )
    .expect(0, &[]);
    fs::rename(data.join("alpha.sqlite3"), machine.path("acme.db")).expect("a name of its own");
    let migrate = ["migrate", "--provider", "sqlite", "--tenant-id", "alpha"];
    let migrate = [&migrate[..], &["--source", "acme.db"]].concat();
    // In its place no server would find it.
    let _ = encryption(&machine, &[&migrate[..], &["--in-place"]].concat()).expect(
        1,
        &["no server opens it", "--target alpha.sqlite3", "mv acme.db"],
    );
    assert!(!machine.path("acme.db.nimbus-enc").exists());
    // Under any other name it is the tenant's all the same.
    let _ = encryption(&machine, &migrate).expect(0, &["opens under the name alpha.sqlite3"]);
    for suffix in ["", ".nimbus-enc"] {
        let from = machine.path(&format!("acme.db.encrypted{suffix}"));
        let to = data.join(format!("alpha.sqlite3{suffix}"));
        fs::rename(from, to).expect("a rename into place");
    }
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        2
    );
    assert_eq!(served(&machine, "alpha"), documents);
}

#[test]
fn a_control_file_under_another_name_is_migrated_for_the_name_that_is_opened() {
    let (machine, documents) = plaintext();
    let data = machine.data_dir();
    fs::rename(data.join("nimbus-control.db"), machine.path("old.db")).expect("moved");
    let migrate = ["migrate", "--provider", "redb", "--source", "old.db"];
    let _ = encryption(&machine, &[&migrate[..], &["--in-place"]].concat())
        .expect(1, &["no server opens it", "nimbus-control.db"]);
    let target = ["--target", "data/nimbus-control.db"];
    let _ = encryption(&machine, &[&migrate[..], &target].concat()).expect(0, &[]);
    let _ = encryption(
        &machine,
        &[TENANT, &["--in-place", "--retire-source"]].concat(),
    )
    .expect(0, &[]);
    assert_eq!(served(&machine, "alpha"), documents);
}

#[test]
fn another_applications_database_is_said_to_be_kept_and_not_served() {
    let machine = deployment(&["alpha"], &[]);
    // Applications number their layouts, too: with the number of Nimbus's own, with an older one,
    // and with none.
    for (tenant, version) in [("one", 4), ("two", 1), ("three", 0), ("four", 99)] {
        let source = machine.data_dir().join(format!("{tenant}.sqlite3"));
        make(
            &source,
            &format!(
                "CREATE TABLE orders (id INTEGER PRIMARY KEY); INSERT INTO orders VALUES (7); PRAGMA user_version = {version}"
            ),
        );
        let migrate = ["migrate", "--provider", "sqlite", "--tenant-id", tenant];
        let migrate = [&migrate[..], &["--source", super::as_str(&source)]].concat();
        let _ = encryption(
            &machine,
            &[&migrate[..], &["--in-place", "--retire-source"]].concat(),
        )
        .expect(
            0,
            &["another application's database", "nimbus encryption export"],
        );
    }
    let found = status(&machine, &["--verify", "pages"], 0);
    let files = found["files"].as_array().expect("files").iter();
    let foreign = files.filter(|file| file["detail"].to_string().contains("another application"));
    assert_eq!(foreign.count(), 4, "{found}");
    let server = machine.start(&[]);
    for tenant in ["one", "two", "three", "four"] {
        let path = format!("/api/tenants/{tenant}/documents/notes");
        let (code, answer) = server.request("GET", &path, None);
        assert_eq!(code, 503, "{answer}");
        assert!(
            answer.to_string().contains("another application"),
            "{answer}"
        );
    }
    assert_eq!(
        server.get("/api/tenants/alpha/documents/notes")["data"][0]["of"],
        "alpha"
    );
    server.stop();
    // And it is a database still.
    let export = ["export", "--provider", "sqlite", "--tenant-id", "one"];
    let paths = ["--source", "data/one.sqlite3", "--target", "back.db"];
    let _ = encryption(&machine, &[&export[..], &paths].concat()).expect(0, &[]);
    make(&machine.path("back.db"), "INSERT INTO orders VALUES (8)");
    // What Nimbus made, and nothing at all, is served.
    make(
        &machine.path("empty.db"),
        "CREATE TABLE t (x); DROP TABLE t",
    );
    let migrate = ["migrate", "--provider", "sqlite", "--tenant-id", "empty"];
    let paths = ["--source", "empty.db", "--target", "data/empty.sqlite3"];
    let ran = encryption(&machine, &[&migrate[..], &paths].concat());
    let said = ran.expect(0, &["is encrypted"]).err();
    assert!(!said.contains("another application"), "{said}");
    assert_eq!(served(&machine, "empty"), serde_json::json!([]));
}

#[test]
fn a_page_of_zeros_is_not_believed_in_what_was_in_auto_vacuum_mode() {
    let machine = deployment(&["alpha"], OFF);
    let server = machine.start(OFF);
    let id = server.insert("alpha", "long", &json!({"text": "x".repeat(60_000)}));
    server.stop();
    let path = machine.data_dir().join("alpha.sqlite3");
    let make = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for pragma in 'journal_mode = DELETE', 'auto_vacuum = FULL': db.execute('PRAGMA ' + pragma)
db.execute('VACUUM')
assert db.execute('PRAGMA auto_vacuum').fetchone() == (1,)";
    let mut made = Command::new("python3");
    made.args(["-c", make]).arg(&path);
    assert!(made.status().expect("python runs").success());
    let key = machine.master_key();
    let keygen = ["keygen", "--master-key-file", super::as_str(&key)];
    let _ = encryption(&machine, &keygen).expect(0, &[]);
    for command in [CONTROL, TENANT] {
        let in_place = [command, &["--in-place", "--retire-source"]].concat();
        let _ = encryption(&machine, &in_place).expect(0, &["is encrypted"]);
    }
    let whole = fs::read(&path).expect("the database");
    let read = || {
        let server = machine.start(&[]);
        let path = format!("/api/tenants/alpha/documents/long/{id}");
        let answer = server.request("GET", &path, None);
        server.kill();
        answer
    };
    let right = read();
    assert_eq!(right.0, 200);
    // The last pages hold the end of the document.
    let mut refused = 0;
    for page in whole.len() / 4096 - 5..whole.len() / 4096 {
        let mut zeroed = whole.clone();
        zeroed[page * 4096..][..4096].fill(0);
        fs::write(&path, zeroed).expect("a page of zeros");
        for beside in ["alpha.sqlite3-wal", "alpha.sqlite3-shm"] {
            drop(fs::remove_file(machine.data_dir().join(beside)));
        }
        let answer = read();
        let same = answer == right;
        let said = answer.1.to_string();
        assert!(
            answer.0 != 200 || same,
            "page {page}: {} {}",
            said.len(),
            said.replace("xxxxxxxxxxxxxxxx", "")
        );
        refused += usize::from(answer.0 != 200);
    }
    assert!(refused > 0);
}
