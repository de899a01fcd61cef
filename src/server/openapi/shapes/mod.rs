//! What JSON looks like in requests and answers, for the document alone: bodies are read by the types that check them, and answers are
//! written by those that have them. A generated client holds the running server to these.
//!
//! A file has the shapes of the route of its name; what several of them need is here.

#![expect(dead_code, reason = "shapes are described, never made")]

mod admin;
mod apps;
mod audit;
mod backups;
mod batch;
mod crons;
mod deploy;
mod documents;
mod encryption;
mod error;
mod health;
mod journal;
mod keys;
mod lists;
mod lock;
mod query;
mod schedule;
mod schema;
mod tenants;
mod usage;

use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};

pub(in crate::server) use admin::*;
pub(in crate::server) use apps::*;
pub(in crate::server) use audit::*;
pub(in crate::server) use backups::*;
pub(in crate::server) use batch::*;
pub(in crate::server) use crons::*;
pub(in crate::server) use deploy::*;
pub(in crate::server) use documents::*;
pub(in crate::server) use encryption::*;
pub(in crate::server) use error::*;
pub(in crate::server) use health::*;
pub(in crate::server) use journal::*;
pub(in crate::server) use keys::*;
pub(in crate::server) use lists::*;
pub(in crate::server) use lock::*;
pub(in crate::server) use query::*;
pub(in crate::server) use schedule::*;
pub(in crate::server) use schema::*;
pub(in crate::server) use tenants::*;
pub(in crate::server) use usage::*;

macro_rules! shape {
    ($(#[doc = $doc:literal])* $name:ident = $make:expr;) => {
        $(#[doc = $doc])*
        pub(in crate::server) struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::RefOr::from($make)
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

use shape;

shape! {
    /// Any JSON object.
    AnyObject = ObjectBuilder::new()
        .additional_properties(Some(AdditionalProperties::FreeForm(true)));
}

/// Text of a fixed form.
fn text(pattern: &str, description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .description(Some(description))
}

fn word(words: &[&str]) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(words.iter().copied()))
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
