//! Bodies in and out: JSON with limits, and raw JSON that is not parsed again.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};
use crate::documents::reason;

/// The largest body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// A JSON body of a known shape.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_none_or(is_json);
        if !json {
            return Err(ApiError::new(
                Code::InvalidInput,
                "the body must be JSON; send `Content-Type: application/json`",
            ));
        }
        if let Some(length) = declared(request.headers())
            && length > MAX_BODY_BYTES as u64
        {
            let asks_first = request.headers().contains_key(header::EXPECT);
            if length <= MAX_DISCARDED_BYTES && !asks_first {
                let discarded = discard(request.into_body());
                // Whether it came to its end or not, the answer is the same.
                drop(tokio::time::timeout(DISCARD_PATIENCE, discarded).await);
            }
            return Err(too_large());
        }
        let bytes = collect(request.into_body()).await?;
        // serde takes a list for a struct: its members by their places.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            let message = "the body is not right: it must be a JSON object";
            return Err(ApiError::new(Code::InvalidInput, message));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            ApiError::new(
                Code::InvalidInput,
                format!("the body is not right: {}", reason(&error)),
            )
        })
    }
}

fn too_large() -> ApiError {
    ApiError::new(Code::TooLarge, "the body is larger than 16 MiB")
}

/// How long the client says that the body is.
fn declared(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The whole body. Most come in one piece, which is not copied.
async fn collect(mut body: axum::body::Body) -> Result<Bytes, ApiError> {
    let mut whole = Bytes::new();
    let mut pieces = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let broken =
            |_error| ApiError::new(Code::InvalidInput, "the body could not be read to its end");
        let Ok(piece) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        if whole.len() + pieces.len() + piece.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if whole.is_empty() && pieces.is_empty() {
            whole = piece;
        } else {
            pieces.extend_from_slice(&std::mem::take(&mut whole));
            pieces.extend_from_slice(&piece);
        }
    }
    Ok(if pieces.is_empty() {
        whole
    } else {
        pieces.into()
    })
}

/// Reads a body and forgets it: a client that is still sending would see a broken connection, and not the answer.
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

/// How long, and up to which length, a body that is too large is still read.
const DISCARD_PATIENCE: Duration = Duration::from_secs(5);
const MAX_DISCARDED_BYTES: u64 = 256 << 20;
