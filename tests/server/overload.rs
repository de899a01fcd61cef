//! One tenant's flood, and clients that send half of something.

use std::io::Write as _;
use std::net::TcpStream;

use nimbus_test_support::Server;
use serde_json::json;

use super::{assert_refused, demo};

/// A write whose body does not come: it is under way until it does.
fn slow_write(server: &Server, token: &str, tenant: &str) -> TcpStream {
    let mut stream = server.connect();
    let head = format!(
        "POST /api/tenants/{tenant}/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream
}

#[test]
fn the_flood_of_one_tenant_is_turned_away_and_the_others_do_not_notice() {
    let (machine, server) = demo();
    let id = server.insert("demo", "places", &json!({"n": 1}));
    let _ = server.create("/api/tenants", &json!({"id": "flood"}));
    let token = machine.token();
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
    let read = server.get(&format!("/api/tenants/demo/documents/places/{id}"));
    assert_eq!(read["document"]["n"], 1);
    let _ = server.insert("demo", "places", &json!({"n": 2}));
    assert_eq!(server.get("/health"), json!({"ok": true}));
    // Once the flood is over its tenant is, too.
    drop(held);
    let body = json!({"table": "t", "fields": {}});
    while server
        .request("POST", "/api/tenants/flood/documents", Some(&body))
        .0
        != 201
    {
        std::thread::yield_now();
    }
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
