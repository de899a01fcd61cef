//! Tests of the key providers from outside. One binary, since linking the AWS SDK takes longer
//! than the tests do.

mod aws_kms;
mod common;
mod conformance;
mod key_files;
mod recovery;
