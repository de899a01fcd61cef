//! What failures of MariaDB and MySQL mean.

use mysql_async::{DriverError, Error, IoError, ServerError};

use super::super::{
    driver::failure,
    engine::{Failure, FailureKind},
};

/// An error that came before a connection could be used.
pub(super) fn connecting(place: &str, error: &Error) -> Failure {
    match error {
        // The database that the URL names: no tenant is missing.
        Error::Server(said) if said.code == UNKNOWN_DATABASE => {
            failure(place, FailureKind::Refused, describe(said))
        }
        error => judged(place, error),
    }
}

/// What an error means.
pub(super) fn judged(place: &str, error: &Error) -> Failure {
    let (kind, what) = match error {
        Error::Server(said) => {
            let kind = kind(said);
            let what = match kind {
                // What they say repeats values of rows, and parts of the statement.
                FailureKind::Duplicate | FailureKind::Statement => {
                    format!("error {} (SQLSTATE {})", said.code, said.state)
                }
                _ => describe(said),
            };
            (kind, what)
        }
        Error::Driver(DriverError::PacketTooLarge) => (FailureKind::Refused, TOO_LARGE.to_owned()),
        Error::Driver(DriverError::NoClientSslFlagFromServer) => (
            FailureKind::Refused,
            "the server has no TLS: give it a certificate, or say ssl-mode=disabled".to_owned(),
        ),
        Error::Driver(
            error @ (DriverError::UnknownAuthPlugin { .. }
            | DriverError::MysqlOldPasswordDisabled
            | DriverError::CleartextPluginDisabled),
        ) => (FailureKind::Refused, error.to_string()),
        Error::Driver(DriverError::ConnectionClosed) => {
            (FailureKind::Lost, "the connection was closed".to_owned())
        }
        Error::Driver(_) => (
            FailureKind::Lost,
            "what it answers is not understood".to_owned(),
        ),
        Error::Io(IoError::Tls(error)) => (FailureKind::Refused, format!("no TLS: {error}")),
        Error::Io(IoError::Io(error)) => (FailureKind::Lost, error.to_string()),
        Error::Other(_) | Error::Url(_) => {
            (FailureKind::Refused, "it cannot be reached".to_owned())
        }
    };
    failure(place, kind, what)
}

fn describe(said: &ServerError) -> String {
    let hint = match said.code {
        1153 => return TOO_LARGE.to_owned(),
        1665 => "; set binlog_format to MIXED or ROW",
        _ => "",
    };
    let ServerError {
        code,
        message,
        state,
    } = said;
    format!("{message} (error {code}, SQLSTATE {state}){hint}")
}

fn kind(said: &ServerError) -> FailureKind {
    match said.code {
        // A lock that was waited for, a deadlock, a row that another one changed. A cluster says
        // deadlock where its certification lets another transaction be first.
        // No savepoint: the transaction of the statements before it is gone.
        1205 | 1213 | 1020 | 3101 | 1305 => FailureKind::Undone,
        // No table; a space that is not there, or no longer.
        1146 | UNKNOWN_DATABASE | 1051 | 1008 => FailureKind::Missing,
        1062 | 1050 | 1007 | 1061 | 1022 | 1586 => FailureKind::Duplicate,
        // Shut down, killed, too many connections; a node that has lost its cluster; one that takes
        // no writes any more: another is found by the next connection.
        1053
        | 1077..=1079
        | 1152
        | 1158..=1161
        | 1927
        | 1040
        | 1203
        | 1226
        | 1047
        | 1290
        | 1792
        | 1836 => FailureKind::Lost,
        // No right, no room, too large, ended by the server.
        1044 | 1045 | 1142 | 1143 | 1227 | 1251 | 1698 | 1130 | 1129 | 1114 | 1021 | 1030
        | 1153 | 1317 | 1969 | 3024 | 1665 => FailureKind::Refused,
        _ if said.state == "40001" => FailureKind::Undone,
        _ if said.state.starts_with("08") => FailureKind::Lost,
        _ => FailureKind::Statement,
    }
}

const UNKNOWN_DATABASE: u16 = 1049;
pub(super) const TOO_LARGE: &str =
    "a statement is larger than the server takes: raise its max_allowed_packet";
