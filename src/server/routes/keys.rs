//! `/api/tenants/{t}/keys`: tenant access keys.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::control::{AccessKey, AccessKeyId, KeyError, KeyInfo, KeyName, Scope};
use crate::data_dir;
use crate::envelope::{Event, EventKind, EventOutcome};
use crate::error_chain::error_chain;
use crate::runtime::{acting_as, actor, blocking, short_task};
use crate::server::App;
use crate::server::body::{Body, Plain};
use crate::server::error::{ApiError, Code, of_trouble};
use crate::server::openapi::shapes;
use crate::server::tenant_path::Tenant;
use crate::tenants::StoreError;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewKey {
    #[schema(value_type = String, min_length = 1, max_length = 100)]
    name: KeyName,
    scope: Scope,
}

impl Plain for NewKey {}

/// Makes a key. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/tenants/{t}/keys", operation_id = "createKey", tag = "access",
    request_body = NewKey,
    responses(
        (status = 201, description = "The key, shown this once", body = ShownKey),
        (status = 409, description = "The tenant has as many keys as it may have", body = shapes::ErrorEnvelope),
    ))]
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Body(new): Body<NewKey>,
) -> Result<Response, ApiError> {
    require(&app, &tenant).await?;
    let scope = new.scope.as_str();
    let event = event(EventKind::AccessKeyCreated, &tenant).saying(format!("scope {scope}"));
    audited(app, event, move |app| async move {
        let (key, info) = make(&app, &tenant, new).await?;
        let made = format!("key {}, scope {scope}", info.id);
        Ok((shown_once(&key, &info), made))
    })
    .await
}

async fn make(app: &App, tenant: &TenantId, new: NewKey) -> Result<(AccessKey, KeyInfo), ApiError> {
    for _try in 0..TRIES {
        let deletions = app.keys.deletions();
        require(app, tenant).await?;
        let (keys, tenant) = (app.keys.clone(), tenant.clone());
        let name = new.name.clone();
        // On a thread of its own, which ends also when the client has gone.
        let created = blocking(move || keys.create(&tenant, name, new.scope, deletions)).await;
        match created {
            Err(KeyError::Deleted) => {}
            made => return made.map_err(|error| failed(&error)),
        }
    }
    Err(ApiError::new(
        Code::StorageBusy,
        "tenants are being deleted just now",
    ))
}

/// The valid keys, oldest first, without their secrets.
#[utoipa::path(get, path = "/api/tenants/{t}/keys", operation_id = "listKeys", tag = "access",
    responses((status = 200, description = "The keys, oldest first", body = Keys)))]
pub(in crate::server) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
) -> Result<Json<Keys>, ApiError> {
    require(&app, &tenant).await?;
    let keys = app.keys.list(&tenant);
    Ok(Json(Keys { keys }))
}

#[derive(Serialize, ToSchema)]
pub(in crate::server) struct Keys {
    keys: Vec<KeyInfo>,
}

/// Revokes a key: the next request with it is refused.
#[utoipa::path(delete, path = "/api/tenants/{t}/keys/{id}", operation_id = "revokeKey", tag = "access",
    responses((status = 204, description = "The key is revoked")))]
pub(in crate::server) async fn revoke(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    require(&app, &tenant).await?;
    let not_found = || {
        let message = "this tenant has no such access key, or no more";
        ApiError::new(Code::KeyNotFound, message)
    };
    let known = |id: &AccessKeyId| {
        let keys = app.keys.list(&tenant);
        keys.iter().any(|key| key.id == id.to_string())
    };
    let id = id.parse().ok().filter(known).ok_or_else(not_found)?;
    let key = format!("key {id}");
    let event = event(EventKind::AccessKeyRevoked, &tenant).saying(&key);
    audited(app, event, move |app| async move {
        let keys = app.keys.clone();
        let revoked = blocking(move || keys.revoke(&tenant, id)).await;
        match revoked.map_err(|error| failed(&error))? {
            true => Ok((StatusCode::NO_CONTENT, key)),
            false => Err(not_found()),
        }
    })
    .await
}

fn event(kind: EventKind, tenant: &TenantId) -> Event {
    Event::new(kind, EventOutcome::Begun).about(&data_dir::subject(tenant))
}

/// Does something to an access key between two lines of the audit log, to its end also when the
/// client has gone. What is done comes with what the second line says. Where the first cannot be
/// written, nothing is done.
async fn audited<T, F>(
    app: Arc<App>,
    event: Event,
    work: impl FnOnce(Arc<App>) -> F + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: Future<Output = Result<(T, String), ApiError>> + Send + 'static,
{
    // The log is sealed under the control file's key, too: that it was taken back says more than
    // that the log cannot be written.
    let control = app.check_control().await;
    control.map_err(|error| failed(&error.into()))?;
    let doing = short_task(acting_as(actor(), async move {
        let begun = app.envelope.record(event.clone()).await;
        begun.map_err(|error| ApiError::new(Code::Unavailable, error_chain(&error)))?;
        let done = work(app.clone()).await;
        app.envelope.note(match &done {
            Ok((_, said)) => event.ended(&Ok::<_, KeyError>(())).saying(said),
            Err(_) => Event {
                outcome: EventOutcome::Failed,
                ..event
            },
        });
        done.map(|(done, _said)| done)
    }));
    doing
        .await
        .unwrap_or_else(|_panic| Err(ApiError::new(Code::Internal, "a fault in the server")))
}

async fn require(app: &App, tenant: &TenantId) -> Result<(), ApiError> {
    let tenants = app.tenants.list_tenants().await?;
    match tenants.binary_search(tenant) {
        Ok(_place) => Ok(()),
        Err(_place) => Err(StoreError::TenantNotFound {
            tenant: tenant.clone(),
        }
        .into()),
    }
}

fn failed(error: &KeyError) -> ApiError {
    let code = match error {
        KeyError::TooMany { .. } => Code::Conflict,
        // Its own key may have been taken back.
        KeyError::Control(error) => of_trouble(error.trouble()),
        _ => Code::Unavailable,
    };
    ApiError::new(code, error_chain(error))
}

/// A new key with its secret.
#[derive(Serialize, ToSchema)]
struct ShownKey {
    id: String,
    /// Stored hashed: it is in this answer and nowhere else.
    #[serde(serialize_with = "exposed")]
    #[schema(value_type = String)]
    key: Zeroizing<String>,
    #[schema(value_type = String)]
    name: KeyName,
    scope: Scope,
}

fn exposed<S: Serializer>(key: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key)
}

/// The answer that holds the secret, from a buffer that is wiped when it was sent.
fn shown_once(key: &AccessKey, info: &KeyInfo) -> Response {
    let shown = ShownKey {
        id: info.id.clone(),
        key: key.expose(),
        name: info.name.clone(),
        scope: info.scope,
    };
    // Large enough from the beginning: a buffer that grows leaves copies of itself behind.
    let mut json = Zeroizing::new(Vec::with_capacity(SHOWN_BYTES));
    if serde_json::to_writer(&mut *json, &shown).is_err() {
        return ApiError::new(Code::Internal, "a fault in the server").into_response();
    }
    let kind = HeaderValue::from_static("application/json");
    let body = Bytes::from_owner(json);
    (StatusCode::CREATED, [(header::CONTENT_TYPE, kind)], body).into_response()
}

/// A key, its id, and a name of a hundred characters, each escaped.
const SHOWN_BYTES: usize = 2048;
/// How often a deletion that came between is put up with.
const TRIES: usize = 8;
