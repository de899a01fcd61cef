//! The end of the process: in time, whatever hangs, with the lock on the data freed last; and
//! signals that are no reason to end.

use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nimbus_test_support::{Fault, Machine, Server};
use rustix::process::Signal;
use serde_json::json;

use nimbus_test_support::until;

use super::cloud::Cloud;
use super::{demo, machine};

/// What is promised, and what a busy machine may add to it.
const PROMISE: Duration = Duration::from_secs(30 + 2);
/// The same after a second signal.
const QUICK: Duration = Duration::from_secs(5 + 2);

/// A server whose tenants' writers hang with the first write after `writes` of them.
fn hanging(machine: &Machine, writes: usize) -> Server {
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    let hang = format!("tenants::writer::commit={writes}*off->sleep(600000)");
    command.env("FAILPOINTS", hang);
    machine.start_command(command)
}

/// Writes, and waits until the server works on it: who drops the connection does not wait for the
/// answer any more.
fn write(server: &Server, machine: &Machine) -> TcpStream {
    let (address, token) = (server.address(), machine.token());
    let body = r#"{"table":"things","fields":{"n":2}}"#;
    let length = body.len();
    let request = format!(
        "POST /api/tenants/demo/documents HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).expect("sent");
    until("the write is under way", || {
        let metrics = server.get("/metrics");
        let metrics = metrics.as_str().unwrap_or_default().to_owned();
        metrics.contains("nimbus_write_queue_depth 1")
    });
    stream
}

#[track_caller]
fn assert_in_use(machine: &Machine) {
    machine.start_that_ends(&[]).expect(1, &["is in use"]);
}

#[test]
fn a_thread_that_hangs_does_not_keep_the_process_and_the_lock_is_freed_with_it() {
    let machine = machine();
    let server = hanging(&machine, 1);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.insert("demo", "things", &json!({"n": 1}));
    let _waiting = write(&server, &machine);
    let told = Instant::now();
    server.send_stop();
    until("it stops", || server.log().contains("stopping"));
    assert_in_use(&machine);
    until("requests are cut off", || {
        server.log().contains("are cut off")
    });
    assert!(!server.has_ended());
    assert_in_use(&machine);
    let ended = server.wait_until_ended();
    assert!(told.elapsed() < PROMISE, "{:?}", told.elapsed());
    ended.expect(1, &["did not end in time", "tenants that are being closed"]);
    let server = machine.start(&[]);
    let things = server.get("/api/tenants/demo/documents/things")["data"].take();
    assert_eq!(things[0]["n"], 1, "{things}");
    server.stop();
}

#[test]
fn a_second_signal_waits_for_no_request_and_a_third_for_nothing() {
    for signals in [2, 3] {
        let machine = machine();
        let server = hanging(&machine, 0);
        server.create("/api/tenants", &json!({"id": "demo"}));
        let _waiting = write(&server, &machine);
        server.send_stop();
        until("it stops", || server.log().contains("stopping"));
        let told = Instant::now();
        server.signal(Signal::INT);
        if signals == 3 {
            // Two that come at once may be taken for one.
            until("requests are cut off", || {
                server.log().contains("are cut off")
            });
            server.signal(Signal::INT);
        }
        let ended = server.wait_until_ended();
        assert!(told.elapsed() < QUICK, "{:?}", told.elapsed());
        let why = if signals == 2 {
            "did not end in time"
        } else {
            "third signal"
        };
        ended.expect(1, &[why]);
        machine.start(&[]).stop();
    }
}

#[test]
fn a_key_provider_that_does_not_answer_keeps_no_server_that_is_told_to_stop() {
    let cloud = Cloud::new();
    let server = cloud.start_with(&[
        "--encryption-key-lease",
        "1s",
        "--encryption-key-grace",
        "0s",
    ]);
    server.create("/api/tenants", &json!({"id": "demo"}));
    server.insert("demo", "things", &json!({"n": 1}));
    cloud.proxy.inject_always(Fault::Hang);
    until("the control file is withheld", || {
        server.log().matches("its lease was not renewed").count() == 2
    });
    // Each of these waits for the control file, and that for the provider.
    let token = cloud.machine.token();
    thread::scope(|scope| {
        for _waiting in 0..3 {
            let _handle = scope.spawn(|| {
                drop(server.try_request_as(&token, "GET", "/ready", None));
            });
        }
        until("they are under way", || cloud.proxy.in_flight() > 0);
        let told = Instant::now();
        server.send_stop();
        until("it stops", || server.log().contains("stopping"));
        assert_in_use(&cloud.machine);
        until("it has ended", || server.has_ended());
        assert!(told.elapsed() < PROMISE, "{:?}", told.elapsed());
    });
    server.wait_until_stopped();
    cloud.proxy.clear();
    let server = cloud.start();
    assert_eq!(
        server.get("/api/tenants/demo/documents/things")["data"][0]["n"],
        1
    );
    server.stop();
}

#[test]
fn a_start_that_waits_for_the_key_provider_ends_when_it_is_told_to() {
    let cloud = Cloud::new();
    cloud.start().stop();
    cloud.proxy.inject_always(Fault::Hang);
    let server = cloud.machine.spawn(cloud.command());
    until("it waits for the provider", || cloud.proxy.in_flight() > 0);
    let told = Instant::now();
    server.send_stop();
    server.wait_until_stopped();
    assert!(told.elapsed() < QUICK, "{:?}", told.elapsed());
}

#[test]
fn signals_without_a_meaning_end_nothing() {
    let (_machine, server) = demo();
    for signal in [
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::IO,
        Signal::PIPE,
        Signal::HUP,
    ] {
        server.signal(signal);
        let _ = server.get("/health");
    }
    for name in ["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGIO", "SIGHUP"] {
        until(name, || server.log().contains(name));
    }
    server.stop();
}

#[test]
fn a_clock_far_off_is_refused_at_the_start_and_stops_no_command() {
    let (machine, server) = demo();
    server.stop();
    for seconds in ["-1", "-62135596800", "253402300799", "253402300800"] {
        let clock = format!("clock::now=return({seconds})");
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        command.env("FAILPOINTS", &clock);
        machine
            .run_to_end(command)
            .expect(1, &["the clock of this machine", "1970"]);
        let mut command = machine.nimbus(&["encryption", "status"]);
        command.env("FAILPOINTS", &clock);
        machine.run_to_end(command).expect(0, &["demo.sqlite3"]);
    }
    // Set off under a running server.
    for (seconds, year) in [("-1", "1970-01-01"), ("253402300800", "9998-12-31")] {
        let mut command = machine.nimbus(&["start", "--port", "0"]);
        let clock = format!("clock::now=1*off->return({seconds})");
        command.env("FAILPOINTS", &clock);
        let server = machine.start_command(command);
        let tenant = format!("t{}", seconds.len());
        server.create("/api/tenants", &json!({"id": tenant}));
        let first = server.insert(&tenant, "things", &json!({"n": 1}));
        let second = server.insert(&tenant, "things", &json!({"n": 2}));
        assert!(first < second, "{first} {second}");
        let (_status, error) = server.request("GET", "/api/tenants/nobody/crons", None);
        let time = error["error"]["timestamp"].as_str().expect("a time");
        assert!(time.starts_with(year), "{time}");
        server.stop();
    }
}
