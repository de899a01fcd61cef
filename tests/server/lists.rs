//! Lists: read in parts, from the first item to the last, and none ends without a sign.

use std::ops::Range;

use nimbus_test_support::{Server, whole};
use serde_json::{Value, json};

use super::{assert_error, demo};

const DEMO: &str = "/api/tenants/demo";

/// Inserts documents whose `n` is each of these numbers.
fn fill(server: &Server, table: &str, numbers: Range<usize>, filler: &str) {
    let insert =
        |n| json!({"type": "insert", "table": table, "fields": {"n": n, "filler": filler}});
    let batch = json!({"mutations": numbers.map(insert).collect::<Vec<_>>()});
    let (status, answer) = server.request("POST", &format!("{DEMO}/batch"), Some(&batch));
    assert_eq!(status, 200, "{answer}");
}

fn numbers(documents: &[Value]) -> Vec<usize> {
    let number = |document: &Value| document["n"].as_u64().expect("a number") as usize;
    documents.iter().map(number).collect()
}

fn refused(server: &Server, path: &str) -> String {
    let (status, answer) = server.request("GET", path, None);
    assert_error(status, &answer, (400, "op.invalid_input"))
}

#[test]
fn documents_are_listed_in_parts_and_a_list_that_is_cut_says_so() {
    let (_machine, server) = demo();
    let path = format!("{DEMO}/documents/many");
    assert_eq!(server.get(&path), whole("data", json!([])));
    fill(&server, "many", 0..1000, "");
    let all = server.get(&path);
    assert_eq!(
        (&all["has_more"], &all["next_cursor"]),
        (&json!(false), &Value::Null)
    );
    fill(&server, "many", 1000..1203, "");
    let all: Vec<usize> = (0..1203).collect();
    for limit in [1000, 401, 1] {
        // One by one through the last of them alone.
        let (path, expected) = match limit {
            1 => {
                let part = server.get(&format!("{path}?limit=1000"));
                let cursor = part["next_cursor"].as_str().expect("a cursor");
                let next = server.get(&format!("{path}?limit=1&after={cursor}"));
                assert_eq!(numbers(next["data"].as_array().expect("data")), [1000]);
                continue;
            }
            _ => (&path, &all),
        };
        assert_eq!(numbers(&server.list(path, "data", limit)), *expected);
    }
    // What is written between two parts does not move the place.
    let part = server.get(&format!("{path}?limit=2"));
    let cursor = part["next_cursor"].as_str().expect("a cursor").to_owned();
    let second = part["data"][1]["_id"].as_str().expect("an id");
    assert_eq!(
        server
            .request("DELETE", &format!("{path}/{second}"), None)
            .0,
        204
    );
    let next = server.get(&format!("{path}?limit=1&after={cursor}"));
    assert_eq!(next["data"][0]["n"], 2);
    // A cursor is good for its own list.
    server.create("/api/tenants", &json!({"id": "other"}));
    for path in [
        format!("{DEMO}/documents/few"),
        "/api/tenants/other/documents/many".to_owned(),
        format!("{DEMO}/schedule"),
    ] {
        let message = refused(&server, &format!("{path}?after={cursor}"));
        assert!(message.contains("cursor"), "{message}");
    }
    server.stop();
}

#[test]
fn a_part_of_large_documents_ends_early_and_is_continued() {
    let (_machine, server) = demo();
    let filler = "x".repeat(1_000_000);
    fill(&server, "large", 0..9, &filler);
    let path = format!("{DEMO}/documents/large");
    let part = server.get(&path);
    assert_eq!(part["has_more"], true);
    assert_eq!(
        numbers(part["data"].as_array().expect("data")),
        [0, 1, 2, 3]
    );
    assert_eq!(
        numbers(&server.list(&path, "data", 1000)),
        (0..9).collect::<Vec<_>>()
    );
    // Pages go on where a query ended.
    let order = json!({"field": "n", "direction": "desc"});
    let limited = json!({"table": "large", "order": order, "limit": 4});
    let (status, found) = server.request("POST", &format!("{DEMO}/query"), Some(&limited));
    assert_eq!((status, &found["has_more"]), (200, &json!(true)));
    assert_eq!(
        numbers(found["data"].as_array().expect("data")),
        [8, 7, 6, 5]
    );
    let query = json!({"table": "large", "order": order});
    let wanted = json!({"query": query, "page_size": 2, "after": found["next_cursor"]});
    let (status, next) = server.request("POST", &format!("{DEMO}/query/paginated"), Some(&wanted));
    assert_eq!((status, &next["has_more"]), (200, &json!(true)));
    assert_eq!(numbers(next["data"].as_array().expect("data")), [4, 3]);
    // So does the list of what is scheduled.
    for n in 0..9 {
        let fields = json!({"n": n, "filler": filler});
        let mutation = json!({"type": "insert", "table": "never", "fields": fields});
        let job = json!({"run_after_ms": 3_600_000, "mutation": mutation});
        server.create(&format!("{DEMO}/schedule"), &job);
        let schedule = json!({"type": "interval", "seconds": 3600});
        let cron = json!({"name": format!("cron-{n}"), "schedule": schedule, "mutation": mutation});
        server.create(&format!("{DEMO}/crons"), &cron);
    }
    for (list, name) in [("schedule", "jobs"), ("crons", "crons")] {
        let path = format!("{DEMO}/{list}");
        let part = server.get(&path);
        assert_eq!(part["has_more"], true, "{list}");
        assert_eq!(part[name].as_array().map(Vec::len), Some(4), "{list}");
        assert_eq!(server.list(&path, name, 1000).len(), 9, "{list}");
    }
    server.stop();
}

#[test]
fn a_query_that_finds_more_than_it_answers_says_so() {
    let (_machine, server) = demo();
    fill(&server, "many", 0..1001, "");
    let path = format!("{DEMO}/query");
    let ask = |query: Value| {
        let (status, answer) = server.request("POST", &path, Some(&query));
        assert_eq!(status, 200, "{answer}");
        let found = numbers(answer["data"].as_array().expect("data"));
        (
            found.len(),
            answer["has_more"] == true,
            answer["next_cursor"].is_string(),
        )
    };
    assert_eq!(ask(json!({"table": "many"})), (1000, true, true));
    assert_eq!(ask(json!({"table": "many", "limit": 7})), (7, true, true));
    let last = json!([{"field": "n", "op": "gte", "value": 990}]);
    assert_eq!(
        ask(json!({"table": "many", "filters": last})),
        (11, false, false)
    );
    assert_eq!(
        ask(json!({"table": "many", "filters": last, "limit": 11})),
        (11, false, false)
    );
    server.stop();
}

#[test]
fn every_other_list_is_read_in_parts_too() {
    let (_machine, server) = demo();
    for n in 0..5 {
        let mutation = json!({"type": "insert", "table": "t", "fields": {}});
        // The last one runs first.
        let job = json!({"run_after_ms": 3_600_000 - n, "mutation": mutation});
        server.create(&format!("{DEMO}/schedule"), &job);
        let schedule = json!({"type": "interval", "seconds": 3600});
        let cron = json!({"name": format!("Cron_{n}"), "schedule": schedule, "mutation": mutation});
        server.create(&format!("{DEMO}/crons"), &cron);
        let table = format!("table-{n}");
        let (status, answer) = server.request(
            "PUT",
            &format!("{DEMO}/schema/{table}"),
            Some(&json!({"table": table})),
        );
        assert_eq!(status, 204, "{answer}");
        server.create("/api/tenants", &json!({"id": format!("t{n}")}));
    }
    for (path, name) in [
        (format!("{DEMO}/schedule"), "jobs"),
        (format!("{DEMO}/crons"), "crons"),
        ("/api/tenants".to_owned(), "tenants"),
    ] {
        let all = server.get(&path);
        assert_eq!(all, whole(name, all[name].clone()));
        let all = all[name].as_array().expect("a list");
        assert!(all.len() >= 5, "{all:?}");
        for limit in [1, 2, 5, 1000] {
            assert_eq!(server.list(&path, name, limit), *all, "{path} {limit}");
        }
    }
    // Schemas are answered by their tables.
    let path = format!("{DEMO}/schema");
    let all = server.get(&path)["tables"].take();
    let first = server.get(&format!("{path}?limit=3"));
    assert_eq!(
        (&first["has_more"], &first["next_cursor"]),
        (&json!(true), &json!("table-2"))
    );
    let rest = server.get(&format!("{path}?after=table-2"));
    let mut parts = first["tables"].as_object().expect("tables").clone();
    parts.extend(rest["tables"].as_object().expect("tables").clone());
    assert_eq!(
        (Value::Object(parts), &rest["has_more"]),
        (all, &json!(false))
    );
    // What is named need not be there.
    assert_eq!(
        server.get("/api/tenants?after=t1x&limit=2")["tables"],
        Value::Null
    );
    assert_eq!(
        server.get("/api/tenants?after=t1x&limit=2")["tenants"],
        json!(["t2", "t3"])
    );
    assert_eq!(
        server.get("/api/tenants?after=zz"),
        whole("tenants", json!([]))
    );
    for (path, says) in [
        (
            "/api/tenants?after=NOT",
            "\"after\" must be the id of a tenant",
        ),
        ("/api/tenants?limit=0", "\"limit\" must be 1 to 1000"),
        (
            "/api/tenants/demo/crons?after=-",
            "\"after\" must be the name of a cron",
        ),
        (
            "/api/tenants/demo/schema?after=1",
            "\"after\" must be the name of a table",
        ),
        ("/api/tenants/demo/schedule?after=x", "cursor"),
        ("/api/tenants/demo/documents/t?after=x", "cursor"),
        (
            "/api/tenants/demo/documents/t?limit=1001",
            "\"limit\" must be 1 to 1000",
        ),
    ] {
        let message = refused(&server, path);
        assert!(message.contains(says), "{path}: {message}");
    }
    server.stop();
}
