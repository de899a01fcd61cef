//! `/health`, which asks nothing, and `/ready`, which asks everything that must work.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nimbus_keyproviders::FailureClass;
use serde::Serialize;
use utoipa::ToSchema;

use crate::backup::ship::Standing;
use crate::envelope::LeaseReport;
use crate::error_chain::error_chain;
use crate::runtime;
use crate::server::App;
use crate::server::body::RawJson;
use crate::server::openapi::shapes;

/// The process lives. Exactly `{"ok":true}`.
#[utoipa::path(get, path = "/health", operation_id = "health", tag = "operation",
    responses((status = 200, description = "The process is up", body = Healthy)))]
pub(in crate::server) async fn health() -> RawJson {
    RawJson(r#"{"ok":true}"#.to_owned())
}

/// Whether control file, key provider, storage and background work go on, and which tenants do not
/// open.
#[utoipa::path(get, path = "/ready", operation_id = "ready", tag = "operation",
    responses(
        (status = 200, description = "All checks pass", body = Readiness),
        (status = 503, description = "A check fails, or the server is overloaded",
            content((Unready = "application/json"))),
    ))]
pub(in crate::server) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Readiness>) {
    let control_file = Check::of(app.check_control().await);
    let storage = Check::of(app.tenants.check().await);
    let key_provider = match app.envelope.keys() {
        Some(keys) => Check::of(keys.current().check().await),
        None => Check {
            encryption: Some("off"),
            ..Check::passed()
        },
    };
    let gone = runtime::gone();
    let background = match gone.iter().map(|who| who.name()).collect::<Vec<_>>() {
        none if none.is_empty() => Check::passed(),
        names => Check::failed(format!(
            "ended by a fault of the server: {}; its log says why",
            names.join(", ")
        )),
    };
    let checks = Checks {
        control_file,
        key_provider,
        storage,
        background,
    };
    let ready = checks.all().iter().all(|check| check.ok);
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = Readiness {
        ready,
        checks,
        // What is not shipped is on the disk: it keeps no request away.
        backup: app.backups.report.as_ref().map(|report| report.standing()),
        // A tenant's trouble is its own: it does not make the server unready.
        tenants_in_trouble: app.troubled(),
        leases: leases(&app.envelope.leases()),
    };
    (status, Json(body))
}

/// Exactly `{"ok":true}`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is answered as text")]
pub(in crate::server) struct Healthy {
    ok: bool,
}

/// Whether everything that must work does.
#[derive(Serialize, ToSchema)]
pub(in crate::server) struct Readiness {
    ready: bool,
    checks: Checks,
    /// How shipping to `--backup-to` stands; `null` where nothing is shipped. It does not make the
    /// server unready.
    #[schema(required)]
    backup: Option<Standing>,
    /// Tenants whose last opening failed, and the code of the reason.
    #[schema(value_type = BTreeMap<String, shapes::ErrorCode>)]
    tenants_in_trouble: BTreeMap<String, &'static str>,
    leases: Leases,
}

/// What does not work, or an error where the server is too busy to say.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the OpenAPI document")]
enum Unready {
    Checked(Box<Readiness>),
    Refused(shapes::ErrorEnvelope),
}

#[derive(Serialize, ToSchema)]
struct Checks {
    control_file: Check,
    key_provider: Check,
    storage: Check,
    /// Long-lived threads and tasks of the server.
    background: Check,
}

impl Checks {
    fn all(&self) -> [&Check; 4] {
        [
            &self.control_file,
            &self.key_provider,
            &self.storage,
            &self.background,
        ]
    }
}

#[derive(Serialize, ToSchema)]
struct Check {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
    /// `off` where there is no key provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, nullable = false)]
    encryption: Option<&'static str>,
}

impl Check {
    fn passed() -> Self {
        Self {
            ok: true,
            error: None,
            encryption: None,
        }
    }

    fn failed(error: String) -> Self {
        Self {
            ok: false,
            error: Some(error),
            encryption: None,
        }
    }

    fn of<E: std::error::Error>(checked: Result<(), E>) -> Self {
        match checked {
            Ok(()) => Self::passed(),
            Err(error) => Self::failed(error_chain(&error)),
        }
    }
}

/// Files under remote keys, and keys that do not answer, or refuse.
#[derive(Serialize, ToSchema)]
struct Leases {
    #[schema(value_type = u64)]
    files: usize,
    keys_in_trouble: Vec<KeyInTrouble>,
}

#[derive(Serialize, ToSchema)]
struct KeyInTrouble {
    key_id: String,
    state: KeyTrouble,
    for_seconds: u64,
    #[schema(value_type = u64)]
    open_files: usize,
    #[schema(required)]
    served_for_seconds: Option<u64>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum KeyTrouble {
    Unavailable,
    Revoked,
}

fn leases(report: &LeaseReport) -> Leases {
    let in_trouble = report.troubles.iter().map(|trouble| KeyInTrouble {
        key_id: trouble.key.to_string(),
        state: match trouble.class {
            FailureClass::Unavailable => KeyTrouble::Unavailable,
            FailureClass::Denied | FailureClass::Invalid => KeyTrouble::Revoked,
        },
        for_seconds: trouble.lasting.as_secs(),
        open_files: trouble.files,
        served_for_seconds: trouble.left.map(|left| left.as_secs()),
    });
    Leases {
        files: report.files,
        keys_in_trouble: in_trouble.collect(),
    }
}
