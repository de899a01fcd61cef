//! The context of a request: its id, method and route, and its span in the log.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::MatchedPath;
use axum::http::Method;
use tracing::Span;

use super::traffic::UNMATCHED;

/// What a request is known by: an extension of it.
#[derive(Debug, Clone)]
pub(super) struct RequestContext(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    id: String,
    method: Method,
    route: OnceLock<(MatchedPath, Span)>,
}

impl RequestContext {
    pub(super) fn new(id: String, method: Method) -> Self {
        let route = OnceLock::new();
        Self(Arc::new(Facts { id, method, route }))
    }

    pub(super) fn id(&self) -> &str {
        &self.0.id
    }

    pub(super) fn method(&self) -> &Method {
        &self.0.method
    }

    /// The request's route was found. Gives the span in which it is answered.
    pub(super) fn found(&self, path: &MatchedPath) -> Span {
        let found = || (path.clone(), self.span(path.as_str()));
        let (_path, span) = self.0.route.get_or_init(found);
        span.clone()
    }

    /// The route's pattern, never the path: ids and names of tables stay out of the log.
    pub(super) fn route(&self) -> &str {
        let found = self.0.route.get();
        found.map_or(UNMATCHED, |(path, _span)| path.as_str())
    }

    fn span(&self, route: &str) -> Span {
        let Facts { id, method, .. } = &*self.0;
        tracing::info_span!("request", id, %method, route)
    }

    /// Says in the log what became of the request.
    pub(super) fn log(&self, status: axum::http::StatusCode, took: Duration, error: Option<&str>) {
        let milliseconds = took.as_secs_f64() * 1000.0;
        let (failed, slow) = (status.is_server_error() || error.is_some(), took >= SLOW);
        if !failed && !slow && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let found = self.0.route.get().map(|(_path, span)| span.clone());
        found.unwrap_or_else(|| self.span(UNMATCHED)).in_scope(|| {
            let status = status.as_u16();
            if failed {
                tracing::warn!(status, milliseconds, error, "answered");
            } else if slow {
                tracing::info!(status, milliseconds, "answered slowly");
            } else {
                tracing::debug!(status, milliseconds, "answered");
            }
        });
    }
}

/// What is logged although nothing went wrong.
const SLOW: Duration = Duration::from_secs(1);
