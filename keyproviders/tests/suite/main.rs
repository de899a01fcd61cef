//! Tests of the key providers from outside. One binary, since linking the AWS SDK takes longer
//! than the tests do.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start tasks of their own, and read and damage files by hand"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod aws_chain;
mod aws_errors;
mod aws_kms;
mod aws_network;
mod common;
mod conformance;
mod key_files;
mod recovery;
mod replicas;
mod vectors;
