//! How a document is not what its table's schema asks for.

use thiserror::Error;

use super::field_type::FieldType;

/// Why a document is refused by a schema. It names places in the document and holds nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A required field is not there.
    #[error("field {field:?} is required and missing")]
    Missing {
        /// The field's path.
        field: String,
    },
    /// A required field is null.
    #[error("field {field:?} is required and null: it must be a {expected}")]
    Null {
        /// The field's path.
        field: String,
        /// What it must be.
        expected: FieldType,
    },
    /// A field has a value of another type.
    #[error("field {field:?} must be a {expected} and is a {found}")]
    Type {
        /// The field's path.
        field: String,
        /// What it must be.
        expected: FieldType,
        /// What it is.
        found: FieldType,
    },
    /// The `json_schema` does not hold.
    #[error("at {at:?} the json_schema does not hold: {reason}")]
    JsonSchema {
        /// The JSON pointer to the place in the document.
        at: String,
        /// What does not hold there.
        reason: String,
    },
    /// To apply the `json_schema` would take too long.
    #[error(
        "to apply the json_schema to it takes more than {steps} steps: make the document smaller, or the json_schema simpler (fewer alternatives for one value, smaller patterns)"
    )]
    TooCostly {
        /// How many steps one document may take.
        steps: u64,
    },
    /// The `json_schema` was stored by an earlier version, and this one does not compile it.
    #[error(
        "no document can be checked, and none written: {reason}: set a schema that can be used"
    )]
    Unusable {
        /// What is not right with it.
        reason: String,
    },
    /// The document is stored and cannot be read, which only damage brings about.
    #[error("it cannot be read: {reason}")]
    Unreadable {
        /// What the parser found.
        reason: String,
    },
}
