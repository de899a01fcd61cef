//! `scripts/load-cities`, which the README sends its readers to, with places that need no network.

use std::process::Command;

use nimbus_test_support::{Machine, Server};
use serde_json::json;

use super::machine;

fn load(machine: &Machine, server: &Server, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/load-cities"))
        .args([
            "--made-up",
            "--url",
            &format!("http://{}", server.address()),
        ])
        .arg("--token-file")
        .arg(machine.token_file())
        .arg("--cache")
        .arg(machine.path("cities"))
        .args(arguments)
        .output()
        .expect("python3");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(said).expect("text"),
    )
}

#[test]
fn places_are_loaded_once_and_a_load_goes_on_where_it_stopped() {
    let machine = machine();
    let server = machine.start(&[]);
    for (limit, says) in [
        ("300", "300 places into tenant cities"),
        ("300", "nothing to do"),
        ("500", "300 of 500 are there from an earlier run"),
    ] {
        let (loaded, said) = load(&machine, &server, &["--limit", limit]);
        assert!(loaded && said.contains(says), "{said}");
    }
    let all = server.get("/api/tenants/cities/documents/cities");
    let all = all["data"].as_array().expect("data");
    assert_eq!(all.len(), 500);
    for place in all {
        assert!(
            place["lat"].is_number() && place["name"].is_string(),
            "{place}"
        );
    }
    // A tenant with something else in it is left alone.
    server.create("/api/tenants", &json!({"id": "other"}));
    let (loaded, said) = load(&machine, &server, &["--limit", "1", "--tenant", "other"]);
    assert!(
        !loaded && said.contains("name another with --tenant"),
        "{said}"
    );
    server.stop();
}
