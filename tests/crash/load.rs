//! Many clients insert into two tenants at once, and the server dies under them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nimbus_test_support::{Machine, Server};
use serde_json::json;

use super::{Bystander, armed, machine, start_armed};

#[test]
fn documents_acknowledged_under_load_survive_a_kill_at_each_step_of_the_commit() {
    for point in [
        "batch-taken",
        "applied",
        "committed",
        "answered",
        "checkpointed",
    ] {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, &[]);
        let failpoints = armed(&format!("tenants::writer::{point}"), 25);
        let server = start_armed(&machine, &[], &failpoints);
        let acknowledged = insert_until_killed(&machine, server, None);
        assert_kept(&machine, &bystander, &acknowledged);
    }
}

#[test]
fn documents_acknowledged_under_load_survive_a_kill_from_outside() {
    let machine = machine();
    let bystander = Bystander::settle(&machine, &[]);
    // Several WALs full: the kill falls among commits and checkpoints.
    for round in 0..3 {
        let server = machine.start(&[]);
        let acknowledged = insert_until_killed(&machine, server, Some(700));
        eprintln!("round {round}: {acknowledged:?}");
        assert_kept(&machine, &bystander, &acknowledged);
    }
}

/// How many documents were acknowledged to each client. Killed from outside once that many are
/// acknowledged in all.
fn insert_until_killed(machine: &Machine, server: Server, kill_at: Option<u64>) -> Vec<u64> {
    for tenant in TENANTS {
        // Afresh in each round.
        server.request("DELETE", &format!("/api/tenants/{tenant}"), None);
        server.create("/api/tenants", &json!({"id": tenant}));
    }
    let token = machine.token();
    let total = AtomicU64::new(0);
    // About two pages each.
    let filler = "x".repeat(8000);
    let acknowledged = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (server, token, total, filler) = (&server, &token, &total, &filler);
                scope.spawn(move || {
                    let path = format!("/api/tenants/{}/documents", tenant_of(client));
                    for n in 0.. {
                        let fields = json!({"n": n, "filler": filler});
                        let body = json!({"table": table_of(client), "fields": fields});
                        match server.try_request_as(token, "POST", &path, Some(&body)) {
                            Ok((201, _)) => {
                                let all = total.fetch_add(1, Ordering::SeqCst) + 1;
                                if kill_at == Some(all) {
                                    server.send_kill();
                                }
                            }
                            Ok((status, answer)) => panic!("{status} {answer}"),
                            Err(_killed) => return n,
                        }
                    }
                    unreachable!("numbers do not end")
                })
            })
            .collect();
        let acknowledged = clients
            .into_iter()
            .map(|client| client.join().expect("a client"));
        acknowledged.collect()
    });
    server.wait_until_killed();
    acknowledged
}

/// Everything that was acknowledged is there, each once; at most the one document that each client
/// waited for besides.
fn assert_kept(machine: &Machine, bystander: &Bystander, acknowledged: &[u64]) {
    assert!(acknowledged.iter().sum::<u64>() > 0);
    let server = machine.start(&[]);
    for (client, acknowledged) in acknowledged.iter().enumerate() {
        let (tenant, table) = (tenant_of(client), table_of(client));
        let listed = server.get(&format!("/api/tenants/{tenant}/documents/{table}"));
        let documents = listed["data"].as_array().expect("a list");
        let there = documents
            .iter()
            .map(|document| document["n"].as_u64().expect("a number"));
        let there: Vec<u64> = there.collect();
        let expected: Vec<u64> = (0..there.len() as u64).collect();
        assert_eq!(there, expected, "client {client}: each once, in order");
        let surplus = (there.len() as u64).checked_sub(*acknowledged);
        assert!(
            matches!(surplus, Some(0 | 1)),
            "client {client}: {acknowledged}, {there:?}"
        );
    }
    bystander.assert_undisturbed(machine, &server);
    server.stop();
}

fn tenant_of(client: usize) -> &'static str {
    TENANTS[client % TENANTS.len()]
}

fn table_of(client: usize) -> String {
    format!("client{client}")
}

const TENANTS: [&str; 2] = ["one", "two"];
const CLIENTS: usize = 12;
