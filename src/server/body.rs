//! Bodies in and out: JSON with limits, and raw JSON that is not parsed again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{ApiError, Code, DEADLINE, crowded};
use super::fair_permits::{FairPermits, Permit};
use crate::budget::{self, Payer};
use crate::documents::read_object;
use crate::runtime::blocking;

/// The largest body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// What a route takes as its body. All that must be read of it is read here, so that no route
/// reads a large body on the threads that serve everybody.
pub(super) trait FromBody: Sized + Send + 'static {
    /// Whether a short body may take long, too.
    const SLOW: bool = false;

    /// Reads JSON.
    fn from_body(json: &[u8]) -> Result<Self, ApiError>;

    /// The same of what may take minutes, and need not be gone on with once nobody waits for it.
    fn from_body_while(json: &[u8], _awaited: &dyn Fn() -> bool) -> Result<Self, ApiError> {
        Self::from_body(json)
    }
}

/// Who waits for a body to be read. Dropped, it says that nobody does.
#[derive(Default)]
struct Caller {
    gone: Arc<AtomicBool>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// A body whose members are texts and switches.
pub(super) trait Plain: DeserializeOwned + Send + 'static {}

impl<T: Plain> FromBody for T {
    fn from_body(json: &[u8]) -> Result<Self, ApiError> {
        parse(json)
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: FromBody, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let bytes = read(request).await?;
        let permit = permit::<T>().await;
        let takes_long = T::SLOW || bytes.len() > MOST_AT_ONCE;
        let caller = Caller::default();
        let gone = Arc::clone(&caller.gone);
        let read = move || {
            let _until_done = permit;
            T::from_body_while(&bytes, &|| !gone.load(Ordering::Relaxed))
        };
        aside(takes_long, read).await.map(Self)
    }
}

/// Waits until a body that may take long may be read: few are at a time, one of each caller, also
/// of callers that have gone.
pub(super) async fn permit<T: FromBody>() -> Option<Permit> {
    if !T::SLOW {
        return None;
    }
    let payer = budget::account().map_or(Payer::Operator, |account| account.payer().clone());
    let permits = match payer {
        Payer::Operator => &SLOW_BODIES_OF_OPERATOR,
        Payer::Tenant(_) | Payer::Stranger => &SLOW_BODIES,
    };
    permits.wait(payer).await
}

/// Does what may take long on a thread made for that. The memory stays charged until it ends, also
/// when the caller has gone.
pub(super) async fn aside<R: Send + 'static>(
    takes_long: bool,
    work: impl FnOnce() -> R + Send + 'static,
) -> R {
    if !takes_long {
        return work();
    }
    let account = budget::account();
    blocking(move || {
        let _charged = account;
        work()
    })
    .await
}

/// The bytes of a JSON body, for which room is taken.
pub(super) async fn read(request: Request) -> Result<Bytes, ApiError> {
    let (head, mut body) = request.into_parts();
    let length = declared(&head.headers);
    let read = async {
        check_form(&head.headers)?;
        if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
            return Err(too_large());
        }
        collect(&mut body, length).await
    };
    let bytes = match read.await {
        Ok(bytes) => bytes,
        Err(error) => {
            let asks_first = head.headers.contains_key(header::EXPECT);
            let is_late = error.code == Code::BodyTimeout;
            if !is_late && !asks_first && length.is_some_and(|all| all <= MAX_DISCARDED_BYTES) {
                // Whether it came to its end or not, the answer is the same.
                drop(timeout(DISCARD_PATIENCE, discard(body)).await);
            }
            return Err(error);
        }
    };
    // What is made of it is about as large, and there for as long as the request is worked on.
    budget::take(bytes.len()).map_err(|_refused| crowded())?;
    Ok(bytes)
}

/// The text of a JSON body that is an object.
pub(super) fn text(bytes: &[u8]) -> Result<&str, ApiError> {
    parse::<&RawValue>(bytes).map(RawValue::get)
}

/// What a JSON body says.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    read_object(bytes).map_err(|reason| {
        let message = format!("the body is not right: {reason}");
        ApiError::new(Code::InvalidInput, message)
    })
}

/// Refuses a body that says it is no JSON, or is packed.
fn check_form(headers: &HeaderMap) -> Result<(), ApiError> {
    if !headers.get(header::CONTENT_TYPE).is_none_or(is_json) {
        return Err(ApiError::new(
            Code::UnsupportedBody,
            "the body must be JSON; send `Content-Type: application/json`",
        ));
    }
    let packed = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(packed) {
        return Err(ApiError::new(
            Code::UnsupportedBody,
            "the body must not be compressed; send it without `Content-Encoding`",
        ));
    }
    Ok(())
}

fn too_large() -> ApiError {
    ApiError::new(Code::TooLarge, "the body is larger than 16 MiB")
}

/// How long the client says that the body is.
fn declared(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The whole body, for which room is taken as it arrives. Most come in one piece, which is not
/// copied.
async fn collect(body: &mut axum::body::Body, length: Option<u64>) -> Result<Bytes, ApiError> {
    let account = budget::account();
    let due = |due| {
        if let Some(account) = &account {
            account.set_due(due);
        }
    };
    let mut whole = Vec::new();
    let (mut arrived, mut patience) = (0, Instant::now() + BODY_PATIENCE);
    due(patience + DEADLINE);
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        let frame = timeout_at(patience, frame).await.map_err(|_late| late())?;
        let Some(frame) = frame else { break };
        let broken =
            |_error| ApiError::new(Code::InvalidInput, "the body could not be read to its end");
        let Ok(piece) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        let length_now = whole.len() + piece.len();
        if length_now > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if whole.is_empty() && body.is_end_stream() {
            budget::take(piece.len()).map_err(|_refused| crowded())?;
            due(Instant::now() + DEADLINE);
            return Ok(piece);
        }
        arrived += piece.len();
        if arrived >= LEAST_PROGRESS {
            (arrived, patience) = (0, Instant::now() + BODY_PATIENCE);
            due(patience + DEADLINE);
        }
        grow(&mut whole, length_now, length)?;
        whole.extend_from_slice(&piece);
    }
    due(Instant::now() + DEADLINE);
    Ok(whole.into())
}

/// Makes room for `needed` bytes, and for more as long as more is to come.
fn grow(whole: &mut Vec<u8>, needed: usize, length: Option<u64>) -> Result<(), ApiError> {
    let before = whole.capacity();
    if needed <= before {
        return Ok(());
    }
    let most = length.and_then(|length| usize::try_from(length).ok());
    let most = most.unwrap_or(MAX_BODY_BYTES).max(needed);
    let after = needed.max(2 * before).max(FIRST_BYTES).min(most);
    // Both are there while one is copied into the other.
    budget::take(after).map_err(|_refused| crowded())?;
    whole.reserve_exact(after - whole.len());
    if let Some(account) = budget::account() {
        account.give_back(before);
    }
    Ok(())
}

fn late() -> ApiError {
    let seconds = BODY_PATIENCE.as_secs();
    let message = format!(
        "the body did not arrive: less than {} KiB of it came within {seconds} seconds",
        LEAST_PROGRESS >> 10
    );
    ApiError::new(Code::BodyTimeout, message)
}

/// Reads a body and forgets it: a client that is still sending would see a broken connection, and
/// not the answer.
async fn discard(mut body: axum::body::Body) {
    while let Some(Ok(_frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {}
}

pub(super) fn is_json(value: &HeaderValue) -> bool {
    let text = value.to_str().unwrap_or_default();
    let kind = text.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// JSON text that a store spliced together: sent as it is.
pub(super) struct RawJson(pub(super) String);

impl IntoResponse for RawJson {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], self.0).into_response()
    }
}

/// JSON text of any length, in pieces that are let go as they are sent.
#[derive(Default)]
pub(super) struct Pieces {
    full: VecDeque<Bytes>,
    last: String,
}

impl Pieces {
    /// Where the next `length` bytes must be appended.
    pub(super) fn room_for(&mut self, length: usize) -> &mut String {
        if !self.last.is_empty() && self.last.len() + length > PIECE_BYTES {
            let full = std::mem::replace(&mut self.last, String::with_capacity(PIECE_BYTES));
            self.full.push_back(full.into());
        }
        &mut self.last
    }
}

impl IntoResponse for Pieces {
    fn into_response(self) -> Response {
        let Self { mut full, last } = self;
        full.push_back(last.into());
        let json = HeaderValue::from_static("application/json");
        let body = axum::body::Body::new(Sending(full));
        ([(header::CONTENT_TYPE, json)], body).into_response()
    }
}

/// The pieces that are not sent.
struct Sending(VecDeque<Bytes>);

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// The longest body that is read on the threads that serve everybody: a millisecond's work.
pub(super) const MOST_AT_ONCE: usize = 256 << 10;
/// How long, and up to which length, a body that is refused is still read.
const DISCARD_PATIENCE: Duration = Duration::from_secs(5);
const MAX_DISCARDED_BYTES: u64 = 256 << 20;
/// How long [`LEAST_PROGRESS`] bytes of a body, or all of it, are waited for.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
const LEAST_PROGRESS: usize = 64 << 10;
/// What is set aside for a body that does not come in one piece.
const FIRST_BYTES: usize = 16 << 10;
/// Most pieces of an answer are no larger: one document may be.
const PIECE_BYTES: usize = 64 << 10;

/// Schemas that are compiled at a time: one takes a core for seconds, and tens of megabytes.
static SLOW_BODIES: FairPermits = FairPermits::new(2);
/// One more, which no tenant's key takes.
static SLOW_BODIES_OF_OPERATOR: FairPermits = FairPermits::new(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};

    use super::*;

    /// Which thread read it.
    struct Reader(ThreadId);

    impl FromBody for Reader {
        fn from_body(_: &[u8]) -> Result<Self, ApiError> {
            Ok(Self(thread::current().id()))
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_large_body_is_read_on_a_thread_made_for_that() {
        for (length, here) in [(MOST_AT_ONCE, true), (MOST_AT_ONCE + 1, false)] {
            let request = Request::new(vec![b' '; length].into());
            let Ok(Body(Reader(thread))) = Body::from_request(request, &()).await else {
                panic!("it was refused");
            };
            assert_eq!(thread == thread::current().id(), here, "{length}");
        }
    }

    /// Reads until nobody waits for it.
    struct Patient;

    static SEEN: std::sync::Mutex<Option<mpsc::Sender<&'static str>>> = std::sync::Mutex::new(None);

    impl FromBody for Patient {
        const SLOW: bool = true;

        fn from_body(_: &[u8]) -> Result<Self, ApiError> {
            unreachable!("it is read as long as it is awaited")
        }

        fn from_body_while(_: &[u8], awaited: &dyn Fn() -> bool) -> Result<Self, ApiError> {
            let seen = SEEN.lock().unwrap().clone().unwrap();
            seen.send("begun").unwrap();
            while awaited() {
                thread::yield_now();
            }
            seen.send("given up").unwrap();
            Ok(Self)
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_reads_a_slow_body_is_told_that_its_caller_has_gone() {
        let (send, seen) = mpsc::channel();
        *SEEN.lock().unwrap() = Some(send);
        let request = Request::new("{}".into());
        let read =
            tokio::spawn(async { Body::<Patient>::from_request(request, &()).await.is_ok() });
        let seen = blocking(move || {
            assert_eq!(seen.recv(), Ok("begun"));
            seen
        })
        .await;
        read.abort();
        blocking(move || assert_eq!(seen.recv(), Ok("given up"))).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn tenants_that_compile_schemas_take_no_permit_of_the_operator() {
        let tenant = |id: &str| Payer::Tenant(id.parse().unwrap());
        let _both = (
            SLOW_BODIES.wait(tenant("a")).await.unwrap(),
            SLOW_BODIES.wait(tenant("b")).await.unwrap(),
        );
        // No account: the operator.
        assert!(permit::<Patient>().await.is_some());
    }
}
