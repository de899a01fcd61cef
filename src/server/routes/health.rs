//! `/health`, which asks nothing, and `/ready`, which asks everything that must work.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nimbus_keyproviders::FailureClass;
use serde_json::{Value, json};

use crate::envelope::LeaseReport;
use crate::error_chain::error_chain;
use crate::runtime;
use crate::server::App;
use crate::server::body::RawJson;
use crate::server::openapi::shapes;

/// The process lives. Exactly `{"ok":true}`.
#[utoipa::path(get, path = "/health", operation_id = "health", tag = "operation",
    responses((status = 200, description = "The process lives", body = shapes::Healthy)))]
pub(in crate::server) async fn health() -> RawJson {
    RawJson(r#"{"ok":true}"#.to_owned())
}

/// Whether control file, key provider, storage and background work go on, and which tenants do not open.
#[utoipa::path(get, path = "/ready", operation_id = "ready", tag = "operation",
    responses(
        (status = 200, description = "Everything works", body = shapes::Readiness),
        (status = 503, description = "Something does not, or overload",
            content((shapes::Unready = "application/json"))),
    ))]
pub(in crate::server) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    fn check<E: std::error::Error>(result: Result<(), E>) -> (bool, Value) {
        match result {
            Ok(()) => (true, json!({"ok": true})),
            Err(error) => (false, json!({"ok": false, "error": error_chain(&error)})),
        }
    }
    let (control_ok, control) = check(app.check_control().await);
    let (storage_ok, storage) = check(app.tenants.check().await);
    let (key_ok, key_provider) = match app.envelope.keys() {
        Some(keys) => check(keys.current().check().await),
        None => (true, json!({"ok": true, "encryption": "off"})),
    };
    let gone = runtime::gone();
    let background = match gone.iter().map(|who| who.name()).collect::<Vec<_>>() {
        none if none.is_empty() => json!({"ok": true}),
        names => json!({
            "ok": false,
            "error": format!("ended by a fault of the server: {}; its log says why", names.join(", ")),
        }),
    };
    let ready = control_ok && storage_ok && key_ok && gone.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    // What is not shipped is on the disk: it keeps no request away.
    let backup = app.backups.report.as_ref().map(|report| report.standing());
    let body = json!({
        "ready": ready,
        "backup": backup,
        "checks": {"control_file": control, "key_provider": key_provider, "storage": storage,
            "background": background},
        // A tenant's trouble is its own: it does not make the server unready.
        "tenants_in_trouble": app.troubled(),
        "leases": leases(&app.envelope.leases()),
    });
    (status, Json(body))
}

/// Files under remote keys, and the keys that do not answer, or answer no.
fn leases(report: &LeaseReport) -> Value {
    let in_trouble: Vec<_> = report
        .troubles
        .iter()
        .map(|trouble| {
            json!({
                "key_id": trouble.key.as_str(),
                "state": match trouble.class {
                    FailureClass::Unavailable => "unavailable",
                    FailureClass::Denied | FailureClass::Invalid => "revoked",
                },
                "for_seconds": trouble.lasting.as_secs(),
                "open_files": trouble.files,
                "served_for_seconds": trouble.left.map(|left| left.as_secs()),
            })
        })
        .collect();
    json!({"files": report.files, "keys_in_trouble": in_trouble})
}
