use std::fs;
use std::path::Path;

use nimbus_test_support::Machine;

use super::{as_str, assert_audited, deployment, encryption, run, snapshot, status};

/// Every file of the deployment as an attacker may have kept it from before.
fn keep(machine: &Machine) {
    let kept = machine.path("kept");
    fs::create_dir(&kept).expect("a directory");
    for entry in fs::read_dir(machine.data_dir()).expect("the data directory") {
        let path = entry.expect("an entry").path();
        let _ = fs::copy(&path, kept.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

/// Whether the kept copy of `tenant` opens with these settings.
fn opens(machine: &Machine, tenant: &str, settings: &[(&str, &Path)]) -> bool {
    let source = format!("kept/{tenant}.sqlite3");
    let target = machine.path(&format!("out-{tenant}"));
    let mut command = machine.nimbus(&[
        "encryption",
        "export",
        "--provider",
        "sqlite",
        "--tenant-id",
        tenant,
        "--source",
        &source,
        "--target",
    ]);
    let _ = command.arg(&target).envs(settings.iter().copied());
    let opened = run(command).0.status.success();
    assert_eq!(opened, target.exists());
    drop(fs::remove_file(target));
    opened
}

#[test]
fn with_a_key_directory_every_copy_is_dead_at_once() {
    let machine = super::machine();
    let keys = machine.path("keys");
    for arguments in [
        ["--tenant-id", "alpha"],
        ["--tenant-id", "beta"],
        ["--subject", "db:redb:control:nimbus-control.db"],
    ] {
        let _ = encryption(
            &machine,
            &[&["keygen", "--key-dir", as_str(&keys)], &arguments[..]].concat(),
        )
        .expect(0, &[]);
    }
    let dir = [
        "--encryption-key-provider",
        "key-dir",
        "--encryption-key-dir",
        as_str(&keys),
    ];
    super::fill(&machine, &["alpha", "beta"], &dir);
    keep(&machine);
    let settings: &[(&str, &Path)] = &[
        ("NIMBUS_ENCRYPTION_KEY_PROVIDER", Path::new("key-dir")),
        ("NIMBUS_ENCRYPTION_KEY_DIR", &keys),
    ];
    assert!(opens(&machine, "alpha", settings));
    let shred = |failpoints: &str| {
        let mut command = machine.nimbus(&["encryption", "shred", "--tenant-id", "alpha", "--yes"]);
        let _ = command
            .envs(settings.iter().copied())
            .env("FAILPOINTS", failpoints);
        run(command)
    };
    // Killed between its key and its files: from there on no copy opens, and the next run goes on.
    let killed = shred("shred::key-destroyed=return");
    assert_eq!(killed.0.status.code(), None);
    assert_eq!(fs::read_dir(&keys).expect("the keys").count(), 2);
    assert!(machine.data_dir().join("alpha.sqlite3").exists());
    assert!(!opens(&machine, "alpha", settings));
    let ran = shred("");
    let _ = ran.expect(0, &["Tenant alpha is shredded"]);
    assert_audited(&machine, "shred", "db:sqlite:tenant:alpha:alpha.sqlite3");
    assert!(!ran.out().contains("still open with"), "{}", ran.out());
    assert_eq!(fs::read_dir(&keys).expect("the keys").count(), 2);
    assert!(!opens(&machine, "alpha", settings), "its key is gone");
    assert!(opens(&machine, "beta", settings));
    let mut command = machine.nimbus(&["encryption", "shred", "--tenant-id", "beta", "--yes"]);
    let ran = run({
        let _ = command.envs(settings.iter().copied());
        command
    });
    let _ = ran.expect(0, &["Tenant beta is shredded", "is destroyed"]);
    assert!(!opens(&machine, "beta", settings));
}

#[test]
fn with_a_shared_master_key_copies_live_until_that_key_is_rotated_and_destroyed() {
    let machine = deployment(&["alpha", "beta"], &[]);
    keep(&machine);
    let server = machine.start(&[]);
    let ran = encryption(&machine, &["shred", "--tenant-id", "alpha", "--yes"]);
    let _ = ran.expect(
        0,
        &[
            "Tenant alpha is shredded",
            "still open with master-key-file key",
            "rotate-kek --path",
        ],
    );
    let (code, _) = server.request("GET", "/api/tenants/alpha/documents/notes", None);
    assert_eq!(code, 404);
    assert_eq!(
        server.get("/api/tenants")["tenants"],
        serde_json::json!(["beta"])
    );
    server.stop();
    let left: Vec<String> = snapshot(&machine.data_dir())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(!left.iter().any(|name| name.contains("alpha")), "{left:?}");
    assert!(opens(&machine, "alpha", &[]), "as the command says");

    // What the command says to do, done.
    let key = machine.path("new.key");
    let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)]).expect(0, &[]);
    let rotate = [
        "rotate-kek",
        "--path",
        "data",
        "--all",
        "--new-master-key-file",
        "new.key",
    ];
    let _ = encryption(&machine, &rotate).expect(0, &["0 failed"]);
    fs::remove_file(machine.master_key()).expect("the old key is destroyed");
    fs::rename(&key, machine.master_key()).expect("the new one is in its place");
    assert!(!opens(&machine, "alpha", &[]));
    assert_eq!(
        status(&machine, &["--verify", "pages"], 0)["summary"]["ok"],
        2
    );
}

#[test]
fn names_the_recovery_recipients_whose_identities_still_open_copies() {
    let machine = super::machine();
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    super::fill(
        &machine,
        &["alpha"],
        &["--encryption-recovery-recipient", recipient],
    );
    let ran = encryption(&machine, &["shred", "--tenant-id", "alpha", "--yes"]);
    let _ = ran.expect(0, &["identity of recovery recipient", recipient]);
}

#[test]
fn is_done_only_when_meant_and_to_a_tenant_that_is_there() {
    let machine = deployment(&["alpha"], &[]);
    let _ = encryption(&machine, &["shred", "--tenant-id", "alpha"]).expect(2, &["--yes"]);
    let _ = encryption(&machine, &["shred", "--tenant-id", "../alpha", "--yes"])
        .expect(2, &["--tenant-id"]);
    let _ = encryption(&machine, &["shred", "--tenant-id", "beta", "--yes"]).expect(1, &["beta"]);
    assert_eq!(status(&machine, &[], 0)["summary"]["ok"], 2);
    // A tenant whose manifest is damaged can be shredded, too.
    fs::write(
        machine.data_dir().join("alpha.sqlite3.nimbus-enc"),
        "scrambled",
    )
    .expect("damage");
    let _ = encryption(&machine, &["shred", "--tenant-id", "alpha", "--yes"])
        .expect(0, &["could not be read"]);
    assert_eq!(status(&machine, &[], 0)["summary"]["files"], 1);
}

#[test]
fn a_tenant_that_does_not_exist_is_not_said_to_be_erased() {
    let machine = deployment(&["alpha"], &[]);
    let shred = ["shred", "--tenant-id", "nobody", "--yes"];
    let _ = encryption(&machine, &shred).expect(1, &["there is no tenant nobody"]);
    let log = encryption(&machine, &["audit"]).expect(0, &[]).out();
    assert!(!log.contains("shred"), "{log}");
}
