//! `nimbus::documents`, compiled by itself.

#[path = "../../../src/documents/mod.rs"]
pub mod documents;
