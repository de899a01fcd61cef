//! One tenant's flood, and clients that send half of something.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nimbus_test_support::Server;
use serde_json::json;

use super::access_keys::make;
use super::bodies::{raise_own_file_limit, until};
use super::{assert_error, assert_refused, demo};

/// A write whose body does not come: it is under way until it does.
fn slow_write(server: &Server, token: &str, tenant: &str) -> TcpStream {
    slow_write_of(server, token, tenant, 100)
}

fn slow_write_of(server: &Server, token: &str, tenant: &str, length: usize) -> TcpStream {
    let mut stream = server.connect();
    let head = format!(
        "POST /api/tenants/{tenant}/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream
}

#[test]
fn the_flood_of_one_tenant_is_turned_away_and_the_others_do_not_notice() {
    let (_machine, server) = demo();
    let id = server.insert("demo", "places", &json!({"n": 1}));
    let (_, other) = make(&server, "demo", "read");
    server.create("/api/tenants", &json!({"id": "flood"}));
    let (_, token) = make(&server, "flood", "write");
    // Half of the places are its share.
    let mut held: Vec<_> = (0..700)
        .map(|_| slow_write(&server, &token, "flood"))
        .collect();
    // The last ones find none left, and are told to wait, at once.
    let mut last = held.pop().expect("the last");
    let answer = Server::answer(&mut last).expect("an answer");
    let message = assert_refused(&answer, 503, "rate.resource_exhausted");
    assert!(message.contains("this tenant"), "{message}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Everybody else is served.
    let path = format!("/api/tenants/demo/documents/places/{id}");
    let (status, read) = server.request_as(&other, "GET", &path, None);
    assert_eq!((status, &read["document"]["n"]), (200, &json!(1)));
    server.insert("demo", "places", &json!({"n": 2}));
    // The operator is, on the flooding tenant too.
    server.insert("flood", "places", &json!({"n": 2}));
    assert_eq!(server.get("/health"), json!({"ok": true}));
    // Once the flood is over its tenant is, too.
    drop(held);
    let body = json!({"table": "t", "fields": {}});
    while server
        .request_as(&token, "POST", "/api/tenants/flood/documents", Some(&body))
        .0
        != 201
    {
        std::thread::yield_now();
    }
    server.stop();
}

/// A client that asks again and again for something that no tenant is named for, and takes no
/// answer.
fn silent(server: &Server, key: &str) -> TcpStream {
    let mut stream = server.connect();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).expect("a small buffer");
    let ask =
        format!("GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n");
    stream.write_all(ask.repeat(50).as_bytes()).expect("sent");
    stream
}

#[test]
fn a_read_key_cannot_keep_the_operator_and_other_tenants_out() {
    let Some(()) = raise_own_file_limit() else {
        eprintln!(
            "SKIPPED: this test has 1500 connections open, and `ulimit -Hn` does not allow it"
        );
        return;
    };
    let (machine, server) = demo();
    let (id, stolen) = make(&server, "demo", "read");
    server.create("/api/tenants", &json!({"id": "other"}));
    let (_, others) = make(&server, "other", "read");
    let ask = |key: &str| server.request_as(key, "GET", "/openapi.json", None);
    let mut held: Vec<_> = (0..900).map(|_| silent(&server, &stolen)).collect();
    let half = format!(
        "POST /api/tenants/demo/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stolen}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    held.extend((0..600).map(|_| {
        let mut stream = server.connect();
        stream.write_all(half.as_bytes()).expect("sent");
        stream
    }));
    // Its tenant has its share, on whatever path.
    let (status, answer) = until(|| Some(ask(&stolen)).filter(|(status, _)| *status != 200));
    let message = assert_error(status, &answer, (503, "rate.resource_exhausted"));
    assert!(message.contains("this tenant"), "{message}");
    assert_eq!(ask(&others).0, 200);
    let (status, ready) = server.request("GET", "/ready", None);
    assert_eq!(status, 200, "{ready}");
    let locking = machine.nimbus(&["encryption", "lock", "--tenant-id", "demo"]);
    machine.run_to_end(locking).expect(0, &[]);
    let path = format!("/api/tenants/demo/keys/{id}");
    assert_eq!(server.request("DELETE", &path, None).0, 204);
    assert_eq!(ask(&stolen).0, 401);
    drop(held);
    server.stop();
}

/// So many documents of a mebibyte, nearly.
fn fill(server: &Server, tenant: &str, documents: usize) {
    let path = format!("/api/tenants/{tenant}/batch");
    let insert =
        json!({"type": "insert", "table": "large", "fields": {"a": "x".repeat(1_000_000)}});
    let all = vec![insert; documents];
    for part in all.chunks(15) {
        let (status, answer) = server.request("POST", &path, Some(&json!({"mutations": part})));
        assert_eq!(status, 200, "{answer}");
    }
}

/// What the process has had in memory at most, in MiB.
pub(super) fn most_memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        >> 10
}

/// The value of a metric that has no labels.
fn metric(server: &Server, name: &str) -> f64 {
    let all = server.get("/metrics");
    let all = all.as_str().expect("text");
    let value = all
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).expect("a value")
}

fn wait_until(server: &Server, name: &str, is: impl Fn(f64) -> bool) {
    let started = std::time::Instant::now();
    while !is(metric(server, name)) {
        assert!(
            started.elapsed().as_secs() < 60,
            "{name}: {}",
            metric(server, name)
        );
    }
}

const BUFFERED: &str = "nimbus_http_buffered_bytes";
/// The most that is buffered on any machine, and what a server that rests takes besides, both in
/// MiB.
const BOUND: u64 = 512 + 192;

#[test]
fn a_hundred_clients_that_do_not_read_cost_no_more_than_the_budget() {
    let (_machine, server) = demo();
    server.create("/api/tenants", &json!({"id": "other"}));
    let (_, key) = make(&server, "demo", "write");
    let (_, others) = make(&server, "other", "read");
    let id = server.insert("other", "places", &json!({"n": 1}));
    fill(&server, "demo", 62);
    let query = r#"{"table":"large"}"#;
    let request = format!(
        "POST /api/tenants/demo/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{query}",
        key,
        query.len()
    );
    let mut silent: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        })
        .collect();
    // Each has its answer begun, or is told to come again.
    let mut begun = 0;
    for stream in &mut silent {
        let mut head = [0; 12];
        stream
            .read_exact(&mut head)
            .expect("the beginning of an answer");
        match &head[9..] {
            b"200" => begun += 1,
            b"503" => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((1..10).contains(&begun), "{begun}");
    // What is said to be under way is what has not been sent.
    assert!(metric(&server, "nimbus_http_requests_under_way") > f64::from(begun));
    assert!(metric(&server, BUFFERED) > f64::from(begun) * 50e6);
    assert!(metric(&server, BUFFERED) <= metric(&server, "nimbus_http_buffered_bytes_limit"));
    assert!(metric(&server, "nimbus_http_buffer_refusals_total") >= 90.0);
    // Others are served, and so is this tenant where it asks for less.
    let path = format!("/api/tenants/other/documents/places/{id}");
    let (status, read) = server.request_as(&others, "GET", &path, None);
    assert_eq!((status, &read["document"]["n"]), (200, &json!(1)));
    let body = json!({"table": "places", "fields": {"n": 2}});
    let path = "/api/tenants/demo/documents";
    let (status, answer) = server.request_as(&key, "POST", path, Some(&body));
    assert_eq!(status, 201, "{answer}");
    assert!(most_memory(&server) < BOUND, "{} MiB", most_memory(&server));
    drop(silent);
    wait_until(&server, BUFFERED, |bytes| bytes == 0.0);
    // A page ends early, and says so.
    let body = json!({"query": {"table": "large"}, "page_size": 50});
    let path = "/api/tenants/demo/query/paginated";
    let (status, page) = server.request("POST", path, Some(&body));
    assert_eq!((status, &page["has_more"]), (200, &json!(true)));
    assert!((1..=4).contains(&page["data"].as_array().expect("documents").len()));
    server.stop();
}

#[test]
fn bodies_that_are_half_sent_cost_no_more_than_the_budget() {
    let (_machine, server) = demo();
    server.create("/api/tenants", &json!({"id": "other"}));
    let (_, token) = make(&server, "demo", "write");
    let (_, others) = make(&server, "other", "write");
    let half = vec![b'x'; 15 << 20];
    let waiting = std::thread::scope(|scope| {
        let send = || {
            let mut stream = slow_write_of(&server, &token, "demo", 16 << 20);
            // Refused, it is read no further after a while.
            drop(stream.write_all(&half));
            stream
        };
        let all: Vec<_> = (0..60).map(|_| scope.spawn(send)).collect();
        let all = all.into_iter().map(|one| one.join().expect("sent"));
        all.collect::<Vec<_>>()
    });
    assert!(metric(&server, "nimbus_http_buffer_refusals_total") >= 20.0);
    assert!(metric(&server, BUFFERED) > 100e6);
    let body = json!({"table": "places", "fields": {"n": 1}});
    let path = "/api/tenants/other/documents";
    let (status, answer) = server.request_as(&others, "POST", path, Some(&body));
    assert_eq!(status, 201, "{answer}");
    assert!(most_memory(&server) < BOUND, "{} MiB", most_memory(&server));
    drop(waiting);
    wait_until(&server, BUFFERED, |bytes| bytes == 0.0);
    server.stop();
}

#[test]
fn half_a_request_does_not_hold_up_the_end() {
    let (_machine, server) = demo();
    let mut half = server.connect();
    half.write_all(b"GET /health HT").expect("sent");
    let idle = server.connect();
    server.send_stop();
    let log = loop {
        let log = server.log();
        if log.contains("every tenant is closed") {
            break log;
        }
        std::thread::yield_now();
    };
    assert!(!log.contains("are cut off"), "{log}");
    server.wait_until_stopped();
    drop((half, idle));
}
