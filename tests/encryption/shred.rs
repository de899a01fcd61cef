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
    command.arg(&target).envs(settings.iter().copied());
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
        command
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
        command.envs(settings.iter().copied());
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
        .expect(0, &["is shredded", "still open with master-key-file key"]);
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

/// What operators do with a tenant before they shred it. Each leaves something beside its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Repair,
    RotateKek,
    RotateDek,
    Export,
    Migrate,
    SetAside,
}

const DEEDS: [Deed; 6] = [
    Deed::Repair,
    Deed::RotateKek,
    Deed::RotateDek,
    Deed::Export,
    Deed::Migrate,
    Deed::SetAside,
];

/// Tenants that were migrated in place, their plaintext kept, a canary in each.
struct Migrated {
    machine: Machine,
    tenants: Vec<String>,
}

impl Migrated {
    fn new(tenants: &[&str]) -> Self {
        let machine = super::machine();
        let tenants: Vec<String> = tenants.iter().map(|&tenant| tenant.to_owned()).collect();
        let server = machine.start(&["--encryption-key-provider", "none"]);
        for tenant in &tenants {
            drop(server.create("/api/tenants", &serde_json::json!({"id": tenant})));
            let fields = serde_json::json!({"canary": canary(tenant)});
            server.insert(tenant, "notes", &fields);
        }
        server.stop();
        let key = machine.master_key();
        let _ = encryption(&machine, &["keygen", "--master-key-file", as_str(&key)]).expect(0, &[]);
        let control = "data/nimbus-control.db";
        let migrate = ["migrate", "--provider", "redb", "--source", control];
        let migrate = [&migrate[..], &["--in-place", "--retire-source"]].concat();
        let _ = encryption(&machine, &migrate).expect(0, &[]);
        for tenant in &tenants {
            let source = format!("data/{tenant}.sqlite3");
            let migrate = ["migrate", "--provider", "sqlite", "--tenant-id", tenant];
            let migrate = [&migrate[..], &["--source", &source, "--in-place"]].concat();
            let _ = encryption(&machine, &migrate).expect(0, &[]);
        }
        Self { machine, tenants }
    }

    fn file(&self, tenant: &str, ending: &str) -> std::path::PathBuf {
        let name = format!("{tenant}.sqlite3{ending}");
        self.machine.data_dir().join(name)
    }

    fn do_it(&self, tenant: &str, deed: Deed) {
        let machine = &self.machine;
        let database = self.file(tenant, "");
        let database = as_str(&database);
        let of = ["--provider", "sqlite", "--tenant-id", tenant];
        match deed {
            Deed::Repair => {
                fs::write(self.file(tenant, ".nimbus-enc"), "scrambled").expect("damage");
                let _ = encryption(machine, &["repair"]).expect(0, &["was put back"]);
            }
            Deed::RotateKek => {
                let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
                let rotate = [
                    "rotate-kek",
                    "--path",
                    database,
                    "--add-recipient",
                    recipient,
                ];
                let _ = encryption(machine, &rotate).expect(0, &["0 failed"]);
            }
            Deed::RotateDek => {
                let rotate = [&["rotate-dek", "--path", database], &of[..]].concat();
                let _ = encryption(machine, &rotate).expect(0, &[]);
            }
            Deed::Export => {
                let target = machine.path(&format!("out/{tenant}"));
                drop(fs::remove_file(&target));
                let paths = ["--source", database, "--target", as_str(&target)];
                let export = [&["export"], &of[..], &paths].concat();
                let _ = encryption(machine, &export).expect(0, &[]);
            }
            Deed::Migrate => {
                // The plaintext that was kept, once more: a name derived from a derived one.
                let source = self.file(tenant, ".plaintext");
                for ending in [".plaintext.encrypted", ".plaintext.encrypted.nimbus-enc"] {
                    drop(fs::remove_file(self.file(tenant, ending)));
                }
                let migrate = [&["migrate"], &of[..], &["--source", as_str(&source)]].concat();
                let _ = encryption(machine, &migrate).expect(0, &[]);
            }
            Deed::SetAside => {
                // As a creation does with what it finds, and an interrupted rotation and migration
                // leave their copies.
                let plaintext = self.file(tenant, ".plaintext");
                for ending in [
                    ".set-aside-1",
                    ".set-aside-22",
                    "-wal.set-aside-1",
                    ".migrating",
                ] {
                    let _ = fs::copy(&plaintext, self.file(tenant, ending)).expect("a copy");
                }
                for ending in [
                    ".rekey",
                    ".rekey-wal",
                    ".migrating.nimbus-enc",
                    ".plaintext-wal",
                ] {
                    fs::write(self.file(tenant, ending), canary(tenant)).expect("a copy");
                }
                let manifest = self.file(tenant, ".nimbus-enc");
                let aside = self.file(tenant, ".nimbus-enc.set-aside-7");
                let _ = fs::copy(manifest, aside).expect("a copy");
            }
        }
    }

    /// The files that belong to `tenant` by their names, or hold what was stored in it.
    fn traces(&self, tenant: &str) -> Vec<String> {
        let canary = canary(tenant).into_bytes();
        let mut traces = Vec::new();
        for path in nimbus_test_support::files_under(&self.machine.data_dir()) {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let content = fs::read(&path).expect("its content");
            let holds = content.windows(canary.len()).any(|bytes| bytes == canary);
            if name.starts_with(&format!("{tenant}.")) || holds {
                traces.push(name);
            }
        }
        traces
    }
}

fn canary(tenant: &str) -> String {
    format!("canary of {tenant} that nobody may find")
}

fn shred(machine: &Machine, tenant: &str) -> super::Ran {
    encryption(machine, &["shred", "--tenant-id", tenant, "--yes"])
}

/// `first`, then each of all deeds, on a tenant of its own; all are shredded or deleted then, with
/// a server or without.
fn leaves_nothing_after(first: Deed) {
    let names = [
        "repair", "kek", "dek", "export", "migrate", "aside", "stays",
    ];
    let town = Migrated::new(&names);
    for (tenant, second) in town.tenants.iter().zip(DEEDS) {
        for deed in [first, second] {
            town.do_it(tenant, deed);
        }
        let traces = town.traces(tenant);
        assert!(
            traces.contains(&format!("{tenant}.sqlite3.plaintext")),
            "the hunt finds what is there: {traces:?}"
        );
    }
    let (without, with) = names[..6].split_at(3);
    for tenant in without {
        let _ = shred(&town.machine, tenant).expect(0, &["is shredded"]);
        assert_eq!(town.traces(tenant), [""; 0], "{first:?}, {tenant}");
    }
    let server = town.machine.start(&[]);
    for (n, tenant) in with.iter().enumerate() {
        if n == 0 {
            let deleted = server.request("DELETE", &format!("/api/tenants/{tenant}"), None);
            assert_eq!(deleted.0, 204, "{}", deleted.1);
        } else {
            let _ = shred(&town.machine, tenant).expect(0, &["is shredded"]);
        }
        assert_eq!(town.traces(tenant), [""; 0], "{first:?}, {tenant}");
    }
    assert_eq!(
        server.get("/api/tenants/stays/documents/notes")["data"][0]["canary"],
        canary("stays")
    );
    server.stop();
    assert_eq!(town.traces("stays").len(), 3, "{:?}", town.traces("stays"));
}

#[test]
fn nothing_is_left_after_a_repair_and_anything() {
    leaves_nothing_after(Deed::Repair);
}

#[test]
fn nothing_is_left_after_rotate_kek_and_anything() {
    leaves_nothing_after(Deed::RotateKek);
}

#[test]
fn nothing_is_left_after_rotate_dek_and_anything() {
    leaves_nothing_after(Deed::RotateDek);
}

#[test]
fn nothing_is_left_after_an_export_and_anything() {
    leaves_nothing_after(Deed::Export);
}

#[test]
fn nothing_is_left_after_a_migration_and_anything() {
    leaves_nothing_after(Deed::Migrate);
}

#[test]
fn nothing_is_left_after_something_was_set_aside_and_anything() {
    leaves_nothing_after(Deed::SetAside);
}

const WORTH: &str = "made before still open with master-key-file key";

#[test]
fn a_tenant_in_plaintext_is_not_said_to_have_had_keys() {
    let off = ["--encryption-key-provider", "none"];
    let machine = deployment(&["alpha", "beta"], &off);
    let shred = |tenant: &str| {
        let mut command = machine.nimbus(&["encryption", "shred", "--tenant-id", tenant, "--yes"]);
        command.env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "none");
        run(command)
    };
    for (tenant, with_server) in [("alpha", false), ("beta", true)] {
        let server = with_server.then(|| machine.start(&off));
        let ran = shred(tenant);
        let said = ran.expect(0, &["is shredded", "was not encrypted"]).out();
        assert!(!said.contains("manifest"), "{said}");
        if let Some(server) = server {
            server.stop();
        }
    }
}

#[test]
fn what_cannot_be_removed_is_named_and_is_no_success() {
    let machine = deployment(&["alpha", "beta"], &[]);
    for (tenant, with_server) in [("alpha", false), ("beta", true)] {
        let stuck = machine
            .data_dir()
            .join(format!("{tenant}.sqlite3.plaintext"));
        fs::create_dir(&stuck).expect("a directory of that name");
        let also = machine
            .data_dir()
            .join(format!("{tenant}.sqlite3.set-aside-3"));
        fs::write(&also, "old").expect("a file");
        let server = with_server.then(|| machine.start(&[]));
        let words = [as_str(&stuck), "cannot be removed"];
        // Twice: what is not done does not come to look done.
        for _ in 0..2 {
            let ran = shred(&machine, tenant);
            let said = ran.expect(1, &words).err();
            assert!(!said.contains("set-aside-3"), "{said}");
            // What copies are worth is known each time: the control file still has one of the
            // manifest.
            assert!(said.contains(WORTH), "{said}");
            assert!(!said.contains("could be read"), "{said}");
            assert!(!ran.out().contains("is shredded"), "{}", ran.out());
        }
        assert!(!also.exists(), "everything else is gone");
        let database = machine.data_dir().join(format!("{tenant}.sqlite3"));
        assert!(!database.exists());
        fs::remove_dir(&stuck).expect("removed by hand");
        // What was told to be run again is done then, and only after that is there nothing.
        let ran = shred(&machine, tenant);
        let said = ran.expect(0, &["is shredded", WORTH]).out();
        assert!(!said.contains("could be read"), "{said}");
        let said = shred(&machine, tenant)
            .expect(1, &["there is no tenant", "encryption status"])
            .err();
        assert!(!said.contains("POST"), "{said}");
        if let Some(server) = server {
            server.stop();
        }
    }
}

#[test]
fn what_is_left_under_a_name_that_no_tenant_has_is_shredded_too() {
    let machine = deployment(&["alpha"], &[]);
    let left = machine.data_dir().join("ghost.sqlite3.plaintext");
    for with_server in [false, true] {
        fs::write(&left, "of an earlier release").expect("a file");
        let server = with_server.then(|| machine.start(&[]));
        let _ = shred(&machine, "ghost").expect(0, &["ghost is shredded"]);
        assert!(!left.exists());
        if let Some(server) = server {
            server.stop();
        }
    }
    let _ = shred(&machine, "ghost").expect(1, &["there is no tenant ghost"]);
}
