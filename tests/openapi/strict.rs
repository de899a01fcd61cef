//! What a client says is honoured or refused: on every route of the document, parameters and
//! members that it does not know.

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

/// A path of the document with names that there are.
fn path_of(pattern: &str) -> String {
    let names = [
        ("{t}", "demo"),
        ("{table}", "places"),
        ("{id}", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
        ("{job}", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
        ("{name}", "nightly"),
        ("{generation}", "1"),
        ("{path}", "index.html"),
    ];
    let path = names
        .iter()
        .fold(pattern.to_owned(), |path, (name, value)| {
            path.replace(name, value)
        });
    assert!(!path.contains('{'), "no value for a name in {pattern}");
    path
}

fn server_with_demo(machine: &Machine) -> Server {
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server
}

/// Every operation: its path's pattern, its method and what the document says of it.
fn operations(document: &Value) -> Vec<(&str, String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let operations: Vec<_> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").iter();
            methods.map(|(method, operation)| (path.as_str(), method.to_uppercase(), operation))
        })
        .collect();
    assert!(operations.len() > 40, "{}", operations.len());
    operations
}

/// The message of a refusal.
fn refused(server: &Server, method: &str, path: &str, body: Option<&Value>) -> String {
    let (status, answer) = server.request(method, path, body);
    let error = &answer["error"];
    assert_eq!(
        (status, &error["code"]),
        (400, &json!("op.invalid_input")),
        "{method} {path}: {answer}"
    );
    error["message"].as_str().expect("a message").to_owned()
}

#[test]
fn every_route_refuses_parameters_that_it_does_not_know_and_names_those_that_it_does() {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let server = server_with_demo(&machine);
    let document = server.get("/openapi.json");
    for (pattern, method, operation) in operations(&document) {
        let path = path_of(pattern);
        if pattern.starts_with("/apps/") {
            // A deployed page reads its own query.
            let plain = server.request(&method, &path, None).0;
            let asked = server
                .request(&method, &format!("{path}?surprise=1"), None)
                .0;
            assert_eq!(asked, plain, "{path}");
            continue;
        }
        // A body is not looked at: the query is wrong.
        let body = operation["requestBody"].is_object().then(|| json!({}));
        let ask =
            |query: &str| refused(&server, &method, &format!("{path}?{query}"), body.as_ref());
        let message = ask("surprise=1");
        assert!(
            message.starts_with("\"surprise\" is no query parameter of this route"),
            "{method} {pattern}: {message}"
        );
        let none = Vec::new();
        let parameters = operation["parameters"].as_array().unwrap_or(&none);
        let queried = parameters.iter().filter(|one| one["in"] == "query");
        let mut documented = 0;
        for parameter in queried {
            documented += 1;
            let name = parameter["name"].as_str().expect("a name");
            let quoted = format!("{name:?}");
            assert!(message.contains(&quoted), "{method} {pattern}: {message}");
            let wrong = ask(&format!("{name}=%00"));
            // A cursor is opened by its list, which says so in words of its own.
            let said = wrong.contains(&quoted) || wrong.contains("cursor");
            assert!(said, "{method} {pattern}: {wrong}");
        }
        let named = message.matches('"').count() / 2 - 1;
        assert_eq!(named, documented, "{method} {pattern}: {message}");
    }
    // Nothing of all that was done.
    assert_eq!(server.get("/api/tenants")["tenants"], json!(["demo"]));
    server.stop();
}

#[test]
fn a_parameter_that_is_given_twice_is_refused() {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let server = server_with_demo(&machine);
    for query in [
        "/api/tenants?limit=1&limit=1",
        "/api/tenants/demo/documents/places?after=x&after=x",
        "/api/tenants/demo/journal?limit=1&limit=1",
        "/api/tenants/demo/journal?after=0&limit=1&after=0",
        "/debug/usage?month=2026-11&month=2026-11",
        "/debug/encryption/status?verify=none&verify=none",
    ] {
        let message = refused(&server, "GET", query, None);
        assert!(message.contains("more than once"), "{query}: {message}");
    }
    server.stop();
}

#[test]
fn every_body_refuses_members_that_it_does_not_know() {
    let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
    let server = server_with_demo(&machine);
    let document = server.get("/openapi.json");
    let mut bodies = 0;
    for (pattern, method, operation) in operations(&document) {
        if operation["requestBody"].is_object() {
            bodies += 1;
            let body = json!({"surprise": 1});
            let message = refused(&server, &method, &path_of(pattern), Some(&body));
            assert!(
                message.contains("surprise"),
                "{method} {pattern}: {message}"
            );
        }
    }
    assert!(bodies > 15, "{bodies}");
    server.stop();
}
