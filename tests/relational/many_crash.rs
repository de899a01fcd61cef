//! Two servers on one database under load, and kills of either and of the engine; servers that die
//! within a creation, a deletion or the making of an index, which the other one finishes or finds
//! undone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nimbus_test_support::Server;
use serde_json::json;

use super::{CREATION, DELETION, Engine, House, journal, make_tenant, tenants};
use nimbus_test_support::until;

/// A server that is killed and started again while clients use it.
struct Slot {
    house: House,
    /// Its address and token change with nothing; the server is another one after each kill.
    server: Mutex<Option<Server>>,
}

impl Slot {
    fn new(house: House) -> Self {
        let server = Mutex::new(Some(house.start()));
        Self { house, server }
    }

    fn address(&self) -> Option<String> {
        let server = self.server.lock().expect("no panic");
        server.as_ref().map(|server| server.address().to_owned())
    }

    fn kill_and_start(&self) {
        let server = self.server.lock().expect("no panic").take();
        server.expect("it runs").kill();
        *self.server.lock().expect("no panic") = Some(self.house.start());
    }
}

/// What came of a request: the status, or nothing where nobody answered.
fn send(slot: &Slot, method: &str, path: &str, body: &serde_json::Value) -> Option<u16> {
    let address = slot.address()?;
    let url = format!("http://{address}{path}");
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(url)
        .header(
            "authorization",
            format!("Bearer {}", slot.house.machine.token()),
        )
        .header("content-type", "application/json")
        .body(body.to_string())
        .expect("a request");
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    agent
        .run(request)
        .ok()
        .map(|answer| answer.status().as_u16())
}

/// Inserts through one server after the other and schedules jobs, until told to stop. What was
/// acknowledged.
fn client(
    slots: &[Slot; 2],
    number: usize,
    ended: &AtomicBool,
    total: &AtomicU64,
) -> (Vec<u64>, Vec<u64>) {
    let (mut inserted, mut scheduled) = (Vec::new(), Vec::new());
    for n in 0_u64.. {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let slot = &slots[(number + n as usize) % 2];
        let (path, body) = match n % 5 {
            0 => {
                let mutation =
                    json!({"type": "insert", "table": format!("jobs{number}"), "fields": {"n": n}});
                (
                    "schedule",
                    json!({"run_after_ms": n % 3 * 100, "mutation": mutation}),
                )
            }
            _ => (
                "documents",
                json!({"table": format!("client{number}"), "fields": {"n": n}}),
            ),
        };
        match send(slot, "POST", &format!("/api/tenants/acme/{path}"), &body) {
            Some(201) => {
                if n % 5 == 0 {
                    &mut scheduled
                } else {
                    &mut inserted
                }
                .push(n);
                let _before = total.fetch_add(1, Ordering::SeqCst);
            }
            // Not acknowledged, and perhaps there.
            None => thread::sleep(Duration::from_millis(10)),
            Some(503) => {}
            Some(status) => panic!("client {number}, {n}: {status}"),
        }
    }
    (inserted, scheduled)
}

/// The values of `n` in a table, each of which may be there once.
fn there(server: &Server, table: &str) -> Vec<u64> {
    let documents = server.list(&format!("/api/tenants/acme/documents/{table}"), "data", 500);
    let mut there: Vec<u64> = documents
        .iter()
        .map(|one| one["n"].as_u64().expect("a number"))
        .collect();
    there.sort_unstable();
    assert!(
        there.is_sorted_by(|a, b| a < b),
        "{table}: each once: {there:?}"
    );
    there
}

#[test]
fn nothing_is_lost_doubled_or_run_twice_whichever_server_or_engine_is_killed_under_load() {
    let mut engine = Engine::start();
    let house = House::on(&engine.url());
    let slots = [Slot::new(house.beside()), Slot::new(house)];
    {
        let server = slots[0].server.lock().expect("no panic");
        make_tenant(server.as_ref().expect("it runs"), "acme");
    }
    let (ended, total) = (AtomicBool::new(false), AtomicU64::new(0));
    let acknowledged: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (slots, ended, total) = (&slots, &ended, &total);
                scope.spawn(move || client(slots, number, ended, total))
            })
            .collect();
        let more = |count: u64| {
            let from = total.load(Ordering::SeqCst);
            until("the load goes on", || {
                total.load(Ordering::SeqCst) >= from + count
            });
        };
        for round in 0..2 {
            eprintln!("round {round}");
            more(80);
            slots[0].kill_and_start();
            more(80);
            engine.kill();
            engine.start_again();
            more(80);
            slots[1].kill_and_start();
        }
        more(80);
        ended.store(true, Ordering::SeqCst);
        let clients = clients.into_iter();
        clients
            .map(|client| client.join().expect("a client"))
            .collect()
    });
    let [one, other] = slots.map(|slot| {
        let server = slot.server.into_inner().expect("no panic");
        (slot.house, server.expect("it runs"))
    });
    let server = &one.1;
    until("every job ran", || {
        let waiting = server.get("/api/tenants/acme/schedule");
        waiting["jobs"].as_array().is_some_and(Vec::is_empty)
    });
    let mut documents = 0;
    for (number, (inserted, scheduled)) in acknowledged.iter().enumerate() {
        for (table, acknowledged) in [("client", inserted), ("jobs", scheduled)] {
            let there = there(server, &format!("{table}{number}"));
            let missing: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
            assert!(
                missing.is_empty(),
                "{table}{number}: {missing:?} were acknowledged"
            );
            documents += there.len() as i64;
        }
    }
    let expected: Vec<i64> = (1..=documents).collect();
    assert_eq!(
        journal(server, "acme"),
        expected,
        "one record a document, without a gap"
    );
    assert_eq!(journal(&other.1, "acme"), expected);
    one.1.stop();
    other.1.stop();
}

/// A server that died at a crash point while it did this, and another that runs.
fn killed_beside(
    point: &str,
    method: &str,
    path: &str,
    body: Option<serde_json::Value>,
) -> (House, Server) {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "other");
    if method != "POST" {
        make_tenant(&server, "acme");
        let _ = server.insert("acme", "t", &json!({"n": 1}));
        let _ = server.insert("acme", "t", &json!({"n": 1}));
    }
    let beside = house.beside();
    let armed = beside.start_armed(&format!("{point}=return"));
    let answer = armed.try_request_as(&beside.machine.token(), method, path, body.as_ref());
    assert!(answer.is_err(), "{point} was answered: {answer:?}");
    armed.wait_until_killed();
    (house, server)
}

#[test]
fn a_creation_that_another_server_died_in_is_none_or_a_whole_one() {
    for (point, there) in CREATION {
        eprintln!("killed at {point}");
        let body = json!({"id": "acme"});
        let point = format!("tenants::relational::{point}");
        let (_house, server) = killed_beside(&point, "POST", "/api/tenants", Some(body.clone()));
        assert_eq!(tenants(&server).contains(&"acme".to_owned()), *there);
        let (status, answer) = server.request("POST", "/api/tenants", Some(&body));
        assert_eq!(status, if *there { 409 } else { 201 }, "{answer}");
        let _ = server.insert("acme", "t", &json!({"n": 1}));
        assert_eq!(journal(&server, "acme"), [1]);
        server.stop();
    }
}

#[test]
fn a_deletion_that_another_server_died_in_is_finished_by_who_runs() {
    for point in DELETION {
        eprintln!("killed at {point}");
        let point = format!("tenants::relational::{point}");
        let (house, server) = killed_beside(&point, "DELETE", "/api/tenants/acme", None);
        assert_eq!(tenants(&server), ["other"]);
        assert_eq!(
            server
                .request("GET", "/api/tenants/acme/documents/t", None)
                .0,
            404
        );
        // Without a start, and without anybody who asks for it.
        until("the deletion is finished", || {
            house.sql("SELECT count(*) FROM {m}.tenants WHERE state = 3") == "0"
        });
        let schema = format!("{}_acme", house.unique);
        assert!(!house.has_space(&schema), "{schema} is left");
        make_tenant(&server, "acme");
        assert!(journal(&server, "acme").is_empty(), "it begins empty");
        server.stop();
    }
}

#[test]
fn a_creation_after_a_deletion_that_another_server_died_in_waits_for_nobody() {
    let point = "tenants::relational::delete-noted";
    let (_house, server) = killed_beside(point, "DELETE", "/api/tenants/acme", None);
    make_tenant(&server, "acme");
    assert!(journal(&server, "acme").is_empty(), "it begins empty");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    server.stop();
}

#[test]
fn an_index_that_another_server_died_in_the_making_of_is_not_there() {
    let schema = |unique: bool| {
        let index = json!({"name": "n", "fields": ["n"], "unique": unique});
        Some(json!({"table": "t", "indexes": [index]}))
    };
    let path = "/api/tenants/acme/schema/t";
    let (_house, server) =
        killed_beside("tenants::schemas::indexes-made", "PUT", path, schema(false));
    assert_eq!(server.request("GET", path, None).0, 404);
    let _ = server.insert("acme", "t", &json!({"n": 2}));
    assert_eq!(
        server.request("PUT", path, schema(true).as_ref()).0,
        409,
        "1 is there twice"
    );
    assert_eq!(server.request("PUT", path, schema(false).as_ref()).0, 204);
    let query = json!({"table": "t", "filters": [{"field": "n", "op": "eq", "value": 1}]});
    let (_, answer) = server.request("POST", "/api/tenants/acme/query", Some(&query));
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(2), "{answer}");
    assert_eq!(journal(&server, "acme"), [1, 2, 3]);
    server.stop();
}

const CLIENTS: usize = 6;
