//! Commands beside a running server: whom they send the admin token to, and who gets nothing.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nimbus_test_support::{Ended, Machine, Server};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;
use serde_json::json;

use super::{demo, is_root, machine, set_mode};
use nimbus_test_support::until;

/// A listener of somebody else, which records whether anybody came.
struct Attacker(TcpListener);

impl Attacker {
    fn on(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a free address");
        listener.set_nonblocking(true).expect("a listener");
        Self(listener)
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("its address").to_string()
    }

    #[track_caller]
    fn got_nothing(&self) {
        match self.0.accept() {
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            Ok((mut stream, _peer)) => {
                stream.set_nonblocking(false).expect("a stream");
                let mut text = [0; 4096];
                let bytes = stream.read(&mut text).unwrap_or(0);
                let text = String::from_utf8_lossy(&text[..bytes]);
                panic!("somebody came and said {text:?}");
            }
        }
    }
}

fn run(machine: &Machine, arguments: &[&str]) -> Ended {
    machine.run_to_end(machine.nimbus(arguments))
}

/// The exit code of a command, and what it says. Unlike [`run`], several may do so at a time.
fn says(mut command: Command) -> (Option<i32>, String) {
    let ran = command.output().expect("it runs");
    let said = String::from_utf8([ran.stdout, ran.stderr].concat()).expect("UTF-8");
    (ran.status.code(), said)
}

/// Every command that goes through a running server, as far as it is harmless.
const THROUGH_THE_SERVER: [&[&str]; 6] = [
    &["encryption", "status"],
    &["doctor"],
    &["usage"],
    &["token", "rotate"],
    &["encryption", "lock", "--tenant-id", "demo"],
    &["encryption", "audit", "--verify"],
];

/// The one socket in the control directory.
fn socket(machine: &Machine) -> PathBuf {
    let entries = fs::read_dir(machine.control_dir()).expect("the control directory");
    let mut sockets: Vec<_> = entries.map(|entry| entry.expect("one").path()).collect();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    sockets.remove(0)
}

#[test]
fn a_forged_lock_file_leads_no_command_to_an_address() {
    let (machine, server) = demo();
    let attacker = Attacker::on("127.0.0.1:0");
    let forged = json!({"pid": 1, "address": attacker.address(), "certificate": "0".repeat(64)});
    let lock = machine.data_dir().join("nimbus.lock");
    fs::write(&lock, forged.to_string()).expect("written");
    // The server is found all the same.
    for command in THROUGH_THE_SERVER {
        let ended = run(&machine, command);
        assert!(matches!(ended.status.code(), Some(0 | 3)), "{ended:?}");
    }
    attacker.got_nothing();
    server.stop();
    // And where somebody else holds the lock, there is nobody to ask.
    fs::write(&lock, forged.to_string()).expect("written");
    let held = File::open(&lock).expect("the lock file");
    held.lock().expect("nobody has it");
    for command in THROUGH_THE_SERVER {
        run(&machine, command).expect(1, &["is in use", "takes commands at", "HOME"]);
    }
    attacker.got_nothing();
}

#[test]
fn who_takes_the_port_of_a_server_that_drains_gets_nothing_and_a_command_under_way_is_answered() {
    let (machine, server) = demo();
    let path = socket(&machine);
    // A command that has said half of what it wants when the end begins.
    let mut stream = UnixStream::connect(&path).expect("the server listens");
    let head = format!(
        "POST /api/tenants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n",
        machine.token()
    );
    stream.write_all(head.as_bytes()).expect("written");
    until("the request is under way", || {
        server
            .get("/metrics")
            .to_string()
            .contains("nimbus_http_requests_under_way 2")
    });
    server.send_stop();
    until("the socket is gone", || !path.exists());
    let attacker = take(&server);
    for command in THROUGH_THE_SERVER {
        run(&machine, command).expect(1, &["is in use", "takes commands at"]);
    }
    attacker.got_nothing();
    stream.write_all(br#"{"id":"other"}"#).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    server.wait_until_stopped();
    attacker.got_nothing();
}

/// The server's port, as soon as it is free.
fn take(server: &Server) -> Attacker {
    until("the port is free", || {
        TcpListener::bind(server.address()).is_ok()
    });
    Attacker::on(server.address())
}

#[test]
fn servers_of_two_data_directories_take_their_own_commands() {
    let (machine, first) = demo();
    let other = machine.path("other");
    let other_dir = other.to_str().expect("UTF-8").to_owned();
    let second = machine.start(&["--data-dir", &other_dir]);
    second.create("/api/tenants", &json!({"id": "elsewhere"}));
    let status = |dir: Option<&str>| {
        let mut command = machine.nimbus(&["encryption", "status"]);
        if let Some(dir) = dir {
            command.env("NIMBUS_DATA_DIR", dir);
        }
        machine.run_to_end(command)
    };
    status(None).expect(0, &["demo.sqlite3"]);
    status(Some(&other_dir)).expect(0, &["elsewhere.sqlite3"]);
    // Another path to the same directory is the same server.
    let link = machine.path("link");
    symlink(&other, &link).expect("a link");
    status(link.to_str()).expect(0, &["elsewhere.sqlite3"]);
    second.stop();
    status(Some(&other_dir)).expect(0, &["elsewhere.sqlite3"]);
    status(None).expect(0, &["demo.sqlite3"]);
    first.stop();
}

#[test]
fn a_killed_server_is_not_asked_and_its_successor_is() {
    let (machine, server) = demo();
    let left = socket(&machine);
    server.kill();
    assert!(left.exists());
    run(&machine, &["encryption", "status"]).expect(0, &["demo.sqlite3"]);
    let server = machine.start(&[]);
    assert_eq!(socket(&machine), left);
    run(&machine, &["token", "rotate"]).expect(0, &["replaced"]);
    assert_eq!(server.get("/api/tenants")["tenants"][0], "demo");
    server.stop();
    assert!(!left.exists());
}

#[test]
fn a_server_that_is_stopped_holds_up_no_command() {
    let (machine, server) = demo();
    let remedy = format!("kill -CONT {}", server.pid());
    // Whether it hangs before the command comes, or while it waits: for one the server is at work
    // already.
    let mut command = machine.nimbus(&["start", "--port", "0", "--data-dir", "busy"]);
    command.env("FAILPOINTS", "audit::part-opened=pause");
    let busy = machine.start_command(command);
    let mut verify = machine.nimbus(&["encryption", "audit", "--verify"]);
    verify.env("NIMBUS_DATA_DIR", machine.path("busy"));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| says(verify));
        until("the server is at it", || {
            let metrics = busy.get("/metrics");
            let text = metrics.as_str().expect("text");
            // The other one is the scrape.
            text.contains("\nnimbus_http_requests_under_way 2\n")
        });
        for server in [&server, &busy] {
            server.signal(Signal::STOP);
        }
        for command in THROUGH_THE_SERVER {
            let (machine, remedy) = (&machine, &remedy);
            drop(scope.spawn(move || {
                let (code, said) = says(machine.nimbus(command));
                assert_eq!(code, Some(1), "{said}");
                for words in ["does not answer", remedy] {
                    assert!(said.contains(words), "{said}");
                }
            }));
        }
        let (code, said) = waiting.join().expect("it ends");
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("does not answer"), "{said}");
    });
    // One that takes no connection any more, since too many wait.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let address = SocketAddrUnix::new(socket_of(&machine, &server)).expect("an address");
    let mut waiting = Vec::new();
    loop {
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let stream = stream.expect("a socket");
        match connect(&stream, &address) {
            Ok(()) => waiting.push(stream),
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                break;
            }
        }
    }
    run(&machine, &["encryption", "status"]).expect(1, &["does not answer"]);
    drop(waiting);
    server.signal(Signal::CONT);
    run(&machine, &["encryption", "status"]).expect(0, &["demo.sqlite3"]);
    server.stop();
    busy.kill();
}

/// The socket of one of two servers.
fn socket_of(machine: &Machine, server: &Server) -> PathBuf {
    let lock = fs::metadata(machine.data_dir().join("nimbus.lock")).expect("its lock");
    let name = format!("{:x}-{:x}", lock.dev(), lock.ino());
    let path = machine.control_dir().join(name);
    assert!(path.exists(), "{} of {}", path.display(), server.address());
    path
}

#[test]
fn what_others_could_have_planted_is_not_spoken_to() {
    let (machine, server) = demo();
    let (dir, path) = (machine.control_dir(), socket(&machine));
    let status = ["encryption", "status"];
    let before = server.log();
    set_mode(&dir, 0o755);
    run(&machine, &status).expect(1, &["nimbus/run is not private"]);
    set_mode(&dir, 0o700);
    set_mode(&path, 0o666);
    run(&machine, &status).expect(1, &["is not private"]);
    set_mode(&path, 0o600);
    // A directory that is a link; a file where the socket should be.
    let moved = machine.path("moved");
    fs::rename(&dir, &moved).expect("renamed");
    symlink(&moved, &dir).expect("a link");
    run(&machine, &status).expect(1, &["nimbus/run is not private"]);
    fs::remove_file(&dir).expect("removed");
    fs::create_dir(&dir).expect("a directory");
    set_mode(&dir, 0o700);
    fs::write(&path, "").expect("a file");
    set_mode(&path, 0o600);
    run(&machine, &status).expect(1, &["is not private"]);
    fs::remove_dir_all(&dir).expect("removed");
    fs::rename(&moved, &dir).expect("renamed");
    run(&machine, &status).expect(0, &["demo.sqlite3"]);
    assert_eq!(server.log(), before);
    server.stop();
}

/// A process of user `nobody` that listens on a socket of ours, as one that was handed the socket
/// would, and prints what it is sent.
const FOREIGN: &str = "
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o600)
os.setresuid(65534, 65534, 65534)
s.listen()
print('listening', flush=True)
c, _ = s.accept()
print(c.recv(4096), flush=True)
";

#[test]
fn a_process_of_another_user_and_a_directory_of_another_user_get_nothing() {
    if !is_root() {
        eprintln!("not root: what belongs to another user cannot be made here");
        return;
    }
    let (machine, server) = demo();
    let (dir, path) = (machine.control_dir(), socket(&machine));
    let status = ["encryption", "status"];
    for place in [&dir, &path] {
        std::os::unix::fs::chown(place, Some(65534), None).expect("root may");
        run(&machine, &status).expect(1, &["is not private"]);
        std::os::unix::fs::chown(place, Some(0), None).expect("root may");
    }
    run(&machine, &status).expect(0, &["demo.sqlite3"]);
    fs::remove_file(&path).expect("removed");
    let mut foreign = Command::new("python3")
        .args(["-c", FOREIGN])
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut said = foreign.stdout.take().expect("its output");
    let mut line = [0; 10];
    said.read_exact(&mut line).expect("it listens");
    assert_eq!(&line, b"listening\n");
    run(&machine, &status).expect(1, &["user 65534 listens on"]);
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("its end");
    // The connection ended without a byte.
    assert_eq!(rest, "b''\n");
    end(foreign);
    server.stop();
}

fn end(mut child: Child) {
    drop(child.kill());
    let _status = child.wait().expect("its end");
}

#[test]
fn a_server_that_cannot_take_commands_says_so_and_serves() {
    let machine = machine();
    let dir = machine.control_dir();
    fs::create_dir_all(&dir).expect("a directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("a mode");
    let server = machine.start(&[]);
    assert!(
        server
            .log()
            .contains("commands of this machine cannot reach")
    );
    assert_eq!(server.get("/health"), json!({"ok": true}));
    run(&machine, &["encryption", "status"]).expect(1, &["is not private"]);
    server.stop();
}

#[test]
fn a_home_of_any_length_has_room_for_the_socket() {
    let machine = machine();
    let home = machine.path(&format!("home/{}", "x".repeat(200)));
    let with_home = |arguments: &[&str]| {
        let mut command = machine.nimbus(arguments);
        command.env("XDG_DATA_HOME", &home);
        command
    };
    let server = machine.start_command(with_home(&["start", "--port", "0"]));
    machine
        .run_to_end(with_home(&["encryption", "status"]))
        .expect(0, &["nimbus-control.db"]);
    // Without that home there is nobody who could be asked.
    run(&machine, &["encryption", "status"]).expect(1, &["is in use", "XDG_DATA_HOME"]);
    server.stop();
}
