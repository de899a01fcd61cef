//! OpenAPI schemas of values whose types cannot have one of their own: they are another crate's, or
//! text of a fixed form.

use utoipa::openapi::schema::{ObjectBuilder, Type};

/// Declares a schema by name.
macro_rules! schema {
    ($(#[doc = $doc:literal])* $name:ident = $make:expr;) => {
        $(#[doc = $doc])*
        pub(crate) enum $name {}

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::RefOr::from($make)
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

pub(crate) use schema;

schema! {
    /// The id of a tenant.
    TenantId = text("^[a-z0-9][a-z0-9_-]{0,47}$", "The id of a tenant");
}

schema! {
    /// The state of a manifest.
    FileState = one_of(&["new", "ready", "rekeying"]);
}

/// Text of a fixed form.
pub(crate) fn text(pattern: &str, description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .description(Some(description))
}

/// One of some fixed texts.
pub(crate) fn one_of(texts: &[&str]) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(texts.iter().copied()))
}
