//! `nimbus::documents`, compiled by itself.

#[path = "../../../src/documents/mod.rs"]
pub mod documents;
#[path = "../../../src/words.rs"]
pub(crate) mod words;
