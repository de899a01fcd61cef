//! Two servers do the same thing to one tenant at the same moment: one of them does it.

use std::sync::Barrier;
use std::thread;

use nimbus_test_support::Server;
use serde_json::{Value, json};

use super::{House, journal, make_tenant, tenants};

/// Both answers to one request that is sent to both servers at once, the lower status first.
fn race(
    servers: [&Server; 2],
    method: &str,
    path: &str,
    body: impl Fn(usize) -> Option<Value> + Sync,
) -> [u16; 2] {
    let start = Barrier::new(2);
    let send = |server: &Server, number: usize| {
        let body = body(number);
        let _leader = start.wait();
        server.request(method, path, body.as_ref())
    };
    let answers = thread::scope(|scope| {
        let second = scope.spawn(|| send(servers[1], 1));
        [send(servers[0], 0), second.join().expect("an answer")]
    });
    let mut statuses = answers.each_ref().map(|(status, _)| *status);
    statuses.sort_unstable();
    assert!(statuses[1] < 500, "{method} {path}: {answers:?}");
    statuses
}

#[test]
fn of_two_servers_that_race_one_has_its_way() {
    let house = House::new();
    let (one, other) = (house.start(), house.beside());
    let other = other.start();
    let servers = [&one, &other];
    for round in 0..6 {
        eprintln!("round {round}");
        let created = race(servers, "POST", "/api/tenants", |_| {
            Some(json!({"id": "acme"}))
        });
        assert_eq!(created, [201, 409]);
        assert_eq!(
            (tenants(&one), tenants(&other)),
            (vec!["acme".to_owned()], vec!["acme".to_owned()])
        );
        let schema =
            json!({"table": "t", "indexes": [{"name": "n", "fields": ["n"], "unique": true}]});
        let put = race(servers, "PUT", "/api/tenants/acme/schema/t", |_| {
            Some(schema.clone())
        });
        assert_eq!(put, [204, 204]);
        let documents = "/api/tenants/acme/documents";
        for n in 0..5 {
            let unique = |_| Some(json!({"table": "t", "fields": {"n": n}}));
            assert_eq!(race(servers, "POST", documents, unique), [201, 409]);
            let id = format!("0192f5c0-0000-7000-8000-{round:06}{n:06}");
            let same = |by| Some(json!({"table": "ids", "id": id, "fields": {"by": by}}));
            assert_eq!(race(servers, "POST", documents, same), [201, 409]);
        }
        let key = one.create(
            "/api/tenants/acme/keys",
            &json!({"name": "k", "scope": "read"}),
        );
        let path = format!(
            "/api/tenants/acme/keys/{}",
            key["id"].as_str().expect("an id")
        );
        assert_eq!(race(servers, "DELETE", &path, |_| None), [204, 404]);
        let generations = ["a", "b"].map(|name| {
            let deploy = json!({"name": name, "schemas": [], "crons": [], "files": []});
            one.create("/api/tenants/acme/deploy", &deploy)["generation"].clone()
        });
        let activate = |server: &Server, generation: &Value| {
            let path = format!("/api/tenants/acme/deploy/{generation}/activate");
            server.request("POST", &path, None).0
        };
        let activated = thread::scope(|scope| {
            let second = scope.spawn(|| activate(&other, &generations[1]));
            [
                activate(&one, &generations[0]),
                second.join().expect("an answer"),
            ]
        });
        assert_eq!(activated, [200, 200]);
        let active = servers.map(|server| server.get("/api/tenants/acme/deploy")["active"].clone());
        assert_eq!(active[0], active[1]);
        assert!(generations.contains(&active[0]), "{active:?}");
        let numbers = journal(&one, "acme");
        assert_eq!(
            numbers,
            (1..=10).collect::<Vec<i64>>(),
            "five of each, without a gap"
        );
        let locked = race(servers, "POST", "/api/admin/encryption/lock", |_| {
            Some(json!({"tenant_id": "acme"}))
        });
        assert_eq!(locked, [200, 200]);
        assert_eq!(
            one.request(
                "POST",
                documents,
                Some(&json!({"table": "t", "fields": {}}))
            )
            .0,
            503
        );
        let deleted = race(servers, "DELETE", "/api/tenants/acme", |_| None);
        assert!(
            deleted[0] == 204 && [204, 404].contains(&deleted[1]),
            "{deleted:?}"
        );
        assert_eq!((tenants(&one), tenants(&other)), (vec![], vec![]));
        assert_eq!(house.sql("SELECT count(*) FROM {m}.keys"), "0");
    }
    one.stop();
    other.stop();
}

#[test]
fn an_index_that_is_made_at_one_server_has_what_others_write_meanwhile() {
    let house = House::new();
    let (one, other) = (house.start(), house.beside());
    let other = other.start();
    make_tenant(&one, "acme");
    let body = |n: i64| json!({"table": "t", "fields": {"n": n % 50, "m": n}});
    for n in 0..200 {
        let _made = one.create("/api/tenants/acme/documents", &body(n));
    }
    let schema = json!({"table": "t", "indexes": [{"name": "n", "fields": ["n"]}, {"name": "m", "fields": ["m"], "unique": true}]});
    let path = "/api/tenants/acme/schema/t";
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for n in 200..400 {
                let _made = other.create("/api/tenants/acme/documents", &body(n));
            }
        });
        for _ in 0..4 {
            assert_eq!(one.request("PUT", path, Some(&schema)).0, 204);
            assert_eq!(one.request("DELETE", path, None).0, 204);
        }
        assert_eq!(one.request("PUT", path, Some(&schema)).0, 204);
        writing.join().expect("all were written");
    });
    for server in [&one, &other] {
        for n in [0, 17, 49] {
            let query = json!({"table": "t", "filters": [{"field": "n", "op": "eq", "value": n}]});
            let (status, answer) = server.request("POST", "/api/tenants/acme/query", Some(&query));
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["data"].as_array().map(Vec::len), Some(8), "n = {n}");
        }
        let twice = server.request("POST", "/api/tenants/acme/documents", Some(&body(399)));
        assert_eq!(twice.0, 409);
    }
    one.stop();
    other.stop();
}
