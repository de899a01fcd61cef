//! Sealed tenants over the wire: keys that come and go, a rotation, a deletion for good, and a
//! reader that has no code of ours.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nimbus_test_support::{Ended, Fault, FaultProxy, Moto, Server, until};
use serde_json::{Value, json};

use super::{CREATION, DELETION, House, make_tenant, tenants};

impl House {
    /// A command of a deployment that seals.
    fn sealing(&self, arguments: &[&str]) -> Command {
        let mut command = self.nimbus(arguments);
        let _ = command.env("NIMBUS_ENCRYPTION_SEAL_EXTERNAL", "true");
        command
    }

    fn start_sealing(&self, more: &[&str]) -> Server {
        let arguments = [&["start", "--port", "0"], more].concat();
        self.machine.start_command(self.sealing(&arguments))
    }

    fn run_sealing(&self, arguments: &[&str]) -> Ended {
        self.machine.run_to_end(self.sealing(arguments))
    }

    /// What the database has, as the SQL of `docs/sealed-format.md` gives it.
    fn stored(&self, tenant: &str) -> Value {
        let hex = |column: &str| self.hex(column);
        let manifest = self.sql(&format!(
            "SELECT {} FROM {{m}}.tenants WHERE {} = '{tenant}'",
            hex("manifest"),
            self.text("name"),
        ));
        let space = format!("\"{}_{tenant}\"", self.unique);
        let rows = self.sql(&format!(
            "SELECT concat_ws('|', {}, d.seq, {}, d.version, d.created, d.updated, {})
             FROM {space}.documents d JOIN {space}.tables t ON t.number = d.tbl ORDER BY d.tbl, d.seq",
            self.text("t.name"),
            hex("d.id"),
            hex("d.fields"),
        ));
        let number = |text: &str| text.parse::<i64>().expect("a number");
        let row = |line: &str| {
            let parts: Vec<&str> = line.split('|').collect();
            json!({
                "table": parts[0], "seq": number(parts[1]), "id": parts[2].to_lowercase(), "version": number(parts[3]),
                "created": number(parts[4]), "updated": number(parts[5]), "fields": parts[6].to_lowercase(),
            })
        };
        let documents: Vec<Value> = rows.lines().map(row).collect();
        json!({"manifest": manifest.trim().to_lowercase(), "documents": documents})
    }
}

fn list(server: &Server, tenant: &str) -> Vec<Value> {
    server.list(&format!("/api/tenants/{tenant}/documents/t"), "data", 100)
}

#[test]
fn python_opens_a_sealed_tenant_from_key_and_rows_alone() {
    let house = House::new();
    let server = house.start_sealing(&[]);
    make_tenant(&server, "acme");
    for n in 0..3 {
        let _ = server.insert(
            "acme",
            "t",
            &json!({"n": n, "text": "Zürich".repeat(n * 100)}),
        );
    }
    let expected = list(&server, "acme");
    server.stop();
    let rows = house.stored("acme");
    let read = |rows: &Value| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/open_sealed.py");
        let venv = std::env::var_os("NIMBUS_TEST_VENV").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-env/venv"),
            PathBuf::from,
        );
        let mut running = Command::new(venv.join("bin/python"))
            .arg(script)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg("--key")
            .arg(house.machine.master_key())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python runs");
        let mut input = running.stdin.take().expect("a pipe");
        input
            .write_all(rows.to_string().as_bytes())
            .expect("a pipe");
        drop(input);
        running.wait_with_output().expect("it ends")
    };
    let output = read(&rows);
    assert!(output.status.success(), "{output:?}");
    let opened = String::from_utf8(output.stdout).expect("UTF-8");
    let opened: Vec<Value> = opened
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["document"].take())
        .collect();
    assert_eq!(opened, expected);
    // Two rows change places.
    let mut swapped = rows.clone();
    let (first, second) = (
        rows["documents"][0]["fields"].clone(),
        rows["documents"][1]["fields"].clone(),
    );
    swapped["documents"][0]["fields"] = second;
    swapped["documents"][1]["fields"] = first;
    let output = read(&swapped);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another place"));
}

#[test]
fn rows_that_change_places_in_the_database_are_not_served() {
    let house = House::new();
    let server = house.start_sealing(&[]);
    make_tenant(&server, "acme");
    let ids = [1, 2].map(|n| server.insert("acme", "t", &json!({"n": n})));
    let space = format!("\"{}_acme\"", house.unique);
    for seqs in [(1, -1), (2, 1), (-1, 2)] {
        let (from, to) = seqs;
        let _none = house.sql(&format!(
            "UPDATE {space}.documents SET seq = {to} WHERE seq = {from}"
        ));
    }
    for id in ids {
        let (status, answer) =
            server.request("GET", &format!("/api/tenants/acme/documents/t/{id}"), None);
        assert_eq!(
            (status, &answer["error"]["code"]),
            (503, &json!("service.storage_corruption")),
            "{answer}"
        );
    }
    let (status, _) = server.request("GET", "/api/tenants/acme/documents/t", None);
    assert_eq!(status, 503);
    assert!(
        server.log().contains("documents.fields does not open"),
        "{}",
        server.log()
    );
    server.stop();
}

#[test]
fn what_was_put_back_or_taken_away_is_found_by_who_proves_all() {
    let house = House::new();
    let server = house.start_sealing(&[]);
    make_tenant(&server, "acme");
    let ids = [1, 2, 3].map(|n| server.insert("acme", "t", &json!({"n": n})));
    let space = format!("\"{}_acme\"", house.unique);
    let keep = |name: &str| {
        let sql = format!("CREATE TABLE {space}.{name} AS SELECT * FROM {space}.documents");
        let _none = house.sql(&sql);
    };
    keep("before");
    let patch = json!({"patch": {"n": 10}});
    let path = |id: &str| format!("/api/tenants/acme/documents/t/{id}");
    assert_eq!(server.request("PATCH", &path(&ids[0]), Some(&patch)).0, 200);
    assert_eq!(server.request("DELETE", &path(&ids[1]), None).0, 204);
    keep("after");
    let prove = || house.run_sealing(&["encryption", "status", "--verify", "pages"]);
    prove().expect(0, &["sealed1"]);
    let back = |seq: i64| {
        format!(
            "DELETE FROM {space}.documents WHERE seq = {seq}; INSERT INTO {space}.documents SELECT * FROM {space}.before WHERE seq = {seq}"
        )
    };
    for (tampering, words) in [
        (
            back(1),
            "is at version 1, and write 4 of the journal was its last: it was put back",
        ),
        (
            back(2),
            "write 5 of the journal deleted it: it was put back",
        ),
        (
            format!("DELETE FROM {space}.documents WHERE seq = 3"),
            "write 3 of the journal was its last: it was taken away",
        ),
    ] {
        let _none = house.sql(&tampering);
        prove().expect(3, &["page-corrupt", &ids[0][..8], words]);
        let whole = format!(
            "DELETE FROM {space}.documents; INSERT INTO {space}.documents SELECT * FROM {space}.after"
        );
        let _none = house.sql(&whole);
    }
    prove().expect(0, &[]);
    let _none = house.sql(&format!(
        "UPDATE {space}.journal SET kind = 1 WHERE sequence = 5"
    ));
    prove().expect(3, &["journal.mac does not open"]);
    let _none = house.sql(&format!("DELETE FROM {space}.journal WHERE sequence = 5"));
    prove().expect(3, &["4 records of the 5"]);
    server.stop();
}

#[test]
fn status_says_which_tenants_are_sealed_and_which_are_not() {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "plain");
    server.stop();
    let server = house.start_sealing(&[]);
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    let (status, answer) = server.request("GET", "/api/tenants/plain/documents/t", None);
    assert_eq!(status, 503, "{answer}");
    let about = |status: &Value| {
        let files = status["files"].as_array().expect("files").iter();
        let files = files.map(|file| {
            let path = file["path"].as_str().expect("a path").to_owned();
            (path, file["health"].as_str().expect("a word").to_owned())
        });
        files.collect::<Vec<_>>()
    };
    let metadata = house.metadata();
    let of =
        |tenant: &str, health: &str| (format!("{metadata}.tenants/{tenant}"), health.to_owned());
    let seen = server.get("/debug/encryption/status?verify=unwrap");
    assert_eq!(seen["unencrypted_tenants"], json!(["plain"]));
    assert!(about(&seen).contains(&of("acme", "ok")), "{seen}");
    assert!(about(&seen).contains(&of("plain", "plaintext")), "{seen}");
    assert_eq!(seen["summary"]["problems"], 1);
    let told = house.run_sealing(&["encryption", "status"]);
    told.expect(3, &["NOT encrypt 1 of them: plain", "sealed1"]);
    server.stop();
    // The same without a server; and of a deployment that does not seal, where it is no problem.
    let told = house.run_sealing(&["encryption", "status"]);
    told.expect(3, &["NOT encrypt 1 of them: plain", "sealed1"]);
    let told = house
        .machine
        .run_to_end(house.nimbus(&["encryption", "status"]));
    told.expect(0, &["NOT encrypt 1 of them: plain", "sealed1"]);
    let server = house.start();
    assert_eq!(list(&server, "acme").len(), 1);
    assert_eq!(server.request("DELETE", "/api/tenants/plain", None).0, 204);
    server.stop();
    let told = house.run_sealing(&["encryption", "status", "--format", "json"]);
    told.expect(0, &["sealed1"]);
    assert!(!told.said.contains("unencrypted_tenants"), "{}", told.said);
}

#[test]
fn a_sealed_tenant_moves_to_another_key_and_the_old_one_opens_it_no_more() {
    let house = House::new();
    let server = house.start_sealing(&[]);
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    let before = list(&server, "acme");
    let stored = house.stored("acme");
    let key = house.machine.path("new.key");
    let new = key.to_str().expect("UTF-8").to_owned();
    house
        .run_sealing(&["encryption", "keygen", "--master-key-file", &new])
        .expect(0, &[]);
    let data = house.machine.data_dir();
    let data = data.to_str().expect("UTF-8");
    let rotate = [
        "encryption",
        "rotate-kek",
        "--path",
        data,
        "--all",
        "--new-master-key-file",
        &new,
    ];
    house.run_sealing(&rotate).expect(0, &["2 rewrapped"]);
    // It goes on; no row of its documents was touched.
    assert_eq!(list(&server, "acme"), before);
    let _ = server.insert("acme", "t", &json!({"n": 2}));
    let after = house.stored("acme");
    assert_ne!(after["manifest"], stored["manifest"]);
    assert_eq!(after["documents"][0], stored["documents"][0]);
    server.stop();
    let mut old = house.sealing(&["start", "--port", "0"]);
    let _ = old.env("RUST_LOG", "error");
    let settings = [
        "--encryption-key-provider",
        "master-key-file",
        "--encryption-master-key-file",
        &new,
    ];
    let server = house.start_sealing(&settings);
    assert_eq!(list(&server, "acme").len(), 2);
    server.stop();
    // Whoever has the old key alone: the row is under the new one.
    let told = house.run_sealing(&["encryption", "status", "--verify", "unwrap"]);
    told.expect(3, &["key-unavailable", "tenants/acme"]);
}

#[test]
fn a_revoked_key_closes_a_sealed_tenant_on_every_server() {
    let house = House::new();
    let other = house.beside();
    let moto = Moto::start();
    let proxy = FaultProxy::in_front_of(moto.url());
    let key = moto.create_key();
    let servers = [&house, &other].map(|house| {
        let mut command = house.sealing(&["start", "--port", "0", "--encryption-key-lease", "1s"]);
        let _ = command
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms")
            .env("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", &key)
            .env("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", proxy.url())
            .env("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        house.machine.start_command(command)
    });
    make_tenant(&servers[0], "acme");
    let _ = servers[0].insert("acme", "t", &json!({"n": 1}));
    for server in &servers {
        assert_eq!(list(server, "acme").len(), 1);
    }
    // Of this tenant alone: the subject is in the encryption context.
    let disabled = || Fault::error(400, "DisabledException", "the key is disabled");
    for action in ["Decrypt", "GenerateDataKey"] {
        proxy.inject_for(action, "db:external:tenant:acme:documents", disabled());
    }
    let path = "/api/tenants/acme/documents/t";
    for server in &servers {
        until("it is closed by its lease", || {
            let (status, answer) = server.request("GET", path, None);
            status == 503 && answer["error"]["code"] == "encryption.key_revoked"
        });
    }
    proxy.clear();
    for server in &servers {
        until("it is served again", || {
            server.request("GET", path, None).0 == 200
        });
    }
    let [one, two] = servers;
    one.stop();
    two.stop();
    let events = house.machine.find("nimbus-audit.log");
    let events = fs::read_to_string(events).expect("the audit log");
    let line =
        |line: &str| line.contains("\"revocation\"") && line.contains("db:external:tenant:acme");
    assert!(events.lines().any(line), "{events}");
}

#[test]
fn a_sealed_tenant_is_recovered_with_the_identity_of_a_recipient() {
    let house = House::new();
    let identity = house.machine.path("recovery.txt");
    let made = Command::new("age-keygen").arg("-o").arg(&identity).output();
    assert!(made.expect("age-keygen").status.success());
    let shown = Command::new("age-keygen").arg("-y").arg(&identity).output();
    let recipient = String::from_utf8(shown.expect("age-keygen").stdout).expect("ASCII");
    let server = house.start_sealing(&["--encryption-recovery-recipient", recipient.trim()]);
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    server.stop();
    // The master key is lost, and there is another.
    let key = house.machine.master_key();
    fs::remove_file(&key).expect("the key");
    let key = key.to_str().expect("UTF-8");
    house
        .run_sealing(&["encryption", "keygen", "--master-key-file", key])
        .expect(0, &[]);
    let status = ["encryption", "status", "--verify", "unwrap"];
    house
        .run_sealing(&status)
        .expect(3, &["key-unavailable", "tenants/acme"]);
    let identity = identity.to_str().expect("UTF-8");
    let data = house.machine.data_dir();
    let data = data.to_str().expect("UTF-8");
    let recover = [
        "encryption",
        "recover",
        "--identity",
        identity,
        "--path",
        data,
        "--all",
    ];
    house.run_sealing(&recover).expect(0, &["2 rewrapped"]);
    house.run_sealing(&status).expect(0, &["tenants/acme"]);
    let server = house.start_sealing(&[]);
    assert_eq!(list(&server, "acme").len(), 1);
    server.stop();
}

#[test]
fn a_rotation_that_was_cut_short_is_run_again() {
    for (point, moved) in [("manifest-held", false), ("manifest-replaced", true)] {
        eprintln!("killed at {point}");
        let house = House::new();
        let server = house.start_sealing(&[]);
        make_tenant(&server, "acme");
        let _ = server.insert("acme", "t", &json!({"n": 1}));
        server.stop();
        let before = house.stored("acme");
        let key = house.machine.path("new.key");
        let new = key.to_str().expect("UTF-8").to_owned();
        house
            .run_sealing(&["encryption", "keygen", "--master-key-file", &new])
            .expect(0, &[]);
        let data = house.machine.data_dir();
        let data = data.to_str().expect("UTF-8");
        let rotate = [
            "encryption",
            "rotate-kek",
            "--path",
            data,
            "--all",
            "--new-master-key-file",
            &new,
        ];
        let mut command = house.sealing(&rotate);
        let _ = command.env("FAILPOINTS", format!("tenants::relational::{point}=return"));
        let killed = command.output().expect("it runs");
        assert!(!killed.status.success(), "{killed:?}");
        let changed = house.stored("acme")["manifest"] != before["manifest"];
        assert_eq!(changed, moved, "{point}");
        // The control file moved first, so both keys are named.
        let settings = [
            "--encryption-key-provider",
            "master-key-file",
            "--encryption-master-key-file",
            &new,
            "--encryption-previous-master-key-file",
            house.machine.master_key().to_str().expect("UTF-8"),
        ]
        .map(str::to_owned);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let server = house.start_sealing(&settings);
        assert_eq!(list(&server, "acme").len(), 1);
        let rewrapped = if moved { "0 rewrapped" } else { "1 rewrapped" };
        house.run_sealing(&rotate).expect(0, &[rewrapped]);
        server.stop();
        let settings = &settings[..4];
        let server = house.start_sealing(settings);
        assert_eq!(list(&server, "acme").len(), 1);
        server.stop();
    }
}

#[test]
fn a_locked_sealed_tenant_is_closed_and_a_shredded_one_is_gone_with_its_key() {
    let house = House::new();
    let server = house.start_sealing(&[]);
    for tenant in ["acme", "other"] {
        make_tenant(&server, tenant);
        let _ = server.insert(tenant, "t", &json!({"n": 1}));
    }
    house
        .run_sealing(&["encryption", "lock", "--tenant-id", "acme"])
        .expect(0, &[]);
    let (status, answer) = server.request("GET", "/api/tenants/acme/documents/t", None);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (503, &json!("encryption.key_revoked"))
    );
    house
        .run_sealing(&["encryption", "unlock", "--tenant-id", "acme"])
        .expect(0, &[]);
    assert_eq!(list(&server, "acme").len(), 1);
    let shred = ["encryption", "shred", "--tenant-id", "acme", "--yes"];
    house.run_sealing(&shred).expect(
        0,
        &["is shredded", "still open with master-key-file", "Dumps"],
    );
    assert_eq!(tenants(&server), ["other"]);
    let left = house.sql(&format!(
        "SELECT count(*) FROM {{m}}.tenants WHERE manifest IS NOT NULL AND {} = 'acme'",
        house.text("name")
    ));
    assert_eq!(left.trim(), "0");
    house.run_sealing(&["encryption", "audit"]).expect(0, &[]);
    server.stop();
    // Offline, too.
    let shred = ["encryption", "shred", "--tenant-id", "other", "--yes"];
    house.run_sealing(&shred).expect(0, &["is shredded"]);
    let events = fs::read_to_string(house.machine.data_dir().join("nimbus-audit.log"));
    let events = events.expect("the audit log");
    for kind in ["create", "open", "shred"] {
        let line = |line: &str| {
            line.contains(&format!("\"{kind}\""))
                && line.contains("db:external:tenant:acme:documents")
        };
        assert!(events.lines().any(line), "{kind}");
    }
}

#[test]
fn sealed_creations_and_deletions_that_were_cut_short_are_brought_to_an_end() {
    let creation = CREATION.iter().map(|(point, there)| (*point, true, *there));
    let deletion = DELETION.iter().map(|point| (*point, false, false));
    for (point, creates, there) in creation.chain(deletion) {
        eprintln!("killed at {point}");
        let house = House::new();
        let server = house.start_sealing(&[]);
        if !creates {
            make_tenant(&server, "acme");
            let _ = server.insert("acme", "t", &json!({"old": true}));
        }
        server.stop();
        let mut command = house.sealing(&["start", "--port", "0"]);
        let _ = command.env("FAILPOINTS", format!("tenants::relational::{point}=return"));
        let server = house.machine.start_command(command);
        let token = house.machine.token();
        let answer = match creates {
            true => {
                server.try_request_as(&token, "POST", "/api/tenants", Some(&json!({"id": "acme"})))
            }
            false => server.try_request_as(&token, "DELETE", "/api/tenants/acme", None),
        };
        assert!(answer.is_err(), "{point} was answered: {answer:?}");
        server.wait_until_killed();
        // From the first step of a deletion on, the key is gone.
        if !creates {
            let keys = house.sql("SELECT count(manifest) FROM {m}.tenants");
            assert_eq!(keys.trim(), "0", "{point}");
        }
        let server = house.start_sealing(&[]);
        assert_eq!(
            tenants(&server).contains(&"acme".to_owned()),
            there,
            "{point}"
        );
        if !there {
            make_tenant(&server, "acme");
        }
        let _ = server.insert("acme", "t", &json!({"new": true}));
        let listed = list(&server, "acme");
        assert_eq!(listed.len(), 1, "{point}");
        assert_eq!(listed[0]["new"], true, "{point}");
        server.stop();
    }
}

#[test]
fn what_a_sealed_index_cannot_answer_is_refused_and_says_what_it_can() {
    let house = House::new();
    let server = house.start_sealing(&[]);
    make_tenant(&server, "acme");
    let schema =
        json!({"table": "t", "indexes": [{"name": "by_n", "fields": ["n"], "unique": true}]});
    let (status, answer) = server.request("PUT", "/api/tenants/acme/schema/t", Some(&schema));
    assert_eq!(status, 204, "{answer}");
    for n in 0..3 {
        let _ = server.insert("acme", "t", &json!({"n": n, "m": n}));
    }
    let ask = |query: Value| server.request("POST", "/api/tenants/acme/query", Some(&query));
    let filter = |field: &str, op: &str, value: Value| json!({"table": "t", "filters": [{"field": field, "op": op, "value": value}]});
    for (query, count) in [
        (filter("n", "eq", json!(1.0)), 1),
        (filter("n", "in", json!([0, 2, 7])), 2),
        (filter("n", "exists", json!(false)), 0),
        // No index is on it: all are looked through.
        (filter("m", "gt", json!(0)), 2),
    ] {
        let (status, answer) = ask(query);
        assert_eq!(status, 200, "{answer}");
        let found = answer["data"].as_array().map(Vec::len);
        assert_eq!(found, Some(count), "{answer}");
    }
    for query in [
        filter("n", "gt", json!(0)),
        filter("n", "exists", json!(true)),
        json!({"table": "t", "order": {"field": "n", "direction": "asc"}}),
    ] {
        let (status, answer) = ask(query);
        assert_eq!(status, 400, "{answer}");
        let said = answer["error"]["message"].as_str().expect("a message");
        for words in ["by_n", "(n)", "eq and in", "out of the schema"] {
            assert!(said.contains(words), "{said}");
        }
    }
    let body = json!({"table": "t", "fields": {"n": 1}});
    let (status, answer) = server.request("POST", "/api/tenants/acme/documents", Some(&body));
    assert_eq!(status, 409, "{answer}");
    server.stop();
}
