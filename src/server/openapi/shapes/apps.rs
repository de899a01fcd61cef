//! What `/apps/{t}/…` takes and answers.

use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};

use super::shape;

shape! {
    /// The bytes of a file, whose type is that of its name.
    FileBytes = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
        .description(Some("The bytes of a file; its media type follows from its name"));
}

/// Which part of a file, and under which condition.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
pub(in crate::server) struct FileConditions {
    /// One range of bytes: `bytes=0-1023`.
    #[param(rename = "Range")]
    range: Option<String>,
    /// The `ETag` of the copy that the range continues; the whole file is answered when it has another.
    #[param(rename = "If-Range")]
    if_range: Option<String>,
    /// `ETag`s of copies that the client has.
    #[param(rename = "If-None-Match")]
    if_none_match: Option<String>,
}
