//! Nimbus: a document server for many tenants, built around an envelope-encryption core.
//!
//! Each tenant is one SQLCipher file whose data key (DEK) is wrapped by a key provider and stored
//! in a manifest beside it. [`envelope`] is the only keyholder; [`sqlcipher`] and [`control`] are
//! the only openers of encrypted files; everything else reaches data through them.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "what the library must leave to one owner, its tests may do"
    )
)]

pub(crate) mod as_text;
pub mod audit;
pub mod backup;
pub(crate) mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub(crate) mod data_dir;
pub mod deployment;
pub mod documents;
pub mod encryption;
pub mod envelope;
pub(crate) mod error_chain;
pub(crate) mod failpoints;
pub mod metrics;
pub(crate) mod pluralize;
pub mod process;
pub mod runtime;
pub mod scheduler;
pub(crate) mod schemas;
pub mod server;
pub mod sqlcipher;
pub(crate) mod sqlite_file;
pub(crate) mod tenant_mutex;
pub mod tenants;
pub(crate) mod together;
pub mod usage;
