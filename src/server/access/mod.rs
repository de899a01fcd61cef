//! Who may do what: each route says what it needs, each request who it comes from.
//!
//! A route cannot be added without a word on what it needs: a [`Group`] is the only way in, and it
//! has one. What no line here allows is refused.

mod credential;
mod group;
mod needs;

use std::sync::Arc;

use axum::RequestExt as _;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use nimbus_manifests::TenantId;
use tracing::{Instrument as _, Span};

use super::App;
use super::caller::{Caller, Identified};
use super::error::{ApiError, Code};
use super::request_context::RequestContext;
use super::tenant_path::Tenant;
use crate::clock;
use crate::control::{AccessKeyId, AccessKeys, Identity, Scope};
use crate::runtime::acting_as;

pub(super) use credential::identify;
pub(super) use group::Group;
pub(super) use needs::Special;
pub use needs::{Needs, Route};

/// What stands before the routes of one group.
#[derive(Clone)]
struct Gate {
    app: Arc<App>,
    needs: Needs,
    table: Arc<[Route]>,
}

/// Admits callers that meet the group's needs, and attaches the caller to the request.
async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let span = extensions
        .get::<MatchedPath>()
        .and_then(|path| Some(extensions.get::<RequestContext>()?.found(path)))
        .unwrap_or_else(Span::none);
    async {
        match gate.examine(&mut request).await {
            Err(error) => error.into_response(),
            Ok(None) => under_its_key(request, next).await,
            // The audit log names who did something to a key.
            Ok(Some(actor)) => acting_as(actor.into(), next.run(request)).await,
        }
    }
    .instrument(span)
    .await
}

tokio::task_local! {
    /// The access key of the request that this task answers, and the key's tenant.
    static PRESENTED: (AccessKeyId, TenantId);
}

async fn under_its_key(request: Request, next: Next) -> Response {
    let presented = match request.extensions().get() {
        Some(Caller::Key { id, tenant, .. }) => Some((*id, tenant.clone())),
        _ => None,
    };
    match presented {
        None => next.run(request).await,
        Some(presented) => PRESENTED.scope(presented, next.run(request)).await,
    }
}

/// Judges the request's access key once more, now that its tenant is open. While a body came, or
/// the request waited, the key may have been revoked, and its tenant deleted and made anew: what is
/// open is then another tenant of the name.
pub(super) fn still_holds_its_key(
    keys: &dyn AccessKeys,
    tenant: &TenantId,
) -> Result<(), ApiError> {
    let holds = |(id, of): &(AccessKeyId, TenantId)| of != tenant || keys.is_live(of, *id);
    match PRESENTED.try_with(holds) {
        Ok(false) => Err(ApiError::new(
            Code::TokenRevoked,
            "this access key was revoked, or its tenant deleted, while the request was under way",
        )),
        Ok(true) | Err(_) => Ok(()),
    }
}

impl Gate {
    /// Whether the request may pass; attaches its caller. Returns the caller's name for the audit
    /// log where the route may change a key.
    async fn examine(&self, request: &mut Request) -> Result<Option<String>, ApiError> {
        if self.needs == Needs::Nothing {
            return self.check_headers(request).map(|()| None);
        }
        let identified = request.extensions_mut().remove();
        let Identified(caller) = match identified {
            Some(identified) => identified,
            None => identify(&self.app, request.headers()).await,
        };
        let caller = caller?;
        if let Caller::Key { .. } = caller {
            // A path that names no tenant is not that of the key.
            let tenant = request.extract_parts::<Tenant>().await.ok();
            if !permits(self.needs, &caller, tenant.map(|Tenant(id)| id).as_ref()) {
                return Err(forbidden(self.needs));
            }
        }
        self.check_headers(request)?;
        note_use(&self.app, &caller, request.headers())?;
        let actor = (self.needs == Needs::Administration).then(|| caller.to_string());
        request.extensions_mut().insert(caller);
        Ok(actor)
    }

    /// Refuses what the route does not honour.
    fn check_headers(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        let there = |special: &Special| headers.contains_key(special.name());
        if !Special::ALL.iter().any(there) {
            return Ok(());
        }
        let Some(path) = request.extensions().get::<MatchedPath>() else {
            return Ok(());
        };
        let method = match *request.method() {
            Method::HEAD => &Method::GET,
            ref method => method,
        };
        let mut table = self.table.iter();
        let Some(route) =
            table.find(|route| route.path == path.as_str() && route.method == *method)
        else {
            return Ok(());
        };
        match Special::ALL
            .iter()
            .find(|special| there(special) && !route.honours.contains(special))
        {
            None => Ok(()),
            Some(special) => Err(ApiError::new(
                Code::InvalidInput,
                format!(
                    "`{}` is not honoured here, and passing over it would do something else than you ask: send the request without it",
                    special.name()
                ),
            )),
        }
    }
}

/// Whether `caller` may use a route that needs `needs` on the tenant that its path names.
fn permits(needs: Needs, caller: &Caller, in_path: Option<&TenantId>) -> bool {
    let (tenant, scope) = match caller {
        Caller::Admin { .. } => return true,
        Caller::Key { tenant, scope, .. } => (tenant, *scope),
    };
    let own = in_path == Some(tenant);
    match needs {
        Needs::Nothing | Needs::Credential => true,
        Needs::Reading => own,
        Needs::Writing => own && scope == Scope::Write,
        Needs::Administration => false,
    }
}

/// The same words for a tenant of somebody else and for one that does not exist.
fn forbidden(needs: Needs) -> ApiError {
    let message = match needs {
        Needs::Writing => "this needs a key of this tenant with scope `write`, or the admin token",
        Needs::Administration => "this needs the admin token",
        Needs::Nothing | Needs::Credential | Needs::Reading => {
            "this needs a key of this tenant, or the admin token"
        }
    };
    ApiError::new(Code::NotAllowed, message)
}

/// Counts the caller's identity. Admin requests are not counted, but their header must be valid,
/// too.
fn note_use(app: &App, caller: &Caller, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut named = headers.get_all(IDENTITY).iter().map(HeaderValue::as_bytes);
    let named = match (named.next(), named.next()) {
        (None, _) => None,
        (Some(name), None) if (1..=MAX_IDENTITY_BYTES).contains(&name.len()) => Some(name),
        _ => {
            return Err(ApiError::new(
                Code::InvalidInput,
                format!(
                    "X-Nimbus-Identity must be sent once, with 1 to {MAX_IDENTITY_BYTES} bytes"
                ),
            ));
        }
    };
    let Caller::Key { id, tenant, .. } = caller else {
        return Ok(());
    };
    let identity = named.map_or(Identity::Key(*id), Identity::Named);
    app.usage.note(*id, tenant, identity, clock::now());
    Ok(())
}

/// The header that names the identity of a request under a tenant access key.
pub(super) const IDENTITY: &str = "x-nimbus-identity";
pub(super) const MAX_IDENTITY_BYTES: usize = 256;

#[cfg(test)]
mod tests;
