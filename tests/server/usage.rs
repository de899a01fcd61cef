//! Monthly active identities: what counts, what a kill costs, and what the command line says.

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::access_keys::{machine_with_key, make};
use super::{assert_refused, send_bare};

const LINE: &str = "GET /api/tenants/demo/documents/places";

/// A request under `key` for each of these.
fn visit(server: &Server, key: &str, identities: &[&str]) {
    for identity in identities {
        let headers = format!("Authorization: Bearer {key}\r\nX-Nimbus-Identity: {identity}\r\n");
        assert_eq!(send_bare(server, LINE, &headers, b"").status, 200);
    }
}

/// How many identities the newest month has.
fn identities(report: &Value) -> u64 {
    let months = report["months"].as_array().expect("months");
    // A test that runs over midnight of the first sees two.
    months
        .iter()
        .map(|month| month["identities"].as_u64().expect("a number"))
        .sum()
}

/// What `nimbus usage` prints.
fn nimbus_usage(machine: &Machine, arguments: &[&str]) -> String {
    let mut command = machine.nimbus(&["usage"]);
    let output = command.args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn usage(machine: &Machine) -> Value {
    let said = nimbus_usage(machine, &["--format", "json"]);
    serde_json::from_str(&said).expect("JSON")
}

#[test]
fn each_key_and_each_name_counts_once() {
    let (machine, server, key) = machine_with_key();
    let empty = json!({"months": [], "not_counted": 0});
    assert_eq!(server.get("/debug/usage"), empty);
    assert_eq!(usage(&machine), empty);
    // The admin token is nobody's, whatever it says.
    let admin = machine.token();
    visit(&server, &admin, &["root"]);
    assert_eq!(server.get("/debug/usage"), empty);

    for _ in 0..3 {
        assert_eq!(
            server
                .request_as(&key, "GET", "/api/tenants/demo/documents/places", None)
                .0,
            200
        );
        visit(&server, &key, &["ann", "bob", "Ann", "ключ"]);
    }
    // A name is one of its tenant's, under whichever key; a second key by itself is one more.
    let (_, second) = make(&server, "demo", "write");
    visit(&server, &second, &["ann"]);
    assert_eq!(identities(&server.get("/debug/usage")), 5);
    assert_eq!(
        server
            .request_as(&second, "GET", "/api/tenants/demo/documents/places", None)
            .0,
        200
    );
    // What is refused is nobody's visit.
    assert_eq!(
        server
            .request_as(&key, "GET", "/api/tenants/other/journal", None)
            .0,
        403
    );
    let report = server.get("/debug/usage");
    assert_eq!(identities(&report), 6);
    let month = &report["months"][0];
    assert_eq!(
        month["tenants"],
        json!([{"tenant": "demo", "identities": 6, "capped": false}])
    );
    let name = month["month"].as_str().expect("a month");
    assert_eq!(server.get(&format!("/debug/usage?month={name}")), report);
    assert_eq!(server.get("/debug/usage?month=1999-01"), empty);
    for query in [
        "month=2026",
        "month=",
        "months=2026-11",
        "month=2026-11&month=2026-12",
    ] {
        let line = format!("GET /debug/usage?{query}");
        let answer = super::send(&machine, &server, &line, "", b"");
        assert_refused(&answer, 400, "op.invalid_input");
    }

    assert_eq!(usage(&machine), report, "through the server");
    server.stop();
    assert_eq!(usage(&machine), report, "from the file");
    let expected = format!(
        "MONTH    TENANT  IDENTITIES\n{name}  demo             6\n{name}  (all)            6\n"
    );
    assert_eq!(nimbus_usage(&machine, &["--month", name]), expected);
}

#[test]
fn what_a_deleted_tenant_had_stays_in_the_sum() {
    let (_machine, server, key) = machine_with_key();
    visit(&server, &key, &["ann", "bob"]);
    assert_eq!(identities(&server.get("/debug/usage")), 2);
    assert_eq!(server.request("DELETE", "/api/tenants/demo", None).0, 204);
    let report = server.get("/debug/usage");
    assert_eq!(report["months"][0]["tenants"], json!([]));
    assert_eq!(report["months"][0]["deleted_tenants"], 2);
    server.create("/api/tenants", &json!({"id": "demo"}));
    let (_, key) = make(&server, "demo", "read");
    visit(&server, &key, &["ann"]);
    let report = server.get("/debug/usage");
    assert_eq!(identities(&report), 3);
    assert_eq!(report["months"][0]["tenants"][0]["identities"], 1);
}

#[test]
fn an_identity_that_is_none_is_refused() {
    let (machine, server, key) = machine_with_key();
    let (long, longer) = ("a".repeat(256), "a".repeat(257));
    let header = |text: &str| format!("X-Nimbus-Identity: {text}\r\n");
    for headers in [
        header(""),
        header(" "),
        header(&longer),
        header("ann") + &header("ann"),
    ] {
        let headers = format!("Authorization: Bearer {key}\r\n{headers}");
        let answer = send_bare(&server, LINE, &headers, b"");
        let message = assert_refused(&answer, 400, "op.invalid_input");
        assert!(message.contains("X-Nimbus-Identity"), "{message}");
    }
    visit(&server, &key, &[&long]);
    assert_eq!(identities(&server.get("/debug/usage")), 1);
    assert!(!server.log().contains(&long));
    // Under the admin token it counts for nobody, and must be right all the same.
    let answer = super::send(&machine, &server, LINE, &header(&longer), b"");
    assert_refused(&answer, 400, "op.invalid_input");
    let answer = super::send(&machine, &server, LINE, &header(&long), b"");
    assert_eq!(answer.status, 200);
    assert_eq!(identities(&server.get("/debug/usage")), 1);
}

#[test]
fn a_flood_of_identities_does_not_stop_requests() {
    let (_machine, server, key) = machine_with_key();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (server, key) = (&server, &key);
            let _ = scope.spawn(move || {
                for n in 0..500 {
                    visit(server, key, &[&format!("identity-{client}-{n}")]);
                }
            });
        }
    });
    let report = server.get("/debug/usage");
    assert_eq!(identities(&report), 2000);
    assert_eq!(report["not_counted"], 0);
}
