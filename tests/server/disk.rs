//! Small file systems of a test's own.

pub(super) use nimbus_test_support::Disk;
