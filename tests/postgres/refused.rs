//! Databases that cannot be used: each says what and why, and never a password.

use std::thread;

use nimbus_test_support::Postgres;

use super::House;
use nimbus_test_support::until;

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
        until("the table is locked", || house.sql(locked) == "1");
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
