//! How a Postgres database is reached.

use std::{
    fmt::{self, Debug},
    time::Duration,
};

use super::super::driver::NotAUrl;
use tokio_postgres::{
    Config,
    config::{Host, TargetSessionAttrs},
};

/// How a database is reached, and what the tenants' tables are called there.
#[derive(Clone)]
pub struct PostgresOptions {
    pub(super) config: Config,
    pub(super) metadata_schema: String,
    pub(super) tenant_prefix: String,
    /// Kept, and at most.
    pub(super) connections: (usize, usize),
}

const NOT_A_URL: NotAUrl = NotAUrl {
    engine: "Postgres",
    form: "postgres://user:password@host:5432/database?sslmode=require",
    page: "docs/postgres.md",
};

impl PostgresOptions {
    /// The database of a URL.
    ///
    /// # Errors
    ///
    /// [`NotAUrl`].
    pub fn new(url: &str) -> Result<Self, NotAUrl> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(NOT_A_URL);
        }
        let mut config: Config = url.parse().map_err(|_said_with_its_parts| NOT_A_URL)?;
        if config.get_hosts().is_empty() {
            return Err(NOT_A_URL);
        }
        let _config = config.application_name("nimbus");
        if config.get_connect_timeout().is_none() {
            let _config = config.connect_timeout(CONNECT_TIMEOUT);
        }
        // A standby is not written to: where several hosts are named, the one that takes writes is
        // found.
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            let _config = config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let _config = config
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .tcp_user_timeout(2 * KEEPALIVE);
        Ok(Self {
            config,
            metadata_schema: "nimbus_provider".to_owned(),
            tenant_prefix: "tenant_".to_owned(),
            connections: (0, DEFAULT_CONNECTIONS),
        })
    }

    /// The schema of the provider's own tables.
    #[must_use]
    pub fn metadata_schema(mut self, name: String) -> Self {
        self.metadata_schema = name;
        self
    }

    /// What the names of tenants' schemas begin with.
    #[must_use]
    pub fn tenant_prefix(mut self, prefix: String) -> Self {
        self.tenant_prefix = prefix;
        self
    }

    /// How many connections are kept open, and how many there may be.
    #[must_use]
    pub fn connections(mut self, kept: usize, most: usize) -> Self {
        self.connections = (kept.min(most), most.max(1));
        self
    }

    /// Hosts and database, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate();
        let hosts: Vec<String> = hosts
            .map(|(index, host)| {
                let port = ports.get(index).or(ports.first()).unwrap_or(&5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    Host::Unix(path) => path.display().to_string(),
                }
            })
            .collect();
        let database = self.config.get_dbname().or(self.config.get_user());
        format!(
            "Postgres at {}, database {}",
            hosts.join(","),
            database.unwrap_or("of the user's name")
        )
    }
}

impl Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresOptions")
            .field(&self.place())
            .finish()
    }
}

/// Connections there may be, where nobody says. Postgres itself lets in 100.
const DEFAULT_CONNECTIONS: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(15);
