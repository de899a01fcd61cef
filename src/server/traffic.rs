//! Requests, counted by route, method and status. Handles are made at the first request of their
//! kind and kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{Counter, Histogram};

use crate::metrics::{HTTP_DURATION, HTTP_REQUESTS};

/// What every route has answered.
pub(super) struct Traffic {
    routes: HashMap<&'static str, PerMethod>,
    unmatched: PerMethod,
}

type PerMethod = [OnceLock<Counted>; METHODS.len() + 1];

struct Counted {
    seconds: Histogram,
    statuses: [OnceLock<Counter>; STATUSES.len()],
}

impl Traffic {
    /// Nothing was answered yet on these routes.
    pub(super) fn new(routes: impl Iterator<Item = &'static str>) -> Self {
        Self {
            routes: routes.map(|path| (path, PerMethod::default())).collect(),
            unmatched: PerMethod::default(),
        }
    }

    /// Counts one answer.
    pub(super) fn record(&self, route: &str, method: &Method, status: StatusCode, took: Duration) {
        let known = self.routes.get_key_value(route);
        let (route, methods) =
            known.map_or((UNMATCHED, &self.unmatched), |(name, all)| (*name, all));
        let place = METHODS.iter().position(|known| known == method);
        let place = place.unwrap_or(METHODS.len());
        let method = NAMES[place];
        let counted = methods[place].get_or_init(|| {
            let labels = [("route", route), ("method", method)];
            Counted {
                seconds: metrics::histogram!(HTTP_DURATION, &labels),
                statuses: Default::default(),
            }
        });
        counted.seconds.record(took);
        let register = || metrics::counter!(HTTP_REQUESTS, "route" => route, "method" => method, "status" => status.as_str().to_owned());
        match STATUSES.iter().position(|known| *known == status.as_u16()) {
            Some(place) => counted.statuses[place].get_or_init(register).increment(1),
            None => register().increment(1),
        }
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traffic({} routes)", self.routes.len())
    }
}

/// Methods with a series of their own.
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];
/// Statuses that are counted without looking their series up.
const STATUSES: [u16; 16] = [
    200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 405, 409, 413, 416, 500, 503,
];
/// What a path without a route counts as.
pub(super) const UNMATCHED: &str = "unmatched";
/// The methods as labels, and what any other counts as.
const NAMES: [&str; METHODS.len() + 1] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other",
];
