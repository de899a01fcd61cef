//! The tenant that a request's path names.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use nimbus_manifests::{InvalidName, TenantId};

use super::error::{ApiError, Code};

/// The tenant in the path, parsed once: by the gate that judges a key, else for the handler.
#[derive(Debug, Clone)]
pub(super) struct Tenant(pub(super) TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Tenant {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        if let Some(known) = parts.extensions.get::<Self>() {
            return Ok(known.clone());
        }
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|rejection| rejection.into_response())?;
        let mut params = params.iter();
        let text = params.find_map(|(name, value)| (name == TENANT).then_some(value));
        let tenant = text.unwrap_or_default().parse();
        let tenant: TenantId = tenant.map_err(|error: InvalidName| {
            ApiError::new(Code::InvalidInput, error.to_string()).into_response()
        })?;
        parts.extensions.insert(Self(tenant.clone()));
        Ok(Self(tenant))
    }
}

/// The path parameter that names the tenant, in every route that has one.
const TENANT: &str = "t";
