//! The HTTP server: routes, credentials, limits, and an end that loses nothing.

mod body;
pub mod error;
mod layers;
mod operations;
mod routes;
pub mod token;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt as _;
use nimbus_manifests::TenantId;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use body::MAX_BODY_BYTES;

use crate::control::{Control, ControlError};
use crate::encryption::survey::Surveyor;
use crate::envelope::{Envelope, blocking};
use crate::tenants::{StoreError, TenantProvider, TenantStore};
use error::{ApiError, Code};
use operations::Operations;
use token::TokenKeeper;

/// What the handlers work with.
#[derive(Debug)]
pub struct App {
    tenants: Arc<dyn TenantProvider>,
    control: Arc<Control>,
    envelope: Envelope,
    surveyor: Surveyor,
    operations: Arc<Operations>,
    tokens: TokenKeeper,
    allowed_origins: Vec<String>,
    places: Semaphore,
    /// Tenants that did not open when they were asked for last, and why.
    trouble: Mutex<BTreeMap<TenantId, &'static str>>,
}

impl App {
    /// An application over opened parts.
    #[must_use]
    pub fn new(
        tenants: Arc<dyn TenantProvider>,
        control: Arc<Control>,
        envelope: Envelope,
        surveyor: Surveyor,
        tokens: TokenKeeper,
        allowed_origins: Vec<String>,
    ) -> Self {
        Self {
            tenants,
            control,
            envelope,
            surveyor,
            operations: Arc::default(),
            tokens,
            allowed_origins,
            places: Semaphore::new(MAX_REQUESTS),
            trouble: Mutex::default(),
        }
    }

    /// The store of a tenant; remembers, and logs once, when it does not open.
    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, ApiError> {
        match self.tenants.open(tenant).await {
            Ok(store) => {
                self.untroubled(tenant);
                Ok(store)
            }
            Err(error) => {
                let broken = matches!(error, StoreError::Open { .. } | StoreError::Corrupt { .. });
                let answer = ApiError::from(error.clone());
                if broken {
                    let code = answer.code.as_str();
                    let before = self.trouble().insert(tenant.clone(), code);
                    if before != Some(code) {
                        tracing::error!(%tenant, code, %error, "a tenant does not open");
                    }
                }
                Err(answer)
            }
        }
    }

    /// Runs work that must not stop half way because its caller went away.
    async fn finish<F, W>(self: &Arc<Self>, work: W) -> Result<(), ApiError>
    where
        W: FnOnce(Arc<Self>) -> F + Send + 'static,
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        match tokio::spawn(work(self.clone())).await {
            Ok(result) => result.map_err(ApiError::from),
            Err(_panic) => Err(ApiError::new(Code::Internal, "a fault in the server")),
        }
    }

    /// Pages of this machine, and those that the operator named.
    fn accepts(&self, origin: &str) -> bool {
        layers::is_loopback(origin) || self.allowed_origins.iter().any(|allowed| allowed == origin)
    }

    async fn check_control(&self) -> Result<(), ControlError> {
        let control = self.control.clone();
        blocking(move || control.pending_deletes().map(drop)).await
    }

    fn troubled(&self) -> BTreeMap<String, &'static str> {
        self.trouble()
            .iter()
            .map(|(tenant, code)| (tenant.to_string(), *code))
            .collect()
    }

    fn untroubled(&self, tenant: &TenantId) {
        let mut trouble = self.trouble();
        if !trouble.is_empty() {
            let _code = trouble.remove(tenant);
        }
    }

    fn trouble(&self) -> MutexGuard<'_, BTreeMap<TenantId, &'static str>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every route, with what each request passes through.
pub fn router(app: Arc<App>) -> Router {
    let open = Router::new().route("/health", get(routes::health::health));
    let closed = Router::new()
        .route("/ready", get(routes::health::ready))
        .route(
            "/api/tenants",
            post(routes::tenants::create).get(routes::tenants::list),
        )
        .route("/api/tenants/{t}", delete(routes::tenants::delete))
        .route(
            "/api/tenants/{t}/documents",
            post(routes::documents::insert),
        )
        .route(
            "/api/tenants/{t}/documents/{table}",
            get(routes::documents::list),
        )
        .route(
            "/api/tenants/{t}/documents/{table}/{id}",
            get(routes::documents::get)
                .patch(routes::documents::patch)
                .delete(routes::documents::delete),
        )
        .route("/api/tenants/{t}/batch", post(routes::batch::apply))
        .route("/api/tenants/{t}/query", post(routes::query::query))
        .route(
            "/api/tenants/{t}/query/paginated",
            post(routes::query::paginated),
        )
        .route("/api/tenants/{t}/journal", get(routes::journal::read))
        .route("/api/admin/token/rotate", post(routes::admin::rotate_token))
        .route(
            "/api/admin/encryption/rotate-kek",
            post(routes::admin::rotate_kek),
        )
        .route("/api/admin/encryption/shred", post(routes::admin::shred))
        .route("/api/admin/operations/{id}", get(routes::admin::operation))
        .route(ENCRYPTION_STATUS, get(routes::admin::encryption_status))
        .layer(from_fn_with_state(app.clone(), layers::admit));
    open.merge(closed)
        .layer(from_fn_with_state(app.clone(), layers::origin))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(cors(app.clone()))
        .layer(CatchPanicLayer::new())
        .layer(from_fn_with_state(app.clone(), layers::envelope))
        .layer(map_response(
            async |mut response: axum::response::Response| {
                let headers = response.headers_mut();
                let _old =
                    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                let _old = headers.insert(
                    header::X_CONTENT_TYPE_OPTIONS,
                    HeaderValue::from_static("nosniff"),
                );
                response
            },
        ))
        .with_state(app)
}

/// What a browser on an accepted origin is told. Preflight requests carry no credential and are answered here.
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
            HeaderName::from_static("x-request-id"),
        ])
}

/// Serves until `stop` resolves, then finishes what is under way (at most 30 seconds) and closes every tenant.
///
/// # Errors
///
/// What kept the listener from serving, or a tenant from closing.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let listener = listener.tap_io(|stream| {
        // Answers are small: waiting to fill a packet would only add latency.
        drop(stream.set_nodelay(true));
    });
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let signal = async move {
        stop.await;
        tracing::info!("stopping: finishing what is under way");
        let _before = stopping.send_replace(true);
    };
    let serving = axum::serve(listener, router(app.clone())).with_graceful_shutdown(signal);
    let patience = async move {
        // An error means that the signal's task is gone, which ends serving by itself.
        drop(stopped.wait_for(|stopped| *stopped).await);
        tokio::time::sleep(STOP_PATIENCE).await;
    };
    tokio::select! {
        result = serving => result.map_err(ServeError::Listener)?,
        () = patience => tracing::warn!("some requests did not end in time and are cut off"),
    }
    app.tenants.close().await.map_err(ServeError::Close)
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The listener failed.
    #[error("the listener failed")]
    Listener(#[source] std::io::Error),
    /// A tenant did not close; what was answered is durable all the same.
    #[error(
        "a tenant did not close cleanly; what was answered is durable, the next start recovers the rest"
    )]
    Close(#[source] StoreError),
}

/// How many requests may be under way: more are turned away with `Retry-After` rather than queued without bound.
const MAX_REQUESTS: usize = 1024;
/// Looks at every file, so that it may take longer than other requests.
const ENCRYPTION_STATUS: &str = "/debug/encryption/status";
const STOP_PATIENCE: Duration = Duration::from_secs(30);
