//! Jobs while the server is killed: what was accepted runs, and what ran does not run again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{armed, machine, start_armed, writer};

/// Crash points, and how often they are passed before the server is killed: while jobs are
/// scheduled, or while they run.
pub(super) const POINTS: &[(&str, &[u32])] = &[
    ("tenants::schedule::expected", &[0, 3]),
    ("tenants::schedule::applied", &[0, 2]),
    ("tenants::schedule::finished", &[0, JOBS - 1]),
];

const JOBS: u32 = 6;

#[test]
fn no_job_is_lost_and_none_doubled_wherever_the_server_is_killed() {
    // A commit for each job that is scheduled; what comes after is a run.
    let commits = writer::POINTS.iter().map(|row| (row.0, &[2, JOBS][..]));
    for (point, passes) in POINTS.iter().copied().chain(commits) {
        for passes in passes {
            eprintln!("killed at {point} after {passes}");
            let machine = machine();
            let server = start_armed(&machine, &[], &armed(point, *passes));
            server.create("/api/tenants", &json!({"id": "tenant"}));
            let accepted = schedule_all(&machine, &server);
            server.wait_until_killed();
            assert_all_run_once(&machine, &accepted);
        }
    }
}

#[test]
fn jobs_survive_being_killed_again_and_again_while_they_run() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "tenant"}));
    let accepted = schedule_all(&machine, &server);
    server.kill();
    for point in [
        "tenants::schedule::applied",
        "tenants::schedule::finished",
        "tenants::writer::applied",
    ] {
        let server = start_armed(&machine, &[], &armed(point, 0));
        server.wait_until_killed();
    }
    assert_all_run_once(&machine, &accepted);
}

/// Schedules jobs that are due at once but for the time that scheduling takes; which of them were
/// accepted.
fn schedule_all(machine: &Machine, server: &Server) -> BTreeMap<u32, String> {
    let mut accepted = BTreeMap::new();
    for n in 0..JOBS {
        let job = json!({
            "run_after_ms": 1500,
            "mutation": {"type": "insert", "table": "runs", "fields": {"n": n}},
        });
        let path = "/api/tenants/tenant/schedule";
        let answer = server.try_request_as(&machine.token(), "POST", path, Some(&job));
        let Ok((status, body)) = answer else { break };
        assert_eq!(status, 201, "{body}");
        let id = body["job_id"].as_str().expect("an id");
        accepted.insert(n, id.to_owned());
    }
    accepted
}

/// The next server runs what was accepted, without being asked; each once, in order.
fn assert_all_run_once(machine: &Machine, accepted: &BTreeMap<u32, String>) {
    let server = machine.start(&[]);
    let until = Instant::now() + Duration::from_secs(60);
    while server.get("/api/tenants/tenant/schedule")["jobs"] != json!([]) {
        assert!(Instant::now() < until, "they do not run\n{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let listed = server.get("/api/tenants/tenant/documents/runs");
    let documents = listed["data"].as_array().expect("a list");
    let ran: Vec<u32> = documents.iter().map(number).collect();
    assert!(
        ran.is_sorted_by(|a, b| a < b),
        "once each and in order: {ran:?}"
    );
    for (n, id) in accepted {
        assert!(ran.contains(n), "{n} is lost: {ran:?}");
        let finished = server.get(&format!("/api/tenants/tenant/schedule/history/{id}"));
        assert_eq!(finished["result"]["outcome"], "succeeded", "{finished}");
    }
    // One that was not answered may have been accepted all the same; no more than the one under
    // way.
    assert!(ran.len() <= accepted.len() + 1, "{ran:?}");
    let journal = server.get("/api/tenants/tenant/journal");
    assert_eq!(journal["latest_sequence"], json!(ran.len()));
    server.stop();
}

fn number(document: &Value) -> u32 {
    let n = document["n"].as_u64().expect("a number");
    u32::try_from(n).expect("a small one")
}
