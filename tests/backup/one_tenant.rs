use std::fs;

use nimbus_test_support::{Machine, Server, files_under, until};
use serde_json::{Value, json};

use super::{add, as_str, backup, backup_with, filled, machine, notes, restore, run};

/// Each step of the restoration of one tenant, and whether the tenant is there after a kill.
const STEPS: [(&str, bool); 8] = [
    ("restore::tenant-fetched=return", false),
    ("manifest::renamed=return", false),
    ("adopt::copied=return", false),
    ("adopt::verified=return", false),
    ("adopt::renamed=return", false),
    // The mirror has `ready`, the sidecar says `new`: the tenant exists.
    ("manifest::mirrored=return", true),
    // The second manifest that is published.
    ("manifest::published=1*off->return", true),
    ("restore::tenant-adopted=return", true),
];

/// What `nimbus backup restore` writes of one tenant into the data directory of this machine.
fn bring_back(machine: &Machine, arguments: &[&str]) -> super::Ran {
    restore(machine, as_str(&machine.data_dir()), arguments)
}

fn tenants(server: &Server) -> Vec<Value> {
    server.list("/api/tenants", "tenants", 100)
}

fn manifest(machine: &Machine, tenant: &str) -> String {
    let path = machine
        .data_dir()
        .join(format!("{tenant}.sqlite3.nimbus-enc"));
    fs::read_to_string(path).expect("a manifest")
}

fn field<'a>(manifest: &'a str, name: &str) -> &'a str {
    let line = manifest.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no {name} in {manifest}"))
}

#[test]
fn a_tenant_that_was_deleted_comes_back_while_the_server_runs_under_a_fresh_key() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    let key = server.create(
        "/api/tenants/a/keys",
        &json!({"name": "app", "scope": "read"}),
    );
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let (before, old) = (notes(&server, "a"), manifest(&machine, "a"));
    let held = notes(&server, "b");
    assert_eq!(server.request("DELETE", "/api/tenants/a", None).0, 204);
    let _ = bring_back(&machine, &["--tenant-id", "a", "--dry-run"]).expect(
        0,
        &[
            "Would restore tenant a of snapshot 1",
            "delete db:sqlite:tenant:a",
        ],
    );
    assert_eq!(tenants(&server), [json!("b")], "nothing was written");
    let _ = bring_back(&machine, &["--tenant-id", "a"])
        .expect(0, &["Restored tenant a of snapshot 1", "make new ones"]);
    assert_eq!(before, notes(&server, "a"));
    // Another line of time, under keys that no copy of the repository has.
    let new = manifest(&machine, "a");
    assert_ne!(field(&old, "file-id"), field(&new, "file-id"));
    assert_ne!(field(&old, "dek"), field(&new, "dek"));
    let token = key["key"].as_str().expect("the key");
    let path = "/api/tenants/a/documents/notes";
    assert_eq!(server.request_as(token, "GET", path, None).0, 401);
    add(&server, "a", 2);
    assert_eq!(held, notes(&server, "b"));
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["2 tenants"]);
    server.stop();
    let log = fs::read_to_string(machine.data_dir().join("nimbus-audit.log")).expect("the log");
    for outcome in ["begun", "done"] {
        let line =
            format!(r#""event":"restore","outcome":"{outcome}","subject":"db:sqlite:tenant:a:"#);
        assert!(log.contains(&line), "{line} in {log}");
    }
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    let server = machine.start(&[]);
    assert_eq!(notes(&server, "a").len(), before.len() + 2);
    server.stop();
    whole(&machine);
}

/// Every file of the deployment opens and verifies, and nothing lies beside them.
fn whole(machine: &Machine) {
    let status = ["encryption", "status", "--verify", "pages"];
    let _ = run(machine.nimbus(&status)).expect(0, &[]);
    let left = files_under(&machine.data_dir());
    let temporary = |path: &std::path::PathBuf| as_str(path).contains(".nimbus-tmp-");
    assert!(!left.iter().any(temporary), "{left:?}");
}

#[test]
fn a_tenant_that_exists_is_restored_beside_itself_as_it_was_at_any_snapshot() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let first = notes(&server, "a");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    add(&server, "a", 3);
    let second = notes(&server, "a");
    let _ = backup(&machine, &["create", "--to", "repo", "--tenant-id", "a"]).expect(0, &[]);
    add(&server, "a", 1);
    let _ = bring_back(&machine, &["--tenant-id", "a"]).expect(1, &["tenant a exists", "--as"]);
    let _ = bring_back(&machine, &["--tenant-id", "a", "--as", "newest"]).expect(0, &["as newest"]);
    server.stop();
    // Without a server, too.
    let _ = bring_back(&machine, &["--tenant-id", "a"]).expect(1, &["tenant a exists", "--as"]);
    let _ = bring_back(
        &machine,
        &["--tenant-id", "a", "--as", "then", "--snapshot", "1"],
    )
    .expect(0, &["snapshot 1", "as then"]);
    let server = machine.start(&[]);
    assert_eq!(first, notes(&server, "then"));
    assert_eq!(second, notes(&server, "newest"));
    assert_eq!(notes(&server, "a").len(), second.len() + 1);
    server.stop();
    whole(&machine);
}

/// A server opens no tenant at its start to learn what it has due.
#[test]
fn work_of_a_tenant_that_was_restored_without_a_server_is_done_after_the_next_start() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let job = json!({
        "run_after_ms": 10_000,
        "mutation": {"type": "insert", "table": "done", "fields": {}},
    });
    let _ = server.create("/api/tenants/a/schedule", &job);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    assert_eq!(server.request("DELETE", "/api/tenants/a", None).0, 204);
    server.stop();
    let _ = bring_back(&machine, &["--tenant-id", "a"]).expect(0, &["as a"]);
    let server = machine.start(&[]);
    until("the job has run", || {
        let metrics = server.get("/metrics").to_string();
        metrics.contains("nimbus_scheduler_lag_seconds_count 1")
    });
    let done = server.get("/api/tenants/a/documents/done");
    assert!(done["data"][0].is_object(), "{done}");
    server.stop();
}

#[test]
fn a_kill_at_each_step_leaves_no_tenant_or_the_whole_one_and_the_next_goes_through() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let (before, held) = (notes(&server, "a"), notes(&server, "b"));
    server.stop();
    let data = machine.data_dir();
    let arguments = [
        "restore",
        "--from",
        "repo",
        "--data-dir",
        as_str(&data),
        "--tenant-id",
        "a",
        "--as",
        "again",
    ];
    for (point, there) in STEPS {
        let killed = backup_with(&machine, &arguments, &[("FAILPOINTS", point)]);
        killed.expect_killed();
        let server = machine.start(&[]);
        assert_eq!(tenants(&server).contains(&json!("again")), there, "{point}");
        if !there {
            // Whoever makes a tenant of the name gets an empty one.
            let _ = server.create("/api/tenants", &json!({"id": "again"}));
            assert_eq!(notes(&server, "again"), [] as [Value; 0], "{point}");
            assert_eq!(server.request("DELETE", "/api/tenants/again", None).0, 204);
            server.stop();
            backup_with(&machine, &arguments, &[("FAILPOINTS", point)]).expect_killed();
            let _ = backup(&machine, &arguments).expect(0, &["as again"]);
        } else {
            server.stop();
        }
        let server = machine.start(&[]);
        assert_eq!(before, notes(&server, "again"), "{point}");
        assert_eq!(held, notes(&server, "b"), "{point}");
        assert_eq!(server.request("DELETE", "/api/tenants/again", None).0, 204);
        server.stop();
        whole(&machine);
    }
}

#[test]
fn what_cannot_be_restored_is_refused_with_one_clear_error_and_leaves_nothing() {
    let machine = machine();
    let server = filled(&machine, &["a", "locked", "shredded"]);
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let lock = json!({"tenant_id": "locked"});
    assert_eq!(
        server
            .request("POST", "/api/admin/encryption/lock", Some(&lock))
            .0,
        200
    );
    let shred = ["encryption", "shred", "--tenant-id", "shredded", "--yes"];
    let _ = run(machine.nimbus(&shred)).expect(0, &[]);
    let refused = || {
        for (arguments, words) in [
            (
                &["--tenant-id", "nobody"][..],
                &["no snapshot", "holds the tenant nobody"][..],
            ),
            (
                &["--tenant-id", "a", "--as", "c", "--snapshot", "7"],
                &["no snapshot 7"],
            ),
            (
                &["--tenant-id", "locked", "--as", "c"],
                &["locked", "unlock --tenant-id locked"],
            ),
            (
                &["--tenant-id", "shredded"],
                &["was shredded at", "--as-it-was"],
            ),
        ] {
            let _ = bring_back(&machine, arguments).expect(1, words);
        }
    };
    refused();
    server.stop();
    refused();
    for arguments in [
        &["--tenant-id", "a", "--verify", "none"][..],
        &["--as", "c"],
        &["--tenant-id", "a", "--as", "Not An Id"],
    ] {
        let _ = bring_back(&machine, arguments).expect(2, &[]);
    }
    let _ = bring_back(&machine, &["--tenant-id", "shredded", "--as-it-was"])
        .expect(0, &["Restored", "shred db:sqlite:tenant:shredded"]);
    // A page that does not authenticate, although the catalogue vouches for it.
    let path = machine.data_dir().join("a.sqlite3");
    let mut bytes = fs::read(&path).expect("a database");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("a damaged database");
    // (A snapshot that builds on another has the page from before: its version is what it was.)
    let _ = backup(&machine, &["create", "--to", "other"]).expect(0, &[]);
    let data = machine.data_dir();
    let from_other = [
        "restore",
        "--from",
        "other",
        "--data-dir",
        as_str(&data),
        "--tenant-id",
        "a",
        "--as",
        "c",
    ];
    let _ = backup(&machine, &from_other).expect(1, &["tenant c did not come to be"]);
    let left = files_under(&machine.data_dir());
    let named = |path: &&std::path::PathBuf| as_str(path).contains("/c.sqlite3");
    assert_eq!(left.iter().find(named), None);
}

#[test]
fn a_tenant_whose_keys_are_not_at_hand_is_not_restored() {
    let machine = machine();
    let keys = machine.path("keys");
    // `keygen` makes it, 0700.
    let dir = [
        "--encryption-key-provider",
        "key-dir",
        "--encryption-key-dir",
        as_str(&keys),
    ];
    let settings = [
        ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "key-dir"),
        ("NIMBUS_ENCRYPTION_KEY_DIR", as_str(&keys)),
    ];
    let keygen = |subject: &str| {
        let keygen = [
            "encryption",
            "keygen",
            "--key-dir",
            as_str(&keys),
            "--subject",
            subject,
        ];
        let _ = run(machine.nimbus(&keygen)).expect(0, &[]);
        files_under(&keys)
    };
    let before = keygen("db:redb:control:nimbus-control.db");
    let mut key = keygen("db:sqlite:tenant:a:a.sqlite3");
    key.retain(|path| !before.contains(path));
    let server = machine.start(&dir);
    let _ = server.create("/api/tenants", &json!({"id": "a"}));
    server.stop();
    let inside = keys.join("repo");
    for to in [as_str(&inside), as_str(&keys)] {
        let _ = backup_with(&machine, &["create", "--to", to], &settings)
            .expect(1, &["lies beside the key"]);
    }
    let _ = backup_with(&machine, &["create", "--to", "repo"], &settings).expect(0, &["1 tenant"]);
    assert_eq!(key.len(), 1, "{key:?}");
    fs::remove_file(&key[0]).expect("the tenant's key goes");
    let data = machine.data_dir();
    let restore = [
        "restore",
        "--from",
        "repo",
        "--data-dir",
        as_str(&data),
        "--tenant-id",
        "a",
        "--as",
        "c",
    ];
    let _ = backup_with(&machine, &restore, &settings).expect(1, &["key-dir", "repo"]);
    assert!(!data.join("c.sqlite3.nimbus-enc").exists());
}
