//! Connections: accepted up to a limit, through TLS where that is on, served one task each, and
//! ended without losing an answer.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::pace::{Paced, Patience, Received, Talk, UnderWay};
use super::tls::Tls;
use crate::metrics;
use crate::runtime::{panic_point, short_task};

/// Where connections come from.
#[derive(Debug)]
pub struct Listener<S = TcpListener> {
    /// The socket.
    pub socket: S,
    /// What ends TLS; plain HTTP without.
    pub tls: Option<Arc<Tls>>,
    /// How many connections may be open. Further ones wait in the kernel's queue.
    pub most: u32,
    /// How long a connection waits for its peer.
    pub patience: Patience,
}

/// A socket that listens.
pub(super) trait Accepts: Sync {
    /// A connection of it.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accepts for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _peer) = self.accept().await?;
        // Answers are small: waiting to fill a packet would only add latency.
        drop(stream.set_nodelay(true));
        Ok(stream)
    }
}

/// What answers requests.
pub(super) trait Answers: Clone + Send + 'static {
    /// What a request holds until the last byte of its answer is sent or dropped.
    type Hold: Hold;

    /// The answer to one.
    fn answer(
        &self,
        request: Request<Received>,
    ) -> impl Future<Output = (Response, Self::Hold)> + Send;
}

/// What a request holds until the last byte of its answer is sent or dropped.
pub(super) trait Hold: Send + Sync + 'static {
    /// So many bytes of it were sent, or will not be.
    fn sent(&self, bytes: usize);
}

/// Serves until `stopping` says so and every connection has ended.
pub(super) async fn serve<S: Accepts, A: Answers>(
    listener: Listener<S>,
    answers: A,
    mut stopping: watch::Receiver<bool>,
) {
    let Listener {
        socket,
        tls,
        most,
        patience,
    } = listener;
    let places = Arc::new(Semaphore::new(most as usize));
    loop {
        panic_point!("connections::accept");
        let accepted = async {
            // Closed nowhere.
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, accept(&socket).await))
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => match accepted {
                Some(accepted) => accepted,
                None => break,
            },
            () = begun(&mut stopping) => break,
        };
        metrics::ACCEPTED.increment(1);
        let (tls, answers, stopping) = (tls.clone(), answers.clone(), stopping.clone());
        drop(short_task(async move {
            connection(stream, tls, answers, stopping, patience).await;
            drop(place);
        }));
    }
    // New connections are refused at once from now on.
    drop(socket);
    drop(places.acquire_many(most).await);
}

/// The next connection. What fails is a connection that went away, or files that ran out for a
/// while.
async fn accept<S: Accepts>(socket: &S) -> S::Stream {
    loop {
        match socket.next().await {
            Ok(stream) => return stream,
            Err(error) if went_away(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn went_away(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: Option<Arc<Tls>>,
    answers: impl Answers,
    stopping: watch::Receiver<bool>,
    patience: Patience,
) {
    let _open = metrics::Counted::new(&metrics::OPEN_CONNECTIONS);
    match tls {
        None => converse(stream, answers, stopping, patience).await,
        Some(tls) => match timeout(HANDSHAKE_PATIENCE, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => converse(stream, answers, stopping, patience).await,
            failed => {
                metrics::HANDSHAKE_FAILED.increment(1);
                let error = failed.map(Result::err);
                tracing::debug!(?error, "a TLS handshake failed");
            }
        },
    }
}

/// Answers the requests of one connection, one after the other, until it is closed, its peer keeps
/// no pace, or the server stops.
async fn converse<S>(
    stream: S,
    answers: impl Answers,
    mut stopping: watch::Receiver<bool>,
    patience: Patience,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let talk = Arc::new(Talk::default());
    let stream = Paced::new(stream, Arc::clone(&talk), patience);
    let requests = Arc::clone(&talk);
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = requests.begin();
        let (talk, answers) = (Arc::clone(&requests), answers.clone());
        let request = request.map(|body| Received::new(body, Arc::clone(&talk)));
        async move {
            talk.taken().await;
            let (answer, hold) = answers.answer(request).await;
            talk.answered();
            let hold = Arc::new((hold, under_way));
            Ok::<_, Infallible>(answer.map(|body| HeldBody { body, hold }))
        }
    });
    let mut conversation = pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(MOST_BUFFERED)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = begun(&mut stopping) => {
            conversation.as_mut().graceful_shutdown();
            loop {
                tokio::select! {
                    ended = conversation.as_mut() => break ended,
                    () = tokio::time::sleep(HALF_SENT_PATIENCE) => {
                        // Only half of a request is there.
                        if talk.is_idle() {
                            break Ok(());
                        }
                    }
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection broke");
    }
}

/// An answer's body, and what the request holds that it belongs to.
struct HeldBody<H> {
    body: Body,
    hold: Arc<(H, UnderWay)>,
}

/// HeldFrame of an answer, until it is sent or dropped.
struct HeldFrame<H: Hold> {
    bytes: Bytes,
    hold: Arc<(H, UnderWay)>,
}

impl<H: Hold> AsRef<[u8]> for HeldFrame<H> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<H: Hold> Drop for HeldFrame<H> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let length = bytes.len();
        drop(bytes);
        self.hold.0.sent(length);
    }
}

impl<H: Hold> HttpBody for HeldBody<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_ok(|frame| {
            frame.map_data(|bytes| {
                let hold = Arc::clone(&self.hold);
                Bytes::from_owner(HeldFrame { bytes, hold })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Waits until the server stops. One that is gone has stopped.
async fn begun(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|stopping| *stopping).await);
}

const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a stop waits for a connection on which no request is under way.
const HALF_SENT_PATIENCE: Duration = Duration::from_secs(2);
/// What a connection buffers of a request, and of an answer besides its last part; a head is no
/// longer.
const MOST_BUFFERED: usize = 32 << 10;
/// Before the next try when connections cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
