//! What tests of several crates share.
//!
//! [`Moto`] is a KMS over the wire (PyPI `moto[server]`): the one that `scripts/test` started and
//! named in `NIMBUS_TEST_MOTO_URL`, or one started here and stopped with its last user.
//! [`FaultProxy`] stands in front of it for what moto does not model: disabled keys, refusals,
//! throttling, silence, broken connections. [`TlsFront`] puts TLS of a private authority before it,
//! ([`Authority`]), and [`ConnectProxy`] tunnels to that. [`Postgres`] is a Postgres with a cluster
//! of its own, which can be killed and started again. [`MariaDb`] is a MariaDB of the same kind,
//! and [`Galera`] a cluster of three. [`Seaweed`] is an S3 that checks signatures and checksums;
//! moto is another. [`S3Proxy`] stands in front of either, counts, and fails on demand. [`Machine`]
//! is a home, a data directory and an environment of a test's own; [`Server`] is the real binary on
//! it.
//!
//! ```no_run
//! use nimbus_test_support::{Fault, FaultProxy, Moto};
//!
//! let moto = Moto::start();
//! let key = moto.create_key();
//! let proxy = FaultProxy::in_front_of(moto.url());
//! proxy.inject("Decrypt", Fault::error(400, "DisabledException", "the key is disabled"));
//! // … a provider with `key` and `proxy.url()` as its endpoint …
//! assert_eq!(proxy.calls("Decrypt").len(), 1);
//! ```
//!
//! Everything here panics when it cannot do its work, with a message that says what to install:
//! a test without its KMS has failed, not passed.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]

mod authority;
#[expect(
    clippy::print_stderr,
    reason = "a test that is skipped says so, loudly"
)]
mod disk;
mod fault;
mod http;
mod listening;
mod machine;
mod mariadb;
mod moto;
mod postgres;
mod s3_proxy;
mod seaweed;
mod tls;

use std::time::{Duration, Instant};

pub use authority::{Authority, Certified};
pub use disk::Disk;
pub use fault::{Fault, FaultProxy};
pub use machine::{Answer, Ended, Machine, Server, files_under};
pub use mariadb::{Galera, MariaDb};
pub use moto::Moto;
pub use postgres::Postgres;
pub use s3_proxy::{S3Fault, S3Proxy, Traffic};
pub use seaweed::{Seaweed, make_bucket, with_buckets};
pub use tls::{ConnectProxy, TlsFront};

/// A list that is answered whole, `items` under `name`.
pub fn whole(name: &str, items: serde_json::Value) -> serde_json::Value {
    serde_json::json!({name: items, "next_cursor": null, "has_more": false})
}

/// Waits for a condition, for as long as a busy machine may take.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < PATIENCE,
            "it never came to this: {what}"
        );
        std::thread::sleep(PAUSE);
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
