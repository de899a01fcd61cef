//! Each row of the opening table, done on the disk: one tenant's trouble is that tenant's alone,
//! has its own code, and is over as soon as the files are right again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nimbus_test_support::{Machine, Server, whole};
use serde_json::{Value, json};

use super::{assert_error, machine, tenant_files};

const MISSING: &str = "encryption.manifest_missing";
const MISMATCH: &str = "encryption.key_mismatch";
const UNAVAILABLE: &str = "encryption.key_unavailable";
const CORRUPTION: &str = "service.storage_corruption";

/// A machine with the tenants `alice` and `bob`, a document in each, its server stopped.
struct Town {
    machine: Machine,
    alice: Value,
    bob: Value,
}

impl Town {
    fn new() -> Self {
        Self::on(machine())
    }

    fn on(machine: Machine) -> Self {
        let server = machine.start(&[]);
        for tenant in ["alice", "bob"] {
            server.create("/api/tenants", &json!({"id": tenant}));
            for n in 0..3 {
                server.insert(tenant, "things", &json!({"of": tenant, "n": n}));
            }
        }
        let (alice, bob) = (server.get(&path("alice")), server.get(&path("bob")));
        server.stop();
        Self {
            machine,
            alice,
            bob,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.machine.data_dir().join(name)
    }

    /// When alice's file was made, as her manifest says it.
    fn created(&self) -> String {
        let manifest = String::from_utf8(self.read(MANIFEST)).expect("text");
        let created = manifest.lines().find(|line| line.starts_with("created: "));
        created.expect("a time").to_owned()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).expect("a file of the data directory")
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).expect("a file of the data directory");
    }

    /// Damages alice's files with `damage`, and asserts what is answered for her, that nothing is
    /// touched, that bob is served, and that she is served again once her files are back.
    #[track_caller]
    fn refuses(&self, damage: impl FnOnce(&Self), code: &str, words: &[&str]) {
        let (database, manifest) = (self.read(DATABASE), self.read(MANIFEST));
        damage(self);
        let damaged = tenant_files(&self.machine);
        let server = self.machine.start(&[]);
        assert_eq!(
            server.get("/api/tenants"),
            whole("tenants", json!(["alice", "bob"]))
        );
        // Twice: the first refusal leaves nothing behind that changes the second.
        for _ in 0..2 {
            let (status, answer) = server.request("GET", &path("alice"), None);
            let message = assert_error(status, &answer, (503, code));
            let said = format!("{message} {}", answer["error"]["detail"]);
            for word in words {
                assert!(said.contains(word), "no {word:?} in {said}");
            }
        }
        let body = json!({"table": "things", "fields": {}});
        let (status, answer) = server.request("POST", "/api/tenants/alice/documents", Some(&body));
        assert_error(status, &answer, (503, code));
        let (status, answer) =
            server.request("POST", "/api/tenants", Some(&json!({"id": "alice"})));
        assert_error(status, &answer, (409, "op.already_exists"));
        assert_eq!(
            tenant_files(&self.machine),
            damaged,
            "nothing is made, changed or removed"
        );
        assert_eq!(server.get(&path("bob")), self.bob);
        let ready = server.get("/ready");
        assert_eq!(
            ready["tenants_in_trouble"],
            json!({"alice": code}),
            "{ready}"
        );
        assert_eq!(
            server.log().matches("a tenant does not open").count(),
            1,
            "logged once"
        );

        for name in [DATABASE, MANIFEST] {
            let _ = fs::remove_file(self.file(name)).or_else(|_| fs::remove_dir(self.file(name)));
        }
        self.write(DATABASE, database);
        self.write(MANIFEST, manifest);
        assert_eq!(
            server.get(&path("alice")),
            self.alice,
            "healed without a restart"
        );
        assert_eq!(server.get("/ready")["tenants_in_trouble"], json!({}));
        server.stop();
    }
}

#[test]
fn a_lost_manifest_is_refused_and_never_made_anew() {
    let town = Town::new();
    town.refuses(
        |town| fs::remove_file(town.file(MANIFEST)).expect("removed"),
        MISSING,
        &["alice.sqlite3.nimbus-enc", "nimbus encryption repair"],
    );
}

#[test]
fn a_lost_or_emptied_database_is_never_taken_for_a_new_one() {
    let town = Town::new();
    town.refuses(
        |town| fs::remove_file(town.file(DATABASE)).expect("removed"),
        CORRUPTION,
        &["alice.sqlite3", "is gone", "restore"],
    );
    town.refuses(
        |town| town.write(DATABASE, ""),
        CORRUPTION,
        &["0 bytes", "restore"],
    );
}

#[test]
fn a_manifest_cut_short_or_edited_is_refused() {
    let town = Town::new();
    let whole = town.read(MANIFEST);
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        town.refuses(
            |town| town.write(MANIFEST, &whole[..length]),
            CORRUPTION,
            &["nimbus-enc", "cannot be read", "line"],
        );
    }
    let text = String::from_utf8(whole.clone()).expect("a manifest is text");
    let edit = |from: &str, to: &str| {
        let edited = text.replacen(from, to, 1);
        assert_ne!(edited, text, "{from}");
        edited
    };
    let revision = edit("\nrevision: 2", "\nrevision: 3");
    town.refuses(|town| town.write(MANIFEST, revision), CORRUPTION, &["MAC"]);
    let subject = edit(":alice:alice.sqlite3", ":alice:other.sqlite3");
    town.refuses(
        |town| town.write(MANIFEST, subject),
        MISMATCH,
        &["db:sqlite:tenant:alice:other.sqlite3"],
    );
    let cipher = edit("sqlcipher4", "rot13");
    town.refuses(|town| town.write(MANIFEST, cipher), CORRUPTION, &["cipher"]);
    let version = edit("nimbus-enc/1", "nimbus-enc/9");
    town.refuses(
        |town| town.write(MANIFEST, version),
        CORRUPTION,
        &["nimbus-enc/9"],
    );
    town.refuses(
        |town| town.write(MANIFEST, vec![b'x'; 1 << 20]),
        CORRUPTION,
        &["nimbus-enc"],
    );
}

#[test]
fn a_manifest_edited_to_say_new_never_makes_room_for_an_empty_tenant() {
    let town = Town::new();
    let whole = town.read(MANIFEST);
    let text = String::from_utf8(whole.clone()).expect("text");
    town.write(MANIFEST, text.replacen("state: ready", "state: new", 1));
    let edited = tenant_files(&town.machine);
    let server = town.machine.start(&[]);
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "alice"})));
    assert_error(status, &answer, (409, "op.already_exists"));
    let (status, answer) = server.request("GET", &path("alice"), None);
    let message = assert_error(status, &answer, (503, CORRUPTION));
    assert!(message.contains("MAC"), "{message}");
    assert_eq!(tenant_files(&town.machine), edited);
    server.stop();
    town.write(MANIFEST, whole);
    let server = town.machine.start(&[]);
    assert_eq!(server.get(&path("alice")), town.alice);
}

#[test]
fn manifests_swapped_between_tenants_open_neither() {
    let town = Town::new();
    let (alice, bob) = (town.read(MANIFEST), town.read("bob.sqlite3.nimbus-enc"));
    town.write(MANIFEST, &bob);
    town.write("bob.sqlite3.nimbus-enc", &alice);
    let server = town.machine.start(&[]);
    for (tenant, other) in [("alice", "bob"), ("bob", "alice")] {
        let (status, answer) = server.request("GET", &path(tenant), None);
        let message = assert_error(status, &answer, (503, MISMATCH));
        assert!(message.contains(&format!("tenant:{other}:")), "{message}");
    }
    town.write(MANIFEST, &alice);
    town.write("bob.sqlite3.nimbus-enc", &bob);
    assert_eq!(server.get(&path("alice")), town.alice);
    assert_eq!(server.get(&path("bob")), town.bob);
}

#[test]
fn the_database_of_another_tenant_does_not_open_under_this_ones_key() {
    let town = Town::new();
    let bob = town.read("bob.sqlite3");
    town.refuses(
        |town| town.write(DATABASE, bob),
        MISMATCH,
        &["alice.sqlite3", "do not match"],
    );
}

#[test]
fn files_of_an_earlier_tenant_of_the_same_name_do_not_open() {
    let town = Town::new();
    let (database, manifest) = (town.read(DATABASE), town.read(MANIFEST));
    let server = town.machine.start(&[]);
    assert_eq!(server.request("DELETE", "/api/tenants/alice", None).0, 204);
    server.create("/api/tenants", &json!({"id": "alice"}));
    server.insert("alice", "things", &json!({"n": "second life"}));
    let alice = server.get(&path("alice"));
    server.stop();
    let town = Town { alice, ..town };
    town.refuses(
        |town| town.write(MANIFEST, &manifest),
        CORRUPTION,
        &["older", "nimbus encryption repair"],
    );
    // Nor both of them, which do match.
    town.refuses(
        |town| {
            town.write(MANIFEST, &manifest);
            town.write(DATABASE, &database);
        },
        CORRUPTION,
        &["older", "nimbus encryption repair"],
    );
    town.refuses(
        |town| town.write(DATABASE, &database),
        MISMATCH,
        &["do not match"],
    );
}

#[test]
fn damaged_pages_are_told_from_a_key_that_does_not_match() {
    let town = Town::new();
    let whole = town.read(DATABASE);
    let flipped = |at: usize| {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        damaged
    };
    town.refuses(
        |town| town.write(DATABASE, flipped(2000)),
        CORRUPTION,
        &["pages do not authenticate"],
    );
    town.refuses(
        |town| town.write(DATABASE, &whole[..whole.len() - 100]),
        CORRUPTION,
        &["4096-byte pages"],
    );
    town.refuses(
        |town| town.write(DATABASE, vec![7; whole.len()]),
        MISMATCH,
        &["do not match"],
    );
    // A page in the middle is found by who reads it.
    for page in 1..whole.len() / 4096 {
        town.write(DATABASE, flipped(page * 4096 + 100));
        let server = town.machine.start(&[]);
        let (status, answer) = server.request("GET", &path("alice"), None);
        if status != 200 {
            assert_error(status, &answer, (503, CORRUPTION));
        } else {
            assert_eq!(answer, town.alice, "page {page}");
        }
        assert_eq!(server.get(&path("bob")), town.bob);
    }
}

#[test]
fn plaintext_is_not_served_where_encryption_is_on() {
    let town = Town::new();
    let plaintext = plaintext_tenant("alice");
    town.refuses(
        |town| town.write(DATABASE, &plaintext),
        CORRUPTION,
        &["is plaintext although its manifest"],
    );
    town.refuses(
        |town| {
            town.write(DATABASE, &plaintext);
            fs::remove_file(town.file(MANIFEST)).expect("removed");
        },
        CORRUPTION,
        &["plaintext", "nimbus encryption migrate"],
    );
}

#[test]
fn an_encrypted_tenant_is_not_opened_where_encryption_is_off() {
    const PLAINTEXT: &[&str] = &["--encryption-key-provider", "none"];
    let town = Town::new();
    let plain = machine();
    let server = plain.start(PLAINTEXT);
    server.create("/api/tenants", &json!({"id": "plain"}));
    server.stop();
    for name in [DATABASE, MANIFEST] {
        let _ = fs::copy(town.file(name), plain.data_dir().join(name)).expect("a copy");
    }
    let _ = fs::copy(
        town.file("bob.sqlite3"),
        plain.data_dir().join("bob.sqlite3"),
    )
    .expect("a copy");
    let server = plain.start(PLAINTEXT);
    for (tenant, code, word) in [
        ("alice", UNAVAILABLE, "no key provider is configured"),
        ("bob", MISSING, "nimbus-enc is missing"),
    ] {
        let (status, answer) = server.request("GET", &path(tenant), None);
        let message = assert_error(status, &answer, (503, code));
        assert!(message.contains(word), "{message}");
    }
    server.insert("plain", "things", &json!({}));
}

#[test]
fn a_tenant_under_a_key_that_is_not_configured_is_refused_by_the_keys_name() {
    let (town, mut stranger) = (Town::new(), Town::new());
    // Of the same second, it would not be the newer one.
    while stranger.created() <= town.created() {
        stranger = Town::new();
    }
    let id = stranger.read(MANIFEST);
    let id = String::from_utf8(id).expect("text");
    let id = id
        .split("wrap: master-key-file ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    town.refuses(
        |town| {
            town.write(DATABASE, stranger.read(DATABASE));
            town.write(MANIFEST, stranger.read(MANIFEST));
        },
        UNAVAILABLE,
        &[id.expect("a key id"), "--encryption-previous"],
    );
}

#[test]
fn a_link_or_a_directory_in_place_of_a_file_is_not_followed() {
    let town = Town::new();
    let elsewhere = town.machine.path("elsewhere");
    fs::write(&elsewhere, town.read(DATABASE)).expect("a copy");
    town.refuses(
        |town| {
            fs::remove_file(town.file(DATABASE)).expect("removed");
            symlink(&elsewhere, town.file(DATABASE)).expect("a link");
        },
        "service.unavailable",
        &["not a regular file"],
    );
    town.refuses(
        |town| {
            fs::remove_file(town.file(DATABASE)).expect("removed");
            fs::create_dir(town.file(DATABASE)).expect("a directory");
        },
        "service.unavailable",
        &["not a regular file"],
    );
}

/// The manifest `new` with which alice's creation began.
fn first_manifest(machine: &Machine) -> Vec<u8> {
    // The control file has a manifest, too.
    machine.start(&[]).stop();
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", "manifest::published=return");
    let server = machine.start_command(command);
    let body = json!({"id": "alice"});
    let died = server.try_request_as(&machine.token(), "POST", "/api/tenants", Some(&body));
    assert!(died.is_err(), "{died:?}");
    server.wait_until_killed();
    fs::read(machine.data_dir().join(MANIFEST)).expect("a manifest")
}

#[test]
fn a_replayed_new_manifest_never_makes_a_lost_tenant_come_back_empty() {
    let machine = machine();
    let new = first_manifest(&machine);
    let town = Town::on(machine);
    town.refuses(
        |town| {
            town.write(MANIFEST, &new);
            fs::remove_file(town.file(DATABASE)).expect("removed");
        },
        CORRUPTION,
        &["alice.sqlite3", "is gone", "it existed", "restore"],
    );
    town.refuses(
        |town| {
            town.write(MANIFEST, &new);
            town.write(DATABASE, "");
        },
        CORRUPTION,
        &["alice.sqlite3", "it existed", "restore"],
    );
    // A file that does not open under its key is not set aside for an empty one either.
    town.refuses(
        |town| {
            town.write(MANIFEST, &new);
            town.write(DATABASE, vec![7; 8192]);
        },
        MISMATCH,
        &["do not match"],
    );
    // With its file it is what a crash leaves at the end of a creation.
    town.write(MANIFEST, &new);
    let server = town.machine.start(&[]);
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "alice"})));
    assert_error(status, &answer, (409, "op.already_exists"));
    assert_eq!(server.get(&path("alice")), town.alice);
}

#[test]
fn a_tenant_whose_files_are_all_gone_is_listed_and_told_until_it_is_deleted() {
    let machine = machine();
    let new = first_manifest(&machine);
    let town = Town::on(machine);
    let lose = |town: &Town| {
        for name in [DATABASE, MANIFEST] {
            fs::remove_file(town.file(name)).expect("removed");
        }
    };
    town.refuses(lose, CORRUPTION, &["is gone", "it existed", "restore"]);
    lose(&town);
    for replayed in [false, true] {
        if replayed {
            town.write(MANIFEST, &new);
        }
        // Told with a server and without one, with a key and, by the server, without.
        let server = town.machine.start(&[]);
        for verify in ["none", "unwrap", "open"] {
            let found = server.get(&format!("/debug/encryption/status?verify={verify}"));
            assert_eq!(health(&found), "database-missing", "{found}");
        }
        let doctor = server.get("/debug/doctor");
        let files = &doctor["checks"][1];
        assert_eq!(files["name"], "files");
        assert_eq!(files["verdict"], "problem", "{doctor}");
        server.stop();
        let mut command = town
            .machine
            .nimbus(&["encryption", "status", "--format", "json"]);
        let told = command.output().expect("it runs");
        assert_eq!(told.status.code(), Some(3));
        let found = serde_json::from_slice(&told.stdout).expect("JSON");
        assert_eq!(health(&found), "database-missing", "{found}");
        let doctor = town.machine.nimbus(&["doctor"]).output().expect("it runs");
        let told = String::from_utf8(doctor.stdout).expect("UTF-8");
        assert!(told.contains("1 of 3 files in need"), "{told}");
    }
    let server = town.machine.start(&[]);
    assert_eq!(server.request("DELETE", "/api/tenants/alice", None).0, 204);
    server.create("/api/tenants", &json!({"id": "alice"}));
    assert_eq!(server.get(&path("alice")), whole("data", json!([])));
    assert_bob(&server, &town);
}

/// What a look at every file says of alice's.
fn health(found: &Value) -> &str {
    let files = found["files"].as_array().expect("files");
    let alice = files.iter().find(|file| file["path"] == DATABASE);
    let alice = alice.unwrap_or_else(|| panic!("no alice in {found}"));
    alice["health"].as_str().expect("its health")
}

#[test]
fn a_tenant_in_trouble_can_be_deleted_and_made_anew() {
    let town = Town::new();
    town.write(DATABASE, vec![7; 8192]);
    let server = town.machine.start(&[]);
    let (status, answer) = server.request("GET", &path("alice"), None);
    assert_error(status, &answer, (503, MISMATCH));
    assert_eq!(server.request("DELETE", "/api/tenants/alice", None).0, 204);
    assert_eq!(server.get("/ready")["tenants_in_trouble"], json!({}));
    assert!(!town.file(DATABASE).exists() && !town.file(MANIFEST).exists());
    server.create("/api/tenants", &json!({"id": "alice"}));
    assert_eq!(server.get(&path("alice")), whole("data", json!([])));
    assert_bob(&server, &town);
}

fn assert_bob(server: &Server, town: &Town) {
    assert_eq!(server.get(&path("bob")), town.bob);
}

/// The file of a tenant of a server without encryption.
fn plaintext_tenant(tenant: &str) -> Vec<u8> {
    let machine = machine();
    let server = machine.start(&["--encryption-key-provider", "none"]);
    server.create("/api/tenants", &json!({"id": tenant}));
    server.insert(tenant, "things", &json!({"planted": true}));
    server.stop();
    fs::read(machine.find(&format!("{tenant}.sqlite3"))).expect("its file")
}

fn path(tenant: &str) -> String {
    format!("/api/tenants/{tenant}/documents/things")
}

const DATABASE: &str = "alice.sqlite3";
const MANIFEST: &str = "alice.sqlite3.nimbus-enc";

/// SECURITY.md says so: pages have no freshness.
#[test]
fn an_older_database_under_the_same_data_key_is_not_noticed() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.insert("demo", "places", &json!({"n": 1}));
    server.stop();
    let database = machine.data_dir().join("demo.sqlite3");
    let older = fs::read(&database).expect("a stopped database");
    let server = machine.start(&[]);
    server.insert("demo", "places", &json!({"n": 2}));
    server.stop();
    fs::write(&database, older).expect("the older one in its place");
    let server = machine.start(&[]);
    let found = server.get("/api/tenants/demo/documents/places")["data"].take();
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    server.stop();
}

#[test]
fn a_damaged_page_that_is_read_last_is_no_answer_and_nothing_is_made_of_it() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "alice"}));
    // Its pages follow one another, and the end of the document is in the last one.
    let fields = json!({"n": 1, "text": "x".repeat(60_000)});
    let id = server.insert("alice", "long", &fields);
    server.stop();
    let database = machine.data_dir().join("alice.sqlite3");
    let whole = fs::read(&database).expect("the database");
    let of_it = format!("/api/tenants/alice/documents/long/{id}");
    let query = json!({"table": "long", "filters": [], "limit": 10});
    let patch = json!({"patch": {"n": 2}});
    let asked = [
        ("GET", of_it.as_str(), None),
        ("GET", "/api/tenants/alice/documents/long", None),
        ("POST", "/api/tenants/alice/query", Some(&query)),
        ("PATCH", of_it.as_str(), Some(&patch)),
    ];
    let last = whole.len() - 4096;
    for (at, bits) in [(last + 100, 1), (last + 4090, 0xff)] {
        let mut damaged = whole.clone();
        damaged[at] ^= bits;
        for (method, path, body) in asked {
            fs::write(&database, &damaged).expect("a damaged page");
            let server = machine.start(&[]);
            for _again in 0..6 {
                let answer = server.request(method, path, body);
                assert!(
                    answer.0 >= 500,
                    "{method} {path}: {} {}",
                    answer.0,
                    answer.1["error"]
                );
            }
            // Whatever the writer met, what does not touch that page is written.
            drop(server.request("DELETE", &of_it, None));
            let other = json!({"table": "other", "fields": {"n": 1}});
            let goes_on = (0..6).any(|_again| {
                let written = server.request("POST", "/api/tenants/alice/documents", Some(&other));
                written.0 == 201
            });
            assert!(goes_on, "after {method} {path}: {}", server.log());
            server.kill();
            for beside in ["-wal", "-shm"] {
                drop(fs::remove_file(
                    machine.data_dir().join(format!("alice.sqlite3{beside}")),
                ));
            }
        }
    }
    // No key makes it authentic.
    let rotate = ["encryption", "rotate-dek", "--path", "data", "--all"];
    let rotated = machine.nimbus(&rotate).output().expect("rotate-dek");
    assert_eq!(rotated.status.code(), Some(1), "{rotated:?}");
    fs::write(&database, &whole).expect("the database again");
    let server = machine.start(&[]);
    assert_eq!(server.get(&of_it)["document"]["text"], fields["text"]);
    server.stop();
}
