use std::time::Instant;

use axum::response::IntoResponse as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::*;

/// Answers with so many bytes, after a while.
#[derive(Clone)]
struct Desk {
    bytes: usize,
    pause: Duration,
    /// Requests that came, and those that are done with.
    counts: watch::Sender<(usize, usize)>,
}

/// A request that is not done with.
struct Open(watch::Sender<(usize, usize)>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|(_came, done)| *done += 1);
    }
}

impl Hold for Open {
    fn sent(&self, _bytes: usize) {}
}

impl Answers for Desk {
    type Hold = Open;

    async fn answer(&self, _: Request<Received>) -> (Response, Open) {
        self.counts.send_modify(|(came, _done)| *came += 1);
        let open = Open(self.counts.clone());
        tokio::time::sleep(self.pause).await;
        let body = format!("{}here", "x".repeat(self.bytes));
        (body.into_response(), open)
    }
}

fn desk(bytes: usize, pause: Duration) -> (Desk, watch::Receiver<(usize, usize)>) {
    let (counts, seen) = watch::channel((0, 0));
    let desk = Desk {
        bytes,
        pause,
        counts,
    };
    (desk, seen)
}

fn patience(each: Duration) -> Patience {
    Patience {
        head: each,
        keep_alive: each,
        answer: each,
        half_closed: each,
    }
}

/// A server that answers whatever it is asked, and what stops it.
async fn server(
    most: u32,
    patience: Patience,
    desk: Desk,
) -> (String, watch::Sender<bool>, JoinHandle<()>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let listener = Listener {
        socket,
        tls: None,
        most,
        patience,
    };
    let (stop, stopping) = watch::channel(false);
    (address, stop, tokio::spawn(serve(listener, desk, stopping)))
}

/// A connection through which no more than a KiB is on its way, and its end.
fn narrow(patience: Patience, desk: Desk) -> (DuplexStream, JoinHandle<()>) {
    let (client, stream) = tokio::io::duplex(1024);
    let talk = tokio::spawn(async move {
        let (_stop, stopping) = watch::channel(false);
        converse(stream, desk, stopping, patience).await;
    });
    (client, talk)
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
const SHORT: Duration = Duration::from_millis(200);
/// What is waited for at most, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_client_that_does_not_finish_a_head_is_dropped_after_the_time_and_not_before() {
    let silence = Duration::from_millis(300);
    let (desk, _seen) = desk(0, Duration::ZERO);
    let (address, stop, serving) = server(8, patience(silence), desk).await;
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
    let (desk, _seen) = desk(0, Duration::ZERO);
    let (address, stop, serving) = server(2, patience(PATIENCE), desk).await;
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
    let early = timeout(SHORT, answer(&mut third)).await;
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

#[tokio::test]
async fn a_connection_waits_longer_for_the_next_request_than_for_the_rest_of_one() {
    let (desk, _seen) = desk(0, Duration::ZERO);
    let patience = Patience {
        keep_alive: SHORT * 5,
        ..patience(SHORT)
    };
    let (address, stop, serving) = server(8, patience, desk).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    for _again in 0..2 {
        stream.write_all(REQUEST).await.unwrap();
        let said = timeout(PATIENCE, answer(&mut stream)).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        tokio::time::sleep(SHORT * 2).await;
    }
    let begun = Instant::now();
    stream.write_all(&REQUEST[..9]).await.unwrap();
    assert_eq!(timeout(PATIENCE, answer(&mut stream)).await.unwrap(), "");
    assert!(begun.elapsed() >= SHORT);
    stop.send(true).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_does_not_take_an_answer_is_dropped_and_who_takes_it_slowly_has_it_whole() {
    let patience = patience(SHORT);
    // Far more than the buffers of the kernel hold.
    let (large, mut seen) = desk(64 << 20, Duration::ZERO);
    let (address, stop, serving) = server(8, patience, large).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let done = seen.wait_for(|counts| *counts == (1, 1));
    let _done = timeout(PATIENCE, done).await.unwrap().unwrap();
    drop(stream);
    stop.send(true).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();

    // A byte now and then is not enough.
    let (small, _seen) = desk(256 << 10, Duration::ZERO);
    let (mut client, talk) = narrow(patience, small.clone());
    client.write_all(REQUEST).await.unwrap();
    let trickle = async {
        while client.read_u8().await.is_ok() {
            tokio::time::sleep(SHORT / 20).await;
        }
    };
    let _end = timeout(PATIENCE, async { tokio::join!(trickle, talk) })
        .await
        .unwrap();
    // A little all the time is.
    let (mut client, talk) = narrow(patience, small);
    client.write_all(REQUEST).await.unwrap();
    let (mut got, mut part) = (0, [0; 1024]);
    let begun = Instant::now();
    while got < 256 << 10 {
        got += timeout(PATIENCE, client.read(&mut part))
            .await
            .unwrap()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(begun.elapsed() > SHORT);
    drop(client);
    timeout(PATIENCE, talk).await.unwrap().unwrap();
}

#[tokio::test]
async fn no_answer_is_begun_before_the_one_before_it_was_taken() {
    let (desk, seen) = desk(0, Duration::ZERO);
    let (mut client, talk) = narrow(patience(SHORT), desk);
    let many = REQUEST.repeat(1000);
    // Part of them never gets through.
    let asking = async move {
        drop(client.write_all(&many).await);
        client
    };
    let (client, talk) = timeout(PATIENCE, async { tokio::join!(asking, talk) })
        .await
        .unwrap();
    talk.unwrap();
    drop(client);
    let (came, done) = *seen.borrow();
    // As many as a KiB holds, and one.
    assert!((2..40).contains(&came), "{came} were answered");
    assert_eq!(came, done);
}

#[tokio::test]
async fn who_ended_its_side_has_its_answer_and_who_is_gone_is_noticed() {
    let (slow, _seen) = desk(0, SHORT);
    let (address, stop, serving) = server(8, patience(PATIENCE), slow).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    let _bytes = timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200") && text.ends_with("here"),
        "{text}"
    );
    stop.send(true).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();

    let (never, mut seen) = desk(0, PATIENCE * 10);
    let (address, stop, serving) = server(8, patience(SHORT), never).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let came = seen.wait_for(|counts| *counts == (1, 0));
    drop(timeout(PATIENCE, came).await.unwrap().unwrap());
    drop(stream);
    let done = seen.wait_for(|counts| *counts == (1, 1));
    drop(timeout(PATIENCE, done).await.unwrap().unwrap());
    stop.send(true).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
}
