//! Databases that cannot be used, and what is not done with tenants in one: each says what and why, and never a password.

use nimbus_test_support::Postgres;
use serde_json::json;

use super::{House, make_tenant};

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
    run(&["encryption", "lock", "--tenant-id", "acme"]).expect(2, &["no key to take away"]);
    run(&["backup", "create", "--to", "snapshots"]).expect(2, &["pg_dump"]);
    // A command that does not know it is told by the server.
    for (path, body) in [
        ("/api/admin/encryption/lock", json!({"tenant_id": "acme"})),
        ("/api/admin/encryption/shred", json!({"tenant_id": "acme"})),
    ] {
        let (status, answer) = server.request("POST", path, Some(&body));
        assert_eq!(status, 400, "{path}: {answer}");
    }
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    server.stop();
}
