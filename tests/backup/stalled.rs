//! A repository that takes a connection and does not answer, or a byte a second: what waits for it
//! ends, names the object, and holds no WAL.

use nimbus_test_support::{Fault, FaultProxy, Machine, Moto, Server, make_bucket};
use serde_json::json;

use super::shipping::{begun, instant, now_ms, pass, stamp};
use super::{add, backup_with, filled, machine, notes, s3, start_on};

/// Requests end after so many seconds.
const SOON: &str = "backup::patience=return(5)";

/// A bucket of its own behind a proxy that lets everything pass at first.
fn bucket(name: &str) -> (Moto, FaultProxy, String) {
    let moto = Moto::start();
    let bucket = format!("nimbus-{name}-{}", std::process::id());
    make_bucket(moto.url(), &bucket);
    let proxy = FaultProxy::in_front_of(moto.url());
    (moto, proxy, format!("s3://{bucket}/x"))
}

fn soon<'a>(proxy: &'a FaultProxy, failpoints: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut environment = s3(proxy.url());
    environment.push(("FAILPOINTS", failpoints));
    environment
}

/// More than is read ahead of what is stored: 64 MiB.
fn fill(server: &Server, tenant: &str) {
    let text = "x".repeat(900_000);
    for _document in 0..75 {
        let _id = server.insert(tenant, "large", &json!({"text": text}));
    }
}

fn wal(machine: &Machine, tenant: &str) -> bool {
    machine
        .data_dir()
        .join(format!("{tenant}.sqlite3-wal"))
        .exists()
}

#[test]
fn a_snapshot_into_a_repository_that_stops_answering_ends_and_lets_the_wals_go() {
    let (_moto, proxy, to) = bucket("hangs");
    let machine = machine();
    let environment = soon(&proxy, SOON);
    let mut start = machine.nimbus(&["start", "--port", "0"]);
    let _ = start.envs(environment.iter().copied());
    let server = machine.start_command(start);
    for tenant in ["a", "b"] {
        drop(server.create("/api/tenants", &json!({"id": tenant})));
        add(&server, tenant, 3);
    }
    fill(&server, "a");
    proxy.inject_for("PUT", "/base/", Fault::Hang);
    let create = ["create", "--to", &to];
    let _ = backup_with(&machine, &create, &environment).expect(
        1,
        &[
            "cannot create base/",
            "no answer within 5 s",
            "it does not answer",
        ],
    );
    // Nothing holds the WAL of the tenant any more: it is folded in as the server ends.
    server.stop();
    assert!(!wal(&machine, "a") && !wal(&machine, "b"));
    // The same of a deployment that does not run, and of an answer that comes a byte a second.
    let _ = backup_with(&machine, &create, &environment)
        .expect(1, &["cannot create base/", "no answer within 5 s"]);
    proxy.clear();
    let _ = backup_with(&machine, &create, &environment).expect(0, &["Snapshot 1", "2 tenants"]);
    proxy.inject_for("GET", "/snapshots/0000000001", Fault::Drip);
    for arguments in [&["list", "--from", &to][..], &create] {
        let _ = backup_with(&machine, arguments, &environment)
            .expect(1, &["cannot read snapshots/0000000001", "no answer within"]);
    }
    proxy.clear();
    proxy.inject_for("GET", "list-type", Fault::Hang);
    let _ = backup_with(&machine, &["list", "--from", &to], &environment)
        .expect(1, &["cannot list snapshots/", "no answer within"]);
}

#[test]
fn shipping_into_a_repository_that_stops_answering_gives_up_what_it_holds_and_goes_on_later() {
    let (_moto, proxy, to) = bucket("ships");
    let machine = machine();
    filled(&machine, &["old"]).stop();
    let failpoints = format!("{SOON};ship::held-most=return");
    let environment = soon(&proxy, &failpoints);
    let mut start = machine.nimbus(&["start", "--port", "0", "--backup-to", &to]);
    let _ = start.envs(environment.iter().copied());
    let server = machine.start_command(start);
    begun(&server);
    proxy.inject_for("PUT", "/base/", Fault::Hang);
    drop(server.create("/api/tenants", &json!({"id": "new"})));
    add(&server, "new", 5);
    let given_up = || server.log().contains("its WAL is held no longer");
    for _try in 0..1200 {
        if given_up() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(given_up(), "{}", server.log());
    proxy.clear();
    let at = now_ms();
    pass(&server, at);
    let at = instant(&server, &["old", "new"]);
    pass(&server, now_ms());
    server.stop();
    let restore = ["restore", "--from", &to, "--data-dir", "then", "--at"];
    let time = stamp(at.ms);
    let arguments = [&restore[..], &[&*time]].concat();
    let _ = backup_with(&machine, &arguments, &environment).expect(0, &["Restored the instant"]);
    let restored = start_on(&machine, "then", &[]);
    for (tenant, expected) in &at.notes {
        assert_eq!(expected, &notes(&restored, tenant));
    }
    restored.stop();
    let verify = ["verify", "--from", &to];
    let _ = backup_with(&machine, &verify, &environment).expect(0, &["all authentic"]);
}
