//! Fewer files than the tenants want: every tenant is answered all the same.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;

use nimbus_test_support::Server;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use super::machine;

/// What the log says when an idle tenant was closed for another.
const MADE_WAY: &str = "the one idle longest is closed";

/// The same command, in a process that may have no more than `files` open.
fn limited(command: &Command, files: u32) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .stdin(std::process::Stdio::null());
    if let Some(dir) = command.get_current_dir() {
        limited.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            limited.env(name, value);
        }
    }
    limited
}

#[test]
fn every_tenant_is_answered_with_fewer_files_than_all_of_them_take() {
    let machine = machine();
    let start = machine.nimbus(&["start", "--port", "0", "--max-open-tenants", "512"]);
    let server = machine.start_command(limited(&start, 256));
    let log = server.log();
    assert!(
        log.contains("do not suffice for --max-open-tenants"),
        "{log}"
    );
    let tenants: Vec<String> = (0..80).map(|number| format!("t{number}")).collect();
    for tenant in &tenants {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "places", &json!({"of": tenant}));
    }
    // By many at once, each on a connection of its own.
    std::thread::scope(|scope| {
        for part in tenants.chunks(10) {
            let server = &server;
            let _thread = scope.spawn(move || {
                for tenant in part.iter().cycle().take(30) {
                    let path = format!("/api/tenants/{tenant}/documents/places");
                    let list = server.get(&path);
                    assert_eq!(list["data"][0]["of"], json!(tenant), "{list}");
                }
            });
        }
    });
    server.stop();
}

#[test]
fn a_tenant_that_is_idle_makes_way_when_files_run_out_all_the_same() {
    let machine = machine();
    let server = machine.start(&[]);
    let tenants: Vec<String> = (0..24).map(|number| format!("t{number}")).collect();
    for tenant in &tenants {
        server.create("/api/tenants", &json!({"id": tenant}));
        server.insert(tenant, "places", &json!({"of": tenant}));
    }
    server.stop();
    let server = machine.start(&[]);
    // All on one connection: another one would take a file.
    let mut stream = server.connect();
    let token = machine.token();
    let read = |stream: &mut TcpStream, tenant: &str| {
        let head = format!(
            "GET /api/tenants/{tenant}/documents/places HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let answer = Server::answer(stream).expect("an answer");
        assert_eq!(answer.status, 200, "{}\n{}", answer.body, server.log());
        assert_eq!(answer.body["data"][0]["of"], json!(tenant));
    };
    let write = |stream: &mut TcpStream, tenant: &str| {
        let body = r#"{"table":"others","fields":{}}"#;
        let request = format!(
            "POST /api/tenants/{tenant}/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let answer = Server::answer(stream).expect("an answer");
        assert_eq!(answer.status, 201, "{}\n{}", answer.body, server.log());
    };
    let (first, rest) = tenants.split_at(8);
    first.iter().for_each(|tenant| read(&mut stream, tenant));
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("its files");
    let few = Rlimit {
        current: Some(open.count() as u64),
        maximum: Some(20_000),
    };
    let pid = i32::try_from(server.pid()).expect("a process id");
    let _before = prlimit(Pid::from_raw(pid), Resource::Nofile, few).expect("a limit");
    // A tenant that is open and was only read needs another connection to be written: one more than
    // there may be.
    write(&mut stream, &first[7]);
    let log = server.log();
    assert_eq!(log.matches(MADE_WAY).count(), 1, "{log}");
    rest.iter().for_each(|tenant| read(&mut stream, tenant));
    first.iter().for_each(|tenant| read(&mut stream, tenant));
    assert!(server.log().matches(MADE_WAY).count() > 1, "{log}");
    server.stop();
}
