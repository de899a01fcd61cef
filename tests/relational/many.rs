//! Two servers on one database: what one does, the other knows.

use std::time::Duration;

use nimbus_test_support::Server;
use serde_json::{Value, json};

use super::{House, journal, make_tenant, refused_at_last, tenants};
use nimbus_test_support::until;

fn make_key(server: &Server, scope: &str) -> (String, String) {
    let body = json!({"name": "of a client", "scope": scope});
    let mut made = server.create("/api/tenants/acme/keys", &body);
    let mut take = |name: &str| match made[name].take() {
        Value::String(text) => text,
        other => panic!("{name}: {other}"),
    };
    (take("id"), take("key"))
}

fn ask(server: &Server, key: &str) -> (u16, Value) {
    let path = "/api/tenants/acme/documents/t";
    server
        .try_request_as(key, "GET", path, None)
        .expect("an answer")
}

#[test]
fn what_one_server_makes_the_other_has_at_once() {
    let house = House::new();
    let (one, other) = (house.start(), house.beside());
    let other = other.start();
    for round in 0..3 {
        eprintln!("round {round}");
        make_tenant(&one, "acme");
        assert_eq!(tenants(&other), ["acme"]);
        let (_id, key) = make_key(&one, "write");
        assert_eq!(ask(&other, &key).0, 200);
        for n in 0..20 {
            let (writer, reader) = if n % 2 == 0 {
                (&one, &other)
            } else {
                (&other, &one)
            };
            let id = writer.insert("acme", "t", &json!({"n": n}));
            let read = reader.get(&format!("/api/tenants/acme/documents/t/{id}"));
            assert_eq!(read["document"]["n"], n, "{read}");
        }
        // A schema with an index: the next write through the other server is held to it.
        let schema =
            json!({"table": "t", "indexes": [{"name": "n", "fields": ["n"], "unique": true}]});
        let path = "/api/tenants/acme/schema/t";
        assert_eq!(one.request("PUT", path, Some(&schema)).0, 204);
        let twice = json!({"table": "t", "fields": {"n": 7}});
        let documents = "/api/tenants/acme/documents";
        assert_eq!(other.request("POST", documents, Some(&twice)).0, 409);
        assert_eq!(other.request("DELETE", path, None).0, 204);
        assert_eq!(one.request("POST", documents, Some(&twice)).0, 201);
        // What is deployed.
        for (content, hash) in [("PGgxPmhpPC9oMT4=", HI), ("aGk=", PLAIN_HI)] {
            let file = json!({"path": "index.html", "sha256": hash, "content_base64": content});
            let deploy = json!({"name": "app", "schemas": [], "crons": [], "files": [file]});
            let made = one.create("/api/tenants/acme/deploy", &deploy);
            let active = other.get("/api/tenants/acme/deploy");
            assert_eq!(active["active"], made["generation"], "{active}");
        }
        let numbers = journal(&other, "acme");
        let expected: Vec<i64> = (1..=numbers.len() as i64).collect();
        assert_eq!(numbers, expected);
        let (gone, kept) = if round % 2 == 0 {
            (&one, &other)
        } else {
            (&other, &one)
        };
        assert_eq!(gone.request("DELETE", "/api/tenants/acme", None).0, 204);
        let path = "/api/tenants/acme/documents/t";
        assert_eq!(kept.request("GET", path, None).0, 404);
        assert_eq!(tenants(kept), [""; 0]);
        assert_eq!(ask(kept, &key).0, 401, "its keys went with it");
    }
    one.stop();
    other.stop();
}

#[test]
fn a_tenant_of_a_reused_name_is_never_taken_for_the_one_before() {
    let house = House::new();
    let (one, other) = (house.start(), house.beside());
    let other = other.start();
    let mut keys: Vec<String> = Vec::new();
    for round in 0..10 {
        make_tenant(&one, "acme");
        for key in &keys {
            let (status, answer) = ask(&other, key);
            assert!(
                status == 401 || status == 503,
                "a key of an earlier tenant: {status} {answer}"
            );
        }
        keys.push(make_key(&one, "read").1);
        for table in 0..round {
            let _ = one.insert("acme", &format!("t{table}"), &json!({"round": round}));
        }
        let _ = one.insert("acme", "t", &json!({"round": round}));
        // It may be told to try again where it still has the one before open, and nothing else.
        until("the new tenant is read", || {
            let (status, answer) = other.request("GET", "/api/tenants/acme/documents/t", None);
            assert!(status == 200 || status == 503, "{status} {answer}");
            if status == 200 {
                assert_eq!(answer["data"][0]["round"], round, "{answer}");
                assert_eq!(answer["data"].as_array().map(Vec::len), Some(1));
            }
            status == 200
        });
        assert_eq!(one.request("DELETE", "/api/tenants/acme", None).0, 204);
    }
    one.stop();
    other.stop();
}

#[test]
fn a_revoked_key_and_a_locked_tenant_are_refused_by_every_server_within_a_second() {
    let house = House::new();
    let (one, beside) = (house.start(), house.beside());
    let other = beside.start();
    make_tenant(&one, "acme");
    let _ = one.insert("acme", "t", &json!({"n": 1}));
    let (id, key) = make_key(&one, "read");
    let (_, kept) = make_key(&other, "read");
    assert_eq!((ask(&one, &key).0, ask(&other, &key).0), (200, 200));
    let revoked = one.request("DELETE", &format!("/api/tenants/acme/keys/{id}"), None);
    assert_eq!(revoked.0, 204);
    assert_eq!(ask(&one, &key).0, 401, "at once where it was revoked");
    std::thread::sleep(Duration::from_secs(1));
    let (status, answer) = ask(&other, &key);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (401, &json!("auth.token_revoked"))
    );
    assert_eq!(ask(&one, &kept).0, 200);
    // A lock by a command, which reaches the server of its machine.
    let run = |house: &House, verb: &str| {
        let command = house.nimbus(&["encryption", verb, "--tenant-id", "acme"]);
        house.machine.run_to_end(command)
    };
    run(&beside, "lock").expect(0, &["is locked"]);
    let path = "/api/tenants/acme/documents/t";
    assert_eq!(other.request("GET", path, None).0, 503);
    let (status, answer) = refused_at_last(&one, path);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (503, &json!("encryption.key_revoked"))
    );
    assert_eq!(ask(&one, &kept).0, 503);
    // It outlives both servers, and is ended without one.
    one.stop();
    other.stop();
    let one = house.start();
    assert_eq!(one.request("GET", path, None).0, 503);
    run(&beside, "unlock").expect(0, &["is unlocked"]);
    until("it is served again", || ask(&one, &kept).0 == 200);
    one.stop();
}

#[test]
fn a_job_that_was_scheduled_at_a_server_that_is_gone_is_run_by_another() {
    let house = House::new();
    let (one, beside) = (house.start(), house.beside());
    let other = beside.start();
    make_tenant(&one, "acme");
    let schedule = |n: i64, after: i64| {
        let mutation = json!({"type": "insert", "table": "done", "fields": {"n": n}});
        let job = json!({"run_after_ms": after, "mutation": mutation});
        let _made = one.create("/api/tenants/acme/schedule", &job);
    };
    for n in 0..20 {
        schedule(n, 100 * n);
    }
    let cron = json!({"name": "tick", "schedule": {"type": "interval", "seconds": 1},
        "mutation": {"type": "insert", "table": "ticks", "fields": {}}});
    let _made = one.create("/api/tenants/acme/crons", &cron);
    one.kill();
    let done = || other.list("/api/tenants/acme/documents/done", "data", 100);
    until("all jobs ran", || done().len() == 20);
    let mut ran: Vec<i64> = done()
        .iter()
        .map(|one| one["n"].as_i64().expect("a number"))
        .collect();
    ran.sort_unstable();
    assert_eq!(ran, (0..20).collect::<Vec<_>>(), "each once");
    let ticks = || {
        other
            .list("/api/tenants/acme/documents/ticks", "data", 100)
            .len()
    };
    let before = ticks();
    until("the cron goes on", || ticks() > before + 1);
    other.stop();
}

#[test]
fn a_fault_in_what_looks_at_other_servers_ends_nothing() {
    let house = House::new();
    let one = house.start();
    let beside = house.beside();
    let other = beside.start_armed("tenants::relational::watch=1*panic");
    make_tenant(&one, "acme");
    let (id, key) = make_key(&one, "read");
    assert_eq!(ask(&other, &key).0, 200);
    until("it panicked, and runs again", || {
        let log = other.log();
        // Until it runs again the server is not ready.
        log.contains("shared-tenants") && other.request("GET", "/ready", None).0 == 200
    });
    let path = format!("/api/tenants/acme/keys/{id}");
    assert_eq!(one.request("DELETE", &path, None).0, 204);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(ask(&other, &key).0, 401);
    one.stop();
    other.stop();
}

const HI: &str = "e7fbb6fbbf4ce294913eb62b53ff03a7546649cfdc0d824d9e3a2b4541502f7f";
const PLAIN_HI: &str = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4";

#[test]
fn usage_adds_up_what_each_server_counted() {
    let house = House::new();
    // One master key for both.
    house.start().stop();
    let key = house.machine.master_key();
    let keyed = |of: &House, arguments: &[&str]| {
        let mut command = of.nimbus(arguments);
        let _ = command
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file")
            .env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &key);
        command
    };
    let beside = house.beside();
    let start = |of: &House| {
        of.machine
            .start_command(keyed(of, &["start", "--port", "0"]))
    };
    let (first, second) = (start(&house), start(&beside));
    make_tenant(&first, "acme");
    let (_id, secret) = make_key(&first, "read");
    for (server, names) in [(&first, ["ann", "bob"]), (&second, ["bob", "eve"])] {
        for name in names {
            let asked = server.try_request_with(
                &secret,
                &[("X-Nimbus-Identity", name)],
                "GET",
                "/api/tenants/acme/documents/t",
                None,
            );
            assert_eq!(asked.expect("an answer").0, 200);
        }
    }
    // A stop counts what waits; the other server goes on.
    second.stop();
    let dirs = [&house, &beside].map(|of| of.machine.data_dir());
    let dirs = dirs.each_ref().map(|dir| dir.to_str().expect("UTF-8"));
    let usage = |dirs: &[&str]| {
        let mut arguments = vec!["usage", "--format", "json"];
        for dir in dirs {
            arguments.extend(["--control-data-dir", dir]);
        }
        let output = keyed(&house, &arguments).output().expect("nimbus runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), answer, said)
    };
    let counted = |dirs: &[&str]| {
        let (code, answer, said) = usage(dirs);
        assert_eq!(code, Some(0), "{said}");
        answer["months"][0]["tenants"][0]["identities"].clone()
    };
    assert_eq!(counted(&dirs[1..]), 2);
    until("the first server has counted", || counted(&dirs[..1]) == 2);
    assert_eq!(counted(&dirs), 4, "who used both counts at both");
    let (code, _, said) = usage(&[dirs[0], dirs[0]]);
    assert_eq!(code, Some(1));
    assert!(said.contains("named twice"), "{said}");
    let (code, _, said) = usage(&["/nowhere"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no control file"), "{said}");
    first.stop();
}
