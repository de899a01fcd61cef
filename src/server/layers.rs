//! What every request passes through: id, overload, deadline, origin. The credential is looked at by `access`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::Instrument as _;

use super::App;
use super::error::{ApiError, Code};
use super::places::{Refused, tenant_in};
use super::traffic::UNMATCHED;
use crate::metrics::{self, Held};

/// Gives the request an id, logs it, lets it in or turns it away, and writes the error envelope.
pub(super) async fn envelope(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let method = request.method().clone();
    let page = accepted_origin(&app, request.headers());
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| UNMATCHED.to_owned(), |path| path.as_str().to_owned());
    // The route's pattern, never the path: ids and names of tables stay out of the log.
    let span = tracing::info_span!("request", id, %method, route = path);
    let _under_way = Held::new(&metrics::UNDER_WAY);
    let started = std::time::Instant::now();
    let deadline = if path == super::ENCRYPTION_STATUS {
        LONG_DEADLINE
    } else {
        DEADLINE
    };
    let mut response = guarded(&app, deadline, request, next)
        .instrument(span.clone())
        .await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = error.respond(&id);
    } else if is_bare_error(&response) {
        let allowed = response.headers_mut().remove(header::ALLOW);
        response = of_library(&response).respond(&id);
        if let Some(allowed) = allowed {
            let _none = response.headers_mut().insert(header::ALLOW, allowed);
        }
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        let _old = response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Some(origin) = page {
        for_page(response.headers_mut(), origin);
    }
    let took = started.elapsed();
    app.traffic.record(&path, &method, response.status(), took);
    span.in_scope(|| {
        let status = response.status().as_u16();
        let milliseconds = took.as_secs_f64() * 1000.0;
        if response.status().is_server_error() {
            tracing::warn!(status, milliseconds, "answered");
        } else if took >= SLOW {
            tracing::info!(status, milliseconds, "answered slowly");
        } else {
            tracing::debug!(status, milliseconds, "answered");
        }
    });
    response
}

/// The origin of the page that asks, where it is one that is accepted.
fn accepted_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let accepted = origin.to_str().is_ok_and(|origin| app.accepts(origin));
    accepted.then(|| origin.clone())
}

/// An error is for the page to read, too: overload, and what was written anew after the layer for pages.
fn for_page(headers: &mut HeaderMap, origin: HeaderValue) {
    if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let _none = headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let _none = headers.insert(header::VARY, HeaderValue::from_static("origin"));
    let _none = headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after,x-request-id"),
    );
}

/// Overload and deadline: each ends in one clear answer.
async fn guarded(app: &App, deadline: Duration, request: Request, next: Next) -> Response {
    let _place = match app.places.take(tenant_in(request.uri().path())) {
        Ok(place) => place,
        Err(refused) => return exhausted(refused).into_response(),
    };
    match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            metrics::HTTP_TIMED_OUT.increment(1);
            ApiError::new(
                Code::Unavailable,
                format!(
                    "the request took longer than its deadline of {} seconds; a write may have been applied all the same",
                    deadline.as_secs()
                ),
            )
            .into_response()
        }
    }
}

fn exhausted(refused: Refused) -> ApiError {
    let (counter, message) = match refused {
        Refused::Full => (
            &metrics::REFUSED_FULL,
            "the server has as many requests under way as it takes",
        ),
        Refused::Share => (
            &metrics::REFUSED_SHARE,
            "this tenant has its share of the requests that the server takes under way",
        ),
    };
    counter.increment(1);
    ApiError::new(Code::ResourceExhausted, message)
}

/// A request that names a foreign origin comes from a browser on somebody else's page.
pub(super) async fn origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match check_origin(&app, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let foreign = headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| !origin.to_str().is_ok_and(|origin| app.accepts(origin)));
    if foreign {
        return Err(ApiError::new(
            Code::Forbidden,
            "requests from this origin are not accepted",
        ));
    }
    Ok(())
}

/// Whether the libraries below answered with an error by themselves. What a handler says is JSON, `/ready`'s no among it.
fn is_bare_error(response: &Response) -> bool {
    let status = response.status();
    let json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(super::body::is_json);
    (status.is_client_error() || status.is_server_error()) && !json
}

/// What the libraries below answered by themselves, in our words.
fn of_library(response: &Response) -> ApiError {
    match response.status().as_u16() {
        404 => ApiError::new(Code::RouteNotFound, "there is no such route"),
        405 => ApiError::new(
            Code::MethodNotAllowed,
            "this route does not take this method",
        ),
        413 => ApiError::new(Code::TooLarge, "the body is larger than 16 MiB"),
        400..=499 => ApiError::new(Code::InvalidInput, "the request cannot be read"),
        _ => ApiError::new(Code::Internal, "a fault in the server"),
    }
}

/// The id that the client gave, if it is one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(plain))
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// `http://localhost:5173`, `http://127.0.0.1:8080`, `http://[::1]`: pages of this machine.
pub(super) fn is_loopback(origin: &str) -> bool {
    let Ok(uri) = origin.parse::<axum::http::Uri>() else {
        return false;
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return false;
    }
    let host = uri.host().unwrap_or_default();
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

const REQUEST_ID: &str = "x-request-id";
const MAX_ID_BYTES: usize = 128;
/// What is logged although nothing went wrong.
const SLOW: Duration = Duration::from_secs(1);
/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(30);
const LONG_DEADLINE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_loopback_origins_from_others() {
        for origin in [
            "http://localhost:5173",
            "http://127.0.0.1:8080",
            "https://127.9.9.9",
            "http://[::1]:3000",
        ] {
            assert!(is_loopback(origin), "{origin}");
        }
        for origin in [
            "http://localhost.evil.example",
            "http://evil.example",
            "http://127.0.0.1.evil.example",
            "null",
            "",
            "file://localhost",
            "http://user@evil.example",
        ] {
            assert!(!is_loopback(origin), "{origin}");
        }
    }
}
