//! The error envelope, and the one table from what happened to code, status, severity and remedy.
//!
//! A message that a key's holder sees names nothing of the server: no path, no key of a provider. A
//! fixed sentence names none; whatever text is made for an error with status 5xx, or of what failed
//! below, is for the operator and for the log, unless its maker says otherwise.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::clock;
use crate::control::ControlError;
use crate::documents::InputError;
use crate::documents::deploy::DeployError;
use crate::envelope::Trouble;
use crate::tenants::{Limit, StoreError};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:ident, $severity:literal, $retryable:literal, $remedy:literal;)*) => {
        /// What happened, as the `code` of the envelope names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as it stands in the envelope.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            const fn severity(self) -> &'static str {
                match self { $(Self::$variant => $severity,)* }
            }

            const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }

            const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)* }
            }
        }
    };
}

impl Code {
    /// What is said of it to callers that must not learn about the server's internals.
    const fn sentence(self) -> &'static str {
        match self {
            Self::TenantNotFound => "there is no such tenant",
            Self::AlreadyExists => "it exists already",
            Self::ResourceExhausted => "the server has as much work waiting as it takes",
            Self::NoRoom => "there is no room for more",
            Self::TooManyRemembered => "no more keys of requests are remembered",
            Self::KeyUnavailable => "the tenant's encryption key cannot be had now",
            Self::KeyRevoked => "the tenant's encryption key may not be used",
            Self::Locked => "the tenant is locked",
            Self::KeyMismatch => "the tenant's encryption key and its data do not belong together",
            Self::ManifestMissing => "the tenant's wrapped encryption key is missing",
            Self::StorageBusy => "the tenant's storage is held by another process",
            Self::StorageCorruption => "the tenant's storage is damaged",
            Self::Unavailable => "the server cannot do this now",
            Self::Internal => "a fault in the server",
            _ => "the request cannot be done",
        }
    }
}

codes! {
    /// No credential, or not one of Nimbus.
    Unauthorized = "auth.unauthorized", UNAUTHORIZED, "warning", false,
        "send the admin token (`nimbus auth token` prints it) or a key of the tenant as `Authorization: Bearer …`";
    /// The page that sends the request has a foreign origin.
    Forbidden = "auth.forbidden", FORBIDDEN, "warning", false,
        "call from a loopback origin, or start the server with --cors-allow-origin";
    /// The credential is not one for this route or this tenant.
    NotAllowed = "auth.forbidden", FORBIDDEN, "warning", false,
        "use a key of this tenant whose scope allows it, or the admin token";
    /// The credential was rotated away.
    TokenRevoked = "auth.token_revoked", UNAUTHORIZED, "warning", false,
        "use the credential that took its place: `nimbus auth token` prints the admin token, the operator makes keys of tenants";
    /// No such tenant.
    TenantNotFound = "session.tenant_not_found", NOT_FOUND, "error", false,
        "create the tenant with POST /api/tenants, or list them with GET /api/tenants";
    /// The request is not right.
    InvalidInput = "op.invalid_input", BAD_REQUEST, "error", false, "correct the request and send it again";
    /// The request is right and too large.
    TooLarge = "op.invalid_input", PAYLOAD_TOO_LARGE, "error", false,
        "send less: a body may have 16 MiB, a document 1 MiB";
    /// The body is not in a form that is read.
    UnsupportedBody = "op.invalid_input", UNSUPPORTED_MEDIA_TYPE, "error", false,
        "send JSON, as it is: `Content-Type: application/json`, and no `Content-Encoding`";
    /// The body did not arrive.
    BodyTimeout = "op.invalid_input", REQUEST_TIMEOUT, "warning", true, "send the whole body without a pause";
    /// No such document.
    DocumentNotFound = "op.document_not_found", NOT_FOUND, "error", false, "list the table to see which documents there are";
    /// No such job or cron.
    JobNotFound = "op.scheduled_job_not_found", NOT_FOUND, "error", false, "list what is scheduled to see what there is";
    /// The table has no schema.
    SchemaNotFound = "op.schema_not_found", NOT_FOUND, "error", false, "GET /api/tenants/{t}/schema lists the schemas that there are";
    /// A document does not fit the schema of its table.
    SchemaValidation = "op.schema_validation", BAD_REQUEST, "error", false,
        "correct the document, or the schema; GET /api/tenants/{t}/schema/{table} shows it";
    /// No such operation.
    OperationNotFound = "op.scheduled_job_not_found", NOT_FOUND, "error", false, "begin the operation again";
    /// No such access key.
    KeyNotFound = "op.document_not_found", NOT_FOUND, "error", false, "list the tenant's keys with GET /api/tenants/{t}/keys";
    /// It is there already.
    AlreadyExists = "op.already_exists", CONFLICT, "error", false, "use what is there, or choose another id";
    /// It cannot be done to what is there.
    Conflict = "op.conflict", CONFLICT, "error", false, "look at what is there, then decide";
    /// What lies after the cursor is forgotten.
    CursorExpired = "op.cursor_expired", GONE, "error", false,
        "read the tenant's tables again, then follow the journal from the \"latest_sequence\" noted before; without \"after\" it is read from its beginning";
    /// A document is not of the version that the request is for.
    PreconditionFailed = "op.precondition_failed", PRECONDITION_FAILED, "error", false,
        "read the document again, decide anew, and send the request with the version that it has now";
    /// More work is waiting than is let in.
    ResourceExhausted = "rate.resource_exhausted", SERVICE_UNAVAILABLE, "warning", true, "wait as long as Retry-After says, and try again";
    /// There is no room for more.
    NoRoom = "rate.resource_exhausted", INSUFFICIENT_STORAGE, "error", false,
        "delete documents, or have the operator raise --max-tenant-bytes or make room on the disk";
    /// No more keys of requests are remembered.
    TooManyRemembered = "rate.resource_exhausted", INSUFFICIENT_STORAGE, "error", false,
        "send the request without Idempotency-Key, or once keys of the last 24 hours are forgotten; or with another credential of the tenant";
    /// The key cannot be had now.
    KeyUnavailable = "encryption.key_unavailable", SERVICE_UNAVAILABLE, "error", true,
        "make the key reachable, or name the missing one in the settings (--encryption-previous-…); `nimbus encryption status` names it";
    /// The provider refuses the key.
    KeyRevoked = "encryption.key_revoked", SERVICE_UNAVAILABLE, "error", false,
        "the operator enables the key at its provider, or restores the permission to use it; the tenant opens again by itself";
    /// An operator locked the tenant.
    Locked = "encryption.key_revoked", SERVICE_UNAVAILABLE, "error", false,
        "nothing is wrong with the data or the request: wait until the operator ends the lock with `nimbus encryption unlock --tenant-id <tenant>`";
    /// Key and file do not belong together.
    KeyMismatch = "encryption.key_mismatch", SERVICE_UNAVAILABLE, "critical", false,
        "`nimbus encryption status --verify open` says whether `nimbus encryption repair` helps, or the file and its manifest from one backup";
    /// The sidecar is missing.
    ManifestMissing = "encryption.manifest_missing", SERVICE_UNAVAILABLE, "critical", false,
        "restore the manifest from a backup, or put it back with `nimbus encryption repair`";
    /// No such generation of a deploy.
    GenerationNotFound = "op.document_not_found", NOT_FOUND, "error", false, "GET /api/tenants/{t}/deploy lists the generations that are kept";
    /// No such file in the active generation.
    FileNotFound = "op.document_not_found", NOT_FOUND, "error", false,
        "look at the path, which case counts in; deploy the file, or activate a generation that has it";
    /// The range lies beyond the end of the file.
    RangeNotSatisfiable = "op.invalid_input", RANGE_NOT_SATISFIABLE, "error", false,
        "ask for a range within the length that Content-Range names";
    /// No such route.
    RouteNotFound = "service.route_not_found", NOT_FOUND, "error", false, "docs/http-api.md lists the routes";
    /// The route does not take this method.
    MethodNotAllowed = "service.route_not_found", METHOD_NOT_ALLOWED, "error", false, "docs/http-api.md lists the routes and their methods";
    /// Another process holds the file.
    StorageBusy = "service.storage_busy", SERVICE_UNAVAILABLE, "warning", true, "try again in a moment";
    /// The file is damaged.
    StorageCorruption = "service.storage_corruption", SERVICE_UNAVAILABLE, "critical", false,
        "`nimbus encryption status` says what is wrong, and what puts it right: a backup, or one of its commands";
    /// Something that Nimbus needs is not there.
    Unavailable = "service.unavailable", SERVICE_UNAVAILABLE, "error", true, "see the message and the server's log, then try again";
    /// A fault in Nimbus.
    Internal = "service.internal", INTERNAL_SERVER_ERROR, "critical", false, "please report this with the requestId and the server's log";
}

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// What happened.
    pub code: Code,
    message: Cow<'static, str>,
    detail: Option<String>,
    /// Whether it may name what is inside the server.
    inside: bool,
    /// Of the file that a range was asked of.
    length: Option<u64>,
}

impl ApiError {
    /// An error with a message for the caller.
    #[must_use]
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        let inside = code.status().is_server_error() && matches!(message, Cow::Owned(_));
        Self {
            code,
            message,
            detail: None,
            inside,
            length: None,
        }
    }

    /// The same, whose message names nothing of the server.
    pub(super) fn for_everyone(self) -> Self {
        Self {
            inside: false,
            ..self
        }
    }

    /// What the log has of it: all of it, where it is a failure of the server or not shown to
    /// everyone.
    pub(super) fn for_log(&self) -> Option<String> {
        if !self.inside && !self.code.status().is_server_error() {
            return None;
        }
        let detail = self.detail.iter().map(|detail| format!(": {detail}"));
        Some(detail.fold(self.message.to_string(), |all, detail| all + &detail))
    }

    /// A range beyond the `length` that there is.
    pub(super) fn range_not_satisfiable(length: u64) -> Self {
        let message = format!("the range lies beyond the {length} bytes of the file");
        Self {
            length: Some(length),
            ..Self::new(Code::RangeNotSatisfiable, message)
        }
    }

    /// Adds what caused it, and what caused that.
    #[must_use]
    fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        if !causes.is_empty() {
            self.detail = Some(causes.join(": "));
        }
        self
    }

    /// The envelope of this error for one request, whose caller is the operator or not.
    pub(super) fn respond(&self, request_id: &str, to_operator: bool) -> Response {
        let Self { code, length, .. } = self;
        let (message, detail) = match self.inside && !to_operator {
            true => (code.sentence(), Some(IN_THE_LOG)),
            false => (&*self.message, self.detail.as_deref()),
        };
        let now = clock::stamp();
        let body = json!({"error": {
            "code": code.as_str(),
            "message": message,
            "requestId": request_id,
            "timestamp": now,
            "severity": code.severity(),
            "retryable": code.retryable(),
            "detail": detail,
            "remediation": code.remedy(),
        }});
        let mut response = (code.status(), Json(body)).into_response();
        if code.retryable() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let unsatisfied = length.and_then(|length| format!("bytes */{length}").try_into().ok());
        if let Some(unsatisfied) = unsatisfied {
            response
                .headers_mut()
                .insert(header::CONTENT_RANGE, unsatisfied);
        }
        response
    }
}

/// Handlers answer with the bare error; the outermost layer, which knows the request's id, writes
/// the envelope.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InputError> for ApiError {
    fn from(error: InputError) -> Self {
        let code = match error {
            InputError::TooLarge { .. } => Code::TooLarge,
            _ => Code::InvalidInput,
        };
        Self::new(code, error.to_string())
    }
}

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> Self {
        Self::new(Code::InvalidInput, error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::TenantNotFound { .. } => Code::TenantNotFound,
            StoreError::TenantExists { .. } | StoreError::DocumentExists { .. } => {
                Code::AlreadyExists
            }
            StoreError::DocumentNotFound { .. } => Code::DocumentNotFound,
            StoreError::GenerationNotFound { .. } => Code::GenerationNotFound,
            StoreError::FileNotFound { .. } | StoreError::ContentGone { .. } => Code::FileNotFound,
            StoreError::Input(error) => return error.clone().into(),
            StoreError::PreconditionFailed { version, .. } => {
                return Self {
                    detail: version.map(|version| version.to_string()),
                    ..Self::new(Code::PreconditionFailed, error.to_string())
                };
            }
            StoreError::InBatch { source, .. } => {
                return Self {
                    message: error.to_string().into(),
                    ..Self::from(StoreError::clone(source))
                };
            }
            StoreError::JobNotFound { .. } | StoreError::CronNotFound { .. } => Code::JobNotFound,
            StoreError::TooManyTables { .. }
            | StoreError::JobRan { .. }
            | StoreError::TooManyJobs
            | StoreError::CronOwned { .. }
            | StoreError::TooManyCrons
            | StoreError::KeyReused
            | StoreError::NotUnique { .. } => Code::Conflict,
            StoreError::SchemaNotFound { .. } => Code::SchemaNotFound,
            StoreError::SchemaViolation { .. } | StoreError::SchemaOffended { .. } => {
                Code::SchemaValidation
            }
            StoreError::ListTooLarge { .. } => Code::TooLarge,
            StoreError::JournalCursor { .. }
            | StoreError::BlindIndex { .. }
            | StoreError::NotInFiles { .. } => Code::InvalidInput,
            StoreError::NotSealed { .. } => of_trouble(Trouble::Plaintext),
            StoreError::JournalExpired { .. } => Code::CursorExpired,
            StoreError::Busy {
                what: Limit::FileLock,
                ..
            } => Code::StorageBusy,
            StoreError::Busy { .. } => Code::ResourceExhausted,
            StoreError::NoRoom { .. } => Code::NoRoom,
            StoreError::TooManyRemembered { .. } => Code::TooManyRemembered,
            StoreError::Open { trouble, .. } => of_trouble(*trouble),
            StoreError::Envelope { source, .. } | StoreError::Unaudited { source, .. } => {
                of_trouble(source.trouble())
            }
            StoreError::Corrupt { .. }
            | StoreError::ForeignFile { .. }
            | StoreError::WalReplaced { saved: false, .. } => Code::StorageCorruption,
            StoreError::Closed { .. }
            | StoreError::WalReplaced { saved: true, .. }
            | StoreError::LayoutTooNew { .. }
            | StoreError::StorageFull { .. }
            | StoreError::Engine { .. }
            | StoreError::Unsettled { .. }
            | StoreError::Provider { .. }
            | StoreError::InFiles { .. }
            | StoreError::Unrunnable { .. }
            | StoreError::Io { .. }
            | StoreError::Random(_)
            | StoreError::LeftBehind { .. }
            | StoreError::Adopt { .. }
            | StoreError::Rekey { .. } => Code::Unavailable,
            // Its key may have been taken back while it was open.
            StoreError::Control { source } => match source.downcast_ref::<ControlError>() {
                Some(error) => of_trouble(error.trouble()),
                None => Code::Unavailable,
            },
        };
        Self {
            inside: is_inside(&error),
            ..Self::new(code, error.to_string()).because(&error)
        }
    }
}

/// Whether it may name files and keys, or comes from a layer below.
fn is_inside(error: &StoreError) -> bool {
    match error {
        StoreError::Random(_)
        | StoreError::NotSealed { .. }
        | StoreError::Open { .. }
        | StoreError::LayoutTooNew { .. }
        | StoreError::ForeignFile { .. }
        | StoreError::Corrupt { .. }
        | StoreError::WalReplaced { .. }
        | StoreError::StorageFull { .. }
        | StoreError::Engine { .. }
        | StoreError::Unsettled { .. }
        | StoreError::Provider { .. }
        | StoreError::InFiles { .. }
        | StoreError::Unrunnable { .. }
        | StoreError::Io { .. }
        | StoreError::Envelope { .. }
        | StoreError::Unaudited { .. }
        | StoreError::Rekey { .. }
        | StoreError::Adopt { .. }
        | StoreError::LeftBehind { .. }
        | StoreError::Control { .. } => true,
        StoreError::InBatch { source, .. } => is_inside(source),
        StoreError::TenantNotFound { .. }
        | StoreError::BlindIndex { .. }
        | StoreError::TenantExists { .. }
        | StoreError::DocumentNotFound { .. }
        | StoreError::DocumentExists { .. }
        | StoreError::PreconditionFailed { .. }
        | StoreError::KeyReused
        | StoreError::TooManyRemembered { .. }
        | StoreError::GenerationNotFound { .. }
        | StoreError::FileNotFound { .. }
        | StoreError::ContentGone { .. }
        | StoreError::Input(_)
        | StoreError::TooManyTables { .. }
        | StoreError::JobNotFound { .. }
        | StoreError::JobRan { .. }
        | StoreError::TooManyJobs
        | StoreError::CronNotFound { .. }
        | StoreError::CronOwned { .. }
        | StoreError::TooManyCrons
        | StoreError::SchemaNotFound { .. }
        | StoreError::SchemaViolation { .. }
        | StoreError::SchemaOffended { .. }
        | StoreError::NotUnique { .. }
        | StoreError::ListTooLarge { .. }
        | StoreError::JournalCursor { .. }
        | StoreError::NotInFiles { .. }
        | StoreError::JournalExpired { .. }
        | StoreError::Busy { .. }
        | StoreError::Closed { .. }
        | StoreError::NoRoom { .. } => false,
    }
}

pub(super) fn of_trouble(trouble: Trouble) -> Code {
    match trouble {
        Trouble::NotFound => Code::TenantNotFound,
        Trouble::AlreadyExists => Code::AlreadyExists,
        Trouble::KeyUnavailable => Code::KeyUnavailable,
        Trouble::KeyRevoked => Code::KeyRevoked,
        Trouble::Locked => Code::Locked,
        Trouble::KeyMismatch => Code::KeyMismatch,
        Trouble::ManifestMissing => Code::ManifestMissing,
        Trouble::ManifestCorrupt
        | Trouble::DatabaseMissing
        | Trouble::Plaintext
        | Trouble::Corrupt => Code::StorageCorruption,
        Trouble::Storage => Code::Unavailable,
    }
}

/// No more may be buffered.
pub(super) fn crowded() -> ApiError {
    ApiError::new(Code::ResourceExhausted, Limit::BufferedBytes.to_string()).for_everyone()
}

/// How long a request may take once its body is there.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// Where the rest of it stands.
const IN_THE_LOG: &str = "the server's log says more under this requestId";

#[cfg(test)]
mod tests;
