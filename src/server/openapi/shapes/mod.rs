//! What JSON looks like in requests and answers, for the document alone: bodies are read by the
//! types that check them, and answers are written by those that have them. A generated client holds
//! the running server to these.
//!
//! A file has the shapes of the route of its name; what several of them need is here.

#![expect(dead_code, reason = "shapes are described, never made")]

mod apps;
mod batch;
mod crons;
mod deploy;
mod documents;
mod error;
mod journal;
mod lists;
mod operations;
mod query;
mod schedule;
mod schema;
mod tenants;

use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};

pub(in crate::server) use apps::*;
pub(in crate::server) use batch::*;
pub(in crate::server) use crons::*;
pub(in crate::server) use deploy::*;
pub(in crate::server) use documents::*;
pub(in crate::server) use error::*;
pub(in crate::server) use journal::*;
pub(in crate::server) use lists::*;
pub(in crate::server) use operations::*;
pub(in crate::server) use query::*;
pub(in crate::server) use schedule::*;
pub(in crate::server) use schema::*;
pub(in crate::server) use tenants::*;

use crate::schemas::{one_of as word, schema as shape, text};

shape! {
    /// Any JSON object.
    AnyObject = ObjectBuilder::new()
        .additional_properties(Some(AdditionalProperties::FreeForm(true)));
}

fn milliseconds(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some(format!(
            "{description}, in milliseconds since the Unix epoch"
        )))
}

/// A reference to a shape among the components.
pub(super) fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}
