//! Databases that cannot be used: each says what and why, and never a password.

use std::thread;

use nimbus_test_support::MariaDb;
use serde_json::json;

use super::{House, make_tenant};
use nimbus_test_support::until;

/// A start of a server of this house, which fails.
fn refused(house: &House, code: i32, words: &[&str]) {
    let ended = house
        .machine
        .run_to_end(house.nimbus(&["start", "--port", "0"]));
    ended.expect(code, words);
    for secret in ["hunter2", "p@ss", "p%40ss"] {
        assert!(!ended.said.contains(secret), "{}", ended.said);
    }
}

#[test]
fn a_database_that_cannot_be_used_ends_the_start_and_is_named_without_its_password() {
    let port = MariaDb::shared().port().to_string();
    let address = format!("127.0.0.1:{port}");
    let url = MariaDb::shared_url();
    refused(
        &House::on(&format!(
            "mysql://nimbus:hunter2@{address}?ssl-mode=disabled"
        )),
        1,
        &[&address, "Access denied"],
    );
    refused(
        &House::on(&url.replace('?', "/no_such_db?")),
        1,
        &[&address, "no_such_db", "Unknown database"],
    );
    refused(
        &House::on(&url.replace("disabled", "required")),
        1,
        &[&address, "TLS"],
    );
    refused(
        &House::on("mysql://nimbus:hunter2@no-such-host.invalid?ssl-mode=disabled"),
        1,
        &["no-such-host.invalid:3306"],
    );
    for wrong in [
        "postgres://u:hunter2@h/d",
        "mysql://u:hunter2@h/d?no_such=1",
        "hunter2",
    ] {
        refused(&House::on(wrong), 2, &["--mysql-url", "docs/mysql.md"]);
    }
    // The help shows settings of the environment.
    let house = House::on("mysql://u:hunter2@h");
    let help = house
        .nimbus(&["start", "--help"])
        .output()
        .expect("it runs");
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"));
}

#[test]
fn a_server_that_takes_no_writes_no_large_packets_or_no_time_is_named() {
    let engine = MariaDb::start();
    let house = House::on(&engine.url());
    let set = |sql: &str| engine.sql(sql).expect("root may do that");
    let _none = set("SET GLOBAL max_allowed_packet = 1048576");
    refused(&house, 1, &["max_allowed_packet is 1048576 bytes"]);
    let _none = set("SET GLOBAL max_allowed_packet = 16777216");
    let _none = set("SET GLOBAL read_only = 1");
    refused(&house, 1, &["takes no writes (read_only)"]);
    let _none = set("SET GLOBAL read_only = 0");

    // As a primary that becomes a replica, and one again.
    let server = house.start();
    make_tenant(&server, "acme");
    let body = json!({"table": "t", "fields": {"n": 1}});
    let insert = || {
        server
            .request("POST", "/api/tenants/acme/documents", Some(&body))
            .0
    };
    assert_eq!(insert(), 201);
    let _none = set("SET GLOBAL read_only = 1");
    assert_eq!(insert(), 503);
    let _none = set("SET GLOBAL read_only = 0");
    until("it takes writes again", || insert() == 201);
    server.stop();

    let metadata = format!("\"nimbus-of-{}\"", house.unique);
    let held = format!("LOCK TABLES {metadata}.layout WRITE; DO SLEEP(600)");
    thread::scope(|scope| {
        let holding = scope.spawn(|| engine.sql(&held));
        let sleeping = "SELECT id FROM information_schema.processlist WHERE info LIKE 'DO SLEEP%'";
        until("the table is locked", || !set(sleeping).is_empty());
        // It waits for as long as the server lets it.
        let _none = set("SET GLOBAL max_statement_time = 0.05");
        refused(&house, 1, &["max_statement_time"]);
        let _none = set("SET GLOBAL max_statement_time = 0");
        let _none = set(&format!("KILL {}", set(sleeping)));
        assert!(holding.join().expect("mariadb").is_err());
    });
}

#[test]
fn a_user_without_rights_is_told_which_server_refuses() {
    let house = House::new();
    let user = format!("u{}", house.unique);
    let _none = house.sql(&format!(
        "CREATE USER {user}@'127.0.0.1' IDENTIFIED BY 'hunter2'"
    ));
    let port = MariaDb::shared().port();
    let url = format!("mysql://{user}:hunter2@127.0.0.1:{port}?ssl-mode=disabled");
    let poor = House {
        url,
        ..house.beside()
    };
    refused(&poor, 1, &[&format!("127.0.0.1:{port}"), "denied"]);
    let _none = house.sql(&format!("DROP USER {user}@'127.0.0.1'"));
}
