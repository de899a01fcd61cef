//! Routes that need the same of their callers.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post, put};

use super::{Gate, Special, admit};
use crate::server::parameters::{Extractors, Strict};
use crate::server::{App, Needs, Route};

/// Routes that need the same of their callers. Methods of one path may stand in different groups.
pub(in crate::server) struct Group {
    needs: Needs,
    router: Router<Arc<App>>,
    table: Vec<Route>,
}

impl Group {
    pub(in crate::server) fn new(needs: Needs) -> Self {
        Self {
            needs,
            router: Router::new(),
            table: Vec::new(),
        }
    }

    pub(in crate::server) fn get<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::GET, path, get(Strict(handler)))
    }

    pub(in crate::server) fn post<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::POST, path, post(Strict(handler)))
    }

    pub(in crate::server) fn put<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::PUT, path, put(Strict(handler)))
    }

    pub(in crate::server) fn patch<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::PATCH, path, patch(Strict(handler)))
    }

    pub(in crate::server) fn delete<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::DELETE, path, delete(Strict(handler)))
    }

    /// A route whose `handler` answers `method` alone, and lets no parameter pass unread.
    fn route(
        mut self,
        method: Method,
        path: &'static str,
        handler: MethodRouter<Arc<App>, Infallible>,
    ) -> Self {
        let needs = self.needs;
        self.table.push(Route {
            method,
            path,
            needs,
            honours: &[],
        });
        Self {
            router: self.router.route(path, handler),
            ..self
        }
    }

    /// The route named last honours these headers.
    pub(in crate::server) fn honouring(mut self, headers: &'static [Special]) -> Self {
        if let Some(route) = self.table.last_mut() {
            route.honours = headers;
        }
        self
    }

    /// The routes, in the order in which they were named.
    pub(in crate::server) fn table(&self) -> &[Route] {
        &self.table
    }

    /// The routes behind their guard. A path or method that is not known to this group's router
    /// asks for the same.
    pub(in crate::server) fn guarded(self, app: &Arc<App>) -> Router<Arc<App>> {
        let gate = Gate {
            app: app.clone(),
            needs: self.needs,
            table: self.table.into(),
        };
        self.router.layer(from_fn_with_state(gate, admit))
    }
}
