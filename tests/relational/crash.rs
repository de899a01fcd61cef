//! The server, and the engine, die under load and at each step of a creation, a deletion and a
//! commit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nimbus_test_support::Server;
use serde_json::{Value, json};

use super::{CREATION, DELETION, Engine, House, journal, make_tenant, tenants};

/// What each client was told is there.
fn insert(
    server: &Server,
    token: &str,
    tenant: &str,
    client: usize,
    ended: &AtomicBool,
    total: &AtomicU64,
) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let body = json!({"table": format!("client{client}"), "fields": {"n": n}});
        let path = format!("/api/tenants/{tenant}/documents");
        match server.try_request_as(token, "POST", &path, Some(&body)) {
            Ok((201, _)) => {
                acknowledged.push(n);
                let _before = total.fetch_add(1, Ordering::SeqCst);
            }
            // The engine is away for long: not acknowledged, and perhaps there.
            Ok((503, _)) => {}
            Ok((status, answer)) => panic!("{status} {answer}"),
            Err(_killed) => break,
        }
    }
    acknowledged
}

/// Loads the server with clients while `meanwhile` runs; what was acknowledged to each.
pub(crate) fn under_load(
    server: &Server,
    token: &str,
    tenant: &str,
    meanwhile: impl FnOnce(&AtomicU64),
) -> Vec<Vec<u64>> {
    let (ended, total) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (ended, total) = (&ended, &total);
                scope.spawn(move || insert(server, token, tenant, client, ended, total))
            })
            .collect();
        meanwhile(&total);
        ended.store(true, Ordering::SeqCst);
        let clients = clients.into_iter();
        clients
            .map(|client| client.join().expect("a client"))
            .collect()
    })
}

pub(crate) fn wait_for(total: &AtomicU64, count: u64) {
    while total.load(Ordering::SeqCst) < count {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Nothing acknowledged is missing, nothing is there twice, and the journal has no gap.
pub(crate) fn assert_kept(server: &Server, tenant: &str, acknowledged: &[Vec<u64>]) {
    let mut documents = 0;
    for (client, acknowledged) in acknowledged.iter().enumerate() {
        let path = format!("/api/tenants/{tenant}/documents/client{client}");
        let there: Vec<u64> = server
            .list(&path, "data", 500)
            .iter()
            .map(|document| document["n"].as_u64().expect("a number"))
            .collect();
        documents += there.len() as i64;
        assert!(
            there.is_sorted_by(|a, b| a < b),
            "client {client}: each once, in order: {there:?}"
        );
        let missing: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
        assert!(
            missing.is_empty(),
            "client {client}: {missing:?} were acknowledged"
        );
    }
    let expected: Vec<i64> = (1..=documents).collect();
    assert_eq!(
        journal(server, tenant),
        expected,
        "one record a document, without a gap"
    );
}

#[test]
fn what_was_acknowledged_survives_kills_of_the_server_under_load() {
    let house = House::new();
    for round in 0..3 {
        eprintln!("round {round}");
        let server = house.start();
        if tenants(&server).contains(&"acme".to_owned()) {
            assert_eq!(server.request("DELETE", "/api/tenants/acme", None).0, 204);
        }
        make_tenant(&server, "acme");
        let token = house.machine.token();
        let acknowledged = under_load(&server, &token, "acme", |total| {
            wait_for(total, 150);
            server.send_kill();
        });
        server.wait_until_killed();
        let server = house.start();
        assert_kept(&server, "acme", &acknowledged);
        server.stop();
    }
}

#[test]
fn what_was_acknowledged_survives_kills_of_the_engine_under_load_and_the_server_goes_on() {
    let mut engine = Engine::start();
    let house = House::on(&engine.url());
    let server = house.start();
    make_tenant(&server, "acme");
    let token = house.machine.token();
    let acknowledged = under_load(&server, &token, "acme", |total| {
        for round in 1..=3 {
            wait_for(total, round * 100);
            engine.kill();
            engine.start_again();
        }
        wait_for(total, 400);
    });
    assert_kept(&server, "acme", &acknowledged);
    server.stop();
}

#[test]
fn a_creation_and_a_deletion_that_were_cut_short_are_brought_to_an_end() {
    let creation = CREATION.iter().map(|(point, there)| {
        let body = Some(json!({"id": "acme"}));
        (*point, "POST", "/api/tenants", body, *there)
    });
    let deletion = DELETION
        .iter()
        .map(|point| (*point, "DELETE", "/api/tenants/acme", None, false));
    for (point, method, path, body, there) in creation.chain(deletion) {
        eprintln!("killed at {point}");
        let house = House::new();
        let server = house.start();
        make_tenant(&server, "other");
        let _ = server.insert("other", "t", &json!({"n": 1}));
        if method == "DELETE" {
            make_tenant(&server, "acme");
            let _ = server.insert("acme", "t", &json!({"old": true}));
        }
        server.stop();
        let server = house.start_armed(&format!("tenants::relational::{point}=return"));
        let answer = server.try_request_as(&house.machine.token(), method, path, body.as_ref());
        assert!(answer.is_err(), "{point} was answered: {answer:?}");
        server.wait_until_killed();

        let server = house.start();
        assert_eq!(
            tenants(&server).contains(&"acme".to_owned()),
            there,
            "{point}"
        );
        if !there {
            make_tenant(&server, "acme");
        }
        assert!(
            journal(&server, "acme").is_empty(),
            "{point}: it begins empty"
        );
        let _ = server.insert("acme", "t", &json!({"new": true}));
        assert_eq!(
            server.get("/api/tenants/other/documents/t")["data"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        server.stop();
    }
}

#[test]
fn a_write_that_was_not_sent_when_the_server_died_is_not_there() {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "acme");
    let kept = server.insert("acme", "t", &json!({"n": 1}));
    server.stop();
    let server = house.start_armed("tenants::relational::held=return");
    let body = json!({"table": "t", "fields": {"n": 2}});
    let answer = server.try_request_as(
        &house.machine.token(),
        "POST",
        "/api/tenants/acme/documents",
        Some(&body),
    );
    assert!(answer.is_err(), "{answer:?}");
    server.wait_until_killed();
    let server = house.start();
    let ids: Vec<Value> = server
        .list("/api/tenants/acme/documents/t", "data", 10)
        .iter()
        .map(|one| one["_id"].clone())
        .collect();
    assert_eq!(ids, [json!(kept)]);
    assert_eq!(journal(&server, "acme"), [1]);
    server.stop();
}

const CLIENTS: usize = 8;
