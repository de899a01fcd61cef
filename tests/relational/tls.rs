//! Connections to an engine over TLS: its certificate is verified, whatever it says.

use std::process::Command;

use nimbus_test_support::Authority;
use serde_json::json;

use super::{Engine, House, is_encrypted, make_tenant, over_tls};

/// A command that trusts the authorities of a file.
fn trusting(house: &House, authority: &Authority, arguments: &[&str]) -> Command {
    let file = house.machine.path("authority.pem");
    std::fs::write(&file, authority.pem()).expect("a file");
    let mut command = house.nimbus(arguments);
    let _ = command.env("SSL_CERT_FILE", file);
    command
}

#[test]
fn a_certificate_is_verified_and_one_that_is_not_good_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut engine = Engine::start_with_tls(&authority.certify(&["127.0.0.1"]));
    let house = House::on(&over_tls(&engine));
    let start = &["start", "--port", "0"][..];
    let server = house
        .machine
        .start_command(trusting(&house, &authority, start));
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    assert!(is_encrypted(&house));
    server.stop();
    let refused = |authority: &Authority, word: &str| {
        let ended = house.machine.run_to_end(trusting(&house, authority, start));
        ended.expect(1, &["127.0.0.1", "certificate", word]);
        assert!(!ended.said.contains("p@ss"), "{}", ended.said);
    };
    // It calls itself as the one that is trusted does.
    refused(&other, "BadSignature");
    let mut certified = |certified| {
        engine.kill();
        engine.certify(&certified);
        engine.start_again();
    };
    certified(authority.certify(&["db.example.com"]));
    refused(&authority, "not valid for name");
    certified(authority.certify_long_ago(&["127.0.0.1"]));
    refused(&authority, "expired");
    // What was written is read again once the certificate is good.
    certified(authority.certify(&["127.0.0.1"]));
    let server = house
        .machine
        .start_command(trusting(&house, &authority, start));
    assert_eq!(
        server.get("/api/tenants/acme/documents/t")["data"][0]["n"],
        1
    );
    server.stop();
}

#[test]
fn an_engine_without_tls_is_refused_where_it_is_asked_for() {
    let engine = Engine::start();
    let house = House::on(&over_tls(&engine));
    let authority = Authority::new();
    let ended = house
        .machine
        .run_to_end(trusting(&house, &authority, &["start", "--port", "0"]));
    ended.expect(1, &["127.0.0.1", "TLS"]);
    assert!(!ended.said.contains("p@ss"), "{}", ended.said);
}
