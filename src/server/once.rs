//! `Idempotency-Key`: a request that a client sends again after it heard no answer is done once.

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};

use super::body::{self, FromBody, MOST_AT_ONCE, aside, permit};
use super::caller::Caller;
use super::error::{ApiError, Code};
use crate::documents::Once;

/// A JSON body, and the key under which its request is done once, if it has one.
pub(super) struct Keyed<T> {
    pub(super) body: T,
    pub(super) once: Option<Once>,
    /// The request's other headers, which may have conditions.
    pub(super) headers: HeaderMap,
}

impl<T: FromBody, S: Send + Sync> FromRequest<S> for Keyed<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let key = key(request.headers())?;
        let caller = caller(&request);
        let digest = key.is_some().then(|| digest(&request, &caller));
        let headers = request.headers().clone();
        let bytes = body::read(request).await?;
        let takes_long = T::SLOW || bytes.len() > MOST_AT_ONCE;
        let permit = permit::<T>().await;
        aside(takes_long, move || -> Result<Self, ApiError> {
            let _until_done = permit;
            let once = key.zip(digest).map(|(key, mut digest)| {
                digest.update(&bytes);
                Once::new(key.as_bytes(), digest.finalize().into(), &caller)
            });
            Ok(Self {
                body: T::from_body(&bytes)?,
                once,
                headers,
            })
        })
        .await
    }
}

/// The one key of a request.
fn key(headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    let mut keys = headers.get_all(KEY).iter();
    let fits = |key: &&HeaderValue| {
        (1..=MAX_KEY_BYTES).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) if fits(&key) => Ok(Some(key.clone())),
        _ => Err(ApiError::new(
            Code::InvalidInput,
            format!(
                "`Idempotency-Key` must be sent once, with 1 to {MAX_KEY_BYTES} visible ASCII characters and no space"
            ),
        )),
    }
}

/// What the caller is called.
fn caller(request: &Request) -> String {
    match request.extensions().get() {
        // The token is rotated, and stays the same caller's.
        Some(Caller::Admin { .. }) | None => "admin".to_owned(),
        Some(Caller::Key { id, .. }) => id.to_string(),
    }
}

/// What makes a request the same as another one, but for its body.
fn digest(request: &Request, caller: &str) -> Sha256 {
    let conditions = request.headers().get_all(header::IF_NONE_MATCH).iter();
    let conditions: Vec<&[u8]> = conditions.map(HeaderValue::as_bytes).collect();
    let conditions = conditions.join(&b',');
    let mut digest = Sha256::new();
    for part in [
        request.method().as_str().as_bytes(),
        request.uri().path().as_bytes(),
        caller.as_bytes(),
        &conditions,
    ] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest
}

/// An answer, and whether it was given before.
pub(super) struct Answered<R> {
    pub(super) answer: R,
    pub(super) replayed: bool,
}

impl<R: IntoResponse> IntoResponse for Answered<R> {
    fn into_response(self) -> Response {
        let mut response = self.answer.into_response();
        if self.replayed {
            let yes = HeaderValue::from_static("true");
            response.headers_mut().insert(REPLAYED, yes);
        }
        response
    }
}

/// The client's key.
pub(super) const KEY: &str = "idempotency-key";
/// Says that the request was done before.
pub(super) const REPLAYED: &str = "idempotency-replayed";
const MAX_KEY_BYTES: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line_of_visible_characters() {
        let read = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(KEY, line.parse().unwrap());
            }
            key(&headers).map(|key| key.map(|key| key.as_bytes().to_vec()))
        };
        assert_eq!(read(&[]).ok(), Some(None));
        let long = "x".repeat(255);
        for good in [
            "a",
            "8e03978e-40d5-43e8-bc93-6894a57f9324",
            "\"quoted\"",
            &long,
        ] {
            assert_eq!(read(&[good]).ok(), Some(Some(good.into())), "{good}");
        }
        for bad in [
            &[""][..],
            &["a b"],
            &["é"],
            &["a", "a"],
            &[&"x".repeat(256)],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
