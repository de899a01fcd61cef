//! `/health`, which asks nothing, and `/ready`, which asks everything that must work.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nimbus_keyproviders::FailureClass;
use serde_json::{Value, json};

use crate::chain::chain;
use crate::envelope::LeaseReport;
use crate::server::App;

/// The process lives. Exactly `{"ok":true}`.
pub(in crate::server) async fn health() -> &'static str {
    r#"{"ok":true}"#
}

/// Whether control file, key provider and storage work, and which tenants do not open.
pub(in crate::server) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    fn check<E: std::error::Error>(result: Result<(), E>) -> (bool, Value) {
        match result {
            Ok(()) => (true, json!({"ok": true})),
            Err(error) => (false, json!({"ok": false, "error": chain(&error)})),
        }
    }
    let (control_ok, control) = check(app.check_control().await);
    let (storage_ok, storage) = check(app.tenants.check().await);
    let (key_ok, key_provider) = match app.envelope.keys() {
        Some(keys) => check(keys.current().check().await),
        None => (true, json!({"ok": true, "encryption": "off"})),
    };
    let ready = control_ok && storage_ok && key_ok;
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "ready": ready,
        "checks": {"control_file": control, "key_provider": key_provider, "storage": storage},
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
