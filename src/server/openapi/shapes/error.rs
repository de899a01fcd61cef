//! What is answered when something is no success.

use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::shape;
use crate::server::error::Code;

shape! {
    /// The code of an error.
    ErrorCode = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(codes()))
        .description(Some("What happened"));
}

/// The codes as they stand in the envelope, each once.
fn codes() -> Vec<Value> {
    let mut codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    codes.into_iter().map(Value::from).collect()
}

/// Every answer that is no success.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ErrorEnvelope {
    error: ErrorBody,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct ErrorBody {
    code: ErrorCode,
    message: String,
    request_id: String,
    timestamp: String,
    severity: Severity,
    /// Whether the same request may succeed a little later.
    retryable: bool,
    #[schema(required)]
    detail: Option<String>,
    remediation: String,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Severity {
    Warning,
    Error,
    Critical,
}
