//! `/api/admin/encryption/lock` and `unlock`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use nimbus_manifests::TenantId;

use crate::encryption::lock::{self, LockTenantError, Request, TenantLock};
use crate::error_chain::error_chain;
use crate::runtime::{acting_as, actor, short_task};
use crate::server::App;
use crate::server::body::{Body, Plain};
use crate::server::error::{ApiError, Code};
use crate::server::openapi::shapes;

impl Plain for Request {}

/// Closes a tenant until it is unlocked, as `nimbus encryption lock`.
#[utoipa::path(post, path = "/api/admin/encryption/lock", operation_id = "lockTenant", tag = "encryption",
    request_body = Request,
    responses(
        (status = 200, description = "The tenant is closed and its key wiped", body = TenantLock),
        (status = 404, description = "There is no such tenant", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn lock(
    State(app): State<Arc<App>>,
    Body(request): Body<Request>,
) -> Result<Json<TenantLock>, ApiError> {
    set(app, request.tenant_id, true).await
}

/// Ends a lock, as `nimbus encryption unlock`.
#[utoipa::path(post, path = "/api/admin/encryption/unlock", operation_id = "unlockTenant", tag = "encryption",
    request_body = Request,
    responses(
        (status = 200, description = "The next request opens the tenant", body = TenantLock),
        (status = 404, description = "There is no such tenant", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn unlock(
    State(app): State<Arc<App>>,
    Body(request): Body<Request>,
) -> Result<Json<TenantLock>, ApiError> {
    set(app, request.tenant_id, false).await
}

async fn set(app: Arc<App>, tenant: TenantId, locked: bool) -> Result<Json<TenantLock>, ApiError> {
    // In a task of its own: what is recorded is carried out, also when the caller goes away.
    let setting = short_task(acting_as(actor(), async move {
        let (envelope, control) = (&app.envelope, &app.control);
        let set = lock::set(envelope, control, &*app.tenants, &tenant, locked).await;
        if set.is_ok() && !locked {
            app.untroubled(&tenant);
        }
        set
    }));
    let set = setting
        .await
        .map_err(|_panic| ApiError::new(Code::Internal, "a fault in the server"))?;
    set.map(Json).map_err(|error| {
        if let LockTenantError::Store(error) = error {
            return ApiError::from(error);
        }
        let code = match &error {
            LockTenantError::NoTenant { .. } => Code::TenantNotFound,
            _ => Code::Unavailable,
        };
        ApiError::new(code, error_chain(&error))
    })
}
