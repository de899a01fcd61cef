use std::time::Instant;

use axum::response::IntoResponse as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;

#[derive(Clone)]
struct Here;

impl Answers for Here {
    async fn answer(&self, _: Request<Incoming>) -> Response {
        "here".into_response()
    }
}

/// A server that answers whatever it is asked, and what stops it.
async fn server(most: u32, silence: Duration) -> (String, watch::Sender<bool>, JoinHandle<()>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let listener = Listener {
        socket,
        tls: None,
        most,
        silence,
    };
    let (stop, stopping) = watch::channel(false);
    (address, stop, tokio::spawn(serve(listener, Here, stopping)))
}

/// Reads one whole answer; nothing when the connection was closed.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    while !text.ends_with("here") {
        let mut part = [0; 1024];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => break,
            Ok(bytes) => text.push_str(std::str::from_utf8(&part[..bytes]).unwrap()),
        }
    }
    text
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
/// What is waited for at most, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_client_that_does_not_finish_a_head_is_dropped_after_the_time_and_not_before() {
    let silence = Duration::from_millis(300);
    let (address, stop, serving) = server(8, silence).await;
    for half in [&b"GET / HTTP/1.1\r\nHost: x\r\n"[..], b"GET ", b""] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(half).await.unwrap();
        let said = timeout(PATIENCE, answer(&mut stream)).await.unwrap();
        assert!(!said.contains("here"), "{said}");
        assert!(begun.elapsed() >= silence, "{half:?}");
    }
    // Bytes that trickle in do not prolong it: it is the time of the whole head.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    let trickle = async {
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(silence / 10).await;
        }
    };
    timeout(PATIENCE, trickle).await.unwrap();
    // Who is quick is served, again on the same connection, and dropped when silent after that.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    for _again in 0..2 {
        stream.write_all(REQUEST).await.unwrap();
        let said = timeout(PATIENCE, answer(&mut stream)).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    assert_eq!(timeout(PATIENCE, answer(&mut stream)).await.unwrap(), "");
    stop.send(true).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn beyond_the_most_connections_wait_and_are_served_when_one_ends() {
    let (address, stop, serving) = server(2, PATIENCE).await;
    let mut open = Vec::new();
    for _each in 0..2 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let _answer = timeout(PATIENCE, answer(&mut stream)).await.unwrap();
        open.push(stream);
    }
    // The kernel takes it; nobody answers.
    let mut third = TcpStream::connect(&address).await.unwrap();
    third.write_all(REQUEST).await.unwrap();
    let early = timeout(Duration::from_millis(200), answer(&mut third)).await;
    assert!(early.is_err(), "{early:?}");
    // Those that are in go on.
    open[1].write_all(REQUEST).await.unwrap();
    let said = timeout(PATIENCE, answer(&mut open[1])).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    drop(open.remove(0));
    let said = timeout(PATIENCE, answer(&mut third)).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    stop.send(true).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
}
