//! A deploy killed at its commit: the old generation whole or the new one whole, never a mixture of
//! schemas, crons and files.

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Bystander, armed, assert_keeps_documents, machine, start_armed, writer};

const DEPLOY: &str = "/api/tenants/tenant/deploy";

/// Points of others that a deploy passes within its transaction.
const WITHIN: &[(&str, bool)] = &[
    ("tenants::schemas::indexes-made", false),
    ("tenants::schedule::expected", false),
];

/// A generation all of whose parts say which one it is.
fn app(name: &str, seconds: u64) -> Value {
    let content = format!("content of {name}");
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(content.as_bytes()));
    let encoded = data_encoding::BASE64.encode(content.as_bytes());
    json!({
        "name": name,
        "schemas": [
            {"table": "shared", "fields": [{"name": name, "field_type": "string", "required": false}],
             "indexes": [{"name": "by", "fields": [name], "unique": true}]},
            {"table": name, "fields": [], "indexes": []},
        ],
        "crons": [
            {"name": "shared", "schedule": {"type": "interval", "seconds": seconds},
             "mutation": {"type": "insert", "table": "ticks", "fields": {"by": name}}},
            {"name": name, "schedule": {"type": "interval", "seconds": seconds},
             "mutation": {"type": "insert", "table": "ticks", "fields": {}}},
        ],
        "files": [
            {"path": "shared.txt", "sha256": hash, "content_base64": encoded},
            {"path": format!("{name}.txt"), "sha256": hash, "content_base64": encoded},
        ],
    })
}

/// What stands of the parts of a generation.
fn standing(machine: &Machine, server: &Server) -> Value {
    let schemas = server.get("/api/tenants/tenant/schema");
    let crons = server.get("/api/tenants/tenant/crons")["crons"].take();
    let crons: Vec<Value> = crons
        .as_array()
        .expect("crons")
        .iter()
        .map(|cron| json!([cron["name"], cron["schedule"], cron["mutation"]]))
        .collect();
    let files: Vec<Value> = ["shared", "old", "new"]
        .map(|name| {
            let request = format!(
                "GET /apps/tenant/{name}.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
                machine.token()
            );
            let answer = server.raw(request.as_bytes()).expect("an answer");
            match answer.status {
                200 => json!(String::from_utf8_lossy(answer.bytes())),
                status => json!(status),
            }
        })
        .to_vec();
    json!({"schemas": schemas, "crons": crons, "files": files, "active": server.get(DEPLOY)["active"]})
}

/// Two generations, and what stands when each is active, on a tenant with documents. The old one is
/// active.
fn settle(machine: &Machine) -> (Value, Value) {
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "tenant"}));
    for n in 0..5 {
        let fields = json!({"n": n, "old": n.to_string(), "new": n.to_string()});
        server.insert("tenant", "shared", &fields);
    }
    server.create(DEPLOY, &app("new", 7200));
    let new = standing(machine, &server);
    server.create(DEPLOY, &app("old", 3600));
    let old = standing(machine, &server);
    server.stop();
    (old, new)
}

#[test]
fn a_deploy_killed_at_its_commit_is_active_whole_or_not_at_all() {
    for (point, survives) in writer::POINTS.iter().chain(WITHIN) {
        eprintln!("killed at {point}");
        let machine = machine();
        let bystander = Bystander::settle(&machine, &[]);
        let (old, new) = settle(&machine);
        let server = start_armed(&machine, &[], &armed(point, 0));
        let _ = server.try_request_as(&machine.token(), "POST", DEPLOY, Some(&app("new", 7200)));
        server.wait_until_killed();

        let server = machine.start(&[]);
        let mut found = standing(&machine, &server);
        let numbers: Vec<Value> = server.get(DEPLOY)["generations"]
            .as_array()
            .expect("generations")
            .iter()
            .map(|generation| generation["generation"].clone())
            .collect();
        if *survives {
            assert_eq!(found["active"].take(), 3);
            found["active"] = json!(1);
            assert_eq!(found, new);
            assert_eq!(numbers, [3, 2, 1]);
        } else {
            assert_eq!(found, old);
            assert_eq!(numbers, [2, 1]);
        }
        // Deployed again it is what it was to be, under the next number.
        let next = server.create(DEPLOY, &app("new", 7200));
        assert_eq!(next["generation"], if *survives { 4 } else { 3 });
        bystander.assert_undisturbed(&machine, &server);
        assert_keeps_documents(&machine, &[], server, "tenant");
    }
}

#[test]
fn an_activation_killed_at_its_commit_is_whole_or_not_at_all() {
    for (point, survives) in writer::POINTS.iter().chain(WITHIN) {
        eprintln!("killed at {point}");
        let machine = machine();
        let (old, new) = settle(&machine);
        let server = start_armed(&machine, &[], &armed(point, 0));
        let path = format!("{DEPLOY}/1/activate");
        let _ = server.try_request_as(&machine.token(), "POST", &path, None);
        server.wait_until_killed();

        let server = machine.start(&[]);
        let expected = if *survives { &new } else { &old };
        assert_eq!(&standing(&machine, &server), expected);
        let (status, answer) = server.request("POST", &path, None);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(standing(&machine, &server), new);
        server.stop();
    }
}
