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

/// Stands in for `nimbus::metrics`: the fuzzers' metrics are not read.
pub(crate) mod metrics {
    /// A counter or a gauge that keeps nothing.
    pub(crate) struct Unread;

    impl Unread {
        pub(crate) fn increment(&self, _by: u64) {}

        pub(crate) fn set(&self, _to: f64) {}
    }

    pub(crate) static SCHEMAS_COMPILED: Unread = Unread;
    pub(crate) static SCHEMA_BYTES: Unread = Unread;
}
