//! Limits on what is stored: a tenant's own, and what is kept free on the disk for all.

use std::fs;
use std::time::{Duration, Instant};

use nimbus_test_support::Server;
use serde_json::{Value, json};

use super::deploy::{file, with_files};
use super::disk::Disk;
use super::{assert_error, machine};

const FULL: (u16, &str) = (507, "rate.resource_exhausted");

#[test]
fn a_tenant_at_its_limit_takes_deletes_alone_until_there_is_room_and_others_go_on() {
    let machine = machine();
    let arguments = &["--max-tenant-bytes", "1MiB"];
    let server = machine.start(arguments);
    for tenant in ["demo", "other"] {
        server.create("/api/tenants", &json!({"id": tenant}));
    }
    let mut ids = fill(&server);
    assert!(ids.len() > 10, "{}", ids.len());
    let on_disk: u64 = ["demo.sqlite3", "demo.sqlite3-wal"]
        .iter()
        .filter_map(|name| fs::metadata(machine.data_dir().join(name)).ok())
        .map(|file| file.len())
        .sum();
    assert!(on_disk < 2 << 20, "{on_disk}");
    assert_only_deletes(&server, &ids[0]);
    // After a restart, too.
    server.stop();
    let server = machine.start(arguments);
    assert_only_deletes(&server, &ids[0]);
    server.insert("other", "things", &json!({}));
    assert_eq!(check(&server, "tenant-size")["verdict"], "problem");
    let (_, metrics) = server.request("GET", "/metrics", None);
    let metrics = metrics.as_str().expect("text");
    let refused = "nimbus_writes_refused_total{reason=\"tenant_limit\"}";
    let line = metrics.lines().find(|line| line.starts_with(refused));
    let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(count > Some(5), "{line:?}");

    let first = ids.remove(0);
    let path = |id: &str| format!("/api/tenants/demo/documents/fill/{id}");
    assert_eq!(server.request("DELETE", &path(&first), None).0, 204);
    let half = ids.split_off(ids.len() / 2);
    let deletes: Vec<Value> = half
        .iter()
        .map(|id| json!({"type": "delete", "table": "fill", "id": id}))
        .collect();
    let batch = json!({"mutations": deletes});
    let (status, answer) = server.request("POST", "/api/tenants/demo/batch", Some(&batch));
    assert_eq!(status, 200, "{answer}");
    let patch = json!({"patch": {"n": 1}});
    assert_eq!(server.request("PATCH", &path(&ids[0]), Some(&patch)).0, 200);
    let again = fill(&server);
    assert!(
        again.len() > 5,
        "the room of what was deleted is used again"
    );
    server.stop();
}

/// The disk is filled by others. What makes room is let through for everybody, and nothing else.
#[test]
fn below_the_reserve_everybodys_writes_are_refused_and_what_makes_room_is_not() {
    let machine = machine();
    let Some(_disk) = Disk::mount(&machine.data_dir(), "size=32m,mode=0700") else {
        return;
    };
    let arguments = &["--disk-reserve-bytes", "8MiB"];
    let server = machine.start(arguments);
    for tenant in ["demo", "other", "third"] {
        server.create("/api/tenants", &json!({"id": tenant}));
    }
    let id = server.insert("demo", "fill", &json!({"n": 0}));
    let ballast = machine.data_dir().join("ballast");
    fs::write(&ballast, vec![1; 26 << 20]).expect("ballast");
    wait(|| insert(&server, "demo", 1).0 == 507);
    let (status, answer) = insert(&server, "other", 1);
    assert_error(status, &answer, FULL);
    assert_only_deletes(&server, &id);
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "late"})));
    assert_error(status, &answer, FULL);
    assert_eq!(check(&server, "disk-space")["verdict"], "problem");
    assert!(
        server.log().contains("the disk is nearly full"),
        "{}",
        server.log()
    );
    assert_eq!(server.get("/ready")["ready"], true);

    let path = format!("/api/tenants/demo/documents/fill/{id}");
    assert_eq!(server.get(&path)["document"]["n"], 0);
    assert_eq!(server.request("DELETE", &path, None).0, 204);
    assert_eq!(server.request("DELETE", "/api/tenants/third", None).0, 204);
    for verb in ["lock", "unlock"] {
        let path = format!("/api/admin/encryption/{verb}");
        let (status, answer) = server.request("POST", &path, Some(&json!({"tenant_id": "other"})));
        assert_eq!(status, 200, "{answer}");
    }
    for (verb, body) in [
        (
            "rotate-kek",
            json!({"path": machine.data_dir(), "all": true}),
        ),
        ("shred", json!({"tenant_id": "other"})),
    ] {
        let path = format!("/api/admin/encryption/{verb}");
        let (status, begun) = server.request("POST", &path, Some(&body));
        assert_eq!(status, 202, "{begun}");
        let operation = begun["operation"].as_str().expect("its id");
        let path = format!("/api/admin/operations/{operation}");
        wait(|| server.get(&path)["state"] != "running");
        assert_eq!(server.get(&path)["state"], "done", "{}", server.get(&path));
    }
    fs::remove_file(&ballast).expect("room is made");
    wait(|| insert(&server, "demo", 2).0 == 201);
    server.create("/api/tenants", &json!({"id": "late"}));
    // And a server that is stopped without room stops well.
    fs::write(&ballast, vec![1; 26 << 20]).expect("ballast");
    wait(|| insert(&server, "demo", 3).0 == 507);
    server.stop();
}

/// An index of a few large documents is as large as they are, and a schema may have 32.
#[test]
fn indexes_that_would_go_far_beyond_the_limit_are_undone_and_the_tenant_goes_on() {
    let machine = machine();
    let server = machine.start(&["--max-tenant-bytes", "8MiB"]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let large = json!({"table": "fat", "fields": {"text": "x".repeat(500_000)}});
    for _ in 0..4 {
        server.create("/api/tenants/demo/documents", &large);
    }
    let index = |n| json!({"name": format!("i{n}"), "fields": ["text", format!("f{n}")]});
    let schema =
        |count| json!({"table": "fat", "indexes": (0..count).map(index).collect::<Vec<_>>()});
    let path = "/api/tenants/demo/schema/fat";
    let (status, answer) = server.request("PUT", path, Some(&schema(32)));
    assert_error(status, &answer, FULL);
    assert_eq!(server.request("GET", path, None).0, 404);
    let on_disk: u64 = ["demo.sqlite3", "demo.sqlite3-wal"]
        .iter()
        .filter_map(|name| fs::metadata(machine.data_dir().join(name)).ok())
        .map(|file| file.len())
        .sum();
    assert!(on_disk < 24 << 20, "64 MB in all were asked for: {on_disk}");
    // What fits goes on, and a batch is measured as it goes.
    assert_eq!(insert(&server, "demo", 1).0, 201);
    assert_eq!(server.request("PUT", path, Some(&schema(1))).0, 204);
    let mutation =
        json!({"type": "insert", "table": "fat", "fields": {"text": "x".repeat(900_000)}});
    let batch = json!({"mutations": vec![mutation; 7]});
    let (status, answer) = server.request("POST", "/api/tenants/demo/batch", Some(&batch));
    assert_error(status, &answer, FULL);
    assert_eq!(
        insert(&server, "demo", 2).0,
        201,
        "all of the batch was undone"
    );
    server.stop();
}

/// What is remembered of a request grows the tenant, too.
#[test]
fn at_the_limit_checks_are_not_remembered_and_deletes_are() {
    let machine = machine();
    let server = machine.start(&["--max-tenant-bytes", "1MiB"]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let ids = fill(&server);
    let check = json!({"type": "check", "table": "fill", "id": "017f22e2-79b0-7cc3-98c4-dc0c0c07398f", "version": null});
    let delete = json!({"type": "delete", "table": "fill", "id": ids[0]});
    let token = machine.token();
    let send = |key: &str, mutations: &[&Value]| {
        let headers = [("idempotency-key", key)];
        let body = json!({"mutations": mutations});
        let path = "/api/tenants/demo/batch";
        let answer = server.try_request_with(&token, &headers, "POST", path, Some(&body));
        answer.expect("an answer")
    };
    for mutations in [&[][..], &[&check; 100][..]] {
        let (status, answer) = send("checks", mutations);
        assert_error(status, &answer, FULL);
    }
    let body = json!({"mutations": vec![check; 100]});
    let (status, answer) = server.request("POST", "/api/tenants/demo/batch", Some(&body));
    assert_eq!(status, 200, "{answer}");
    let deleted = send("delete", &[&delete]);
    assert_eq!(deleted.0, 200, "{}", deleted.1);
    assert_eq!(send("delete", &[&delete]), deleted, "it is remembered");
    server.stop();
}

/// Work that waits for room does not keep deletes waiting, but for those of documents that it names
/// itself.
#[test]
fn what_is_due_and_needs_no_room_goes_past_what_waits_for_room() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let large = json!({"text": "x".repeat(900_000)});
    let ids: Vec<String> = (0..3)
        .map(|_| server.insert("demo", "fat", &large))
        .collect();
    let small: Vec<String> = (0..2)
        .map(|n| server.insert("demo", "small", &json!({"n": n})))
        .collect();
    let schedule = |mutation: Value| {
        let body = json!({"run_after_ms": 5000, "mutation": mutation});
        let made = server.create("/api/tenants/demo/schedule", &body);
        made["job_id"].as_str().expect("an id").to_owned()
    };
    let delete = |id: &str| json!({"type": "delete", "table": "small", "id": id});
    let update = json!({"type": "update", "table": "small", "id": small[0], "patch": {"n": 2}});
    let waiting = [
        schedule(json!({"type": "insert", "table": "small", "fields": {}})),
        schedule(update),
        schedule(delete(&small[0])),
    ];
    let goes_past = schedule(delete(&small[1]));
    server.stop();
    let server = machine.start(&["--max-tenant-bytes", "1MiB"]);
    let history = |id: &str| {
        let path = format!("/api/tenants/demo/schedule/history/{id}");
        server.request("GET", &path, None)
    };
    wait(|| history(&goes_past).0 == 200);
    assert_eq!(history(&goes_past).1["result"]["outcome"], "succeeded");
    let listed = server.get("/api/tenants/demo/schedule");
    let listed: Vec<&str> = listed["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .filter_map(|job| job["id"].as_str())
        .collect();
    assert_eq!(listed, waiting);
    // Once there is room, all of them run, in their order.
    for id in &ids {
        let path = format!("/api/tenants/demo/documents/fat/{id}");
        assert_eq!(server.request("DELETE", &path, None).0, 204);
    }
    wait(|| history(&waiting[2]).0 == 200);
    for id in &waiting {
        assert_eq!(history(id).1["result"]["outcome"], "succeeded");
    }
    server.stop();
}

#[test]
fn limits_that_are_none_are_refused() {
    let machine = machine();
    for (arguments, word) in [
        (["--max-tenant-bytes", "1KiB"], "at least 1MiB"),
        (["--max-tenant-bytes", "some"], "no number of bytes"),
        (["--disk-reserve-bytes", "1GB"], "no number of bytes"),
    ] {
        let ended = machine.start_that_ends(&arguments);
        assert!(ended.status.code() != Some(0), "{}", ended.said);
        assert!(ended.said.contains(word), "{}", ended.said);
    }
}

/// Inserts into `demo` until no more is let in; the ids.
fn fill(server: &Server) -> Vec<String> {
    let document = json!({"table": "fill", "fields": {"text": "x".repeat(20_000)}});
    let mut ids = Vec::new();
    loop {
        let (status, answer) =
            server.request("POST", "/api/tenants/demo/documents", Some(&document));
        if status != 201 {
            let message = assert_error(status, &answer, FULL);
            assert!(message.contains("demo"), "{message}");
            return ids;
        }
        ids.push(answer["id"].as_str().expect("an id").to_owned());
        assert!(ids.len() < 1000, "there is no limit");
    }
}

fn insert(server: &Server, tenant: &str, n: u64) -> (u16, Value) {
    let body = json!({"table": "fill", "fields": {"n": n}});
    server.request(
        "POST",
        &format!("/api/tenants/{tenant}/documents"),
        Some(&body),
    )
}

/// Whatever makes `demo` grow is refused.
fn assert_only_deletes(server: &Server, id: &str) {
    let mutation = json!({"type": "insert", "table": "fill", "fields": {}});
    let delete = json!({"type": "delete", "table": "fill", "id": id});
    let schedule = json!({"type": "interval", "seconds": 3600});
    for (method, path, body) in [
        ("POST", "documents", json!({"table": "fill", "fields": {}})),
        ("POST", "batch", json!({"mutations": [delete, mutation]})),
        (
            "PUT",
            "schema/typed",
            json!({"table": "typed", "fields": [], "indexes": []}),
        ),
        (
            "POST",
            "deploy",
            with_files("app", &[file("index.html", b"hello")]),
        ),
        (
            "POST",
            "schedule",
            json!({"run_after_ms": 3_600_000, "mutation": mutation}),
        ),
        (
            "POST",
            "crons",
            json!({"name": "c", "schedule": schedule, "mutation": mutation}),
        ),
        (
            "PATCH",
            &format!("documents/fill/{id}"),
            json!({"patch": {"n": 1}}),
        ),
    ] {
        let path = format!("/api/tenants/demo/{path}");
        let (status, answer) = server.request(method, &path, Some(&body));
        assert_error(status, &answer, FULL);
    }
}

/// What `doctor` says of one thing.
fn check(server: &Server, name: &str) -> Value {
    let found = server.get("/debug/doctor");
    let checks = found["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == name);
    check
        .unwrap_or_else(|| panic!("no {name}: {found}"))
        .clone()
}

/// The disk is looked at once a second.
fn wait(mut until: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !until() {
        assert!(Instant::now() < patience, "it does not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}
