//! Settings of a database, what is not done with tenants in one, and tables of another version.

use serde_json::json;

use super::{House, NAME, SETTINGS, make_tenant, refused_at_last};

#[test]
fn the_url_is_read_from_a_file_and_is_in_no_log() {
    let house = House::new();
    let file = house.machine.path("database-url");
    std::fs::write(&file, format!("{}\n", house.url)).expect("a file");
    let mut command = house.nimbus(&["start", "--port", "0"]);
    let _ = command
        .env_remove(format!("NIMBUS_{SETTINGS}_URL"))
        .env(format!("NIMBUS_{SETTINGS}_URL_FILE"), &file)
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
        &[
            "NOT encrypt",
            &format!("{NAME} at 127.0.0.1"),
            "nimbus-control.db",
        ],
    );
    let status = server.get("/debug/encryption/status");
    let place = status["unencrypted_tenants_in"]
        .as_str()
        .expect("where they are");
    assert!(
        place.contains(&format!("{NAME} at 127.0.0.1")) && !place.contains("p@ss"),
        "{place}"
    );
    run(&["encryption", "shred", "--tenant-id", "acme", "--yes"])
        .expect(1, &["no key to destroy", "DELETE /api/tenants"]);
    run(&["backup", "create", "--to", "snapshots"]).expect(2, &["pg_dump", "mariadb-dump"]);
    // A command that does not know it is told by the server.
    let path = "/api/admin/encryption/shred";
    let (status, answer) = server.request("POST", path, Some(&json!({"tenant_id": "acme"})));
    assert_eq!(status, 400, "{path}: {answer}");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    server.stop();
}

#[test]
fn tables_of_another_version_are_refused_and_a_running_server_stops_to_use_them() {
    let house = House::new();
    let server = house.start();
    make_tenant(&server, "acme");
    let _ = server.insert("acme", "t", &json!({"n": 1}));
    let _none = house.sql("UPDATE {m}.layout SET version = 99");
    let (status, answer) = refused_at_last(&server, "/api/tenants/acme/documents/t");
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
        ended.expect(1, &[words, NAME]);
    }
}
