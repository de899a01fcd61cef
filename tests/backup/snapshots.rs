use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_test_support::files_under;
use serde_json::json;

use super::counted::open_tenants;
use super::{CANARY, add, backup, backup_with, filled, machine, notes, restore, start_on};

#[test]
fn a_running_deployment_is_saved_and_restored_with_all_that_it_is() {
    let machine = machine();
    let server = filled(&machine, &["a", "b", "locked"]);
    let key = server.create(
        "/api/tenants/a/keys",
        &json!({"name": "app", "scope": "read"}),
    );
    let lock = json!({"tenant_id": "locked"});
    assert_eq!(
        server
            .request("POST", "/api/admin/encryption/lock", Some(&lock))
            .0,
        200
    );
    let before = [notes(&server, "a"), notes(&server, "b")];
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1", "3 tenants"]);
    add(&server, "a", 5);
    server.stop();
    let _ = restore(&machine, "new", &["--dry-run"])
        .expect(0, &["Would restore snapshot 1", "3 tenants"]);
    assert!(!machine.path("new").exists(), "nothing was written");
    let _ = restore(&machine, "new", &[]).expect(0, &["Restored snapshot 1"]);
    assert!(!machine.path("new/nimbus-restore-unfinished").exists());
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, [notes(&restored, "a"), notes(&restored, "b")]);
    // Access keys and locks are the control file's.
    let token = key["key"].as_str().expect("the key");
    let path = "/api/tenants/a/documents/notes";
    assert_eq!(restored.request_as(token, "GET", path, None).0, 200);
    let (status, _) = restored.request("GET", "/api/tenants/locked/documents/notes", None);
    assert!(status >= 400, "{status}");
    add(&restored, "a", 1);
    restored.stop();
    let mut audit = machine.nimbus(&["encryption", "audit", "--verify"]);
    let _ = audit.env("NIMBUS_DATA_DIR", machine.path("new"));
    let _ = super::run(audit).expect(0, &["The audit log is whole"]);
    let log = fs::read_to_string(machine.path("new/nimbus-audit.log")).expect("the log");
    assert!(
        log.contains(r#""event":"restore""#) && log.contains("from snapshot 1"),
        "{log}"
    );
    // Nothing that is in a tenant is readable in the repository, and no key is there.
    let master = fs::read(machine.master_key()).expect("the key");
    for file in files_under(&machine.path("repo")) {
        let bytes = fs::read(&file).expect("an object");
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(
            !holds(CANARY.as_bytes()) && !holds(&master),
            "{}",
            file.display()
        );
    }
}

#[test]
fn a_stopped_deployment_is_saved_with_what_a_kill_left_in_the_wal() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    add(&server, "a", 40);
    let before = notes(&server, "a");
    server.kill();
    let wal = fs::metadata(machine.data_dir().join("a.sqlite3-wal")).expect("a WAL");
    assert!(wal.len() > 4096, "{}", wal.len());
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1", "2 tenants"]);
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"])
        .expect(0, &["snapshot 1 was restored", "all authentic"]);
    let _ = restore(&machine, "new", &["--latest"]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "a"));
    restored.stop();
}

#[test]
fn all_tenants_are_of_one_instant_whatever_is_written_meanwhile() {
    let machine = machine();
    let server = filled(&machine, &["first", "second", "idle"]);
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                // The second never has more than the first, and at most one less.
                add(&server, "first", 1);
                add(&server, "second", 1);
                written += 1;
            }
            written
        });
        for _snapshot in 0..6 {
            let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["3 tenants"]);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer")
    });
    assert!(written > 6, "{written}");
    server.stop();
    let mut last = 0;
    for snapshot in ["1", "2", "3", "4", "5", "6"] {
        let data = format!("new-{snapshot}");
        let _ = restore(&machine, &data, &["--snapshot", snapshot]).expect(0, &[]);
        let restored = start_on(&machine, &data, &[]);
        let (first, second) = (
            notes(&restored, "first").len(),
            notes(&restored, "second").len(),
        );
        assert!(
            first == second || first == second + 1,
            "{first} and {second}"
        );
        assert!(first >= last, "{first} after {last}");
        last = first;
        restored.stop();
    }
    assert!(last > 3, "{last}");
}

#[test]
fn a_snapshot_adds_what_changed_and_no_more() {
    let machine = machine();
    let server = filled(&machine, &["large", "small"]);
    for n in 0..60 {
        let text: String = (0..40_000)
            .map(|at| char::from(b'a' + ((at * 7 + n) % 26) as u8))
            .collect();
        let _id = server.insert("large", "notes", &json!({"n": n, "text": text}));
    }
    let create = || {
        let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
        let listed = backup(&machine, &["list", "--from", "repo", "--format", "json"]).json();
        let last = listed["snapshots"]
            .as_array()
            .expect("a list")
            .last()
            .expect("a snapshot")
            .clone();
        (
            last["bytes"].as_u64().expect("bytes"),
            last["added"].as_u64().expect("added"),
        )
    };
    let (bytes, added) = create();
    assert!(bytes > 2_000_000 && added > bytes, "{bytes} {added}");
    // The control file and the log alone.
    let (_, nothing) = create();
    assert!(nothing * 10 < bytes, "{nothing} of {bytes}");
    add(&server, "large", 1);
    let (_, little) = create();
    assert!(little * 10 < bytes, "{little} of {bytes}");
    let before = notes(&server, "large");
    server.stop();
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "large"));
    restored.stop();
    let _ = backup(
        &machine,
        &["list", "--from", "repo", "--tenant-id", "small"],
    )
    .expect(0, &["SNAPSHOT", "file "]);
}

#[test]
fn pages_that_an_earlier_release_stored_without_tags_are_read_and_built_upon() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    for n in 0..40 {
        let _id = server.insert("a", "notes", &json!({"n": n, "text": "y".repeat(20_000)}));
    }
    let bases = |format: &str| -> Vec<Vec<u8>> {
        let objects = files_under(&machine.path("repo/base")).into_iter();
        let read = objects.map(|object| fs::read(object).expect("an object"));
        read.filter(|object| object.starts_with(format.as_bytes()))
            .collect()
    };
    let environment = [("FAILPOINTS", "backup::no-tags=return")];
    let stopped = |server: nimbus_test_support::Server, environment: &[(&str, &str)]| {
        server.stop();
        backup_with(&machine, &["create", "--to", "repo"], environment).expect(0, &[]);
    };
    stopped(server, &environment);
    assert_eq!(bases("nimbus-pages/2"), [] as [Vec<u8>; 0]);
    let first = bases("nimbus-pages/1").len();
    let server = machine.start(&[]);
    add(&server, "a", 1);
    let before = notes(&server, "a");
    stopped(server, &[]);
    // What changed alone, and of the control file as before.
    let tagged = bases("nimbus-pages/2");
    assert_eq!(
        (tagged.len(), bases("nimbus-pages/1").len()),
        (1, first + 1)
    );
    assert!(tagged[0].len() < 40 * 4096, "{}", tagged[0].len());
    let deep = ["verify", "--from", "repo", "--deep"];
    let _ = backup(&machine, &deep).expect(0, &["snapshot 2 was restored", "all authentic"]);
    let _ = restore(&machine, "new", &[]).expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "a"), before);
    restored.stop();
}

#[test]
fn what_was_taken_back_after_the_snapshot_stays_so_unless_the_operator_says_otherwise() {
    let machine = machine();
    let server = filled(&machine, &["kept", "locked", "deleted"]);
    let key = server.create(
        "/api/tenants/kept/keys",
        &json!({"name": "app", "scope": "read"}),
    );
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let id = key["id"].as_str().expect("an id");
    assert_eq!(
        server
            .request("DELETE", &format!("/api/tenants/kept/keys/{id}"), None)
            .0,
        204
    );
    let lock = json!({"tenant_id": "locked"});
    assert_eq!(
        server
            .request("POST", "/api/admin/encryption/lock", Some(&lock))
            .0,
        200
    );
    assert_eq!(
        server.request("DELETE", "/api/tenants/deleted", None).0,
        204
    );
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["2 tenants"]);
    server.stop();
    let token = key["key"].as_str().expect("the key");
    let status = |data: &str, token: Option<&str>, tenant: &str| {
        let server = start_on(&machine, data, &[]);
        let path = format!("/api/tenants/{tenant}/documents/notes");
        let (status, _) = match token {
            Some(token) => server.request_as(token, "GET", &path, None),
            None => server.request("GET", &path, None),
        };
        server.stop();
        status
    };
    let _ = restore(&machine, "again", &["--snapshot", "1"]).expect(
        0,
        &[
            "done again",
            "access-key-revoked",
            "lock db:sqlite:tenant:locked",
            "delete db:sqlite:tenant:deleted",
            "Done again in the restored deployment:",
            "access-key-revoked tenant kept: key ",
            "lock tenant locked: ",
            "lock tenant deleted: the log says that it was deleted",
        ],
    );
    assert_eq!(status("again", Some(token), "kept"), 401);
    assert_eq!(status("again", None, "kept"), 200);
    assert!(status("again", None, "locked") >= 400);
    assert!(status("again", None, "deleted") >= 400);
    let _ = restore(&machine, "then", &["--snapshot", "1", "--as-it-was"]).expect(0, &["left out"]);
    assert_eq!(status("then", Some(token), "kept"), 200);
    assert_eq!(status("then", None, "locked"), 200);
    assert_eq!(status("then", None, "deleted"), 200);
}

#[test]
fn snapshots_go_on_through_rotations_of_both_keys_and_old_ones_stay_restorable() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    let first = notes(&server, "a");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &[]);
    let mut rotate = machine.nimbus(&["encryption", "rotate-dek", "--path", "data", "--all"]);
    let _ = rotate.env("NIMBUS_DATA_DIR", machine.data_dir());
    let _ = super::run(rotate).expect(0, &["a.sqlite3"]);
    add(&server, "a", 2);
    let second = notes(&server, "a");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 2"]);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo"])
        .expect(0, &["2 snapshots", "all authentic"]);
    for (snapshot, expected) in [("1", first), ("2", second)] {
        let data = format!("new-{snapshot}");
        let _ = restore(&machine, &data, &["--snapshot", snapshot]).expect(0, &[]);
        let restored = start_on(&machine, &data, &[]);
        assert_eq!(expected, notes(&restored, "a"));
        restored.stop();
    }
}

#[test]
fn a_tenant_whose_files_cannot_be_read_is_named_and_keeps_no_other_out() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    server.stop();
    fs::remove_file(machine.data_dir().join("b.sqlite3")).expect("a file that is lost");
    let _ = backup(&machine, &["create", "--to", "repo"])
        .expect(3, &["1 tenant", "NOT in the snapshot: b"]);
    let _ =
        backup(&machine, &["verify", "--from", "repo"]).expect(3, &["without db:sqlite:tenant:b"]);
    let _ = restore(&machine, "new", &[])
        .expect(3, &["Restored snapshot 1", "NOT restored or not proven: b"]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(notes(&restored, "a").len(), 3);
    restored.stop();
}

#[test]
fn one_tenant_is_saved_alone_and_is_no_deployment() {
    let machine = machine();
    let server = filled(&machine, &["a", "b"]);
    let _ =
        backup(&machine, &["create", "--to", "repo", "--tenant-id", "a"]).expect(0, &["1 tenant"]);
    let _ = backup(
        &machine,
        &["create", "--to", "repo", "--tenant-id", "nobody"],
    )
    .expect(1, &["nobody"]);
    server.stop();
    let _ = backup(&machine, &["list", "--from", "repo"]).expect(0, &["tenant a"]);
    let _ = restore(&machine, "new", &[]).expect(1, &["no snapshot", "holds the whole deployment"]);
    let _ = restore(&machine, "new", &["--snapshot", "1"]).expect(1, &["holds the tenant a alone"]);
}

#[test]
fn tenants_are_opened_written_and_deleted_while_a_snapshot_is_made() {
    let machine = machine();
    filled(&machine, &["closed", "deleted", "killed", "open"]).stop();
    let server = machine.start(&[]);
    add(&server, "killed", 2);
    server.kill();
    // Between the moment and the reading there is time for what follows.
    let mut start = machine.nimbus(&["start", "--port", "0"]);
    let _ = start.env("FAILPOINTS", "backup::frozen=sleep(3000)");
    let server = machine.start_command(start);
    add(&server, "open", 1);
    let (_, begun) = server.request(
        "POST",
        "/api/admin/backups",
        Some(&json!({"to": machine.path("repo")})),
    );
    let operation = begun["operation"].as_str().expect("its id");
    let operation = format!("/api/admin/operations/{operation}");
    let repository = machine.path("repo/nimbus-repository");
    while !repository.exists() && server.get(&operation)["state"] == "running" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for tenant in ["closed", "killed", "open"] {
        add(&server, tenant, 1);
    }
    let (status, answer) = server.request("DELETE", "/api/tenants/deleted", None);
    assert_eq!(status, 204, "{answer}");
    while server.get(&operation)["state"] == "running" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let ended = server.get(&operation);
    assert_eq!(ended["state"], "done", "{ended}");
    add(&server, "closed", 1);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    let _ = restore(&machine, "new", &[]).expect(0, &["Restored snapshot 1"]);
    let restored = start_on(&machine, "new", &[]);
    // The moment was before or between what was written, and never after it.
    for (tenant, least) in [("closed", 3), ("killed", 5), ("open", 4)] {
        let found = notes(&restored, tenant).len();
        assert!((least..=least + 1).contains(&found), "{tenant}: {found}");
    }
    restored.stop();
}

#[test]
fn tenants_that_are_opened_before_their_turn_wait_so_that_few_are_held() {
    const TENANTS: usize = 40;
    let machine = machine();
    let names: Vec<String> = (0..TENANTS)
        .map(|number| format!("t-{number:03}"))
        .collect();
    filled(
        &machine,
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .stop();
    // Two are open at once, four more are held at once, and there is time to ask for all.
    let mut start = machine.nimbus(&["start", "--port", "0", "--max-open-tenants", "2"]);
    let points = "backup::frozen=sleep(3000);capture::most-opened=return";
    let server = machine.start_command({
        let _ = start.env("FAILPOINTS", points);
        start
    });
    let (_, begun) = server.request(
        "POST",
        "/api/admin/backups",
        Some(&json!({"to": machine.path("repo")})),
    );
    let operation = begun["operation"].as_str().expect("its id");
    let operation = format!("/api/admin/operations/{operation}");
    let repository = machine.path("repo/nimbus-repository");
    while !repository.exists() && server.get(&operation)["state"] == "running" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let most = std::thread::scope(|scope| {
        let readers: Vec<_> = names
            .chunks(TENANTS / 4)
            .map(|names| {
                let server = &server;
                scope.spawn(move || {
                    for tenant in names {
                        assert_eq!(notes(server, tenant).len(), 3);
                    }
                })
            })
            .collect();
        let mut most = 0;
        while server.get(&operation)["state"] == "running" {
            most = most.max(open_tenants(&server).len());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for reader in readers {
            reader.join().expect("it was served");
        }
        most
    });
    let ended = server.get(&operation);
    assert_eq!(ended["state"], "done", "{ended}");
    server.stop();
    // Those that are open, held and being opened, and those that are being read.
    assert!((3..=2 + 4 + 4 + 12).contains(&most), "{most}");
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    let _ = restore(&machine, "new", &[]).expect(0, &["40 tenants"]);
}
