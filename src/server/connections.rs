//! Connections: accepted up to a limit, through TLS where that is on, served one task each, and ended without losing an answer.

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
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

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
    /// How long a client may take for a request's head, or be silent between two requests: [`SILENCE`], but for tests.
    pub silence: Duration,
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
    /// The answer to one.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response> + Send;
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
        silence,
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
            connection(stream, tls, answers, stopping, silence).await;
            drop(place);
        }));
    }
    // Whoever asks from now on is told at once that nobody listens.
    drop(socket);
    drop(places.acquire_many(most).await);
}

/// The next connection. What fails is a connection that went away, or files that ran out for a while.
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
    silence: Duration,
) {
    let _open = metrics::Held::new(&metrics::OPEN_CONNECTIONS);
    match tls {
        None => converse(stream, answers, stopping, silence).await,
        Some(tls) => match timeout(HANDSHAKE_PATIENCE, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => converse(stream, answers, stopping, silence).await,
            failed => {
                metrics::HANDSHAKE_FAILED.increment(1);
                let error = failed.map(Result::err);
                tracing::debug!(?error, "a TLS handshake failed");
            }
        },
    }
}

/// Answers the requests of one connection, one after the other, until it is closed, silent for too long, or the server stops.
async fn converse<S>(
    stream: S,
    answers: impl Answers,
    mut stopping: watch::Receiver<bool>,
    silence: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Each request under way holds one more.
    let requests = Arc::new(());
    let held = Arc::clone(&requests);
    let service = service_fn(move |request| {
        let under_way = Arc::clone(&held);
        let answers = answers.clone();
        async move {
            let answer = answers.answer(request).await;
            // Until the last of it is taken: some are long.
            let hold = |body| Held {
                body,
                _under_way: under_way,
            };
            Ok::<_, Infallible>(answer.map(hold))
        }
    });
    let mut conversation = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(silence)
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
                        // Only half of a request is there, or its client does not take the answer.
                        if Arc::strong_count(&requests) == IDLE {
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

/// An answer's body, and the request under way that it belongs to.
struct Held {
    body: Body,
    _under_way: Arc<()>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
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

/// Handles on the count of requests while none is under way: that of the connection, that of its service.
const IDLE: usize = 2;
/// How long a client may take for a request's head, or be silent between two requests.
pub const SILENCE: Duration = Duration::from_secs(30);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a stop waits for a connection on which no request is under way.
const HALF_SENT_PATIENCE: Duration = Duration::from_secs(2);
/// Before the next try when connections cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
