//! Tests of the key providers from outside. One binary, since linking the AWS SDK takes longer
//! than the tests do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start threads and tasks of their own"
)]

mod aws_chain;
mod aws_kms;
mod common;
mod conformance;
mod key_files;
mod recovery;
mod vectors;
