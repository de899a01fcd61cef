//! What every request passes through before its route, and every answer after it: id, overload,
//! deadline, origin, a fault of the server.
//!
//! The credential is read first: it decides who is charged. `access` knows what each route needs of
//! it. All of this is one future instead of a tower of layers: a router clones and boxes each layer
//! per request, which cost more than the work of the layers.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use tokio::time::{Instant as Moment, timeout_at};
use tower_http::cors::{AllowOrigin, Cors, CorsLayer};
use tower_layer::Layer as _;
use tower_service::Service as _;

use super::caller::{Caller, Identified};
use super::connections::{Answers, Hold};
use super::error::{ApiError, Code, DEADLINE, crowded};
use super::pace::Received;
use super::request_context::RequestContext;
use super::{App, access, once};
use crate::budget::{self, Account, Payer, Refused};
use crate::metrics;

/// All routes, and what stands before them.
#[derive(Clone)]
pub(super) struct Pipeline {
    app: Arc<App>,
    routes: Router,
    /// The same routes, for browsers' pages.
    for_pages: Cors<Router>,
    /// Requests come through the control socket.
    commands: bool,
}

impl Pipeline {
    pub(super) fn new(app: Arc<App>, routes: Router) -> Self {
        let for_pages = cors(app.clone()).layer(routes.clone());
        Self {
            app,
            routes,
            for_pages,
            commands: false,
        }
    }

    /// The same for commands of this machine.
    pub(super) fn for_commands(&self) -> Self {
        Self {
            commands: true,
            ..self.clone()
        }
    }

    /// Gives the request an id, lets it in or turns it away, logs it, and writes the error
    /// envelope.
    async fn receive(&self, mut request: Request) -> (Response, Holding) {
        let started = Instant::now();
        let id = request_id(request.headers());
        let context = RequestContext::new(id, request.method().clone());
        request.extensions_mut().insert(context.clone());
        let page = accepted_origin(&self.app, request.headers());
        let identified = access::identify(&self.app, request.headers()).await;
        let payer = payer(&identified);
        let is_operator = payer == Payer::Operator;
        request.extensions_mut().insert(identified);
        let (mut response, holding) = self.guarded(request, &payer).await;
        let id = context.id();
        let mut for_log = None;
        if let Some(error) = response.extensions_mut().remove::<ApiError>() {
            for_log = error.for_log();
            response = error.respond(id, is_operator);
        } else if is_bare_error(&response) {
            let allowed = response.headers_mut().remove(header::ALLOW);
            response = of_library(&response).respond(id, is_operator);
            if let Some(allowed) = allowed {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
        }
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(origin) = page {
            for_page(headers, origin);
        }
        for_programs(headers);
        let (status, took) = (response.status(), started.elapsed());
        let traffic = &self.app.traffic;
        traffic.record(context.route(), context.method(), status, took);
        context.log(status, took, for_log.as_deref());
        (response, holding)
    }

    /// Overload, deadline and faults: each ends in one clear answer.
    async fn guarded(&self, request: Request, payer: &Payer) -> (Response, Holding) {
        let path = request.uri().path();
        let deadline = if path == super::ENCRYPTION_STATUS {
            LONG_DEADLINE
        } else {
            DEADLINE
        };
        let App { places, bytes, .. } = &*self.app;
        let due = Moment::now() + deadline;
        // Commands are bounded by their connections, and callers of this are never told to
        // come again.
        let needs_place = path != super::HEALTH && !(self.commands && *payer == Payer::Operator);
        let account = match Account::open(places, bytes, payer, needs_place, due) {
            Ok(account) => account,
            Err(refused) => return (exhausted(refused, payer).into_response(), Holding(None)),
        };
        let answering = self.answered(request, &account, deadline);
        let mut response = budget::charged(Arc::clone(&account), answering).await;
        // What came in is done with: from here on it is the answer that takes memory.
        if let Some(length) = response.body().size_hint().exact()
            && account
                .settle(usize::try_from(length).unwrap_or(usize::MAX))
                .is_err()
        {
            response = crowded().into_response();
        }
        (response, Holding(Some(account)))
    }

    /// The answer to one request, by its deadline, which moves on while its body arrives.
    async fn answered(&self, request: Request, account: &Account, deadline: Duration) -> Response {
        let mut answer = pin!(AssertUnwindSafe(self.route(request)).catch_unwind());
        let answer = loop {
            match timeout_at(account.due(), answer.as_mut()).await {
                Err(_elapsed) if account.due() > Moment::now() => {}
                answer => break answer,
            }
        };
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(_panic)) => {
                tracing::error!("a request ended in a fault of the server");
                ApiError::new(Code::Internal, "a fault in the server").into_response()
            }
            Err(_elapsed) => {
                metrics::HTTP_TIMED_OUT.increment(1);
                ApiError::new(
                    Code::Unavailable,
                    format!(
                        "the request took longer than its deadline of {} seconds; a write may have been applied all the same",
                        deadline.as_secs()
                    ),
                )
                .for_everyone()
                .into_response()
            }
        }
    }

    async fn route(&self, request: Request) -> Response {
        if let Err(error) = check_host(&request) {
            return error.into_response();
        }
        // Preflight requests carry no credential, and ask about what they do not send.
        let preflight = *request.method() == Method::OPTIONS;
        let result = if preflight || request.headers().contains_key(header::ORIGIN) {
            if !preflight && let Err(error) = check_origin(&self.app, request.headers()) {
                return error.into_response();
            }
            self.for_pages.clone().call(request).await
        } else {
            self.routes.clone().call(request).await
        };
        result.unwrap_or_else(|never| match never {})
    }
}

/// The origin of the page that asks, where it is one that is accepted.
fn accepted_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let accepted = origin.to_str().is_ok_and(|origin| app.accepts(origin));
    accepted.then(|| origin.clone())
}

/// An error is for the page to read, too: overload, and what was written anew after the layer for
/// pages.
fn for_page(headers: &mut HeaderMap, origin: HeaderValue) {
    if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after,x-request-id"),
    );
}

/// What a request holds until its answer is sent: nothing when it was turned away.
pub(super) struct Holding(Option<Arc<Account>>);

impl Hold for Holding {
    fn sent(&self, bytes: usize) {
        if let Some(account) = &self.0 {
            account.sent(bytes);
        }
    }
}

impl Answers for Pipeline {
    type Hold = Holding;

    fn answer(
        &self,
        request: hyper::Request<Received>,
    ) -> impl Future<Output = (Response, Holding)> + Send {
        self.receive(request.map(Body::new))
    }
}

/// No cache keeps an answer, unless it says how it may be kept, and no browser guesses what it is.
fn for_programs(headers: &mut HeaderMap) {
    if headers.contains_key(header::CACHE_CONTROL) {
        // Pages of other origins get another answer.
        if !headers.contains_key(header::VARY) {
            headers.insert(header::VARY, HeaderValue::from_static("origin"));
        }
    } else {
        let no_store = HeaderValue::from_static("no-store");
        headers.insert(header::CACHE_CONTROL, no_store);
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
}

/// What a browser on an accepted origin may do.
fn cors(app: Arc<App>) -> CorsLayer {
    let accepted = move |origin: &HeaderValue, _: &Parts| {
        origin.to_str().is_ok_and(|origin| app.accepts(origin))
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(accepted))
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PATCH,
            Method::PUT,
            Method::DELETE,
        ])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("x-nimbus-admin-token"),
            HeaderName::from_static(access::IDENTITY),
            HeaderName::from_static("x-request-id"),
            header::RANGE,
            header::IF_RANGE,
            header::IF_NONE_MATCH,
            header::IF_MATCH,
            HeaderName::from_static(once::KEY),
        ])
        .expose_headers([
            header::RETRY_AFTER,
            HeaderName::from_static("x-request-id"),
            header::ETAG,
            header::CONTENT_RANGE,
            HeaderName::from_static(once::REPLAYED),
        ])
}

fn exhausted(refused: Refused, payer: &Payer) -> ApiError {
    let (counter, message) = match (refused, payer) {
        (Refused::Full, _) => (
            &metrics::REFUSED_FULL,
            "the server has as many requests under way as it takes",
        ),
        (Refused::Share, Payer::Tenant(_)) => (
            &metrics::REFUSED_SHARE,
            "this tenant has its share of the requests that the server takes under way",
        ),
        (Refused::Share, Payer::Operator) => (
            &metrics::REFUSED_SHARE,
            "the admin token has its share of the requests that the server takes under way",
        ),
        (Refused::Share, Payer::Stranger) => (
            &metrics::REFUSED_SHARE,
            "requests without a known credential have their share of those that the server takes under way",
        ),
    };
    counter.increment(1);
    ApiError::new(Code::ResourceExhausted, message)
}

/// Who is charged for a request: whose credential it carries, whatever path it names.
fn payer(Identified(caller): &Identified) -> Payer {
    match caller {
        Ok(Caller::Admin { .. }) => Payer::Operator,
        Ok(Caller::Key { tenant, .. }) => Payer::Tenant(tenant.clone()),
        Err(_) => Payer::Stranger,
    }
}

/// RFC 9112, section 3.2: a request of HTTP/1.1 names one host, and is refused otherwise. What
/// stands before the server may take it for another's.
fn check_host(request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let refused = |message| Err(ApiError::new(Code::InvalidInput, message));
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() < Version::HTTP_11 => Ok(()),
        (None, _) => refused("the request has no `Host` header"),
        (Some(_), Some(_)) => refused("the request has more than one `Host` header"),
        (Some(host), None) => match Authority::try_from(host.as_bytes()) {
            Ok(host) if !host.as_str().contains('@') => Ok(()),
            _ => refused("the request's `Host` header names no host"),
        },
    }
}

/// A request that names a foreign origin comes from a browser on somebody else's page.
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

/// Whether the libraries below answered with an error by themselves. What a handler says is JSON,
/// `/ready`'s no among it.
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
        .map_or_else(|| crate::clock::uuid().to_string(), str::to_owned)
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
