//! Bodies in and out: JSON with limits, and raw JSON that is not parsed again.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};

/// The largest body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// A JSON body of a known shape.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
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
        let bytes =
            Bytes::from_request(request, state)
                .await
                .map_err(|rejection| match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        ApiError::new(Code::TooLarge, "the body is larger than 16 MiB")
                    }
                    _ => ApiError::new(Code::InvalidInput, "the body could not be read to its end"),
                })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            ApiError::new(
                Code::InvalidInput,
                format!("the body is not right: {error}"),
            )
        })
    }
}

fn is_json(value: &HeaderValue) -> bool {
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
