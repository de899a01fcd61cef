//! Queries over HTTP. What they mean is tested by the table of cases, beside the store.

use data_encoding::BASE64URL_NOPAD;
use nimbus_test_support::whole;
use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, post};

const QUERY: &str = "/api/tenants/demo/query";
const PAGINATED: &str = "/api/tenants/demo/query/paginated";

fn names(answer: &Value) -> Vec<&str> {
    let data = answer["data"].as_array().expect("data");
    data.iter()
        .map(|document| document["name"].as_str().expect("a name"))
        .collect()
}

#[test]
fn queries_filter_order_and_limit() {
    let (_machine, server) = demo();
    for (name, canton, height) in [
        ("Wengen", "BE", 1274),
        ("Zermatt", "VS", 1608),
        ("Mürren", "BE", 1638),
        ("Genève", "GE", 375),
    ] {
        let fields = json!({"name": name, "at": {"canton": canton, "height": height}});
        server.insert("demo", "places", &fields);
    }
    let ask = |query: Value| {
        let (status, answer) = server.request("POST", QUERY, Some(&query));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let bern = json!([{"field": "at.canton", "op": "eq", "value": "BE"}]);
    let order = json!({"field": "at.height", "direction": "desc"});
    let answer = ask(json!({"table": "places", "filters": bern, "order": order}));
    assert_eq!(names(&answer), ["Mürren", "Wengen"]);
    let document = &answer["data"][0];
    assert_eq!(document["at"], json!({"canton": "BE", "height": 1638}));
    assert!(
        document["_creationTime"].is_i64() && document["_updateTime"].is_i64(),
        "{document}"
    );
    let by_id = json!([{"field": "_id", "op": "eq", "value": document["_id"]}]);
    assert_eq!(
        names(&ask(json!({"table": "places", "filters": by_id}))),
        ["Mürren"]
    );
    assert_eq!(
        names(&ask(json!({"table": "places", "order": order, "limit": 1}))),
        ["Mürren"]
    );
    let all = ask(json!({"table": "places"}));
    assert_eq!(names(&all), ["Wengen", "Zermatt", "Mürren", "Genève"]);
    assert_eq!(ask(json!({"table": "nowhere"})), whole("data", json!([])));
}

#[test]
fn pages_follow_one_another_across_writes_and_restarts() {
    let (machine, server) = demo();
    let insert = |n: usize| json!({"type": "insert", "table": "t", "fields": {"name": n.to_string(), "n": n % 7}});
    let batch = json!({"mutations": (0..25).map(insert).collect::<Vec<_>>()});
    assert_eq!(
        server
            .request("POST", "/api/tenants/demo/batch", Some(&batch))
            .0,
        200
    );
    let query = json!({"table": "t", "order": {"field": "n"}});
    let mut expected: Vec<usize> = (0..25).collect();
    expected.sort_by_key(|n| n % 7);
    let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();

    let first = json!({"query": query, "page_size": 10});
    let (status, first) = server.request("POST", PAGINATED, Some(&first));
    assert_eq!((status, &first["has_more"]), (200, &json!(true)));
    // A document before the cursor does not shift what comes after it.
    server.insert("demo", "t", &json!({"name": "new", "n": -1}));
    server.stop();
    let server = machine.start(&[]);
    let second = json!({"query": query, "page_size": 10, "after": first["next_cursor"]});
    let (_, second) = server.request("POST", PAGINATED, Some(&second));
    let third = json!({"query": query, "after": second["next_cursor"]});
    let (_, third) = server.request("POST", PAGINATED, Some(&third));
    assert_eq!(
        (&third["has_more"], &third["next_cursor"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(
        [names(&first), names(&second), names(&third)].concat(),
        expected
    );
}

#[test]
fn a_cursor_is_good_for_its_own_query_and_tenant_alone() {
    let (_machine, server) = demo();
    server.create("/api/tenants", &json!({"id": "other"}));
    for tenant in ["demo", "other"] {
        for n in 0..3 {
            server.insert(tenant, "t", &json!({"name": n.to_string()}));
        }
    }
    let query = json!({"table": "t", "order": {"field": "name"}});
    let (_, page) = server.request(
        "POST",
        PAGINATED,
        Some(&json!({"query": query, "page_size": 1})),
    );
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    let refused = |path: &str, query: Value, cursor: &str| {
        let body = json!({"query": query, "after": cursor});
        let (status, answer) = server.request("POST", path, Some(&body));
        let message = assert_error(status, &answer, (400, "op.invalid_input"));
        assert!(message.contains("cursor"), "{message}");
    };
    refused("/api/tenants/other/query/paginated", query.clone(), cursor);
    for other in [
        json!({"table": "u", "order": {"field": "name"}}),
        json!({"table": "t", "order": {"field": "name", "direction": "desc"}}),
        json!({"table": "t", "order": {"field": "n"}}),
        json!({"table": "t"}),
        json!({"table": "t", "order": {"field": "name"}, "filters": [{"field": "a", "op": "exists", "value": false}]}),
    ] {
        refused(PAGINATED, other, cursor);
    }
    for broken in [
        "",
        "x",
        &cursor[1..],
        &format!("{cursor}="),
        &"A".repeat(60),
    ] {
        refused(PAGINATED, query.clone(), broken);
    }
    // How the same query is written does not matter.
    let again = json!({"query": {"order": {"direction": "asc", "field": "name"}, "filters": [], "table": "t"}, "after": cursor});
    let (status, answer) = server.request("POST", PAGINATED, Some(&again));
    assert_eq!((status, names(&answer)), (200, vec!["1", "2"]));
}

#[test]
fn a_cursor_says_nothing_of_the_documents_and_takes_no_edit() {
    let (_machine, server) = demo();
    for name in ["confidential-diagnosis-1", "confidential-diagnosis-2"] {
        server.insert("demo", "t", &json!({"name": name}));
    }
    let query = json!({"table": "t", "order": {"field": "name"}});
    let first = json!({"query": query, "page_size": 1});
    let (_, page) = server.request("POST", PAGINATED, Some(&first));
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    let bytes = BASE64URL_NOPAD
        .decode(cursor.as_bytes())
        .expect("base64url");
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(!holds(b"confidential") && !holds(b"diagnosis"), "{cursor}");
    let mut edited = bytes.clone();
    *edited.last_mut().expect("a byte") ^= 1;
    // As versions before sealed cursors gave it: version, a hash, the place, the value.
    let mut plain = vec![1; 17];
    plain.extend([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    plain.extend(b"confidential-diagnosis-1");
    for cursor in [edited, plain] {
        let body = json!({"query": query, "after": BASE64URL_NOPAD.encode(&cursor)});
        let (status, answer) = server.request("POST", PAGINATED, Some(&body));
        let message = assert_error(status, &answer, (400, "op.invalid_input"));
        assert!(message.contains("begin anew"), "{message}");
    }
}

#[test]
fn queries_that_are_not_right_are_refused() {
    let (machine, server) = demo();
    server.insert("demo", "t", &json!({"name": "x"}));
    let filters = |n: usize| vec![json!({"field": "a", "op": "eq", "value": 1}); n];
    let deep = ["a"; 10_000].join(".");
    for query in [
        json!({}),
        json!([]),
        json!({"table": "t'; DROP TABLE x; --"}),
        json!({"table": "t", "limit": -1}),
        json!({"table": "t", "limit": 0}),
        json!({"table": "t", "filters": filters(10_000)}),
        json!({"table": "t", "filters": filters(51)}),
        json!({"table": "t", "filters": [{"field": deep, "op": "eq", "value": 1}]}),
        json!({"table": "t", "filters": [{"field": "a\u{0}b", "op": "eq", "value": 1}]}),
        json!({"table": "t", "filters": [{"field": "a", "op": "regex", "value": "x"}]}),
        json!({"table": "t", "filters": [{"field": "a", "op": "eq", "value": {"$gt": 1}}]}),
        json!({"table": "t", "order": {"field": "_secret"}}),
    ] {
        let answer = post(&machine, &server, QUERY, query.to_string().as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
        let body = json!({"query": query});
        let answer = post(&machine, &server, PAGINATED, body.to_string().as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
    }
    for body in [
        json!({}),
        json!({"query": {"table": "t"}, "page_size": 0}),
        json!({"query": {"table": "t"}, "page_size": 1001}),
        json!({"query": {"table": "t"}, "page_size": -1}),
        json!({"query": {"table": "t", "limit": 5}}),
        json!({"query": {"table": "t"}, "after": 7}),
        json!({"query": {"table": "t"}, "more": 7}),
    ] {
        let answer = post(&machine, &server, PAGINATED, body.to_string().as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
    }
    let most = json!({"table": "t", "filters": filters(50)});
    assert_eq!(
        server.request("POST", QUERY, Some(&most)),
        (200, whole("data", json!([])))
    );
    let (status, answer) = server.request(
        "POST",
        "/api/tenants/nobody/query",
        Some(&json!({"table": "t"})),
    );
    assert_error(status, &answer, (404, "session.tenant_not_found"));
}
