//! `/apps/{t}/…`: the files of the active generation.

use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use futures_util::stream::{self, StreamExt as _};
use nimbus_manifests::TenantId;

use crate::budget;
use crate::documents::deploy::{AppFile, AppPath, ContentHash};
use crate::server::App;
use crate::server::error::{ApiError, crowded};
use crate::server::openapi::shapes;
use crate::server::parameters::PageQuery;
use crate::server::range::{self, Selection};
use crate::server::tenant_path::Tenant;
use crate::tenants::{StoreError, TenantStore};

/// The root of an app without its `/`: what a page there names relative to itself would be looked
/// for beside the app.
#[utoipa::path(get, path = "/apps/{t}", operation_id = "appRootMoved", tag = "apps",
    responses((status = 308, description = "The app is at `/apps/{t}/`",
        headers(("Location" = String, description = "The same path with a `/` at its end, and the same query")))))]
pub(in crate::server) async fn moved(
    Tenant(tenant): Tenant,
    PageQuery(query): PageQuery,
) -> Result<Redirect, ApiError> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Ok(Redirect::permanent(&format!("/apps/{tenant}/{query}")))
}

/// The page at the root of an app.
#[utoipa::path(get, path = "/apps/{t}/", operation_id = "appRoot", tag = "apps",
    responses(
        (status = 200, description = "The file",
            content((shapes::FileBytes = "application/octet-stream"), (shapes::FileBytes = "*/*")),
            headers(
                ("ETag" = String, description = "A strong tag: equal for equal bytes only"),
                ("Accept-Ranges" = String, description = "`bytes`"))),
        (status = 206, description = "The part that `Range` names",
            content((shapes::FileBytes = "application/octet-stream"), (shapes::FileBytes = "*/*")),
            headers(
                ("ETag" = String, description = "Of the whole file"),
                ("Content-Range" = String, description = "Which part this is, and the length of the whole file"))),
        (status = 304, description = "The client has this file already",
            headers(("ETag" = String, description = "The tag of the client's copy"))),
        (status = 416, description = "The range lies beyond the end of the file", body = shapes::ErrorEnvelope,
            headers(("Content-Range" = String, description = "`bytes */` and the length of the file"))),
    ))]
pub(in crate::server) async fn root(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    _query: PageQuery,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    serve(&app, tenant, String::new(), &method, &headers).await
}

/// One file, or part of it; the path of a directory, with `/` at its end, is that of the page in
/// it.
#[utoipa::path(get, path = "/apps/{t}/{path}", operation_id = "appFile", tag = "apps",
    responses(
        (status = 200, description = "The file",
            content((shapes::FileBytes = "application/octet-stream"), (shapes::FileBytes = "*/*")),
            headers(
                ("ETag" = String, description = "A strong tag: equal for equal bytes only"),
                ("Accept-Ranges" = String, description = "`bytes`"))),
        (status = 206, description = "The part that `Range` names",
            content((shapes::FileBytes = "application/octet-stream"), (shapes::FileBytes = "*/*")),
            headers(
                ("ETag" = String, description = "Of the whole file"),
                ("Content-Range" = String, description = "Which part this is, and the length of the whole file"))),
        (status = 304, description = "The client has this file already",
            headers(("ETag" = String, description = "The tag of the client's copy"))),
        (status = 416, description = "The range lies beyond the end of the file", body = shapes::ErrorEnvelope,
            headers(("Content-Range" = String, description = "`bytes */` and the length of the file"))),
    ))]
pub(in crate::server) async fn file(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((_tenant, path)): Path<(String, String)>,
    _query: PageQuery,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    serve(&app, tenant, path, &method, &headers).await
}

/// The file of `tenant`'s active generation at `path`.
async fn serve(
    app: &Arc<App>,
    tenant: TenantId,
    mut path: String,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    if path.is_empty() || path.ends_with('/') {
        path.push_str(INDEX);
    }
    let path: AppPath = path.parse()?;
    let store = app.open(&tenant).await?;
    let file = store.app_file(&path).await?;
    let etag = etag(file.hash);
    if range::is_known(headers, &etag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        describe(response.headers_mut(), &etag);
        return Ok(response);
    }
    // A range is defined for GET alone.
    let part = if *method == Method::GET {
        range::part(headers, &etag, file.size)
    } else {
        Selection::Whole
    };
    let (status, bytes) = match part {
        Selection::Whole => (StatusCode::OK, 0..file.size),
        Selection::Bytes(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Selection::Unsatisfiable => return Err(ApiError::range_not_satisfiable(file.size)),
    };
    let length = bytes.end - bytes.start;
    let content_range = format!(
        "bytes {}-{}/{}",
        bytes.start,
        bytes.end.saturating_sub(1),
        file.size
    );
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        body(app, tenant, store.as_ref(), file, bytes).await?
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    describe(headers, &etag);
    headers.insert(header::CONTENT_TYPE, content_type(&path));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = content_range.try_into()
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

/// The bytes of a content. What is more than one step is read step by step as the client takes it,
/// and holds neither memory nor the open tenant in between.
async fn body(
    app: &Arc<App>,
    tenant: TenantId,
    store: &dyn TenantStore,
    file: AppFile,
    bytes: Range<u64>,
) -> Result<Body, ApiError> {
    let (now, later) = split(bytes);
    // One step that is being sent, and one that is read.
    let most = 2 * usize::try_from(now.end - now.start).unwrap_or(usize::MAX);
    budget::take(most).map_err(|_refused| crowded())?;
    let first = Bytes::from(store.app_content(file.hash, now).await?);
    if later.is_empty() {
        return Ok(Body::from(first));
    }
    let rest = Rest {
        app: Arc::clone(app),
        tenant,
        hash: file.hash,
        bytes: later,
    };
    let first = stream::iter([Ok(first)]);
    let rest = first.chain(stream::try_unfold(rest, Rest::next));
    Ok(Body::from_stream(rest))
}

/// What is still to be sent of a content.
struct Rest {
    app: Arc<App>,
    tenant: TenantId,
    hash: ContentHash,
    bytes: Range<u64>,
}

impl Rest {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let (now, later) = split(self.bytes);
        self.bytes = later;
        let store = self.app.tenants.open(&self.tenant).await?;
        let bytes = store.app_content(self.hash, now).await?;
        Ok(Some((bytes.into(), self)))
    }
}

/// The next step, and what comes after it.
fn split(bytes: Range<u64>) -> (Range<u64>, Range<u64>) {
    // At a multiple of the step, where the pieces of a content begin.
    let end = bytes.end.min((bytes.start / STEP + 1) * STEP);
    (bytes.start..end, end..bytes.end)
}

/// What every answer says of a file. It may change with the next activation, and is for who has a
/// credential alone.
fn describe(headers: &mut HeaderMap, etag: &HeaderValue) {
    headers.insert(header::ETAG, etag.clone());
    let private = HeaderValue::from_static("private, no-cache");
    headers.insert(header::CACHE_CONTROL, private);
}

/// The strong validator of a content: equal for equal bytes alone.
fn etag(hash: ContentHash) -> HeaderValue {
    HeaderValue::try_from(format!("\"{hash}\"")).expect("hexadecimal digits in quotes")
}

/// By the name's extension. Text is UTF-8.
fn content_type(path: &AppPath) -> HeaderValue {
    let kind = mime_guess::from_path(path.as_str())
        .first_raw()
        .unwrap_or("application/octet-stream");
    let value = if kind.starts_with("text/") {
        HeaderValue::try_from(format!("{kind}; charset=utf-8"))
    } else {
        HeaderValue::try_from(kind)
    };
    value.unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

const INDEX: &str = "index.html";
/// How much of a file is in memory for one client at a time: 256 KiB.
const STEP: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_the_bytes_and_end_at_multiples() {
        // Each step by where it ends.
        for (bytes, expected) in [
            (0..0, vec![0]),
            (0..1, vec![1]),
            (0..STEP, vec![STEP]),
            (5..STEP + 1, vec![STEP, STEP + 1]),
            (STEP - 1..3 * STEP, vec![STEP, 2 * STEP, 3 * STEP]),
        ] {
            let (mut now, mut later) = split(bytes.clone());
            assert_eq!(now.start, bytes.start);
            let mut ends = vec![now.end];
            while !later.is_empty() {
                let end = now.end;
                (now, later) = split(later);
                assert_eq!(now.start, end);
                ends.push(now.end);
            }
            assert_eq!(ends, expected);
        }
    }

    #[test]
    fn the_content_type_is_that_of_the_extension() {
        for (path, expected) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/app.js", "text/javascript; charset=utf-8"),
            ("a.CSS", "text/css; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.png", "image/png"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("LICENSE", "application/octet-stream"),
            ("html", "application/octet-stream"),
            ("a.no-such-extension", "application/octet-stream"),
        ] {
            assert_eq!(content_type(&path.parse().unwrap()), expected, "{path}");
        }
    }
}
