//! The primary dies under load, and its standby takes its place.

use std::sync::atomic::Ordering;

use nimbus_test_support::{Postgres, until};

use super::crash::{assert_kept, under_load, wait_for};
use super::{House, make_tenant};

/// What `psql` says of a statement.
fn ask(engine: &Postgres, statement: &str) -> String {
    let mut asking = Postgres::client("psql", &engine.url());
    let asked = asking
        .args(["--no-align", "--tuples-only", "--command", statement])
        .output()
        .expect("psql runs");
    assert!(asked.status.success(), "{asked:?}");
    String::from_utf8(asked.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_the_primary_and_servers_go_on_at_its_standby() {
    let mut primary = Postgres::start();
    let standby = Postgres::standby_of(&primary);
    // A commit is answered once the standby has it, too.
    let _none = ask(
        &primary,
        "ALTER SYSTEM SET synchronous_standby_names = 'standby'",
    );
    let _none = ask(&primary, "SELECT pg_reload_conf()");
    until("the standby follows", || {
        ask(
            &primary,
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'standby' AND sync_state = 'sync'",
        ) == "1"
    });
    // Both hosts are in the URL: the one that takes writes is used.
    let (host, rest) = primary.url().rsplit_once('@').map_or_else(
        || panic!("a user"),
        |(user, rest)| (user.to_owned(), rest.to_owned()),
    );
    let (address, database) = rest.split_once('/').expect("a database");
    let other = standby.url();
    let other = other.rsplit_once('@').expect("a user").1;
    let other = other.split_once('/').expect("a database").0;
    let house = House::on(&format!("{host}@{other},{address}/{database}"));
    let (first, beside) = (house.start(), house.beside());
    let second = beside.start();
    make_tenant(&first, "acme");
    make_tenant(&first, "other");
    let tokens = [house.machine.token(), beside.machine.token()];
    let mut of_other = Vec::new();
    let of_acme = under_load(&first, &tokens[0], "acme", |acme| {
        wait_for(acme, 100);
        // The other server's clients, while it happens.
        of_other = under_load(&second, &tokens[1], "other", |other| {
            wait_for(other, 50);
            primary.kill();
            assert_eq!(ask(&standby, "SELECT pg_promote()"), "t");
            for total in [acme, other] {
                wait_for(total, total.load(Ordering::SeqCst) + 50);
            }
        });
    });
    for server in [&first, &second] {
        assert_kept(server, "acme", &of_acme);
        assert_kept(server, "other", &of_other);
    }
    first.stop();
    second.stop();
}
