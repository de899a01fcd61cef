//! The writer's group commit, one client: what was not answered is there from the commit on, and
//! not before.

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{Bystander, armed, assert_keeps_documents, machine, start_armed};

/// Point, and whether a mutation that comes so far survives.
pub(super) const POINTS: &[(&str, bool)] = &[
    ("tenants::writer::batch-taken", false),
    ("tenants::writer::applied", false),
    ("tenants::writer::committed", true),
    ("tenants::writer::answered", true),
    ("tenants::writer::checkpointed", true),
];

#[test]
fn an_insert_killed_at_its_commit_is_whole_or_absent_and_earlier_ones_stay() {
    for (point, survives) in POINTS {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, &[]);
        let server = start_armed(&machine, &[], &armed(point, 3));
        server.create("/api/tenants", &json!({"id": "tenant"}));
        for n in 0..3 {
            server.insert("tenant", "things", &json!({"n": n}));
        }
        let last = json!({"table": "things", "fields": {"n": 3}});
        die(
            &machine,
            server,
            "POST",
            "/api/tenants/tenant/documents",
            Some(&last),
        );

        let server = machine.start(&[]);
        let expected: Vec<u64> = (0..if *survives { 4 } else { 3 }).collect();
        assert_eq!(numbers(&server), expected);
        bystander.assert_undisturbed(&machine, &server);
        assert_keeps_documents(&machine, &[], server, "tenant");
    }
}

#[test]
fn a_change_killed_at_its_commit_is_made_or_not_made() {
    for (point, survives) in POINTS {
        for method in ["PATCH", "DELETE"] {
            eprintln!("{method} killed at {point}");
            let machine = machine();
            let server = start_armed(&machine, &[], &armed(point, 2));
            server.create("/api/tenants", &json!({"id": "tenant"}));
            server.insert("tenant", "things", &json!({"n": 0}));
            let id = server.insert("tenant", "things", &json!({"n": 1}));
            let path = format!("/api/tenants/tenant/documents/things/{id}");
            let patch = json!({"patch": {"n": 100}});
            let body = (method == "PATCH").then_some(&patch);
            die(&machine, server, method, &path, body);

            let server = machine.start(&[]);
            let expected: &[u64] = match (*survives, method) {
                (false, _) => &[0, 1],
                (true, "PATCH") => &[0, 100],
                (true, _) => &[0],
            };
            assert_eq!(numbers(&server), expected);
            server.stop();
        }
    }
}

#[test]
fn a_batch_killed_at_its_commit_is_whole_or_absent_and_the_journal_says_the_same() {
    for (point, survives) in POINTS {
        eprintln!("killed at {point}");
        let machine = machine();
        let server = start_armed(&machine, &[], &armed(point, 2));
        server.create("/api/tenants", &json!({"id": "tenant"}));
        let gone = server.insert("tenant", "things", &json!({"n": 0}));
        let changed = server.insert("tenant", "things", &json!({"n": 1}));
        let batch = json!({"mutations": [
            {"type": "insert", "table": "things", "fields": {"n": 2}},
            {"type": "update", "table": "things", "id": changed, "patch": {"n": 100}},
            {"type": "delete", "table": "things", "id": gone},
            {"type": "insert", "table": "new", "fields": {"n": 3}},
        ]});
        die(
            &machine,
            server,
            "POST",
            "/api/tenants/tenant/batch",
            Some(&batch),
        );

        let server = machine.start(&[]);
        let (documents, journal): (&[u64], &[&str]) = if *survives {
            (
                &[100, 2],
                &["insert", "insert", "insert", "update", "delete", "insert"],
            )
        } else {
            (&[0, 1], &["insert", "insert"])
        };
        assert_eq!(numbers(&server), documents);
        let written = server.get("/api/tenants/tenant/journal");
        let records = written["records"].as_array().expect("records");
        let kinds: Vec<&str> = records
            .iter()
            .map(|record| record["type"].as_str().expect("a type"))
            .collect();
        assert_eq!(kinds, journal);
        assert_eq!(written["latest_sequence"], json!(journal.len()));
        // The numbers of what was lost are given to what comes instead.
        let id = server.insert("tenant", "new", &json!({}));
        let path = format!("/api/tenants/tenant/journal?after={}", journal.len());
        let record = server.get(&path)["records"][0].take();
        assert_eq!(
            (&record["sequence"], &record["id"]),
            (&json!(journal.len() + 1), &json!(id))
        );
        server.stop();
    }
}

#[test]
fn a_request_under_a_key_that_is_sent_again_after_a_kill_has_one_effect() {
    for (point, survives) in POINTS {
        eprintln!("killed at {point}");
        let machine = machine();
        let server = start_armed(&machine, &[], &armed(point, 1));
        server.create("/api/tenants", &json!({"id": "tenant"}));
        server.insert("tenant", "things", &json!({"n": 0}));
        let send = |server: &Server| {
            let body = json!({"table": "things", "fields": {"n": 1}});
            let headers = [("idempotency-key", "the-one")];
            let path = "/api/tenants/tenant/documents";
            server.try_request_with(&machine.token(), &headers, "POST", path, Some(&body))
        };
        // From `answered` on the first answer may have come.
        let first = send(&server).ok();
        server.wait_until_killed();

        let server = machine.start(&[]);
        let before = numbers(&server);
        assert_eq!(before, if *survives { vec![0, 1] } else { vec![0] });
        let again = send(&server).expect("an answer");
        assert_eq!(again.0, 201, "{again:?}");
        if let Some(first) = first {
            assert_eq!(again, first);
        }
        assert_eq!(numbers(&server), [0, 1]);
        let listed = server.get("/api/tenants/tenant/documents/things");
        let there = &listed["data"][1];
        assert_eq!(
            (&there["_id"], &there["_version"]),
            (&again.1["id"], &again.1["version"])
        );
        // And again, as the document stands there already.
        assert_eq!(send(&server).expect("an answer"), again);
        assert_eq!(numbers(&server), [0, 1]);
        server.stop();
    }
}

/// From `answered` on the answer may still reach the client before the process is gone.
fn die(machine: &Machine, server: Server, method: &str, path: &str, body: Option<&Value>) {
    let _ = server.try_request_as(&machine.token(), method, path, body);
    server.wait_until_killed();
}

fn numbers(server: &Server) -> Vec<u64> {
    let listed = server.get("/api/tenants/tenant/documents/things");
    let documents = listed["data"].as_array().expect("a list");
    documents
        .iter()
        .map(|document| document["n"].as_u64().expect("a number"))
        .collect()
}
