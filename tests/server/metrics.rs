//! `/metrics`: what is printed is what the page lists, it moves with the traffic, and it names
//! nobody.

use std::collections::BTreeMap;

use nimbus::metrics::ALL;
use nimbus_test_support::{Machine, Server};
use serde_json::json;

use super::{assert_refused, demo, send, send_bare};
use nimbus_test_support::until;

/// Every line that is a value: the series and the value.
pub(super) fn scrape(machine: &Machine, server: &Server) -> (String, BTreeMap<String, f64>) {
    let answer = send(machine, server, "GET /metrics", "", b"");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = String::from_utf8(answer.bytes().to_vec()).expect("UTF-8");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let values = lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")));
    let values = values.collect();
    (text, values)
}

#[test]
fn what_is_printed_is_what_is_listed_and_moves_with_the_traffic() {
    let (machine, server) = demo();
    let first = server.insert("demo", "secretive", &json!({"n": 1}));
    server.insert("demo", "secretive", &json!({"n": 2}));
    let one = format!("/api/tenants/demo/documents/secretive/{first}");
    let _ = server.get(&one);
    let _ = send_bare(&server, "GET /nowhere/at/all", "", b"");
    let job =
        json!({"run_after_ms": 0, "mutation": {"type": "insert", "table": "t", "fields": {}}});
    let job = server.create("/api/tenants/demo/schedule", &job)["job_id"].take();
    let history = format!(
        "/api/tenants/demo/schedule/history/{}",
        job.as_str().expect("an id")
    );
    until("the job ran", || {
        server.request("GET", &history, None).0 == 200
    });
    // A request counts until its answer is sent, which its client may hear a moment before.
    let (mut text, mut values) = scrape(&machine, &server);
    until("the scrape alone is under way", || {
        (text, values) = scrape(&machine, &server);
        values["nimbus_http_requests_under_way"] == 1.0
    });
    for metric in ALL {
        let line = format!("# TYPE {} {}\n", metric.name, metric.kind.as_str());
        assert!(text.contains(&line), "no {line}in:\n{text}");
    }
    let types = text.lines().filter(|line| line.starts_with("# TYPE "));
    assert_eq!(types.count(), ALL.len(), "{text}");
    let is = |series: &str, value: f64| assert_eq!(values.get(series), Some(&value), "{text}");
    let insert = r#"route="/api/tenants/{t}/documents",method="POST""#;
    is(
        &format!("nimbus_http_requests_total{{{insert},status=\"201\"}}"),
        2.0,
    );
    is(
        &format!("nimbus_http_request_duration_seconds_count{{{}}}", insert),
        2.0,
    );
    is("nimbus_http_requests_under_way", 1.0);
    is("nimbus_tenants_open", 1.0);
    is("nimbus_scheduler_lag_seconds_count", 1.0);
    assert!(values["nimbus_scheduler_lag_seconds_sum"] < 60.0, "{text}");
    // Two documents, the job, and its run.
    assert!(values["nimbus_commit_group_size_sum"] >= 4.0, "{text}");
    is("nimbus_tenants_in_trouble", 0.0);
    is(
        "nimbus_http_requests_refused_total{reason=\"server_full\"}",
        0.0,
    );
    is(
        "nimbus_key_operations_total{provider=\"master-key-file\",operation=\"generate\",outcome=\"ok\"}",
        2.0,
    );
    assert!(values["nimbus_wal_bytes"] > 0.0);
    assert!(text.contains(r#"route="unmatched""#));
    for name in ["demo", "secretive", &first, "nowhere"] {
        assert!(!text.contains(name), "{name} in:\n{text}");
    }
    let refused = send_bare(&server, "GET /metrics", "", b"");
    assert_refused(&refused, 401, "auth.unauthorized");
    server.stop();
}
