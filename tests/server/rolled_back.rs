//! An older control file is put back: it does not know what was revoked, locked and deleted since.
//! The audit log does.

use std::fs;
use std::path::PathBuf;

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::access_keys::make;
use super::{assert_error, machine};

const CONTROL: [&str; 2] = ["nimbus-control.db", "nimbus-control.db.nimbus-enc"];
const ACCEPT: &[&str] = &["--accept-rolled-back-control"];
const TENANTS: [&str; 9] = [
    "keys", "locked", "unlocked", "gone", "shredded", "reborn", "restored", "cut", "stays",
];

/// A deployment, its files as they were, and what was done to it since.
struct Town {
    machine: Machine,
    /// Revoked since.
    revoked: String,
    /// Not touched.
    live: String,
    /// Made since.
    later: String,
    /// Of a tenant whose deletion was cut short, and that was created again.
    of_the_first: String,
}

impl Town {
    /// Stopped, with the older control file in place. `between` is done to the running server
    /// before what was done last.
    fn new(between: impl FnOnce(&Machine, &Server)) -> Self {
        let machine = machine();
        let server = machine.start(&[]);
        for tenant in TENANTS {
            server.create("/api/tenants", &json!({"id": tenant}));
            server.insert(tenant, "notes", &json!({"life": 1}));
        }
        let (id, revoked) = make(&server, "keys", "read");
        let (_, live) = make(&server, "keys", "read");
        let (_, of_the_first) = make(&server, "cut", "read");
        lock(&server, "unlocked", true);
        server.stop();
        let kept = machine.path("kept");
        fs::create_dir(&kept).expect("a directory");
        for entry in fs::read_dir(machine.data_dir()).expect("the data") {
            let path = entry.expect("an entry").path();
            let to = kept.join(path.file_name().expect("a name"));
            let _ = fs::copy(path, to).expect("a copy");
        }

        let mut command = machine.nimbus(&["start", "--port", "0"]);
        command.env("FAILPOINTS", "tenants::delete::condemned=return");
        let server = machine.try_start(command).expect("it starts");
        let token = machine.token();
        let cut = server.try_request_as(&token, "DELETE", "/api/tenants/cut", None);
        assert!(cut.is_err(), "it was killed: {cut:?}");
        server.wait_until_killed();
        let server = machine.start(&[]);
        server.create("/api/tenants", &json!({"id": "cut"}));
        server.insert("cut", "notes", &json!({"life": 2}));
        let revoke = format!("/api/tenants/keys/keys/{id}");
        assert_eq!(server.request("DELETE", &revoke, None).0, 204);
        let (_, later) = make(&server, "keys", "read");
        for tenant in ["gone", "reborn", "restored"] {
            let path = format!("/api/tenants/{tenant}");
            assert_eq!(server.request("DELETE", &path, None).0, 204);
        }
        between(&machine, &server);
        lock(&server, "locked", true);
        lock(&server, "unlocked", false);
        let shred = ["encryption", "shred", "--tenant-id", "shredded", "--yes"];
        assert!(machine.nimbus(&shred).status().expect("it runs").success());
        server.create("/api/tenants", &json!({"id": "reborn"}));
        server.insert("reborn", "notes", &json!({"life": 2}));
        server.stop();
        let town = Self {
            machine,
            revoked,
            live,
            later,
            of_the_first,
        };
        // It was deleted by mistake, and comes from a backup.
        town.bring_back("restored");
        let server = town.machine.start(&[]);
        assert_eq!(read(&server, "restored").0, 200);
        server.stop();
        town.put_back_control();
        town
    }

    fn put_back(&self, name: &str) {
        let from = self.machine.path("kept").join(name);
        let _ = fs::copy(from, self.file(name)).expect("put back");
    }

    fn put_back_control(&self) {
        for name in CONTROL {
            self.put_back(name);
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.machine.data_dir().join(name)
    }

    /// The files of a tenant that was deleted come back as well.
    fn bring_back(&self, tenant: &str) {
        for ending in ["", ".nimbus-enc"] {
            self.put_back(&format!("{tenant}.sqlite3{ending}"));
        }
    }

    fn rejects_to_start(&self, words: &[&str]) {
        let words = [words, &["older than the audit log", ACCEPT[0]]].concat();
        self.machine.start_that_ends(&[]).expect(1, &words);
    }

    /// What a command says, which ends with this code.
    fn says(&self, arguments: &[&str], code: i32) -> String {
        let ran = self.machine.nimbus(arguments).output().expect("it runs");
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8(said).expect("UTF-8");
        assert_eq!(ran.status.code(), Some(code), "{said}");
        said
    }

    /// With the older control file accepted, everything is as it was said to be.
    fn assert_done_again(&self, server: &Server) {
        let list = "/api/tenants/keys/documents/notes";
        let refused = server.request_as(&self.revoked, "GET", list, None);
        assert_error(refused.0, &refused.1, (401, "auth.token_revoked"));
        assert_eq!(server.request_as(&self.live, "GET", list, None).0, 200);
        assert_eq!(server.request_as(&self.later, "GET", list, None).0, 401);
        let (status, answer) = read(server, "locked");
        assert_error(status, &answer, (503, "encryption.key_revoked"));
        let list = "/api/tenants/cut/documents/notes";
        assert_eq!(
            server.request_as(&self.of_the_first, "GET", list, None).0,
            401
        );
        for tenant in ["gone", "shredded"] {
            let (status, answer) = read(server, tenant);
            let refused = match self.file(&format!("{tenant}.sqlite3")).exists() {
                true => (503, "encryption.key_revoked"),
                false => (404, "session.tenant_not_found"),
            };
            assert_error(status, &answer, refused);
        }
        let served = [("unlocked", 1), ("stays", 1), ("restored", 1)];
        for (tenant, life) in served.into_iter().chain([("reborn", 2), ("cut", 2)]) {
            let (status, answer) = read(server, tenant);
            assert_eq!(status, 200, "{tenant}: {answer}");
            assert_eq!(answer["data"][0]["life"], life, "{answer}");
        }
    }
}

fn lock(server: &Server, tenant: &str, locked: bool) {
    let verb = if locked { "lock" } else { "unlock" };
    let path = format!("/api/admin/encryption/{verb}");
    let (status, answer) = server.request("POST", &path, Some(&json!({"tenant_id": tenant})));
    assert_eq!(
        (status, &answer["changed"]),
        (200, &json!(true)),
        "{answer}"
    );
}

fn read(server: &Server, tenant: &str) -> (u16, Value) {
    server.request(
        "GET",
        &format!("/api/tenants/{tenant}/documents/notes"),
        None,
    )
}

#[test]
fn it_is_refused_until_told_and_what_was_done_since_is_done_again() {
    let town = Town::new(|_, _| ());
    // Whoever put the control file back may have brought deleted tenants along.
    town.bring_back("gone");
    let list = ["1 access-key-revoked", "1 lock", "1 unlock", "1 shred"];
    town.rejects_to_start(&list);
    let said = town.says(&["encryption", "audit", "--verify"], 3);
    assert!(said.contains("older than the audit log"), "{said}");
    assert!(said.contains(ACCEPT[0]), "{said}");
    // It is the control file that is wrong.
    for words in ["tampered", "line 0"] {
        assert!(!said.contains(words), "{said}");
    }
    let said = town.says(&["doctor"], 3);
    assert!(said.contains("older than the audit log"), "{said}");
    let said = town.says(&["encryption", "status"], 3);
    let shredded = said
        .lines()
        .find(|line| line.starts_with("shredded.sqlite3:"))
        .expect("what the older control file knows is listed");
    assert!(shredded.contains("was deleted"), "{said}");
    assert!(shredded.contains("Restore nothing"), "{said}");
    assert!(
        said.contains("nimbus-control.db: the control file"),
        "{said}"
    );
    // Nor does any command go on with it.
    let lock = ["encryption", "lock", "--tenant-id", "stays"];
    let said = town.says(&lock, 1);
    assert!(said.contains("older than the audit log"), "{said}");
    town.rejects_to_start(&list);

    let server = town.machine.start(ACCEPT);
    town.assert_done_again(&server);
    // Nothing is deleted.
    let (status, answer) = read(&server, "gone");
    assert_error(status, &answer, (503, "encryption.key_revoked"));
    server.stop();
    let said = town.says(&["encryption", "audit"], 0);
    for event in ["restore", "access-key-revoked", "lock", "unlock", "delete"] {
        assert!(said.contains(event), "no {event} in {said}");
    }
    let log = fs::read_to_string(town.file("nimbus-audit.log")).expect("the log");
    for what in ["this start finished it", "shred --tenant-id gone"] {
        assert!(log.contains(what), "no {what} in {log}");
    }
    let said = town.says(&["encryption", "audit", "--verify"], 0);
    assert!(said.contains("whole"), "{said}");
    town.says(&["encryption", "status"], 0);
    let shred = ["encryption", "shred", "--tenant-id", "gone", "--yes"];
    town.says(&shred, 0);
    assert!(!town.file("gone.sqlite3").exists());
    let server = town.machine.start(&[]);
    town.assert_done_again(&server);
}

#[test]
fn a_kill_while_it_is_accepted_leaves_it_to_be_accepted_again() {
    let mut points = vec![
        "audit::reapplied=return".to_owned(),
        "audit::appended=return".into(),
    ];
    points.push("audit::reapplied-one=return".into());
    points.extend((1..5).map(|n| format!("audit::reapplied-one={n}*off->return")));
    let town = Town::new(|_, _| ());
    town.bring_back("gone");
    for failpoints in points {
        // From the beginning, and then on from what the kill left.
        town.put_back_control();
        for _ in 0..2 {
            let mut command = town.machine.nimbus(&["start", "--port", "0", ACCEPT[0]]);
            command.env("FAILPOINTS", &failpoints);
            match town.machine.try_start(command) {
                Err(killed) => killed.expect_killed(),
                // The second time less is left to be done.
                Ok(server) => {
                    server.stop();
                    town.put_back_control();
                }
            }
            town.rejects_to_start(&[]);
        }
    }
    // Once the head has moved it is accepted.
    let mut command = town.machine.nimbus(&["start", "--port", "0", ACCEPT[0]]);
    command.env("FAILPOINTS", "audit::recorded=return");
    town.machine.run_to_end(command).expect_killed();
    let server = town.machine.start(&[]);
    town.assert_done_again(&server);
    server.stop();
    let said = town.says(&["encryption", "audit", "--verify"], 0);
    assert!(said.contains("whole"), "{said}");
}

#[test]
fn what_cannot_be_verified_takes_rights_away_and_destroys_nothing() {
    // The control file got a new data key before the last of it: the older one cannot check those
    // lines.
    let town = Town::new(|machine, _| {
        let rotate = ["encryption", "rotate-dek", "--provider", "redb", "--path"];
        let rotate = [&rotate[..], &["data/nimbus-control.db"]].concat();
        let ran = machine.nimbus(&rotate).output().expect("it runs");
        assert!(ran.status.success(), "{ran:?}");
    });
    town.bring_back("gone");
    town.bring_back("shredded");
    town.rejects_to_start(&["cannot be verified"]);
    let server = town.machine.start(ACCEPT);
    let list = "/api/tenants/keys/documents/notes";
    let refused = server.request_as(&town.revoked, "GET", list, None);
    assert_error(refused.0, &refused.1, (401, "auth.token_revoked"));
    // Locked by a line that proves nothing; said to be shredded by another; never unlocked by one;
    // and not proven to be the later one of its name. Deleted by a proven one.
    for tenant in [
        "locked", "shredded", "unlocked", "reborn", "restored", "gone",
    ] {
        let (status, answer) = read(&server, tenant);
        assert_error(status, &answer, (503, "encryption.key_revoked"));
    }
    assert_eq!(read(&server, "stays").0, 200);
    server.stop();
    let said = town.says(&["encryption", "audit"], 0);
    assert!(said.contains("log-broken"), "{said}");
    assert!(town.file("nimbus-audit.log.set-aside-1").exists());
    // What leads to the older head stays.
    assert!(said.contains("log-begun"), "{said}");
    town.says(&["encryption", "audit", "--verify"], 0);
    let server = town.machine.start(&[]);
    assert_eq!(read(&server, "locked").0, 503);
    for (tenant, life) in [("unlocked", 1), ("reborn", 2), ("shredded", 1)] {
        lock(&server, tenant, false);
        let (status, answer) = read(&server, tenant);
        assert_eq!(
            (status, &answer["data"][0]["life"]),
            (200, &json!(life)),
            "{answer}"
        );
    }
}

#[test]
fn a_copy_from_just_before_the_last_lines_is_as_a_crash_and_gives_no_right_back() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.stop();
    let control = CONTROL.map(|name| {
        let path = machine.data_dir().join(name);
        let content = fs::read(&path).expect("the control file");
        (path, content)
    });
    // Without a server the lock is the one line that is written.
    let lock = ["encryption", "lock", "--tenant-id", "demo"];
    assert!(machine.nimbus(&lock).status().expect("it runs").success());
    for (path, content) in control {
        fs::write(path, content).expect("put back");
    }
    let server = machine.start(&[]);
    let (status, answer) = read(&server, "demo");
    assert_error(status, &answer, (503, "encryption.key_revoked"));
}

#[test]
fn kills_in_the_middle_of_key_events_raise_no_alarm() {
    let machine = machine();
    machine.start(&[]).stop();
    for round in 0..6 {
        let server = machine.start(&[]);
        let token = machine.token();
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (server, token) = (&server, &token);
                drop(scope.spawn(move || {
                    for n in 0.. {
                        let tenant = format!("t{client}-{n}");
                        let body = json!({"id": tenant});
                        let made =
                            server.try_request_as(token, "POST", "/api/tenants", Some(&body));
                        let path = format!("/api/tenants/{tenant}");
                        let gone =
                            made.and_then(|_| server.try_request_as(token, "DELETE", &path, None));
                        if gone.is_err() {
                            return;
                        }
                        if client == 0 && n == 2 + round {
                            server.send_kill();
                        }
                    }
                }));
            }
        });
        server.wait_until_killed();
    }
    machine.start(&[]).stop();
    let verify = ["encryption", "audit", "--verify"];
    assert!(machine.nimbus(&verify).status().expect("it runs").success());
}

#[test]
fn a_revocation_outlives_the_newest_commit_of_the_control_file() {
    // Offset of each header slot (docs/blocks1.md).
    for slot in [0, 8192] {
        let machine = machine();
        let server = machine.start(&[]);
        server.create("/api/tenants", &json!({"id": "acme"}));
        let (id, secret) = make(&server, "acme", "read");
        let path = format!("/api/tenants/acme/keys/{id}");
        assert_eq!(server.request("DELETE", &path, None).0, 204);
        server.kill();
        // The line that says it was done need not be in the log yet.
        let file = machine.data_dir().join(CONTROL[0]);
        let mut bytes = fs::read(&file).expect("the control file");
        bytes[slot + 100] ^= 1;
        fs::write(&file, bytes).expect("a destroyed header");
        let server = machine.start(&[]);
        let read = server.request_as(&secret, "GET", "/api/tenants/acme/documents/notes", None);
        assert_eq!(read.0, 401, "header at {slot}: {}", read.1);
        server.stop();
    }
}
