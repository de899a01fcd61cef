//! What failures of Postgres mean.

use std::{error::Error as StdError, iter::successors};

use tokio_postgres::error::SqlState;

use super::super::{
    driver::failure,
    engine::{Failure, FailureKind},
};

/// What an error means. Its details are left out: they may repeat values of rows.
pub(super) fn judged(place: &str, error: &tokio_postgres::Error) -> Failure {
    if let Some(said) = error.as_db_error() {
        let what = format!("{} (SQLSTATE {})", said.message(), said.code().code());
        return failure(place, kind(said.code()), what);
    }
    let chain: Vec<String> = successors(Some(error as &(dyn StdError + 'static)), |&error| {
        error.source()
    })
    .map(ToString::to_string)
    .collect();
    let what = chain.join(": ");
    let kind = if what.starts_with("error performing TLS handshake")
        || what.starts_with("invalid configuration")
        || what.contains("server does not support TLS")
    {
        FailureKind::Refused
    } else {
        FailureKind::Lost
    };
    failure(place, kind, what)
}

fn kind(code: &SqlState) -> FailureKind {
    match *code {
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => FailureKind::Undone,
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME => FailureKind::Missing,
        SqlState::UNIQUE_VIOLATION | SqlState::DUPLICATE_SCHEMA | SqlState::DUPLICATE_TABLE => {
            FailureKind::Duplicate
        }
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::IDLE_SESSION_TIMEOUT
        | SqlState::TOO_MANY_CONNECTIONS
        // A primary that has become a standby: another is found by the next connection.
        | SqlState::READ_ONLY_SQL_TRANSACTION => FailureKind::Lost,
        _ => match &code.code()[..2] {
            "08" => FailureKind::Lost,
            // Resources, intervention, the machine; authorisation, database and privileges.
            "53" | "57" | "58" | "28" | "3D" => FailureKind::Refused,
            _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => FailureKind::Refused,
            _ => FailureKind::Statement,
        },
    }
}
