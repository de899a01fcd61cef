//! A log that cannot be written, and threads and tasks that end by a fault: nothing stops
//! unnoticed.

use std::io::{Write as _, pipe};
use std::net::TcpListener;
use std::process::Stdio;

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::access_keys::make;
use super::machine;
use super::service::activated;
use nimbus_test_support::until;

/// A server whose log goes to `stderr`, and that logs at each start, opening and closing.
fn unheard(machine: &Machine, stderr: Stdio) -> Server {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("its address").to_string();
    let mut command = activated(machine, socket, &[]);
    command.env("RUST_LOG", "debug");
    machine.start_unheard(command, stderr, &address)
}

/// A server in which these points are armed.
fn faulty(machine: &Machine, points: &str) -> Server {
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("FAILPOINTS", points);
    machine.start_command(command)
}

fn metric(server: &Server, series: &str) -> u64 {
    let text = server.get("/metrics");
    let text = text.as_str().expect("text").to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    let value = line.unwrap_or_else(|| panic!("no {series} in {text}"));
    value.trim().parse().expect("a number")
}

fn panics(server: &Server, name: &str) -> u64 {
    metric(
        server,
        &format!("nimbus_background_panics_total{{name=\"{name}\"}}"),
    )
}

fn is_missed(server: &Server, name: &str) -> bool {
    let (status, ready) = server.request("GET", "/ready", None);
    let error = ready["checks"]["background"]["error"].as_str();
    let missed = error.is_some_and(|error| error.contains(name));
    assert_eq!(missed, status == 503, "{ready}");
    missed
}

/// Rotates the tenant's data key; how that ended.
fn rotate_dek(machine: &Machine, server: &Server, tenant: &str) -> Value {
    let path = machine.data_dir().join(format!("{tenant}.sqlite3"));
    let body = json!({"path": path, "tenant_id": tenant});
    let (status, answer) = server.request("POST", "/api/admin/encryption/rotate-dek", Some(&body));
    assert_eq!(status, 202, "{answer}");
    let id = answer["operation"].as_str().expect("its id");
    let path = format!("/api/admin/operations/{id}");
    let mut operation = Value::Null;
    until("the operation ends", || {
        operation = server.get(&path);
        operation["state"] != "running"
    });
    operation
}

/// Everything that logs, or waits for one that does.
fn everything_works(machine: &Machine, server: &Server) {
    for tenant in ["one", "two"] {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "things", &json!({"n": 1}));
    }
    let lock = |verb: &str| {
        let path = format!("/api/admin/encryption/{verb}");
        server.request("POST", &path, Some(&json!({"tenant_id": "one"})))
    };
    let (status, answer) = lock("lock");
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = lock("unlock");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(rotate_dek(machine, server, "one")["state"], "done");
    let (status, answer) = server.request("DELETE", "/api/tenants/one", None);
    assert_eq!(status, 204, "{answer}");
    let job =
        json!({"run_after_ms": 0, "mutation": {"type": "insert", "table": "runs", "fields": {}}});
    server.create("/api/tenants/two/schedule", &job);
    until("a job runs", || {
        let runs = server.get("/api/tenants/two/documents/runs");
        runs["data"][0].is_object()
    });
    assert_eq!(server.get("/ready")["ready"], json!(true));
}

#[test]
fn a_log_whose_reader_is_gone_is_dropped_and_counted_and_stops_nothing() {
    let machine = machine();
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let server = unheard(&machine, writer.into());
    everything_works(&machine, &server);
    let dropped = || metric(&server, "nimbus_log_lines_dropped_total");
    for _hangup in 0..2 {
        let before = dropped();
        server.hang_up();
        until("the hangup is logged in vain", || dropped() > before);
    }
    assert_eq!(metric(&server, "nimbus_panics_total"), 0);
    server.stop();
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_no_end() {
    let machine = machine();
    let (reader, mut writer) = pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe that does not block");
    while writer.write(&[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe that blocks");
    let server = unheard(&machine, writer.into());
    everything_works(&machine, &server);
    server.stop();
    drop(reader);
}

#[test]
fn the_audit_log_s_thread_ends_and_nothing_is_done_that_it_must_record() {
    let machine = machine();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.stop();
    let server = faulty(&machine, "audit::write-down=panic");
    until("it is missed", || {
        server.request("POST", "/api/tenants", Some(&json!({"id": "new"})));
        is_missed(&server, "audit-log")
    });
    let (status, answer) = server.request("POST", "/api/tenants", Some(&json!({"id": "other"})));
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_string().contains("restart it"), "{answer}");
    assert_eq!(panics(&server, "audit-log"), 1);
    assert!(metric(&server, "nimbus_panics_total") >= 1);
    // What needs no line goes on.
    server.insert("demo", "things", &json!({}));
    server.stop();
    let server = machine.start(&[]);
    server.create("/api/tenants", &json!({"id": "other"}));
    server.stop();
}

#[test]
fn what_is_begun_again_after_a_fault_is_counted_and_goes_on() {
    let machine = machine();
    for (points, name) in [
        ("scheduler::round=1*panic", "scheduler"),
        ("leases::keep=1*panic", "lease-keeper"),
        ("gauges::look=1*panic", "figures"),
        ("metrics::upkeep=1*panic", "metrics-upkeep"),
        ("log::write=1*panic", "log-writer"),
        ("tls::reload=1*panic", "tls-reload"),
        ("signals::follow=1*panic", "signals"),
    ] {
        let server = faulty(&machine, points);
        server.hang_up();
        until(name, || panics(&server, name) == 1);
        until("it runs again", || !is_missed(&server, name));
        let series = format!("nimbus_background_down{{name=\"{name}\"}}");
        assert_eq!(metric(&server, &series), 0);
        server.hang_up();
        until("the hangup is seen", || server.log().contains("SIGHUP"));
        server.stop();
    }
    // One that goes on to panic stays missed.
    let server = faulty(&machine, "gauges::look=panic");
    until("it is missed", || is_missed(&server, "figures"));
    until("it is tried again", || panics(&server, "figures") > 2);
    server.stop();
    let server = faulty(&machine, "data-key-age::look=panic");
    assert_eq!(panics(&server, "data-key-age"), 0, "it is not asked for");
    server.stop();
}

#[test]
fn nobody_who_replaces_old_data_keys_is_missed_until_there_is_one() {
    let machine = machine();
    let start = ["start", "--port", "0", "--encryption-dek-max-age", "1d"];
    for (points, stays) in [
        ("data-key-age::look=panic", true),
        ("data-key-age::look=1*panic", false),
    ] {
        let mut command = machine.nimbus(&start);
        command.env("FAILPOINTS", points);
        let server = machine.start_command(command);
        let down = || metric(&server, "nimbus_background_down{name=\"data-key-age\"}");
        if stays {
            until("it is missed", || is_missed(&server, "data-key-age"));
            until("the metric says so", || down() == 1);
        } else {
            until("the fault was met", || panics(&server, "data-key-age") == 1);
            until("it runs again", || !is_missed(&server, "data-key-age"));
            assert_eq!(down(), 0);
        }
        server.stop();
    }
}

#[test]
fn a_server_that_no_signal_reaches_is_not_ready() {
    let machine = machine();
    let server = faulty(&machine, "signals::follow=panic");
    until("it is missed", || is_missed(&server, "signals"));
    until("it is tried again", || panics(&server, "signals") > 1);
    until("the metric says so", || {
        metric(&server, "nimbus_background_down{name=\"signals\"}") == 1
    });
    server.kill();
}

#[test]
fn identities_are_counted_although_who_counts_them_ended_by_a_fault() {
    let machine = machine();
    let server = faulty(&machine, "usage::seen=1*panic");
    server.create("/api/tenants", &json!({"id": "demo"}));
    let name = "usage-counter";
    // The admin token is nobody's.
    let (_, token) = make(&server, "demo", "read");
    let seen = |identity: &str| {
        let (path, identity) = (
            "/api/tenants/demo/documents/notes",
            [("x-nimbus-identity", identity)],
        );
        let answer = server.try_request_with(&token, &identity, "GET", path, None);
        assert_eq!(answer.expect("an answer").0, 200);
    };
    until("the fault was met", || {
        seen("ana");
        panics(&server, name) == 1
    });
    // The next request starts another, so nobody misses it.
    assert!(!is_missed(&server, name));
    until("it is counted", || {
        seen("bob");
        !server.get("/debug/usage")["months"][0].is_null()
    });
    assert_eq!(panics(&server, name), 1);
    server.stop();
}

#[test]
fn jobs_run_although_the_scheduler_ended_by_a_fault() {
    let machine = machine();
    let server = faulty(&machine, "scheduler::round=3*off->1*panic");
    server.create("/api/tenants", &json!({"id": "demo"}));
    for _job in 0..8 {
        let job = json!({"run_after_ms": 0, "mutation": {"type": "insert", "table": "runs", "fields": {}}});
        server.create("/api/tenants/demo/schedule", &job);
    }
    until("all jobs run", || {
        let runs = server.get("/api/tenants/demo/documents/runs");
        runs["data"].as_array().map(Vec::len) == Some(8)
    });
    until("the fault was met", || panics(&server, "scheduler") == 1);
    server.stop();
}

#[test]
fn a_tenant_whose_writer_ends_by_a_fault_is_opened_afresh() {
    let machine = machine();
    let server = faulty(&machine, "tenants::writer::commit=1*off->1*panic");
    server.create("/api/tenants", &json!({"id": "demo"}));
    let acknowledged = server.insert("demo", "things", &json!({"n": 1}));
    let body = json!({"table": "things", "fields": {"n": 2}});
    let (status, answer) = server.request("POST", "/api/tenants/demo/documents", Some(&body));
    assert!(status >= 500, "{status} {answer}");
    server.insert("demo", "things", &json!({"n": 3}));
    let found = server.get("/api/tenants/demo/documents/things")["data"].take();
    let found = found.as_array().expect("documents");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0]["_id"].as_str(), Some(&*acknowledged));
    assert_eq!(panics(&server, "tenant-writer"), 1);
    assert!(!is_missed(&server, "tenant-writer"));
    server.stop();
}

#[test]
fn an_operation_that_ends_by_a_fault_has_failed() {
    let machine = machine();
    for points in ["operations::run=1*panic", "rekey::copy=1*panic"] {
        let server = faulty(&machine, points);
        let tenant = format!("t{}", points.len());
        server.create("/api/tenants", &json!({"id": tenant}));
        let failed = rotate_dek(&machine, &server, &tenant);
        assert_eq!(failed["state"], "failed", "{failed}");
        assert_eq!(rotate_dek(&machine, &server, &tenant)["state"], "done");
        server.stop();
    }
}

#[test]
fn a_server_that_accepts_nothing_more_closes_its_tenants_and_ends() {
    let machine = machine();
    let server = faulty(&machine, "connections::accept=4*off->panic");
    let token = machine.token();
    for _connection in 0..20 {
        if server
            .try_request_as(&token, "GET", "/health", None)
            .is_err()
        {
            break;
        }
    }
    let ended = server.wait_until_ended();
    ended_with(&ended, 1, "the acceptor of connections");
    machine.start(&[]).stop();
}

fn ended_with(ended: &nimbus_test_support::Ended, code: i32, words: &str) {
    assert_eq!(ended.status.code(), Some(code), "{}", ended.said);
    assert!(ended.said.contains(words), "{}", ended.said);
}
