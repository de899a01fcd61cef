//! Every route, in the group of what it needs, and what each request passes through.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::access::{self, Group, Needs, Route};
use super::routes::{
    admin, apps, audit, batch, crons, deploy, documents, health, journal, keys, lock, metrics,
    openapi, query, schedule, schema, tenants, usage,
};
use super::{App, ENCRYPTION_STATUS, MAX_BODY_BYTES, layers};

/// Every route. One that reads or writes for a tenant names it `{t}`.
fn groups() -> [Group; 5] {
    [
        Group::new(Needs::Nothing).get("/health", health::health),
        Group::new(Needs::Reading)
            .get("/api/tenants/{t}/documents/{table}", documents::list)
            .get("/api/tenants/{t}/documents/{table}/{id}", documents::get)
            .post("/api/tenants/{t}/query", query::query)
            .post("/api/tenants/{t}/query/paginated", query::paginated)
            .get("/api/tenants/{t}/schema", schema::list)
            .get("/api/tenants/{t}/schema/{table}", schema::get)
            .get("/api/tenants/{t}/journal", journal::read)
            .get("/api/tenants/{t}/deploy", deploy::list)
            .get("/apps/{t}", apps::moved)
            .get("/apps/{t}/", apps::root)
            .get("/apps/{t}/{*path}", apps::file)
            .get("/api/tenants/{t}/schedule", schedule::list)
            .get("/api/tenants/{t}/schedule/history/{job}", schedule::history)
            .get("/api/tenants/{t}/crons", crons::list),
        Group::new(Needs::Writing)
            .post("/api/tenants/{t}/documents", documents::insert)
            .patch("/api/tenants/{t}/documents/{table}/{id}", documents::patch)
            .delete("/api/tenants/{t}/documents/{table}/{id}", documents::delete)
            .post("/api/tenants/{t}/batch", batch::apply)
            .put("/api/tenants/{t}/schema/{table}", schema::put)
            .delete("/api/tenants/{t}/schema/{table}", schema::delete)
            .post("/api/tenants/{t}/deploy", deploy::deploy)
            .post(
                "/api/tenants/{t}/deploy/{generation}/activate",
                deploy::activate,
            )
            .post("/api/tenants/{t}/schedule", schedule::create)
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
            .post("/api/admin/encryption/lock", lock::lock)
            .post("/api/admin/encryption/unlock", lock::unlock)
            .get("/api/admin/operations/{id}", admin::operation)
            .get("/debug/doctor", admin::doctor)
            .get(ENCRYPTION_STATUS, admin::encryption_status)
            .get("/debug/usage", usage::usage),
    ]
}

/// The table of all routes: what documentation and tests are held to.
#[must_use]
pub fn route_table() -> Vec<Route> {
    let groups = groups();
    groups
        .iter()
        .flat_map(|group| group.table().iter().cloned())
        .collect()
}

/// Every route, with what each request passes through.
pub fn router(app: Arc<App>) -> Router {
    let known = groups()
        .into_iter()
        .fold(Router::new(), |all, group| all.merge(group.guarded(&app)));
    // Last, so that what no group knows asks for a credential before it answers that there is no such route.
    known
        .merge(Group::new(Needs::Credential).guarded(&app))
        .layer(from_fn_with_state(app.clone(), layers::origin))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(cors(app.clone()))
        .layer(CatchPanicLayer::new())
        .layer(from_fn_with_state(app.clone(), layers::envelope))
        .layer(map_response(for_programs))
        .with_state(app)
}

/// No cache keeps an answer, unless it says how it may be kept, and no browser guesses what it is.
async fn for_programs(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let _cache = headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    let _old = headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
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
            HeaderName::from_static(access::IDENTITY),
            HeaderName::from_static("x-request-id"),
        ])
        .expose_headers([header::RETRY_AFTER, HeaderName::from_static("x-request-id")])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_route_for_tenants_keys_names_its_tenant_and_no_other_does_without_need() {
        let mut seen = HashSet::new();
        for Route {
            method,
            path,
            needs,
        } in route_table()
        {
            assert!(seen.insert((method.clone(), path)), "{method} {path} twice");
            let names_tenant =
                path.starts_with("/api/tenants/{t}/") || path.starts_with("/apps/{t}");
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
