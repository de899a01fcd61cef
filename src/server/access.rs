//! Who may do what: each route says what it needs, each request who it comes from.
//!
//! A route cannot be added without a word on what it needs: a [`Group`] is the only way in, and it has one. What no line here
//! allows is refused.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use axum::{RequestExt as _, Router};
use nimbus_manifests::TenantId;
use tracing::{Instrument as _, Span};

use super::App;
use super::caller::{Caller, Identified};
use super::error::{ApiError, Code};
use super::parameters::{Extractors, Strict};
use super::request_context::RequestContext;
use super::tenant_path::Tenant;
use super::token::Verdict;
use crate::clock;
use crate::control::{AccessKey, Identity, KeyError, KeyVerdict, Scope};
use crate::error_chain::error_chain;
use crate::runtime::acting_as;

/// What a route needs of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Needs {
    /// Nothing: anybody may call it.
    Nothing,
    /// Any credential at all.
    Credential,
    /// A key of the tenant in the path, of either scope, or the admin token.
    Reading,
    /// A key of the tenant in the path with scope `write`, or the admin token.
    Writing,
    /// The admin token.
    Administration,
}

/// A header that makes a request conditional, partial or repeatable. A route that does not honour one refuses it: passing over it would do
/// something else than what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Only if the document has one of these versions.
    IfMatch,
    /// Only if it has none of these, or is not there.
    IfNoneMatch,
    /// Only if it was changed after a time.
    IfModifiedSince,
    /// Only if it was not changed after a time.
    IfUnmodifiedSince,
    /// Only some of the bytes.
    Range,
    /// Only some of the bytes, if they are still the same.
    IfRange,
    /// Once, however often it is sent.
    IdempotencyKey,
}

impl Special {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::IfMatch,
        Self::IfNoneMatch,
        Self::IfModifiedSince,
        Self::IfUnmodifiedSince,
        Self::Range,
        Self::IfRange,
        Self::IdempotencyKey,
    ];

    /// The header's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IfMatch => "If-Match",
            Self::IfNoneMatch => "If-None-Match",
            Self::IfModifiedSince => "If-Modified-Since",
            Self::IfUnmodifiedSince => "If-Unmodified-Since",
            Self::Range => "Range",
            Self::IfRange => "If-Range",
            Self::IdempotencyKey => "Idempotency-Key",
        }
    }
}

/// One route, as the table of all of them lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The method; a `GET` route answers `HEAD` too.
    pub method: Method,
    /// The path's pattern.
    pub path: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Which of these headers it honours.
    pub honours: &'static [Special],
}

/// Routes that need the same of their callers. Methods of one path may stand in different groups.
pub(super) struct Group {
    needs: Needs,
    router: Router<Arc<App>>,
    table: Vec<Route>,
}

impl Group {
    pub(super) fn new(needs: Needs) -> Self {
        Self {
            needs,
            router: Router::new(),
            table: Vec::new(),
        }
    }

    pub(super) fn get<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::GET, path, get(Strict(handler)))
    }

    pub(super) fn post<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::POST, path, post(Strict(handler)))
    }

    pub(super) fn put<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::PUT, path, put(Strict(handler)))
    }

    pub(super) fn patch<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.route(Method::PATCH, path, patch(Strict(handler)))
    }

    pub(super) fn delete<H: Handler<T, Arc<App>>, T: Extractors + 'static>(
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
    pub(super) fn honouring(mut self, headers: &'static [Special]) -> Self {
        if let Some(route) = self.table.last_mut() {
            route.honours = headers;
        }
        self
    }

    /// The routes, in the order in which they were named.
    pub(super) fn table(&self) -> &[Route] {
        &self.table
    }

    /// The routes behind their guard. A path or method that is not known to this group's router asks for the same.
    pub(super) fn guarded(self, app: &Arc<App>) -> Router<Arc<App>> {
        let gate = Gate {
            app: app.clone(),
            needs: self.needs,
            table: self.table.into(),
        };
        self.router.layer(from_fn_with_state(gate, admit))
    }
}

/// What stands before the routes of one group.
#[derive(Clone)]
struct Gate {
    app: Arc<App>,
    needs: Needs,
    table: Arc<[Route]>,
}

/// Lets in whom the routes behind it are for, and tells them who it is.
async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let span = extensions
        .get::<MatchedPath>()
        .and_then(|path| Some(extensions.get::<RequestContext>()?.found(path)))
        .unwrap_or_else(Span::none);
    async {
        match gate.examine(&mut request).await {
            Err(error) => error.into_response(),
            Ok(None) => next.run(request).await,
            // The audit log names who did something to a key.
            Ok(Some(actor)) => acting_as(actor.into(), next.run(request)).await,
        }
    }
    .instrument(span)
    .await
}

impl Gate {
    /// Whether the request may pass; notes whom it comes from. Gives what the audit log calls them, where the route may do something to a
    /// key.
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

/// Looks at the credential, which takes no place among requests under way and reads no body.
pub(super) async fn identify(app: &App, headers: &HeaderMap) -> Identified {
    Identified(match credential(headers) {
        Ok(Credential::Bearer(text)) => match AccessKey::parse(text) {
            Some(key) => identify_key(app, &key).await,
            None => identify_admin(app, text),
        },
        Ok(Credential::AdminToken(text)) => identify_admin(app, text),
        Err(error) => Err(error),
    })
}

async fn identify_key(app: &App, key: &AccessKey) -> Result<Caller, ApiError> {
    let unsure = |error: KeyError| ApiError::new(Code::Unavailable, error_chain(&error));
    if !app.keys.is_fresh() {
        let _shared = app.keys.refresh().await.map_err(unsure)?;
    }
    let mut verdict = app.keys.judge(key);
    // Another server may have made it just now.
    if verdict == KeyVerdict::Unknown && app.keys.refresh().await.map_err(unsure)? {
        verdict = app.keys.judge(key);
    }
    match verdict {
        KeyVerdict::Live { tenant, scope } => Ok(Caller::Key {
            id: key.id(),
            tenant,
            scope,
        }),
        KeyVerdict::Revoked => Err(ApiError::new(
            Code::TokenRevoked,
            "this access key was revoked and does not count any more",
        )),
        KeyVerdict::Unknown => Err(unknown()),
    }
}

fn identify_admin(app: &App, token: &[u8]) -> Result<Caller, ApiError> {
    match app.tokens.judge(token) {
        Ok(Verdict::Admin(credential)) => Ok(Caller::Admin { credential }),
        Ok(Verdict::Revoked) => Err(ApiError::new(
            Code::TokenRevoked,
            "this token was rotated and does not count any more",
        )),
        Ok(Verdict::Unknown) => Err(unknown()),
        Err(error) => {
            tracing::error!(%error, "nobody can be let in by the admin token");
            Err(ApiError::new(
                Code::Unavailable,
                "the admin token cannot be read; the server's log says why",
            ))
        }
    }
}

fn unknown() -> ApiError {
    ApiError::new(Code::Unauthorized, "this credential is not known")
}

/// A credential as the request carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credential<'a> {
    /// The admin token or an access key.
    Bearer(&'a [u8]),
    /// The admin token.
    AdminToken(&'a [u8]),
}

/// The one credential of a request. Two are refused: what stands before this server may have looked at the other one.
fn credential(headers: &HeaderMap) -> Result<Credential<'_>, ApiError> {
    let authorizations = headers.get_all(header::AUTHORIZATION);
    let bearers = authorizations
        .iter()
        .filter_map(|value| bearer(value.as_bytes()));
    let mut malformed = false;
    let bearers = bearers.map(|token| {
        malformed |= token.is_none();
        Credential::Bearer(token.unwrap_or_default())
    });
    let tokens = headers.get_all(ADMIN_TOKEN);
    let tokens = tokens
        .iter()
        .map(|token| Credential::AdminToken(token.as_bytes()));
    let mut all = bearers.chain(tokens);
    let Some(credential) = all.next() else {
        return Err(ApiError::new(
            Code::Unauthorized,
            "this route needs a credential",
        ));
    };
    if all.next().is_some() || authorizations.iter().nth(1).is_some() {
        return Err(ApiError::new(
            Code::Unauthorized,
            "the request carries more than one credential; send one",
        ));
    }
    if malformed {
        return Err(ApiError::new(
            Code::Unauthorized,
            "Authorization must be `Bearer`, spaces, and the token; there is something else between or behind them",
        ));
    }
    Ok(credential)
}

/// The token of `Authorization: Bearer`, as RFC 9110, section 11.4 has it: the scheme in any case, one space or more, the token. `None` within
/// for what is not that; `None` for another scheme.
fn bearer(value: &[u8]) -> Option<Option<&[u8]>> {
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    if !scheme.eq_ignore_ascii_case(BEARER) {
        return None;
    }
    let token = rest.iter().position(|byte| *byte != b' ');
    match (token, rest) {
        // `Bearer` alone, and schemes that begin alike.
        (None, _) | (Some(0), [b'!'..=b'~', ..]) => None,
        (Some(0), _) => Some(None),
        (Some(spaces), _) => {
            let token = &rest[spaces..];
            let is_one_word = token.iter().all(u8::is_ascii_graphic);
            Some(is_one_word.then_some(token))
        }
    }
}

/// Counts whom a key is used for. The admin token is nobody's, but what is said under it must be right, too.
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

const BEARER: &[u8] = b"Bearer";
const ADMIN_TOKEN: &str = "x-nimbus-admin-token";
/// Whom a request under a tenant access key is for.
pub(super) const IDENTITY: &str = "x-nimbus-identity";
pub(super) const MAX_IDENTITY_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::caller::CredentialId;

    fn key(tenant: &str, scope: Scope) -> Caller {
        Caller::Key {
            id: "aaaqeayeaudaocaj".parse().unwrap(),
            tenant: tenant.parse().unwrap(),
            scope,
        }
    }

    #[test]
    fn permits_what_the_table_says_and_nothing_else() {
        let admin = Caller::Admin {
            credential: CredentialId::of_digest(&[7; 32]),
        };
        let (read, write) = (key("demo", Scope::Read), key("demo", Scope::Write));
        // (needs, tenant in the path): admin, read key of demo, write key of demo.
        for (needs, tenant, allowed) in [
            (Needs::Credential, None, [true, true, true]),
            (Needs::Reading, Some("demo"), [true, true, true]),
            (Needs::Reading, Some("other"), [true, false, false]),
            (Needs::Reading, Some("demo2"), [true, false, false]),
            (Needs::Reading, None, [true, false, false]),
            (Needs::Writing, Some("demo"), [true, false, true]),
            (Needs::Writing, Some("other"), [true, false, false]),
            (Needs::Writing, None, [true, false, false]),
            (Needs::Administration, Some("demo"), [true, false, false]),
            (Needs::Administration, None, [true, false, false]),
        ] {
            let id: Option<TenantId> = tenant.map(|id| id.parse().unwrap());
            let found = [&admin, &read, &write].map(|caller| permits(needs, caller, id.as_ref()));
            assert_eq!(found, allowed, "{needs:?} {tenant:?}");
        }
    }

    #[test]
    fn takes_one_credential_and_no_more() {
        let (a, t) = ("authorization", ADMIN_TOKEN);
        let headers = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            match credential(&headers) {
                Ok(Credential::Bearer(text)) => Some((a, text.to_vec())),
                Ok(Credential::AdminToken(text)) => Some((t, text.to_vec())),
                Err(_) => None,
            }
        };
        assert_eq!(headers(&[(a, "Bearer x")]), Some((a, b"x".to_vec())));
        assert_eq!(headers(&[(a, "bEARER x")]), Some((a, b"x".to_vec())));
        assert_eq!(headers(&[(a, "Bearer   x")]), Some((a, b"x".to_vec())));
        assert_eq!(headers(&[(t, "x")]), Some((t, b"x".to_vec())));
        // What a proxy in front asks for is not ours.
        assert_eq!(
            headers(&[(a, "Basic x"), (t, "y")]),
            Some((t, b"y".to_vec()))
        );
        for refused in [
            &[][..],
            &[(a, "Basic x")],
            &[(a, "Bearer")],
            &[(a, "Bearer ")],
            &[(a, "Bearerx y")],
            &[(a, "Bearer\tx")],
            &[(a, "Bearer \tx")],
            &[(a, "Bearer x y")],
            &[(a, "Bearer x\t")],
            &[(a, "x")],
            &[(a, "Bearer x"), (a, "Bearer x")],
            &[(a, "Bearer x"), (a, "Basic y")],
            &[(a, "Basic y"), (a, "Bearer x")],
            &[(a, "Bearer x"), (t, "x")],
            &[(t, "x"), (t, "x")],
        ] {
            assert_eq!(headers(refused), None, "{refused:?}");
        }
    }
}
