//! Under a service manager: a socket that listens already, and word when the server is ready and
//! when it stops.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

use nimbus_test_support::Machine;
use serde_json::json;

use super::machine;

/// `nimbus start` with `socket` handed over as systemd does it.
pub(super) fn activated(
    machine: &Machine,
    socket: impl Into<OwnedFd>,
    arguments: &[&str],
) -> Command {
    let command = machine.nimbus(&[&["start"], arguments].concat());
    let mut activated = Command::new("sh");
    activated
        .args([
            "-c",
            r#"LISTEN_PID=$$ LISTEN_FDS=${TEST_FDS:-1}; export LISTEN_PID LISTEN_FDS; exec "$0" "$@" 3<&0 4<&0 </dev/null"#,
        ])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(machine.root())
        .stdin(Stdio::from(socket.into()));
    activated
}

#[test]
fn a_socket_that_was_handed_over_is_served() {
    let machine = machine();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("its address").to_string();
    // The port is the socket's, whatever the flag says.
    let server = machine.start_command(activated(&machine, socket, &["--port", "1"]));
    assert_eq!(server.address(), address);
    assert_eq!(server.get("/health"), json!({"ok": true}));
    server.stop();
}

#[test]
fn a_socket_that_others_reach_needs_leave_like_any_address() {
    let machine = machine();
    let socket = TcpListener::bind("0.0.0.0:0").expect("a socket");
    machine
        .run_to_end(activated(&machine, socket, &[]))
        .expect(1, &["0.0.0.0", "--allow-network"]);
}

#[test]
fn what_is_no_tcp_socket_that_listens_is_refused_with_the_line_to_write() {
    let machine = machine();
    let path = machine.path("nimbus.sock");
    let unix = UnixListener::bind(&path).expect("a socket");
    machine
        .run_to_end(activated(&machine, unix, &[]))
        .expect(1, &["ListenStream=127.0.0.1:8080", "no path"]);
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    machine
        .run_to_end(activated(&machine, datagrams, &[]))
        .expect(1, &["ListenStream=127.0.0.1:8080"]);
    let mut two = activated(&machine, fs::File::open("/dev/null").expect("a file"), &[]);
    two.env("TEST_FDS", "2");
    machine
        .run_to_end(two)
        .expect(1, &["ListenStream=127.0.0.1:8080", "2 sockets"]);
    assert!(
        !machine.data_dir().exists(),
        "refused before anything is made"
    );
}

#[test]
fn the_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let machine = machine();
    let path = machine.path("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    let hears = || {
        let mut word = [0; 64];
        let length = manager.recv(&mut word).expect("a word");
        String::from_utf8(word[..length].to_vec()).expect("UTF-8")
    };
    let mut command = machine.nimbus(&["start", "--port", "0"]);
    command.env("NOTIFY_SOCKET", &path);
    let server = machine.start_command(command);
    assert_eq!(hears(), "READY=1");
    server.stop();
    assert_eq!(hears(), "STOPPING=1");
}
