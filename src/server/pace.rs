//! The pace of one connection: a peer that does not send its request, does not take its answer, or
//! is gone, does not hold it for ever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a connection waits for its peer.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the whole head of a request, once its first byte is there, and for the first one from
    /// the beginning.
    pub head: Duration,
    /// For the next request.
    pub keep_alive: Duration,
    /// For `LEAST_PROGRESS` bytes of an answer to be taken.
    pub answer: Duration,
    /// For an answer to begin whose peer ended its side: it may want the answer, or be gone.
    pub half_closed: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            keep_alive: KEEP_ALIVE,
            answer: Duration::from_secs(30),
            half_closed: Duration::from_secs(5),
        }
    }
}

/// What a connection's stream and its requests know of each other. All of them belong to one task.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// Requests whose answers are not sent to the last byte.
    under_way: AtomicUsize,
    /// The body of a request has not arrived to its end.
    receiving: AtomicBool,
    /// The answer to a request has not begun.
    working: AtomicBool,
    /// Bytes wait for the peer to take them.
    blocked: AtomicBool,
}

/// A request under way, until the last byte of its answer is sent or dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Talk>);

impl Talk {
    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.working.store(true, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Waits until the peer has taken what was sent before. It may ask for more and more, and take
    /// nothing.
    pub(super) async fn taken(&self) {
        // The stream wakes this task when that is so.
        std::future::poll_fn(|_| match self.blocked.load(Ordering::Relaxed) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }

    /// The answer begins.
    pub(super) fn answered(&self) {
        self.working.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's body, which says when it has ended.
#[derive(Debug)]
pub(super) struct Received {
    body: Incoming,
    talk: Arc<Talk>,
}

impl Received {
    pub(super) fn new(body: Incoming, talk: Arc<Talk>) -> Self {
        talk.receiving
            .store(!body.is_end_stream(), Ordering::Relaxed);
        Self { body, talk }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.talk.receiving.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.talk.receiving.store(false, Ordering::Relaxed);
    }
}

/// A stream whose peer has to keep pace.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    talk: Arc<Talk>,
    patience: Patience,
    /// Wakes this task at the next time that counts, or before.
    clock: Pin<Box<Sleep>>,
    reading: Reading,
    /// Since when the peer takes too little, and how much it took.
    blocked: Option<(Instant, usize)>,
    /// When the peer ended its side.
    ended: Option<Instant>,
    /// How often a request was given the time to find its body whole since then.
    looks: u8,
}

#[derive(Debug)]
enum Reading {
    /// No request, since then.
    Idle(Instant),
    /// Part of a head, since then.
    Head(Instant),
    /// A request is answered.
    Busy,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, talk: Arc<Talk>, patience: Patience) -> Self {
        let now = Instant::now();
        Self {
            stream,
            talk,
            patience,
            clock: Box::pin(sleep_until(now + patience.head)),
            reading: Reading::Head(now),
            blocked: None,
            ended: None,
            looks: 0,
        }
    }

    /// Whether `due` is past. If not, this task is woken then.
    fn is_past(&mut self, due: Instant, context: &mut Context<'_>) -> bool {
        if due <= Instant::now() {
            return true;
        }
        // Set earlier, it wakes the task early, and is set anew then: cheaper than setting it with
        // each request.
        if self.clock.deadline() > due || self.clock.is_elapsed() {
            self.clock.as_mut().reset(due);
        }
        while self.clock.as_mut().poll(context).is_ready() {
            if due <= Instant::now() {
                return true;
            }
            self.clock.as_mut().reset(due);
        }
        false
    }

    /// The peer has sent nothing: whether it is waited for any longer.
    fn waits_for_peer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let due = match self.reading {
            _ if !self.talk.is_idle() => return Poll::Pending,
            Reading::Busy => {
                self.rest();
                Instant::now() + self.patience.keep_alive
            }
            Reading::Idle(since) => since + self.patience.keep_alive,
            Reading::Head(since) => since + self.patience.head,
        };
        if self.is_past(due, context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// The peer ended its side: whether it is told that at once.
    fn is_over(&mut self, ended: Instant, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let talk = &self.talk;
        if talk.is_idle() {
            return Poll::Ready(Ok(()));
        }
        if talk.receiving.load(Ordering::Relaxed) {
            // The last of the body may be on its way from here to the request, which is polled
            // after this.
            if self.looks == LOOKS {
                return Poll::Ready(Ok(()));
            }
            self.looks += 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // The answer is being sent: that shows whether anybody takes it.
        if !talk.working.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        if self.is_past(ended + self.patience.half_closed, context) {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    fn rest(&mut self) {
        self.reading = Reading::Idle(Instant::now());
    }

    fn took(&mut self, bytes: usize) {
        self.reading = Reading::Busy;
        if let Some((_since, taken)) = &mut self.blocked {
            *taken += bytes;
            if *taken >= LEAST_PROGRESS {
                self.blocked = None;
            }
        }
    }

    /// The peer takes nothing: whether it is waited for any longer.
    fn waits_for_room<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.talk.blocked.store(true, Ordering::Relaxed);
        let (since, _taken) = *self.blocked.get_or_insert((Instant::now(), 0));
        if self.is_past(since + self.patience.answer, context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => self.took(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => return self.waits_for_room(context),
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(ended) = this.ended {
            return this.is_over(ended, context);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() == before => {
                let now = Instant::now();
                this.ended = Some(now);
                this.is_over(now, context)
            }
            Poll::Ready(Ok(())) => {
                if this.talk.is_idle() && !matches!(this.reading, Reading::Head(_)) {
                    this.reading = Reading::Head(Instant::now());
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => this.waits_for_peer(context),
            broken => broken,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.wrote(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, bytes);
        this.wrote(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_flush(context) {
            Poll::Ready(Ok(())) => {
                this.blocked = None;
                let was_blocked = this.talk.blocked.swap(false, Ordering::Relaxed);
                let rests = matches!(this.reading, Reading::Busy) && this.talk.is_idle();
                // Whoever waits for this is not woken by the stream.
                if was_blocked || (rests && this.ended.is_some()) {
                    context.waker().wake_by_ref();
                }
                if rests {
                    this.rest();
                    let due = Instant::now() + this.patience.keep_alive;
                    let _past = this.is_past(due, context);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.waits_for_room(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_shutdown(context) {
            Poll::Pending => this.waits_for_room(context),
            ended => ended,
        }
    }
}

/// Load balancers keep a connection for 60 seconds, and must be the first to close it.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A request looks for its body whenever its connection is polled: one look would do.
const LOOKS: u8 = 4;
/// What a peer has to take of an answer within [`Patience::answer`] to be waited for as long again:
/// half a KiB a second.
const LEAST_PROGRESS: usize = 16 << 10;
