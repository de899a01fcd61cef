//! `nimbus::documents`, compiled by itself.

#[path = "../../../src/documents/mod.rs"]
pub mod documents;
#[path = "../../../src/pluralize.rs"]
pub(crate) mod pluralize;

/// Stands in for `nimbus::clock`, which asks the machine in ways that these documents do not need.
pub(crate) mod clock {
    /// A fresh UUID version 7.
    pub(crate) fn uuid() -> uuid::Uuid {
        uuid::Uuid::now_v7()
    }
}
