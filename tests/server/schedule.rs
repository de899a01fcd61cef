//! Jobs and crons over HTTP.

use std::time::{Duration, Instant};

use nimbus_test_support::{Server, whole};
use serde_json::{Value, json};

use super::{assert_error, assert_refused, demo, machine, post};

const SCHEDULE: &str = "/api/tenants/demo/schedule";
const CRONS: &str = "/api/tenants/demo/crons";

fn insertion(n: u64) -> Value {
    json!({"type": "insert", "table": "runs", "fields": {"n": n}})
}

fn schedule(server: &Server, after_ms: u64, mutation: &Value) -> String {
    let job = json!({"run_after_ms": after_ms, "mutation": mutation});
    let answer = server.create(SCHEDULE, &job);
    answer["job_id"].as_str().expect("an id").to_owned()
}

fn history(server: &Server, job: &str) -> Value {
    let path = format!("{SCHEDULE}/history/{job}");
    wait(|| {
        let (status, body) = server.request("GET", &path, None);
        (status == 200).then(|| body["result"].clone())
    })
}

/// Waits until there is an answer.
fn wait<T>(mut answer: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(Instant::now() < until, "it does not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_job_is_listed_runs_and_is_in_the_history() {
    let (_machine, server) = demo();
    let later = schedule(&server, 3_600_000, &insertion(2));
    let job = schedule(&server, 0, &insertion(1));
    let result = history(&server, &job);
    assert_eq!(result["id"], json!(job));
    assert_eq!(result["mutation"], insertion(1));
    assert_eq!(
        (&result["outcome"], &result["error"]),
        (&json!("succeeded"), &Value::Null)
    );
    let at = |name: &str| result[name].as_i64().expect("a time");
    assert!(at("finished_at") >= at("run_at"));
    let documents = server.get("/api/tenants/demo/documents/runs");
    assert_eq!(documents["data"][0]["n"], 1);

    let listed = server.get(SCHEDULE);
    let jobs = listed["jobs"].as_array().expect("a list");
    assert_eq!((jobs.len(), &jobs[0]["id"]), (1, &json!(later)));
    assert_eq!(jobs[0]["mutation"], insertion(2));
    assert!(jobs[0]["run_at"].as_i64() > Some(at("run_at") + 3_000_000));

    let path = format!("{SCHEDULE}/{later}");
    assert_eq!(server.request("DELETE", &path, None), (204, Value::Null));
    assert_eq!(server.get(SCHEDULE), whole("jobs", json!([])));
    server.stop();
}

#[test]
fn numbers_of_a_job_come_back_digit_for_digit() {
    let (machine, server) = demo();
    let exact =
        r#"{"type":"insert","table":"runs","fields":{"n":12345678901234567890123,"m":1.10}}"#;
    let body = format!(r#"{{"run_after_ms":3600000,"mutation":{exact}}}"#);
    assert_eq!(
        post(&machine, &server, SCHEDULE, body.as_bytes()).status,
        201
    );
    let listed = super::send(&machine, &server, &format!("GET {SCHEDULE}"), "", b"");
    let text = String::from_utf8_lossy(listed.bytes()).into_owned();
    assert!(text.contains(exact), "{text}");
    server.stop();
}

#[test]
fn a_job_that_fails_says_why() {
    let (_machine, server) = demo();
    let absent = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    let job = schedule(
        &server,
        0,
        &json!({"type": "delete", "table": "runs", "id": absent}),
    );
    let result = history(&server, &job);
    assert_eq!(result["outcome"], "failed");
    let error = result["error"].as_str().expect("a reason");
    assert!(error.contains(absent), "{error}");
    server.stop();
}

#[test]
fn a_job_that_is_not_there_and_one_that_ran_are_told_apart() {
    let (_machine, server) = demo();
    let absent = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    for (method, path) in [
        ("DELETE", format!("{SCHEDULE}/{absent}")),
        ("GET", format!("{SCHEDULE}/history/{absent}")),
        ("DELETE", format!("{CRONS}/absent")),
    ] {
        let (status, body) = server.request(method, &path, None);
        assert_error(status, &body, (404, "op.scheduled_job_not_found"));
    }
    let job = schedule(&server, 0, &insertion(1));
    let _result = history(&server, &job);
    let (status, body) = server.request("DELETE", &format!("{SCHEDULE}/{job}"), None);
    let message = assert_error(status, &body, (409, "op.conflict"));
    assert!(message.contains("ran already"), "{message}");
    for path in [
        format!("{SCHEDULE}/x"),
        format!("{SCHEDULE}/{}", absent.to_uppercase()),
    ] {
        let (status, body) = server.request("DELETE", &path, None);
        assert_error(status, &body, (400, "op.invalid_input"));
    }
    let (status, body) = server.request("DELETE", &format!("{CRONS}/a%20b"), None);
    assert_error(status, &body, (400, "op.invalid_input"));
    let (status, body) = server.request("GET", "/api/tenants/other/schedule", None);
    assert_error(status, &body, (404, "session.tenant_not_found"));
    server.stop();
}

#[test]
fn rejects_what_is_no_job_or_cron_with_one_clear_error() {
    let (machine, server) = demo();
    let mutation = insertion(1).to_string();
    let hourly = r#"{"type":"interval","seconds":3600}"#;
    for body in [
        "[]".to_owned(),
        "{}".to_owned(),
        r#"{"run_after_ms":1}"#.to_owned(),
        format!(r#"{{"run_after_ms":-1,"mutation":{mutation}}}"#),
        format!(r#"{{"run_after_ms":1.5,"mutation":{mutation}}}"#),
        format!(r#"{{"run_after_ms":"60","mutation":{mutation}}}"#),
        format!(r#"{{"run_after_ms":99999999999999,"mutation":{mutation}}}"#),
        format!(r#"{{"run_after_ms":1,"at":2,"mutation":{mutation}}}"#),
        r#"{"run_after_ms":1,"mutation":{"type":"insert","table":"_x","fields":{}}}"#.to_owned(),
    ] {
        let answer = post(&machine, &server, SCHEDULE, body.as_bytes());
        assert_refused(&answer, 400, "op.invalid_input");
    }
    let cron = |expression: &str, timezone: &str| {
        json!({"type": "cron", "expression": expression, "timezone": timezone}).to_string()
    };
    for (name, schedule, word) in [
        (
            "n",
            r#"{"type":"interval","seconds":0}"#.to_owned(),
            "seconds",
        ),
        (
            "n",
            r#"{"type":"interval","seconds":-5}"#.to_owned(),
            "seconds",
        ),
        ("n", cron("0 0 30 2 *", "UTC"), "never fires"),
        ("n", cron("every day", "UTC"), "every day"),
        ("n", cron("*/30 2 * 3 0L", "Europe/Berlin"), "never fires"),
        ("n", cron("* * * * *", "Mars/Olympus"), "Mars/Olympus"),
        ("no name", hourly.to_owned(), "no name"),
    ] {
        let body = format!(r#"{{"name":"{name}","schedule":{schedule},"mutation":{mutation}}}"#);
        let answer = post(&machine, &server, CRONS, body.as_bytes());
        let message = assert_refused(&answer, 400, "op.invalid_input");
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(server.get(SCHEDULE), whole("jobs", json!([])));
    assert_eq!(server.get(CRONS), whole("crons", json!([])));
    server.stop();
}

#[test]
fn crons_are_made_listed_replaced_run_and_removed() {
    let (_machine, server) = demo();
    let nightly = json!({
        "name": "nightly",
        "schedule": {"type": "cron", "expression": "30 3 * * *", "timezone": "Europe/Berlin"},
        "mutation": insertion(1),
    });
    let made = server.create(CRONS, &nightly);
    assert_eq!(made["name"], "nightly");
    let tick = json!({
        "name": "tick",
        "schedule": {"type": "interval", "seconds": 1},
        "mutation": insertion(2),
    });
    server.create(CRONS, &tick);
    let last_run = wait(|| {
        let listed = server.get(CRONS);
        let run = listed["crons"][1]["last_run"].clone();
        (!run.is_null()).then_some(run)
    });
    assert_eq!(last_run["outcome"], "succeeded");
    let documents = server.get("/api/tenants/demo/documents/runs");
    assert_eq!(documents["data"][0]["n"], 2);

    // The same again changes nothing but what it does.
    let mut other = nightly.clone();
    other["mutation"] = insertion(3);
    assert_eq!(server.create(CRONS, &other), made);
    let listed = server.get(CRONS);
    let first = &listed["crons"][0];
    assert_eq!(first["schedule"], nightly["schedule"]);
    assert_eq!(
        (&first["mutation"], &first["origin"]),
        (&insertion(3), &json!("api"))
    );
    assert_eq!(
        (&first["next_run_at"], &first["last_run"]),
        (&made["next_run_at"], &Value::Null)
    );

    for name in ["tick", "nightly"] {
        assert_eq!(
            server.request("DELETE", &format!("{CRONS}/{name}"), None).0,
            204
        );
    }
    assert_eq!(server.get(CRONS), whole("crons", json!([])));
    server.stop();
}

#[test]
fn jobs_of_a_closed_tenant_and_of_the_time_that_the_server_was_down_run() {
    const ONE: &[&str] = &["--max-open-tenants", "1"];
    let machine = machine();
    let server = machine.start(ONE);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.create("/api/tenants", &json!({"id": "other"}));
    // Its writing shows when it ran, without anyone opening it.
    let file = machine.data_dir().join("demo.sqlite3");
    server.insert("demo", "runs", &json!({"n": 0}));
    let job = schedule(&server, 1000, &insertion(1));
    let down = schedule(&server, 4000, &insertion(2));
    server.insert("other", "runs", &json!({"n": 0}));
    let wal = machine.data_dir().join("demo.sqlite3-wal");
    let before = std::fs::metadata(&file)
        .expect("the file")
        .modified()
        .expect("a time");
    wait(|| {
        let touched = std::fs::metadata(&file)
            .expect("the file")
            .modified()
            .expect("a time")
            > before;
        (touched || wal.exists()).then_some(())
    });
    let _result = history(&server, &job);
    server.stop();
    let server = machine.start(ONE);
    let _result = history(&server, &down);
    let documents = server.get("/api/tenants/demo/documents/runs");
    let data = documents["data"].as_array().expect("a list");
    assert_eq!(data.len(), 3);
    server.stop();
}
