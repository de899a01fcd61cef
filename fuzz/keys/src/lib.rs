//! `nimbus::control`'s access keys, compiled by themselves with the randomness that they are drawn
//! from.

// The one thing that they take from that crate stands here.
extern crate self as nimbus_keyproviders;

#[allow(dead_code, reason = "the control file uses the rest")]
#[path = "../../../src/control/access_key.rs"]
mod access_key;
#[path = "../../../keyproviders/src/random.rs"]
mod random;

pub use access_key::{AccessKey, AccessKeyId, KeyName, Scope};
pub use random::{OsRandom, RandomError, SecureRandom};
