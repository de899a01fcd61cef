//! The journal over HTTP.

use serde_json::{Value, json};

use super::{assert_error, demo};

const JOURNAL: &str = "/api/tenants/demo/journal";

#[test]
fn the_journal_names_every_write_in_order_also_after_a_kill() {
    let (machine, server) = demo();
    assert_eq!(
        server.get(JOURNAL),
        json!({"records": [], "next_cursor": 0, "latest_sequence": 0, "cursor_floor": 0, "has_more": false})
    );
    let id = server.insert("demo", "places", &json!({"name": "Wengen"}));
    let path = format!("/api/tenants/demo/documents/places/{id}");
    let (status, _) = server.request("PATCH", &path, Some(&json!({"patch": {"n": 1}})));
    assert_eq!(status, 200);
    let document = server.get(&path)["document"].take();
    assert_eq!(server.request("DELETE", &path, None).0, 204);
    assert_eq!(server.request("DELETE", &path, None).0, 404);
    server.kill();

    let server = machine.start(&[]);
    let mut journal = server.get(JOURNAL);
    let records = journal["records"].take();
    assert_eq!(
        journal,
        json!({"records": null, "next_cursor": 3, "latest_sequence": 3, "cursor_floor": 0, "has_more": false})
    );
    let expected = [
        ("insert", &document["_creationTime"]),
        ("update", &document["_updateTime"]),
        ("delete", &records[2]["timestamp"]),
    ];
    for (record, (kind, at)) in records.as_array().expect("records").iter().zip(expected) {
        assert!(at.is_i64(), "{record}");
        let rest = json!({"type": kind, "table": "places", "id": id, "timestamp": at, "sequence": record["sequence"]});
        assert_eq!(*record, rest);
    }
    let page = server.get(&format!("{JOURNAL}?after=1&limit=1"));
    assert_eq!(page["records"], json!([records[1]]));
    assert_eq!(
        (&page["next_cursor"], &page["has_more"]),
        (&json!(2), &json!(true))
    );
}

#[test]
fn the_journal_of_a_batch_and_of_a_reader_that_follows_it() {
    let (_machine, server) = demo();
    let mut after = 0;
    for round in 0..3 {
        let insert = json!({"type": "insert", "table": "t", "fields": {"round": round}});
        let batch = json!({"mutations": vec![insert; 150]});
        let (status, _) = server.request("POST", "/api/tenants/demo/batch", Some(&batch));
        assert_eq!(status, 200);
        let mut pages = Vec::new();
        loop {
            let page = server.get(&format!("{JOURNAL}?after={after}"));
            after = page["next_cursor"].as_i64().expect("a number");
            pages.push(page["records"].as_array().map_or(0, Vec::len));
            if page["has_more"] == Value::Bool(false) {
                break;
            }
        }
        assert_eq!((pages, after), (vec![100, 50], (round + 1) * 150));
    }
}

#[test]
fn questions_to_the_journal_that_are_not_right_are_refused() {
    let (_machine, server) = demo();
    for query in [
        "after=-1",
        "after=x",
        "after=1.5",
        "after=99999999999999999999",
        "after=1",
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=",
        "since=1",
        "after=0&after=0",
    ] {
        let (status, answer) = server.request("GET", &format!("{JOURNAL}?{query}"), None);
        assert_error(status, &answer, (400, "op.invalid_input"));
    }
    let (status, answer) = server.request("GET", "/api/tenants/nobody/journal", None);
    assert_error(status, &answer, (404, "session.tenant_not_found"));
}

#[test]
fn a_cursor_behind_the_journals_floor_is_told_that_it_missed_writes() {
    let (_machine, server) = demo();
    let insert = json!({"type": "insert", "table": "t", "fields": {}});
    let batch = json!({"mutations": vec![insert; 10_000]});
    for _ in 0..11 {
        let (status, answer) = server.request("POST", "/api/tenants/demo/batch", Some(&batch));
        assert_eq!(status, 200, "{answer}");
    }
    let page = server.get(&format!("{JOURNAL}?limit=1"));
    let floor = page["cursor_floor"].as_u64().expect("a number");
    assert!(floor > 0, "{page}");
    assert_eq!(page["records"][0]["sequence"], json!(floor + 1));
    for after in [0, floor - 1] {
        let path = format!("{JOURNAL}?after={after}");
        let (status, answer) = server.request("GET", &path, None);
        let message = assert_error(status, &answer, (410, "op.cursor_expired"));
        assert!(message.contains(&format!("number {floor}")), "{message}");
        assert!(
            message.contains("read the tenant's tables again"),
            "{message}"
        );
    }
    let page = server.get(&format!("{JOURNAL}?after={floor}&limit=1"));
    assert_eq!(page["records"][0]["sequence"], json!(floor + 1));
}
