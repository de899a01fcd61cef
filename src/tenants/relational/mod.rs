//! Tenants in a relational database: one store, written once, and a dialect for each engine.
//!
//! What tenants mean is decided in the core, above; how an engine spells it, in its dialect, below
//! (`engine.rs`). Here is how tenants are laid out in tables (`layout.rs`), how values become keys
//! (`keys.rs`), how writes are held back and sent (`held.rs`, `transaction.rs`), and how queries
//! are answered (`query.rs`). What several servers share is in the provider's tables and in the
//! memory of each (`catalog.rs`, `changes.rs`, `access.rs`, `watch.rs`). Why it is so:
//! `docs/decisions/0036-relational-tenants.md`.

mod access;
mod answers;
mod arrivals;
mod catalog;
mod changes;
mod columns;
mod database;
mod deploys;
mod documents;
mod driver;
mod engine;
mod entries;
mod held;
mod index;
mod jobs;
mod keys;
mod layout;
mod manifests;
mod moved;
mod mysql;
mod plan;
mod postgres;
mod provider;
mod query;
mod reader;
mod scheduled;
mod schemas;
mod sealed;
mod sealed_values;
mod space;
mod storage;
mod tables;
mod transaction;
mod undo_map;
mod verify;
mod watch;
mod writes;

pub(super) use catalog::SEEN_WITHIN;
pub use database::{Database, DatabaseOptions};
pub use driver::NotAUrl;
pub use mysql::MysqlOptions;
pub use postgres::PostgresOptions;
pub use provider::RelationalOptions;

#[cfg(test)]
mod tests;
