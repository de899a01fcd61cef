//! A cluster of three nodes: servers that write through different ones, and nodes that are killed
//! under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nimbus_test_support::{Galera, Server};
use serde_json::json;

use super::{House, journal, make_tenant};
use nimbus_test_support::until;

/// Inserts through a server until told to stop; what was acknowledged.
fn client(
    server: &Server,
    token: &str,
    number: usize,
    ended: &AtomicBool,
    total: &AtomicU64,
) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let body = json!({"table": format!("client{number}"), "fields": {"n": n}});
        match server.try_request_as(token, "POST", "/api/tenants/acme/documents", Some(&body)) {
            Ok((201, _)) => {
                acknowledged.push(n);
                let _before = total.fetch_add(1, Ordering::SeqCst);
            }
            // Not acknowledged, and perhaps there.
            Ok((503, _)) => {}
            Ok((status, answer)) => panic!("{status} {answer}"),
            Err(error) => panic!("{error}"),
        }
    }
    acknowledged
}

#[test]
fn nothing_is_lost_or_doubled_while_servers_write_through_different_nodes_and_nodes_die() {
    let mut cluster = Galera::start();
    let house = House::on(&cluster.url(0));
    let other_house = House {
        url: cluster.url(1),
        ..house.beside()
    };
    let (one, other) = (house.start(), other_house.start());
    make_tenant(&one, "acme");
    // A write through one node is read through another one.
    for n in 0..20 {
        let (writer, reader) = if n % 2 == 0 {
            (&one, &other)
        } else {
            (&other, &one)
        };
        let id = writer.insert("acme", "t", &json!({"n": n}));
        let read = reader.get(&format!("/api/tenants/acme/documents/t/{id}"));
        assert_eq!(read["document"]["n"], n, "{read}");
    }
    let tokens = [house.machine.token(), other_house.machine.token()];
    let (ended, total) = (AtomicBool::new(false), AtomicU64::new(0));
    let acknowledged: Vec<Vec<u64>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let server = [&one, &other][number % 2];
                let (token, ended, total) = (&tokens[number % 2], &ended, &total);
                scope.spawn(move || client(server, token, number, ended, total))
            })
            .collect();
        let more = |count: u64| {
            let from = total.load(Ordering::SeqCst);
            until("the load goes on", || {
                total.load(Ordering::SeqCst) >= from + count
            });
        };
        more(100);
        cluster.nodes[0].kill();
        more(100);
        cluster.nodes[0].start_again();
        more(100);
        cluster.nodes[1].kill();
        more(100);
        ended.store(true, Ordering::SeqCst);
        let clients = clients.into_iter();
        clients
            .map(|client| client.join().expect("a client"))
            .collect()
    });
    let mut documents = 20;
    for (number, acknowledged) in acknowledged.iter().enumerate() {
        let path = format!("/api/tenants/acme/documents/client{number}");
        let listed = one.list(&path, "data", 500);
        let mut there: Vec<u64> = listed
            .iter()
            .map(|document| document["n"].as_u64().expect("a number"))
            .collect();
        there.sort_unstable();
        documents += there.len() as i64;
        assert!(
            there.is_sorted_by(|a, b| a < b),
            "client {number}: each once: {there:?}"
        );
        let missing: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
        assert!(
            missing.is_empty(),
            "client {number}: {missing:?} were acknowledged"
        );
    }
    let expected: Vec<i64> = (1..=documents).collect();
    for server in [&one, &other] {
        assert_eq!(
            journal(server, "acme"),
            expected,
            "one record a document, without a gap"
        );
    }
    one.stop();
    other.stop();
}

const CLIENTS: usize = 6;
