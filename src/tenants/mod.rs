//! (room under construction)

pub mod sqlite;
