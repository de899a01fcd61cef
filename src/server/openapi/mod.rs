//! The OpenAPI document: what handlers say of themselves, and what holds for all of them, put
//! together from the table of routes.
//!
//! A handler's annotation names its body, its success and what else it alone answers. Path
//! parameters, credentials and the answers of the layers in front of it are added here, from the
//! path and from what the route needs. A test holds the document to the router, both ways; a
//! generated client holds the running server to the document.

pub(super) mod shapes;

use std::sync::LazyLock;

use axum::http::Method;
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    Components, Content, HeaderBuilder, Object, ObjectBuilder, RefOr, Required, Response,
    ResponseBuilder, Schema, Type,
};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::access::{MAX_IDENTITY_BYTES, Needs, Route, Special};
use super::router::route_table;
use super::routes;
use shapes::{CronName, DocumentId, ErrorEnvelope, JobId, TableName, TenantId};

/// What the handlers say.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Nimbus",
        description = "A document server for many tenants, each in its own encrypted database"
    ),
    paths(
        routes::health::health,
        routes::health::ready,
        routes::metrics::metrics,
        routes::openapi::document,
        routes::tenants::create,
        routes::tenants::list,
        routes::tenants::delete,
        routes::documents::insert,
        routes::documents::list,
        routes::documents::get,
        routes::documents::patch,
        routes::documents::delete,
        routes::batch::apply,
        routes::query::query,
        routes::query::paginated,
        routes::journal::read,
        routes::backups::create,
        routes::backups::list,
        routes::backups::restore,
        routes::backups::verify,
        routes::admin::rotate_token,
        routes::admin::encryption_status,
        routes::admin::rotate_kek,
        routes::admin::shred,
        routes::admin::operation,
        routes::admin::rotate_dek,
        routes::keys::create,
        routes::keys::list,
        routes::keys::revoke,
        routes::usage::usage,
        routes::schedule::create,
        routes::schedule::list,
        routes::schedule::cancel,
        routes::schedule::history,
        routes::crons::put,
        routes::crons::list,
        routes::crons::delete,
        routes::schema::list,
        routes::schema::get,
        routes::schema::put,
        routes::schema::delete,
        routes::admin::doctor,
        routes::lock::lock,
        routes::lock::unlock,
        routes::deploy::deploy,
        routes::deploy::list,
        routes::deploy::activate,
        routes::apps::moved,
        routes::apps::root,
        routes::apps::file,
        routes::audit::verify,
        routes::audit::record,
    ),
    components(schemas(ErrorEnvelope))
)]
struct Annotated;

/// The document as JSON text.
pub(super) fn document() -> &'static str {
    &DOCUMENT
}

static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| build().to_json().unwrap_or_else(|error| error.to_string()));

fn build() -> utoipa::openapi::OpenApi {
    let mut document = Annotated::openapi();
    let components = document.components.get_or_insert_with(Components::default);
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme(BEARER, bearer);
    let header = ApiKey::Header(ApiKeyValue::new("X-Nimbus-Admin-Token"));
    components.add_security_scheme(ADMIN, SecurityScheme::ApiKey(header));
    for Route {
        method,
        path,
        needs,
        honours,
    } in route_table()
    {
        let item = document.paths.paths.get_mut(&documented(path));
        if let Some(operation) = item.and_then(|item| operation(item, &method)) {
            complete(operation, path, needs, honours);
        }
    }
    let schemas = document.components.iter_mut();
    for schema in schemas.flat_map(|components| components.schemas.values_mut()) {
        forbid_others(schema);
    }
    document
}

/// An object has the members that are listed, and no other.
fn forbid_others(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema
        && !object.properties.is_empty()
        && object.additional_properties.is_none()
    {
        object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    }
}

/// A route's path as documents write it: they know no parameter that takes the rest of a path.
fn documented(path: &str) -> String {
    path.replace("{*", "{")
}

/// Adds what follows from a route's path, from what it needs and from the headers that it honours.
fn complete(
    operation: &mut Operation,
    path: &'static str,
    needs: Needs,
    honours: &'static [Special],
) {
    let writes = operation.request_body.is_some();
    let parameters = operation.parameters.get_or_insert_default();
    parameters.retain(|parameter| !stands_in(parameter, ParameterIn::Path));
    parameters.extend(names_in(path).map(|name| RefOr::T(path_parameter(path, name))));
    let honoured = honours
        .iter()
        .map(|special| RefOr::T(honoured_header(*special, writes)));
    parameters.extend(honoured);
    parameters.push(RefOr::T(header(
        "X-Request-Id",
        "The id of this request in answers and logs: 1 to 128 letters, digits, `-`, `_` and `.`; any other value is replaced",
        Object::with_type(Type::String).into(),
    )));
    if matches!(needs, Needs::Reading | Needs::Writing) {
        let name = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(MAX_IDENTITY_BYTES));
        parameters.push(RefOr::T(header(
            "X-Nimbus-Identity",
            "The end user of a request with a tenant's key, for usage counts; at most 256 bytes",
            name.into(),
        )));
    }
    let mut refusals = vec![
        ("400", "The request is not valid"),
        (
            "403",
            "The credential does not allow this, or the page's origin is foreign",
        ),
        ("500", "An internal error"),
        (
            "503",
            "The server is overloaded, or storage or a key is not available",
        ),
    ];
    if needs == Needs::Nothing {
        operation.security = Some(vec![SecurityRequirement::default()]);
    } else {
        refusals.push(("401", "The credential is missing, unknown or revoked"));
        let accepted = [BEARER, ADMIN].map(|scheme| SecurityRequirement::new(scheme, [""; 0]));
        operation.security = Some(accepted.into());
    }
    if operation.request_body.is_some() {
        refusals.push(("413", "The body, or a document in it, is too large"));
    }
    if honours.contains(&Special::IdempotencyKey) {
        for (status, answer) in &mut operation.responses.responses {
            if let RefOr::T(answer) = answer
                && status.starts_with('2')
            {
                let replayed =
                    text_header("`true` if the request was carried out before under this key");
                answer
                    .headers
                    .insert("Idempotency-Replayed".to_owned(), RefOr::T(replayed));
            }
        }
    }
    if needs == Needs::Writing {
        refusals.push((
            "507",
            "The tenant has reached its limit, or the disk is nearly full",
        ));
    }
    if path.contains('{') {
        refusals.push(("404", "The path names something that does not exist"));
    }
    for (status, description) in refusals {
        let answers = &mut operation.responses.responses;
        answers
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(refusal(status, description)));
    }
    for answer in operation.responses.responses.values_mut() {
        if let RefOr::T(answer) = answer {
            let id = text_header("The id of the request, as in the logs");
            answer
                .headers
                .insert("X-Request-Id".to_owned(), RefOr::T(id));
        }
    }
}

/// An answer in the error envelope.
fn refusal(status: &str, description: &str) -> Response {
    let envelope = Content::new(Some(shapes::reference(&ErrorEnvelope::name())));
    let answer = ResponseBuilder::new()
        .description(description)
        .content("application/json", envelope);
    match status {
        "503" => answer
            .header(
                "Retry-After",
                text_header("Seconds to wait; missing where waiting does not help"),
            )
            .build(),
        _ => answer.build(),
    }
}

fn text_header(description: &str) -> utoipa::openapi::Header {
    HeaderBuilder::new()
        .schema(Some(Object::with_type(Type::String)))
        .description(Some(description))
        .build()
}

/// The names in braces.
fn names_in(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
}

fn header(name: &str, description: &str, schema: RefOr<Schema>) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

fn path_parameter(path: &str, name: &'static str) -> Parameter {
    let (schema, description): (RefOr<Schema>, _) = match name {
        "t" => (TenantId::schema(), "The tenant"),
        "table" => (TableName::schema(), "The table"),
        "generation" => (
            ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(1))
                .into(),
            "The number of a generation",
        ),
        "job" => (JobId::schema(), "The job"),
        "name" => (CronName::schema(), "The name of the cron"),
        "id" if path.contains("/documents/") => (DocumentId::schema(), "The document"),
        _ => (
            Object::with_type(Type::String).into(),
            "The id of the resource",
        ),
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// A header that a route honours; `writes` tells `If-None-Match` of an insert from that of a read.
fn honoured_header(special: Special, writes: bool) -> Parameter {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let (description, schema) = match special {
        Special::IfMatch => (
            "Only if the document has one of these versions, as `ETag` gave them; `*`: if it is there",
            text().pattern(Some(
                "^(\\*|\"[1-9][0-9]{0,17}\"(, \"[1-9][0-9]{0,17}\")*)$",
            )),
        ),
        Special::IfNoneMatch if writes => (
            "Only if there is no document of this id",
            text().enum_values(Some(["*"])),
        ),
        Special::IfNoneMatch => ("`ETag`s of copies that the client has", text()),
        Special::IfModifiedSince => ("Ignored: resources have no modification date", text()),
        Special::IfUnmodifiedSince => ("Only if the resource was not changed since", text()),
        Special::Range => ("One range of bytes: `bytes=0-1023`", text()),
        Special::IfRange => (
            "The `ETag` of the copy that the range continues; the whole is answered when it has another",
            text(),
        ),
        Special::IdempotencyKey => (
            "A name for this request, kept for 24 hours: a repeated request is answered and not carried out again",
            text().pattern(Some("^[!-~]{1,255}$")),
        ),
    };
    header(special.name(), description, schema.into())
}

fn stands_in(parameter: &RefOr<Parameter>, place: ParameterIn) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == place)
}

fn operation<'a>(item: &'a mut PathItem, method: &Method) -> Option<&'a mut Operation> {
    match *method {
        Method::GET => item.get.as_mut(),
        Method::POST => item.post.as_mut(),
        Method::PUT => item.put.as_mut(),
        Method::PATCH => item.patch.as_mut(),
        Method::DELETE => item.delete.as_mut(),
        _ => None,
    }
}

const BEARER: &str = "bearer";
const ADMIN: &str = "admin_token";

#[cfg(test)]
mod tests;
