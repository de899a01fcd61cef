use serde_json::json;

use super::shipping::{begun, now_ms, pass, ranges, ships, stamp};
use super::{backup, machine, notes, start_on};

/// Each step of shipping at which the server is killed, some also later on.
const STEPS: [&str; 9] = [
    "ship::epoch-begun=return",
    "backup::frozen=return",
    "backup::committed=return",
    "ship::anchored=return",
    "ship::base-stored=return",
    "ship::named=2*off->return",
    "ship::formed=2*off->return",
    "ship::stored=return",
    "ship::stored=3*off->return",
];

#[test]
fn a_kill_at_each_step_loses_nothing_before_the_last_pack_and_the_next_start_goes_on() {
    let machine = machine();
    let server = machine.start(&[]);
    drop(server.create("/api/tenants", &json!({"id": "old"})));
    server.stop();
    let mut n = 0;
    let mut acknowledged: Vec<(i64, i64)> = Vec::new();
    for (round, point) in STEPS.iter().enumerate() {
        let tenant = format!("new-{round}");
        let mut command = machine.nimbus(&["start", "--port", "0", "--backup-to", "repo"]);
        let _ = command.env("FAILPOINTS", point);
        // It may die before it listens.
        if let Ok(server) = machine.try_start(command) {
            let body = json!({"id": tenant});
            let _dies =
                server.try_request_as(&machine.token(), "POST", "/api/tenants", Some(&body));
            for _write in 0..2000 {
                n += 1;
                let path = "/api/tenants/old/documents";
                let body = json!({"table": "notes", "fields": {"n": n}});
                let answer = server.try_request_as(&machine.token(), "POST", path, Some(&body));
                match answer {
                    Ok((201, _)) => acknowledged.push((n, now_ms())),
                    Ok(other) => panic!("{point}: {other:?}"),
                    Err(_gone) => break,
                }
            }
            server.wait_until_killed();
        }
        // What is in the repository as it is now.
        let shipped = ranges(&machine).last().map(|range| range.1.clone());
        if let Some(shipped) = shipped {
            let data = format!("now-{round}");
            let restore = ["restore", "--from", "repo", "--data-dir", &data];
            let _ = backup(&machine, &restore).expect(0, &["Restored"]);
            let restored = start_on(&machine, &data, &[]);
            let there = numbers(&restored);
            for (n, at) in &acknowledged {
                let by_then = *stamp(*at) <= *shipped;
                assert!(
                    !by_then || there.contains(n),
                    "{point}: {n} at {}",
                    stamp(*at)
                );
            }
            restored.stop();
        }
        // The server itself has lost nothing, and goes on in an epoch of its own.
        let server = ships(&machine, &[], &[]);
        begun(&server);
        let there = numbers(&server);
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|(n, _)| !there.contains(n))
            .collect();
        assert!(lost.is_empty(), "{point}: {lost:?}");
        n += 1;
        let _id = server.insert("old", "notes", &json!({"n": n}));
        acknowledged.push((n, now_ms()));
        pass(&server, now_ms());
        server.stop();
        let verified = backup(&machine, &["verify", "--from", "repo"]);
        assert_eq!(
            verified.0.status.code(),
            Some(0),
            "{point}: {}",
            verified.said()
        );
    }
    assert!(acknowledged.len() > STEPS.len(), "{acknowledged:?}");
}

fn numbers(server: &nimbus_test_support::Server) -> Vec<i64> {
    let notes = notes(server, "old");
    let number = |note: &serde_json::Value| {
        let fields = note
            .get("fields")
            .or_else(|| note.get("data"))
            .unwrap_or(note);
        fields["n"].as_i64()
    };
    notes.iter().filter_map(number).collect()
}

#[test]
fn answers_of_the_store_that_are_lost_change_nothing() {
    let machine = machine();
    let lost = [("FAILPOINTS", "backup::answer-lost=return")];
    let server = ships(&machine, &[], &lost);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "old"})));
    for n in 0..5 {
        let _id = server.insert("old", "notes", &json!({"n": n}));
        pass(&server, now_ms());
    }
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
}

#[test]
fn a_fault_of_the_shipper_is_told_and_it_begins_again_in_the_next_epoch() {
    let machine = machine();
    let fault = [("FAILPOINTS", "ship::look=2*off->1*panic->off")];
    let server = ships(&machine, &[], &fault);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "old"})));
    for n in 0..5 {
        let _id = server.insert("old", "notes", &json!({"n": n}));
        pass(&server, now_ms());
    }
    let log = server.log();
    assert!(
        log.contains("backup-shipper") && log.contains("begun again"),
        "{log}"
    );
    let before = notes(&server, "old");
    server.stop();
    assert_eq!(ranges(&machine).len(), 2);
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["all authentic"]);
    let _ = backup(
        &machine,
        &["restore", "--from", "repo", "--data-dir", "new"],
    )
    .expect(0, &[]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "old"));
    restored.stop();
}

#[test]
fn a_clock_that_is_set_back_is_bridged_and_each_instant_stays_restorable() {
    let machine = machine();
    let ahead = now_ms() / 1000 + 3600;
    let clock = format!("clock::now=return({ahead})");
    let server = ships(&machine, &[], &[("FAILPOINTS", &clock)]);
    begun(&server);
    drop(server.create("/api/tenants", &json!({"id": "old"})));
    let _id = server.insert("old", "notes", &json!({"n": 1}));
    server.stop();
    let first = ranges(&machine);
    assert!(first[0].1 > stamp(now_ms() + 3_000_000), "{first:?}");
    let server = ships(&machine, &[], &[]);
    begun(&server);
    let _id = server.insert("old", "notes", &json!({"n": 2}));
    let log = server.log();
    assert!(log.contains("the clock of this machine is behind"), "{log}");
    server.stop();
    let both = ranges(&machine);
    assert_eq!(both.len(), 2);
    assert!(both[0].1 < both[1].0 && both[1].0 <= both[1].1, "{both:?}");
    for (data, at, expected) in [
        ("then", &both[0].1, vec![1]),
        ("now", &both[1].1, vec![1, 2]),
    ] {
        let restore = ["restore", "--from", "repo", "--data-dir", data, "--at", at];
        let _ = backup(&machine, &restore).expect(0, &["Restored"]);
        let restored = start_on(&machine, data, &[]);
        let mut found = numbers(&restored);
        found.sort_unstable();
        assert_eq!(found, expected, "{at}");
        restored.stop();
    }
}
