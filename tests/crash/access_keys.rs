//! Access keys and usage: a kill on either side of their commits.

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{armed, machine, send_to_death, start_armed};

/// Point, and whether what was under way is in the control file then.
pub(super) const POINTS: &[(&str, bool)] = &[
    ("keys::created", true),
    ("keys::revoked", true),
    ("usage::gathered", false),
    ("usage::committed", true),
];

const KEYS: &str = "/api/tenants/demo/keys";
const LIST: &str = "/api/tenants/demo/documents/places";

#[test]
fn a_key_whose_making_was_killed_is_listed_and_can_be_revoked() {
    let machine = machine();
    settle(&machine).stop();
    let server = start_armed(&machine, &[], &armed("keys::created", 0));
    let body = json!({"name": "nobody has it", "scope": "write"});
    send_to_death(&machine, server, "POST", KEYS, Some(&body));
    let server = machine.start(&[]);
    let keys = server.get(KEYS);
    assert_eq!(keys["keys"][0]["name"], "nobody has it");
    let id = keys["keys"][0]["id"].as_str().expect("an id");
    let (status, _) = server.request("DELETE", &format!("{KEYS}/{id}"), None);
    assert_eq!(status, 204);
    assert_eq!(server.get(KEYS), json!({"keys": []}));
}

#[test]
fn a_key_whose_revocation_was_killed_does_not_count_any_more() {
    let machine = machine();
    let server = settle(&machine);
    let (id, key) = make(&server);
    server.stop();
    let server = start_armed(&machine, &[], &armed("keys::revoked", 0));
    assert_eq!(server.request_as(&key, "GET", LIST, None).0, 200);
    send_to_death(&machine, server, "DELETE", &format!("{KEYS}/{id}"), None);
    let server = machine.start(&[]);
    let (status, answer) = server.request_as(&key, "GET", LIST, None);
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (401, Some("auth.token_revoked"))
    );
}

#[test]
fn a_kill_loses_the_identities_that_were_not_committed_and_none_counts_twice() {
    let machine = machine();
    let server = settle(&machine);
    let (_, ann) = make(&server);
    visit(&server, &ann);
    assert_eq!(identities(&server), 1, "the answer shows what is committed");
    let (_, bob) = make(&server);
    server.stop();

    for (point, committed) in POINTS
        .iter()
        .filter(|(point, _)| point.starts_with("usage"))
    {
        eprintln!("killed at {point}");
        let server = start_armed(&machine, &[], &armed(point, 0));
        visit(&server, &ann);
        visit(&server, &bob);
        // It dies by itself when it commits what has gathered.
        server.wait_until_killed();
        let server = machine.start(&[]);
        assert_eq!(identities(&server), 1 + u64::from(*committed));
        server.kill();
    }
    let server = machine.start(&[]);
    visit(&server, &ann);
    visit(&server, &bob);
    assert_eq!(identities(&server), 2);
    let (_, cy) = make(&server);
    visit(&server, &cy);
    server.stop();
    assert_eq!(
        identities(&machine.start(&[])),
        3,
        "an orderly end loses nothing"
    );
}

fn settle(machine: &Machine) -> Server {
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server
}

fn make(server: &Server) -> (String, String) {
    let made = server.create(KEYS, &json!({"name": "a test", "scope": "read"}));
    let text = |field: &str| made[field].as_str().expect(field).to_owned();
    (text("id"), text("key"))
}

fn visit(server: &Server, key: &str) {
    assert_eq!(server.request_as(key, "GET", LIST, None).0, 200);
}

/// Of all months: a test that runs over midnight of the first sees two.
fn identities(server: &Server) -> u64 {
    let report = server.get("/debug/usage");
    let months = report["months"].as_array().expect("months").iter();
    months
        .map(|month: &Value| month["identities"].as_u64().expect("a number"))
        .sum()
}
