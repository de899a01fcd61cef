//! Databases that cannot be used, and what is not done with tenants in one: each says what and why, and never a password.

use std::thread;

use nimbus_test_support::Postgres;
use serde_json::json;

use super::{House, make_tenant, wait_until};

#[test]
fn a_database_that_cannot_be_used_ends_the_start_and_is_named_without_its_password() {
    let url = Postgres::shared_url();
    let (user, rest) = url.split_once('@').expect("a user");
    let password = user.rsplit(':').next().expect("a password");
    let address = rest.split_once('/').expect("a database").0;
    let port = address.rsplit(':').next().expect("a port");
    for (wrong, words) in [
        (
            format!("postgres://nimbus:hunter2-wrong@{rest}"),
            vec![address, "password authentication failed"],
        ),
        (
            url.replace("/postgres", "/no_such_db"),
            vec![address, "no_such_db", "does not exist"],
        ),
        (
            format!("postgres://nimbus:hunter2-wrong@127.0.0.1:{port}/postgres?sslmode=require"),
            vec![address, "TLS"],
        ),
    ] {
        let house = House::on(&wrong);
        let ended = house
            .machine
            .run_to_end(house.nimbus(&["start", "--port", "0"]));
        ended.expect(1, &words);
        for secret in ["hunter2", password, "p@ss"] {
            assert!(!ended.said.contains(secret), "{}", ended.said);
        }
    }
    for (wrong, code) in [
        ("mysql://u:hunter2@h/d", 2),
        ("postgres://u:hunter2@h/d?no_such=1", 2),
        ("hunter2", 2),
    ] {
        let house = House::on(wrong);
        let ended = house
            .machine
            .run_to_end(house.nimbus(&["start", "--port", "0"]));
        ended.expect(code, &["--postgres-url"]);
        assert!(!ended.said.contains("hunter2"), "{}", ended.said);
    }
    // The help shows settings of the environment.
    let house = House::on("postgres://u:hunter2@h/d");
    let help = house
        .nimbus(&["start", "--help"])
        .output()
        .expect("it runs");
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"));
}

#[test]
fn the_url_is_read_from_a_file_and_is_in_no_log() {
    let house = House::new();
    let file = house.machine.path("postgres-url");
    std::fs::write(&file, format!("{}\n", house.url)).expect("a file");
    let mut command = house.nimbus(&["start", "--port", "0"]);
    let _ = command
        .env_remove("NIMBUS_POSTGRES_URL")
        .env("NIMBUS_POSTGRES_URL_FILE", &file)
        .env("RUST_LOG", "trace");
    let server = house.machine.start_command(command);
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    assert_eq!(server.get("/ready")["ready"], true);
    let metrics = server.get("/metrics").to_string();
    let log = server.log();
    for secret in ["p@ss:w/rd", "p%40ss"] {
        assert!(!log.contains(secret) && !metrics.contains(secret));
    }
    server.stop();
}

#[test]
fn tenants_in_files_are_not_left_behind_unseen() {
    let house = House::new();
    let server = house.machine.start(&[]);
    make_tenant(&server, "in-a-file");
    server.stop();
    let ended = house
        .machine
        .run_to_end(house.nimbus(&["start", "--port", "0"]));
    ended.expect(1, &["in-a-file", "--tenant-provider sqlite"]);
}

#[test]
fn what_takes_keys_or_files_of_tenants_says_that_there_are_none() {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "acme");
    let run = |arguments: &[&str]| house.machine.run_to_end(house.nimbus(arguments));
    let status = run(&["encryption", "status"]);
    status.expect(
        0,
        &["NOT encrypt", "Postgres at 127.0.0.1", "nimbus-control.db"],
    );
    let status = server.get("/debug/encryption/status");
    let place = status["unencrypted_tenants_in"]
        .as_str()
        .expect("where they are");
    assert!(
        place.contains("database postgres") && !place.contains("p@ss"),
        "{place}"
    );
    run(&["encryption", "shred", "--tenant-id", "acme", "--yes"])
        .expect(2, &["no key to destroy", "DELETE /api/tenants"]);
    run(&["backup", "create", "--to", "snapshots"]).expect(2, &["pg_dump"]);
    // A command that does not know it is told by the server.
    let path = "/api/admin/encryption/shred";
    let (status, answer) = server.request("POST", path, Some(&json!({"tenant_id": "acme"})));
    assert_eq!(status, 400, "{path}: {answer}");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    server.stop();
}

/// The same database, with an option of the session.
fn with_option(house: &House, option: &str) -> House {
    let url = format!("{}?options=-c%20{option}", house.url);
    House {
        url,
        ..house.beside()
    }
}

#[test]
fn a_database_that_takes_no_writes_is_named() {
    // As a standby is.
    let house = with_option(&House::new(), "default_transaction_read_only%3Don");
    let ended = house
        .machine
        .run_to_end(house.nimbus(&["start", "--port", "0"]));
    ended.expect(1, &["database postgres", "does not allow writes"]);
    assert!(!ended.said.contains("p@ss"), "{}", ended.said);
}

#[test]
fn a_statement_that_the_database_ends_is_named() {
    let house = House::new();
    house.start().stop();
    thread::scope(|scope| {
        let held = "LOCK TABLE {m}.layout; SELECT pg_sleep(600)";
        let holding = scope.spawn(|| house.try_sql(held));
        let locked = "SELECT count(*) FROM pg_locks WHERE relation = '{m}.layout'::regclass
            AND mode = 'AccessExclusiveLock' AND granted";
        wait_until("the table is locked", || house.sql(locked) == "1");
        // It waits for as long as the database lets it.
        let impatient = with_option(&house, "statement_timeout%3D50");
        let ended = impatient
            .machine
            .run_to_end(impatient.nimbus(&["start", "--port", "0"]));
        ended.expect(1, &["database postgres", "statement timeout"]);
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE relation = '{m}.layout'::regclass
            AND mode = 'AccessExclusiveLock' AND granted";
        assert_eq!(house.sql(end), "1");
        assert!(holding.join().expect("psql").is_err());
    });
}

#[test]
fn tables_of_another_version_are_refused_and_a_running_server_stops_to_use_them() {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    let _none = house.sql("UPDATE {m}.layout SET version = 99");
    let (status, answer) = crate::refused_at_last(&server, "/api/tenants/acme/documents/t");
    assert_eq!(
        (status, &answer["error"]["code"]),
        (503, &json!("service.unavailable"))
    );
    server.stop();
    for (version, words) in [
        (99, "newer Nimbus (layout 99"),
        (1, "never released (layout 1"),
    ] {
        let _none = house.sql(&format!("UPDATE {{m}}.layout SET version = {version}"));
        let ended = house
            .machine
            .run_to_end(house.nimbus(&["start", "--port", "0"]));
        ended.expect(1, &[words, "database postgres"]);
    }
}
