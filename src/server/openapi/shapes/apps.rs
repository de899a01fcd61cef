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
