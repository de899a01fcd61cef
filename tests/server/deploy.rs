//! Deploys over HTTP: whole or not at all, and what is said of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use data_encoding::{BASE64, HEXLOWER};
use nimbus_test_support::{Machine, Server, whole};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{assert_error, assert_refused, demo, post, send};

pub(super) const DEPLOY: &str = "/api/tenants/demo/deploy";

pub(super) fn hash(content: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(content))
}

pub(super) fn file(path: &str, content: &[u8]) -> Value {
    json!({"path": path, "sha256": hash(content), "content_base64": BASE64.encode(content)})
}

pub(super) fn with_files(name: &str, files: &[Value]) -> Value {
    json!({"name": name, "schemas": [], "crons": [], "files": files})
}

pub(super) fn deploy(server: &Server, deploy: &Value) -> Value {
    server.create(DEPLOY, deploy)
}

fn schema(table: &str, required: &[&str]) -> Value {
    let fields: Vec<_> = required
        .iter()
        .map(|name| json!({"name": name, "field_type": "string", "required": true}))
        .collect();
    json!({"table": table, "fields": fields, "indexes": []})
}

fn cron(name: &str, seconds: u64) -> Value {
    json!({"name": name, "schedule": {"type": "interval", "seconds": seconds},
           "mutation": {"type": "insert", "table": "ticks", "fields": {"by": name}}})
}

fn names(names: &[&str]) -> Value {
    json!({"count": names.len(), "names": names})
}

fn changes(added: &[&str], changed: &[&str], removed: &[&str], unchanged: usize) -> Value {
    json!({"added": names(added), "changed": names(changed), "removed": names(removed), "unchanged": unchanged})
}

/// What stands of a tenant's state beside its documents, without what moves by itself.
fn standing(server: &Server) -> Value {
    let crons = server.get("/api/tenants/demo/crons")["crons"].take();
    let crons: Vec<Value> = crons
        .as_array()
        .expect("crons")
        .iter()
        .map(|cron| json!([cron["name"], cron["schedule"], cron["origin"]]))
        .collect();
    json!({
        "deploys": server.get(DEPLOY),
        "schemas": server.get("/api/tenants/demo/schema"),
        "crons": crons,
    })
}

/// The text of a file that is served; none when there is none.
pub(super) fn served(machine: &Machine, server: &Server, path: &str) -> Option<String> {
    let answer = send(machine, server, &format!("GET /apps/demo/{path}"), "", b"");
    if answer.status == 404 {
        assert_refused(&answer, 404, "op.document_not_found");
        return None;
    }
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    Some(String::from_utf8(answer.bytes().to_vec()).expect("text"))
}

#[test]
fn a_deploy_is_stored_activated_and_can_be_gone_back_to() {
    let (machine, server) = demo();
    assert_eq!(
        server.get(DEPLOY),
        json!({"active": null, "generations": []})
    );
    assert_eq!(served(&machine, &server, "index.html"), None);

    let first = json!({
        "name": "first",
        "schemas": [schema("places", &["name"]), schema("visits", &[])],
        "crons": [cron("hourly", 3600), cron("daily", 86400)],
        "files": [file("index.html", b"one"), file("a.js", b"same"), file("old.txt", b"old")],
    });
    assert_eq!(
        deploy(&server, &first),
        json!({"generation": 1, "previous_generation": null, "activated": true, "diff": {
            "files": changes(&["a.js", "index.html", "old.txt"], &[], &[], 0),
            "schemas": changes(&["places", "visits"], &[], &[], 0),
            "crons": changes(&["daily", "hourly"], &[], &[], 0),
        }})
    );
    let after_first = standing(&server);
    assert_eq!(
        served(&machine, &server, "index.html").as_deref(),
        Some("one")
    );

    let second = json!({
        "name": "second",
        "schemas": [schema("places", &["name", "zip"]), schema("shops", &[])],
        "crons": [cron("hourly", 7200), cron("weekly", 604800)],
        "files": [file("index.html", b"two"), file("a.js", b"same"), file("new.txt", b"new")],
    });
    let diff = json!({
        "files": changes(&["new.txt"], &["index.html"], &["old.txt"], 1),
        "schemas": changes(&["shops"], &["places"], &["visits"], 0),
        "crons": changes(&["weekly"], &["hourly"], &["daily"], 0),
    });
    assert_eq!(
        deploy(&server, &second),
        json!({"generation": 2, "previous_generation": 1, "activated": true, "diff": diff})
    );
    let after_second = standing(&server);
    let tables = after_second["schemas"]["tables"]
        .as_object()
        .expect("tables");
    assert_eq!(tables.keys().collect::<Vec<_>>(), ["places", "shops"]);
    assert_eq!(
        served(&machine, &server, "index.html").as_deref(),
        Some("two")
    );
    assert_eq!(served(&machine, &server, "old.txt"), None);
    let body = json!({"table": "places", "fields": {"name": "x"}});
    let (status, answer) = server.request("POST", "/api/tenants/demo/documents", Some(&body));
    assert_error(status, &answer, (400, "op.schema_validation"));

    let (status, answer) = server.request("POST", &format!("{DEPLOY}/1/activate"), None);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer,
        json!({"generation": 1, "previous_generation": 2, "activated": true, "diff": {
            "files": changes(&["old.txt"], &["index.html"], &["new.txt"], 1),
            "schemas": changes(&["visits"], &["places"], &["shops"], 0),
            "crons": changes(&["daily"], &["hourly"], &["weekly"], 0),
        }})
    );
    let again = standing(&server);
    assert_eq!(again["schemas"], after_first["schemas"]);
    assert_eq!(again["crons"], after_first["crons"]);
    assert_eq!(
        served(&machine, &server, "index.html").as_deref(),
        Some("one")
    );
    assert_eq!(served(&machine, &server, "old.txt").as_deref(), Some("old"));

    let listed = server.get(DEPLOY);
    assert_eq!(listed["active"], 1);
    let generations = listed["generations"].as_array().expect("generations");
    let shown: Vec<_> = generations
        .iter()
        .map(|generation| {
            assert!(generation["created_at"].as_i64() > Some(1_600_000_000_000));
            json!([
                generation["generation"],
                generation["name"],
                generation["schemas"],
                generation["crons"],
                generation["files"],
                generation["bytes"]
            ])
        })
        .collect();
    assert_eq!(
        shown,
        [
            json!([2, "second", 2, 2, 3, 10]),
            json!([1, "first", 2, 2, 3, 10])
        ]
    );

    // All of it is there after a restart.
    let before = standing(&server);
    server.stop();
    let server = machine.start(&[]);
    assert_eq!(standing(&server), before);
    assert_eq!(served(&machine, &server, "a.js").as_deref(), Some("same"));
}

#[test]
fn a_dry_run_says_what_a_deploy_would_do_and_does_nothing() {
    let (machine, server) = demo();
    server.insert("demo", "places", &json!({"name": "x"}));
    deploy(
        &server,
        &with_files("first", &[file("a", b"1"), file("b", b"1")]),
    );
    let before = standing(&server);
    let mut next = json!({
        "name": "next",
        "schemas": [schema("places", &["name"]), schema("not-there-yet", &[])],
        "crons": [cron("hourly", 3600)],
        "files": [file("a", b"2"), file("b", b"1")],
        "dry_run": true,
    });
    let (status, answer) = server.request("POST", DEPLOY, Some(&next));
    assert_eq!(status, 200, "{answer}");
    let diff = json!({
        "files": changes(&[], &["a"], &[], 1),
        "schemas": changes(&["not-there-yet", "places"], &[], &[], 0),
        "crons": changes(&["hourly"], &[], &[], 0),
    });
    assert_eq!(
        answer,
        json!({"generation": null, "previous_generation": 1, "activated": false, "diff": diff})
    );
    assert_eq!(standing(&server), before);
    assert_eq!(served(&machine, &server, "a").as_deref(), Some("1"));
    // What the writer learned of the table that came to be in the rehearsal, it has forgotten.
    server.insert("demo", "not-there-yet", &json!({"n": 1}));
    server.insert("demo", "places", &json!({"n": 1}));

    // Now that a document stands in the way, both are refused, and say the same.
    let (status, rehearsed) = server.request("POST", DEPLOY, Some(&next));
    let said = assert_error(status, &rehearsed, (400, "op.schema_validation"));
    next["dry_run"] = json!(false);
    let (status, refused) = server.request("POST", DEPLOY, Some(&next));
    assert_eq!(
        assert_error(status, &refused, (400, "op.schema_validation")),
        said
    );
    assert!(said.contains("places"), "{said}");
    assert_eq!(standing(&server), before);
}

#[test]
fn a_deploy_that_is_refused_changes_nothing_and_generations_can_be_activated_after_it() {
    let (machine, server) = demo();
    for (name, content) in [("one", "1"), ("two", "2")] {
        let mut app = with_files(name, &[file("a", content.as_bytes())]);
        app["schemas"] = json!([schema("settled", &["name"])]);
        app["crons"] = json!([cron("hourly", 3600)]);
        deploy(&server, &app);
    }
    server.insert("demo", "places", &json!({"n": 1}));
    server.create("/api/tenants/demo/crons", &cron("by-hand", 60));
    let before = standing(&server);
    let mut offended = with_files("three", &[file("a", b"3")]);
    // Everything that comes before what is refused is undone with it.
    offended["schemas"] = json!([schema("another", &["x"]), schema("places", &["name"])]);
    offended["crons"] = json!([cron("daily", 86400)]);
    let (status, answer) = server.request("POST", DEPLOY, Some(&offended));
    let message = assert_error(status, &answer, (400, "op.schema_validation"));
    assert!(message.contains("places"), "{message}");
    assert_eq!(standing(&server), before);

    // A cron that somebody made by hand is not taken over.
    let mut owned = with_files("three", &[file("a", b"3")]);
    owned["crons"] = json!([cron("by-hand", 3600)]);
    for dry_run in [true, false] {
        owned["dry_run"] = json!(dry_run);
        let (status, answer) = server.request("POST", DEPLOY, Some(&owned));
        let message = assert_error(status, &answer, (409, "op.conflict"));
        assert!(message.contains("by-hand"), "{message}");
    }
    assert_eq!(standing(&server), before);
    assert_eq!(served(&machine, &server, "a").as_deref(), Some("2"));

    let (status, answer) = server.request("POST", &format!("{DEPLOY}/1/activate"), None);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(served(&machine, &server, "a").as_deref(), Some("1"));
    // The next one gets the next number: none was lost with what was refused.
    let next = deploy(&server, &with_files("three", &[]));
    assert_eq!(
        (&next["generation"], &next["previous_generation"]),
        (&json!(3), &json!(1))
    );
}

#[test]
fn an_earlier_generation_that_does_not_fit_the_documents_any_more_is_refused_whole() {
    let (machine, server) = demo();
    let mut strict = with_files("strict", &[file("a", b"strict")]);
    strict["schemas"] = json!([schema("places", &["name"])]);
    deploy(&server, &strict);
    deploy(&server, &with_files("loose", &[file("a", b"loose")]));
    let id = server.insert("demo", "places", &json!({"n": 1}));
    let before = standing(&server);
    let (status, answer) = server.request("POST", &format!("{DEPLOY}/1/activate"), None);
    let message = assert_error(status, &answer, (400, "op.schema_validation"));
    assert!(message.contains(&id), "{message}");
    assert_eq!(standing(&server), before);
    assert_eq!(served(&machine, &server, "a").as_deref(), Some("loose"));
    let (status, _) = server.request(
        "DELETE",
        &format!("/api/tenants/demo/documents/places/{id}"),
        None,
    );
    assert_eq!(status, 204);
    let (status, answer) = server.request("POST", &format!("{DEPLOY}/1/activate"), None);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn schemas_put_or_changed_by_hand_are_left_and_those_of_deploys_go() {
    let (_machine, server) = demo();
    let put = |table: &str, required: &[&str]| {
        let path = format!("/api/tenants/demo/schema/{table}");
        let (status, answer) = server.request("PUT", &path, Some(&schema(table, required)));
        assert_eq!(status, 204, "{answer}");
    };
    let tables = || -> Vec<String> {
        let schemas = server.get("/api/tenants/demo/schema")["tables"].take();
        schemas
            .as_object()
            .expect("tables")
            .keys()
            .cloned()
            .collect()
    };
    put("by-hand", &["a"]);
    put("taken-over", &["a"]);
    let mut first = with_files("first", &[]);
    first["schemas"] = json!([
        schema("changed", &["a"]),
        schema("ours", &["a"]),
        schema("taken-over", &["b"])
    ]);
    let answer = deploy(&server, &first);
    assert_eq!(
        answer["diff"]["schemas"],
        changes(&["changed", "ours"], &["taken-over"], &[], 0)
    );
    put("changed", &["b"]);
    let answer = deploy(&server, &with_files("second", &[]));
    assert_eq!(
        answer["diff"]["schemas"],
        changes(&[], &[], &["ours", "taken-over"], 0)
    );
    assert_eq!(tables(), ["by-hand", "changed"]);

    // A generation that is active is activated again to undo what was done by hand since.
    server.request("POST", &format!("{DEPLOY}/1/activate"), None);
    put("ours", &["c"]);
    let (status, _) = server.request("DELETE", "/api/tenants/demo/schema/taken-over", None);
    assert_eq!(status, 204);
    let (status, answer) = server.request("POST", &format!("{DEPLOY}/1/activate"), None);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer["diff"]["schemas"],
        changes(&["taken-over"], &["ours"], &[], 1)
    );
    assert_eq!(answer["previous_generation"], 1);
}

#[test]
fn deploys_that_are_not_right_are_refused_whole_and_say_why() {
    let (machine, server) = demo();
    let before = standing(&server);
    let good = file("index.html", b"<h1>");
    let mut wrong_hash = file("b", b"content");
    wrong_hash["sha256"] = json!(hash(b"other content"));
    let mut no_base64 = file("b", b"content");
    no_base64["content_base64"] = json!("Y29udGVudA");
    let mut more = file("b", b"");
    more["mode"] = json!(0o644);
    let wrong = |files: &[Value]| with_files("v1", &[std::slice::from_ref(&good), files].concat());
    let with = |member: &str, value: Value| {
        let mut deploy = wrong(&[]);
        deploy[member] = value;
        deploy
    };
    let long = format!("{}/a", vec!["n".repeat(200); 6].join("/"));
    let cases = [
        (
            wrong(&[file("index.html", b"2")]),
            "two files have the path \"index.html\"",
        ),
        (
            wrong(&[file("cafe\u{301}", b""), file("caf\u{e9}", b"")]),
            "two files have the path",
        ),
        (
            wrong(&[file("index.html/a", b"")]),
            "is a file, and another file lies in",
        ),
        (wrong(&[wrong_hash]), "and the deploy says"),
        (wrong(&[no_base64]), "is not base64"),
        (wrong(&[more]), "is not a field here"),
        (
            wrong(&[json!({"path": "b", "sha256": hash(b"")})]),
            "is missing",
        ),
        (wrong(&[file("", b"")]), "it is empty"),
        (wrong(&[file("/etc/passwd", b"")]), "empty name"),
        (wrong(&[file("../index.html", b"")]), "\\\"..\\\""),
        (wrong(&[file("a/../../b", b"")]), "\\\"..\\\""),
        (wrong(&[file("./a", b"")]), "\\\".\\\""),
        (wrong(&[file("a//b", b"")]), "empty name"),
        (wrong(&[file("a/", b"")]), "empty name"),
        (
            wrong(&[file("..\\a", b"")]),
            "backslash or a control character",
        ),
        (
            wrong(&[file("a\0b", b"")]),
            "backslash or a control character",
        ),
        (
            wrong(&[file("a\nb", b"")]),
            "backslash or a control character",
        ),
        (wrong(&[file(&long, b"")]), "more than 1024 bytes"),
        (wrong(&[file(&"n".repeat(256), b"")]), "more than 255 bytes"),
        (
            with("schemas", json!([schema("t", &[]), schema("t", &[])])),
            "two schemas are for table t",
        ),
        (
            with("schemas", json!([schema("_t", &[])])),
            "schema 0 of the deploy",
        ),
        (
            with("schemas", json!([{"table": "t", "fields": 1}])),
            "schema 0 of the deploy",
        ),
        (
            with("crons", json!([cron("c", 1), cron("c", 2)])),
            "two crons have the name c",
        ),
        (with("crons", json!([cron("c", 0)])), "cron 0 of the deploy"),
        (with("crons", json!(null)), "a list of at most"),
        (with("name", json!("")), "the deploy's name is not valid"),
        (
            with("name", json!("a\nb")),
            "the deploy's name is not valid",
        ),
        (with("dry_run", json!("yes")), "true or false is expected"),
        (with("more", json!(1)), "is not a field here"),
    ];
    for (deploy, why) in cases {
        for dry_run in [false, true] {
            let mut deploy = deploy.clone();
            if dry_run && deploy["dry_run"].is_null() {
                deploy["dry_run"] = json!(true);
            }
            let answer = post(&machine, &server, DEPLOY, deploy.to_string().as_bytes());
            let message = assert_refused(&answer, 400, "op.invalid_input");
            let why = why.replace("\\\"", "\"");
            assert!(message.contains(&why), "{why}: {message}");
        }
    }
    for body in ["", "[]", "null", "{}", r#"{"name":"a","name":"b"}"#] {
        let answer = post(&machine, &server, DEPLOY, body.as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
    }
    assert_eq!(standing(&server), before);

    let good = with_files("v1", &[good]);
    let (status, answer) = server.request("POST", "/api/tenants/nobody/deploy", Some(&good));
    assert_error(status, &answer, (404, "session.tenant_not_found"));
    for (generation, expected) in [
        ("1", (404, "op.document_not_found")),
        ("9223372036854775807", (404, "op.document_not_found")),
        ("9223372036854775808", (400, "op.invalid_input")),
        ("0", (400, "op.invalid_input")),
        ("-1", (400, "op.invalid_input")),
        ("01", (400, "op.invalid_input")),
        ("+1", (400, "op.invalid_input")),
        ("one", (400, "op.invalid_input")),
    ] {
        let path = format!("{DEPLOY}/{generation}/activate");
        let (status, answer) = server.request("POST", &path, None);
        assert_error(status, &answer, expected);
    }
}

#[test]
fn ten_thousand_files_are_deployed_at_once_and_one_more_is_refused() {
    let (machine, server) = demo();
    let many = |count: usize, changed: usize| -> Value {
        let files: Vec<_> = (0..count)
            .map(|n| {
                let content = format!("content {n}{}", if n < changed { "!" } else { "" });
                file(&format!("d{}/{n}.txt", n % 100), content.as_bytes())
            })
            .collect();
        with_files("many", &files)
    };
    let answer = deploy(&server, &many(10_000, 0));
    let added = &answer["diff"]["files"]["added"];
    assert_eq!(added["count"], 10_000);
    assert_eq!(added["names"].as_array().map(Vec::len), Some(100));
    assert_eq!(
        served(&machine, &server, "d99/9999.txt").as_deref(),
        Some("content 9999")
    );
    let answer = deploy(&server, &many(10_000, 3));
    assert_eq!(
        answer["diff"]["files"],
        changes(&[], &["d0/0.txt", "d1/1.txt", "d2/2.txt"], &[], 9_997)
    );
    let (status, answer) = server.request("POST", DEPLOY, Some(&many(10_001, 0)));
    let message = assert_error(status, &answer, (400, "op.invalid_input"));
    assert!(message.contains("at most 10000"), "{message}");

    // As large as a body may be, and larger.
    let rest = |size: usize| {
        let body = with_files("large", &[file("large", &vec![7; size])]);
        post(&machine, &server, DEPLOY, body.to_string().as_bytes())
    };
    assert_eq!(rest(12 * 1024 * 1024 - 1024).status, 201);
    assert_refused(&rest(12 * 1024 * 1024), 413, "op.invalid_input");
}

#[test]
fn the_last_fifty_generations_are_kept() {
    let (machine, server) = demo();
    for n in 1..=52 {
        let own = format!("own {n}");
        let app = with_files("v", &[file("own", own.as_bytes()), file("same", b"same")]);
        deploy(&server, &app);
    }
    let listed = server.get(DEPLOY);
    let generations = listed["generations"].as_array().expect("generations");
    let numbers: Vec<_> = generations
        .iter()
        .map(|one| one["generation"].clone())
        .collect();
    assert_eq!(json!(numbers), json!((3..=52).rev().collect::<Vec<_>>()));
    let (status, answer) = server.request("POST", &format!("{DEPLOY}/2/activate"), None);
    let message = assert_error(status, &answer, (404, "op.document_not_found"));
    assert!(message.contains("the last 50"), "{message}");
    let (status, _) = server.request("POST", &format!("{DEPLOY}/3/activate"), None);
    assert_eq!(status, 200);
    assert_eq!(served(&machine, &server, "own").as_deref(), Some("own 3"));
    // The active one is the oldest; it goes when it is not the active one any more, and what others
    // have of it stays.
    let app = with_files("v", &[file("own", b"own 53"), file("same", b"same")]);
    assert_eq!(deploy(&server, &app)["previous_generation"], 3);
    let (status, _) = server.request("POST", &format!("{DEPLOY}/3/activate"), None);
    assert_eq!(status, 404);
    assert_eq!(served(&machine, &server, "same").as_deref(), Some("same"));
}

#[test]
fn documents_inserted_during_a_deploy_fit_its_schema_or_it_is_refused() {
    let (_machine, server) = demo();
    for n in 0..200 {
        server.insert("demo", "places", &json!({"name": "early", "n": n}));
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _writers: Vec<_> = (0..3)
            .map(|writer| {
                let (server, stop) = (&server, &stop);
                scope.spawn(move || {
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let fields = if n % 4 == 0 {
                            json!({})
                        } else {
                            json!({"name": "x", "w": writer})
                        };
                        let body = json!({"table": "places", "fields": fields});
                        let (status, answer) =
                            server.request("POST", "/api/tenants/demo/documents", Some(&body));
                        assert!(matches!(status, 201 | 400), "{status}: {answer}");
                    }
                })
            })
            .collect();
        for round in 0..20 {
            // Strict and loose in turn: while it is loose, documents come that are in the strict
            // one's way.
            let mut app = with_files("v", &[file("round", format!("{round}").as_bytes())]);
            if round % 2 == 0 {
                app["schemas"] = json!([schema("places", &["name"])]);
            }
            let (status, answer) = server.request("POST", DEPLOY, Some(&app));
            assert!(
                status == 201 || (status == 400 && round % 2 == 0),
                "{status}: {answer}"
            );
            if status == 201 && round % 2 == 0 {
                let query = json!({"table": "places", "filters": [{"field": "name", "op": "exists", "value": false}]});
                let (status, found) =
                    server.request("POST", "/api/tenants/demo/query", Some(&query));
                assert_eq!((status, found), (200, whole("data", json!([]))));
            }
            let query = json!({"table": "places", "filters": [{"field": "name", "op": "exists", "value": false}]});
            let (_, found) = server.request("POST", "/api/tenants/demo/query", Some(&query));
            for document in found["data"].as_array().expect("documents") {
                let id = document["_id"].as_str().expect("an id");
                let path = format!("/api/tenants/demo/documents/places/{id}");
                let (status, _) = server.request("DELETE", &path, None);
                assert_eq!(status, 204);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
