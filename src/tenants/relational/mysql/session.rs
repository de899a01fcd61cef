//! A connection that is made: what it is set to, and what is looked at before it is used.

use mysql_async::{Conn, Error, Opts, SslOpts, prelude::Queryable as _};

use super::{
    super::{
        driver::{IDLE, failure},
        engine::{Failure, FailureKind},
        space::PATIENCE,
    },
    failure::connecting,
};

/// A connection.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) conn: Conn,
    /// Bytes of a packet that the server takes.
    pub(super) most_bytes: usize,
    pub(super) host: usize,
    /// Whether its server is a node of a cluster.
    pub(super) clustered: bool,
    pub(super) open: Open,
}

/// Whether a transaction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    No,
    Reading,
    Writing,
}

/// TLS that goes by the certificates of this machine.
pub(super) fn tls(place: &str) -> Result<SslOpts, Failure> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let what = "no TLS: this machine has no certificates of authorities; SSL_CERT_FILE names a file with some";
        return Err(failure(place, FailureKind::Refused, what));
    }
    let authorities = found.certs.into_iter();
    let authorities = authorities.map(|authority| authority.as_ref().to_vec().into());
    Ok(SslOpts::default()
        .with_root_certs(authorities.collect())
        .with_disable_built_in_roots(true))
}

/// A connection that is set up.
pub(super) async fn connected(place: &str, opts: Opts) -> Result<Wire, Failure> {
    let judge = |error: Error| connecting(place, &error);
    let mut conn = Conn::new(opts).await.map_err(judge)?;
    conn.query_drop(SESSION).await.map_err(judge)?;
    let rows: Vec<mysql_async::Row> = conn.query(SETTINGS).await.map_err(judge)?;
    let refused = |kind, what: &str| Err(failure(place, kind, what));
    let settings = rows.into_iter().next();
    let settings = settings.and_then(|row| mysql_async::from_row_opt(row).ok());
    let Some((version, read_only, most_bytes, clustered, session)) = settings else {
        return refused(FailureKind::Refused, "its settings are not understood");
    };
    let (version, session): (String, String) = (version, session);
    if !is_supported(&version) {
        let what = format!("it is version {version}: MariaDB 10.6 or MySQL 8.0 is the oldest");
        return refused(FailureKind::Refused, &what);
    }
    if read_only {
        return refused(FailureKind::Lost, "it takes no writes (read_only)");
    }
    if session != AS_SET {
        let what = "what was set for the connection is not in force: is there a proxy that leaves out SET?";
        return refused(FailureKind::Refused, what);
    }
    if most_bytes < LEAST_PACKET {
        let what = format!(
            "its max_allowed_packet is {most_bytes} bytes: raise it to {LEAST_PACKET} at least"
        );
        return refused(FailureKind::Refused, &what);
    }
    Ok(Wire {
        conn,
        most_bytes,
        host: 0,
        clustered,
        open: Open::No,
    })
}

fn is_supported(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    let found: (Option<u32>, Option<u32>) = (next(), next());
    found
        >= match version.contains("MariaDB") {
            true => (Some(10), Some(6)),
            false => (Some(8), Some(0)),
        }
}

/// What a connection is set to. Bytes are bytes; `"` quotes names; nothing is cut, converted or
/// chained silently; and a look at a node of a cluster sees what any node has committed before.
const SESSION: &str = "SET NAMES binary; \
    SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', \
    autocommit = 0, completion_type = 0, wait_timeout = 600, lock_wait_timeout = 10, innodb_lock_wait_timeout = 10, \
    default_storage_engine = InnoDB, max_sort_length = 8192, sql_safe_updates = 0, sql_big_selects = 1, \
    sql_select_limit = 18446744073709551615, foreign_key_checks = 1, unique_checks = 1 \
    /*M! , in_predicate_conversion_threshold = 0, wsrep_sync_wait = 1 */ /*!80000 , range_optimizer_max_mem_size = 0 */; \
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";
/// What is looked at before a connection is used. In a character set of which a byte of a character
/// may be a backslash, values could end their text (`text.rs`).
const SETTINGS: &str = "SELECT VERSION(), @@global.read_only, @@max_allowed_packet, /*M! @@session.wsrep_on + */ 0, CONCAT_WS(' ', @@session.sql_mode, @@session.time_zone, @@session.character_set_client, @@session.character_set_connection, @@session.autocommit + 0 \
    /*M! , @@session.tx_isolation */ /*!80000 , @@session.transaction_isolation */)";
const AS_SET: &str =
    "ANSI_QUOTES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION +00:00 binary binary 0 READ-COMMITTED";
/// Bytes of a packet that a server must take: those of the largest part of a transaction, in which
/// each byte may have become two.
const LEAST_PACKET: usize = 16 << 20;
/// The server waits for longer than connections lie unused: see `SESSION`.
const _: () = assert!(IDLE.as_secs() < 600 && PATIENCE.as_secs() <= 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_skip_locked_rows_are_taken() {
        for version in [
            "10.6.0-MariaDB",
            "10.11.19-MariaDB-0+deb12u1",
            "11.4.2-MariaDB",
            "8.0.36",
            "8.4.0",
        ] {
            assert!(is_supported(version), "{version}");
        }
        for version in ["10.5.9-MariaDB", "5.5.5-10.3.2-MariaDB", "5.7.44", ""] {
            assert!(!is_supported(version), "{version}");
        }
    }
}
