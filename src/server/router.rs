//! Every route, in the group of what it needs.

use std::sync::Arc;

use axum::Router;

use super::access::{Group, Needs, Route, Special};
use super::routes::{
    admin, apps, audit, backups, batch, crons, deploy, documents, health, journal, keys, lock,
    metrics, openapi, query, schedule, schema, tenants, usage,
};
use super::{App, ENCRYPTION_STATUS, HEALTH};

/// Every route. One that reads or writes for a tenant names it `{t}`.
fn groups() -> [Group; 5] {
    [
        Group::new(Needs::Nothing).get(HEALTH, health::health),
        Group::new(Needs::Reading)
            .get("/api/tenants/{t}/documents/{table}", documents::list)
            .get("/api/tenants/{t}/documents/{table}/{id}", documents::get)
            .honouring(&[Special::IfNoneMatch])
            .post("/api/tenants/{t}/query", query::query)
            .post("/api/tenants/{t}/query/paginated", query::paginated)
            .get("/api/tenants/{t}/schema", schema::list)
            .get("/api/tenants/{t}/schema/{table}", schema::get)
            .get("/api/tenants/{t}/journal", journal::read)
            .get("/api/tenants/{t}/deploy", deploy::list)
            .get("/apps/{t}", apps::moved)
            .honouring(FILES)
            .get("/apps/{t}/", apps::root)
            .honouring(FILES)
            .get("/apps/{t}/{*path}", apps::file)
            .honouring(FILES)
            .get("/api/tenants/{t}/schedule", schedule::list)
            .get("/api/tenants/{t}/schedule/history/{job}", schedule::history)
            .get("/api/tenants/{t}/crons", crons::list),
        Group::new(Needs::Writing)
            .post("/api/tenants/{t}/documents", documents::insert)
            .honouring(&[Special::IfNoneMatch, Special::IdempotencyKey])
            .patch("/api/tenants/{t}/documents/{table}/{id}", documents::patch)
            .honouring(&[Special::IfMatch])
            .delete("/api/tenants/{t}/documents/{table}/{id}", documents::delete)
            .honouring(&[Special::IfMatch])
            .post("/api/tenants/{t}/batch", batch::apply)
            .honouring(&[Special::IdempotencyKey])
            .put("/api/tenants/{t}/schema/{table}", schema::put)
            .delete("/api/tenants/{t}/schema/{table}", schema::delete)
            .post("/api/tenants/{t}/deploy", deploy::deploy)
            .post(
                "/api/tenants/{t}/deploy/{generation}/activate",
                deploy::activate,
            )
            .post("/api/tenants/{t}/schedule", schedule::create)
            .honouring(&[Special::IdempotencyKey])
            .delete("/api/tenants/{t}/schedule/{job}", schedule::cancel)
            .post("/api/tenants/{t}/crons", crons::put)
            .delete("/api/tenants/{t}/crons/{name}", crons::delete),
        Group::new(Needs::Credential).get("/openapi.json", openapi::document),
        Group::new(Needs::Administration)
            .get("/ready", health::ready)
            .get("/metrics", metrics::metrics)
            .post("/api/tenants", tenants::create)
            .get("/api/tenants", tenants::list)
            .delete("/api/tenants/{t}", tenants::delete)
            .post("/api/tenants/{t}/keys", keys::create)
            .get("/api/tenants/{t}/keys", keys::list)
            .delete("/api/tenants/{t}/keys/{id}", keys::revoke)
            .post("/api/admin/token/rotate", admin::rotate_token)
            .get("/api/admin/encryption/audit", audit::verify)
            .post("/api/admin/encryption/audit", audit::record)
            .post("/api/admin/encryption/rotate-kek", admin::rotate_kek)
            .post("/api/admin/encryption/rotate-dek", admin::rotate_dek)
            .post("/api/admin/encryption/shred", admin::shred)
            .post("/api/admin/backups", backups::create)
            .get("/api/admin/backups", backups::list)
            .post("/api/admin/backups/restore", backups::restore)
            .post("/api/admin/backups/verify", backups::verify)
            .post("/api/admin/encryption/lock", lock::lock)
            .post("/api/admin/encryption/unlock", lock::unlock)
            .get("/api/admin/operations/{id}", admin::operation)
            .get("/debug/doctor", admin::doctor)
            .get(ENCRYPTION_STATUS, admin::encryption_status)
            .get("/debug/usage", usage::usage),
    ]
}

/// What files honour. They have no date, so that one that is asked about is passed over, as RFC
/// 9110 has it.
const FILES: &[Special] = &[
    Special::Range,
    Special::IfRange,
    Special::IfNoneMatch,
    Special::IfModifiedSince,
];

/// The table of all routes: what documentation and tests are held to.
#[must_use]
pub fn route_table() -> Vec<Route> {
    let groups = groups();
    groups
        .iter()
        .flat_map(|group| group.table().iter().cloned())
        .collect()
}

/// Every route, behind the guard of its group.
pub(super) fn router(app: Arc<App>) -> Router {
    let known = groups()
        .into_iter()
        .fold(Router::new(), |all, group| all.merge(group.guarded(&app)));
    // Last, so that what no group knows asks for a credential before it answers that there is no
    // such route.
    known
        .merge(Group::new(Needs::Credential).guarded(&app))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use axum::http::Method;

    use super::*;

    #[test]
    fn a_route_for_tenants_keys_names_its_tenant_and_no_other_does_without_need() {
        let mut seen = HashSet::new();
        for Route {
            method,
            path,
            needs,
            honours,
        } in route_table()
        {
            assert!(seen.insert((method.clone(), path)), "{method} {path} twice");
            let names_tenant =
                path.starts_with("/api/tenants/{t}/") || path.starts_with("/apps/{t}");
            // What is only read is not done twice, and an answer that is made up each time has no
            // parts.
            assert!(method != Method::GET || !honours.contains(&Special::IdempotencyKey));
            assert!(path.starts_with("/apps/{t}") || !honours.contains(&Special::Range));
            match needs {
                Needs::Reading => assert!(names_tenant, "{method} {path}"),
                Needs::Writing => {
                    assert!(names_tenant, "{method} {path}");
                    assert_ne!(method, Method::GET, "{path}");
                }
                Needs::Nothing => assert_eq!(path, "/health"),
                Needs::Administration => {}
                // What says nothing about anybody's data.
                Needs::Credential => assert_eq!(path, "/openapi.json"),
            }
        }
    }
}
