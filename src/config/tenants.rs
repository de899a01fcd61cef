//! Where tenants live, as the settings say it.

use std::path::PathBuf;

use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::secret_url::SecretUrl;
use super::{ConfigError, Persistence, ProviderChoice, TenantProviderKind, is_utf16, without_mark};
use crate::tenants::relational::{DatabaseOptions, MysqlOptions, NotAUrl, PostgresOptions};

/// Where tenants live.
#[derive(Debug, Clone, Default)]
pub enum TenantsIn {
    /// In files of the data directory.
    #[default]
    Files,
    /// In a database.
    Database {
        /// Which.
        options: DatabaseOptions,
        /// Whether they are sealed before they reach it.
        seal: bool,
    },
}

impl TenantsIn {
    /// Where they live, unless it is files.
    #[must_use]
    pub fn database(&self) -> Option<String> {
        match self {
            Self::Files => None,
            Self::Database { options, .. } => Some(options.place()),
        }
    }

    /// Whether they are sealed before they reach a database.
    #[must_use]
    pub fn seals(&self) -> bool {
        matches!(self, Self::Database { seal: true, .. })
    }

    /// Refuses a command that works on files where tenants are in none.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotInFiles`].
    pub fn require_files(
        &self,
        command: &'static str,
        instead: &'static str,
    ) -> Result<(), ConfigError> {
        match self.database() {
            None => Ok(()),
            Some(place) => Err(ConfigError::NotInFiles {
                command,
                place,
                instead,
            }),
        }
    }
}

/// A setting, and what was said of it.
type Said<'a, T> = (&'static str, Option<&'a T>);

/// What was said of one engine.
struct Engine<'a> {
    provider: &'static str,
    variable: &'static str,
    url: Said<'a, SecretUrl>,
    url_file: Said<'a, PathBuf>,
    metadata: Said<'a, String>,
    prefix: Said<'a, String>,
    kept: Said<'a, u16>,
    most: Said<'a, u16>,
    names: Names,
}

/// What an engine takes as a name.
struct Names {
    most: usize,
    takes: fn(&str) -> bool,
    how: &'static str,
    /// Names that are the engine's own, and what names of its own begin with.
    own: &'static [&'static str],
    own_prefix: Option<&'static str>,
}

impl Engine<'_> {
    /// The first setting that was said.
    fn said(&self) -> Option<&'static str> {
        let said = [
            (self.url.0, self.url.1.is_some()),
            (self.url_file.0, self.url_file.1.is_some()),
            (self.metadata.0, self.metadata.1.is_some()),
            (self.prefix.0, self.prefix.1.is_some()),
            (self.kept.0, self.kept.1.is_some()),
            (self.most.0, self.most.1.is_some()),
        ];
        said.into_iter()
            .find_map(|(name, said)| said.then_some(name))
    }

    /// The names of the provider's space and of what those of tenants begin with.
    fn spaces(&self) -> Result<(String, String), ConfigError> {
        let said = |(_, said): Said<'_, String>, default: &str| {
            said.map_or_else(|| default.to_owned(), String::clone)
        };
        let metadata = said(self.metadata, "nimbus_provider");
        let prefix = said(self.prefix, "tenant_");
        self.names
            .check(self.metadata.0, &metadata, self.prefix.0, &prefix)?;
        Ok((metadata, prefix))
    }

    /// Connections that are kept, and that there may be.
    fn connections(&self) -> Result<(usize, usize), ConfigError> {
        let most = self.most.1.copied().unwrap_or(DEFAULT_CONNECTIONS);
        let kept = self.kept.1.copied().unwrap_or(0);
        if most < LEAST_CONNECTIONS || kept > most {
            return Err(ConfigError::OutOfBounds {
                setting: self.most.0,
                bounds: "at least 4, and at least as many as are kept",
            });
        }
        Ok((kept.into(), most.into()))
    }

    /// What the URL says, by the one that reads it.
    fn read<T>(&self, read: impl Fn(&str) -> Result<T, NotAUrl>) -> Result<T, ConfigError> {
        let (setting, url) = self.url()?;
        read(&url).map_err(|source| ConfigError::Database { setting, source })
    }

    /// The URL, and the setting that has it.
    fn url(&self) -> Result<(&'static str, Zeroizing<String>), ConfigError> {
        match (self.url, self.url_file) {
            ((_, None), (file, None)) => Err(ConfigError::NoDatabase {
                provider: self.provider,
                file,
                variable: self.variable,
            }),
            ((url, Some(_)), (file, Some(_))) => Err(ConfigError::TwoDatabases { url, file }),
            ((setting, Some(SecretUrl(url))), (_, None)) => Ok((setting, url.clone())),
            ((_, None), (setting, Some(path))) => {
                let path = path.clone();
                let text = match std::fs::read(&path) {
                    Ok(text) => Zeroizing::new(text),
                    Err(source) => return Err(ConfigError::Read { path, source }),
                };
                if is_utf16(&text) {
                    return Err(ConfigError::Utf16 { path });
                }
                let url = String::from_utf8_lossy(without_mark(&text));
                let url = Zeroizing::new(url.trim().to_owned());
                Ok((setting, url))
            }
        }
    }
}

impl Persistence {
    fn postgres(&self) -> Engine<'_> {
        Engine {
            provider: "postgres",
            variable: "NIMBUS_POSTGRES_URL",
            url: ("--postgres-url", self.postgres_url.as_ref()),
            url_file: ("--postgres-url-file", self.postgres_url_file.as_ref()),
            metadata: (
                "--postgres-metadata-schema",
                self.postgres_metadata_schema.as_ref(),
            ),
            prefix: (
                "--postgres-tenant-schema-prefix",
                self.postgres_tenant_schema_prefix.as_ref(),
            ),
            kept: (
                "--postgres-min-connections",
                self.postgres_min_connections.as_ref(),
            ),
            most: (
                "--postgres-max-connections",
                self.postgres_max_connections.as_ref(),
            ),
            names: Names {
                most: 63,
                takes: |name| !name.contains('\0'),
                how: "a name of Postgres has 1 to 63 bytes",
                own: &[],
                own_prefix: Some("pg_"),
            },
        }
    }

    fn mysql(&self) -> Engine<'_> {
        Engine {
            provider: "mysql",
            variable: "NIMBUS_MYSQL_URL",
            url: ("--mysql-url", self.mysql_url.as_ref()),
            url_file: ("--mysql-url-file", self.mysql_url_file.as_ref()),
            metadata: (
                "--mysql-metadata-database",
                self.mysql_metadata_database.as_ref(),
            ),
            prefix: (
                "--mysql-tenant-database-prefix",
                self.mysql_tenant_database_prefix.as_ref(),
            ),
            kept: (
                "--mysql-min-connections",
                self.mysql_min_connections.as_ref(),
            ),
            most: (
                "--mysql-max-connections",
                self.mysql_max_connections.as_ref(),
            ),
            names: Names {
                most: 64,
                // Servers may take no other case, and keep none.
                takes: |name| {
                    let is_plain =
                        |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
                    name.bytes().all(is_plain)
                },
                how: "a name has 1 to 64 of a-z, 0-9, _ and -",
                own: &[
                    "mysql",
                    "sys",
                    "information_schema",
                    "performance_schema",
                    "ndbinfo",
                ],
                own_prefix: None,
            },
        }
    }

    /// Where tenants live, with the settings of that provider and no other's.
    pub(super) fn tenants_in(&self) -> Result<TenantsIn, ConfigError> {
        let selected = match self.tenant_provider {
            None | Some(TenantProviderKind::Sqlite) => "sqlite",
            Some(TenantProviderKind::Postgres) => "postgres",
            Some(TenantProviderKind::Mysql) => "mysql",
        };
        for engine in [self.postgres(), self.mysql()] {
            if let Some(setting) = engine.said().filter(|_| engine.provider != selected) {
                return Err(ConfigError::ForeignTenants {
                    setting,
                    needs: engine.provider,
                    selected,
                });
            }
        }
        let seal = self.encryption_seal_external.unwrap_or(false);
        if seal && selected == "sqlite" {
            return Err(ConfigError::ForeignTenants {
                setting: "--encryption-seal-external",
                needs: "postgres or mysql",
                selected,
            });
        }
        if seal && self.provider()? == ProviderChoice::Off {
            return Err(ConfigError::Foreign {
                setting: "--encryption-seal-external",
                needs: "master-key-file",
                selected: "none",
            });
        }
        if selected != "sqlite" && self.max_tenant_bytes.is_some() {
            return Err(ConfigError::ForeignTenants {
                setting: "--max-tenant-bytes",
                needs: "sqlite",
                selected,
            });
        }
        Ok(match self.tenant_provider {
            None | Some(TenantProviderKind::Sqlite) => TenantsIn::Files,
            Some(TenantProviderKind::Postgres) => {
                let said = self.postgres();
                let database = said.read(PostgresOptions::new)?;
                let ((metadata, prefix), (kept, most)) = (said.spaces()?, said.connections()?);
                let database = database.metadata_schema(metadata).tenant_prefix(prefix);
                let database = Box::new(database.connections(kept, most));
                let options = DatabaseOptions::Postgres(database);
                TenantsIn::Database { options, seal }
            }
            Some(TenantProviderKind::Mysql) => {
                let said = self.mysql();
                let database = said.read(MysqlOptions::new)?;
                let ((metadata, prefix), (kept, most)) = (said.spaces()?, said.connections()?);
                let database = database.metadata_database(metadata).tenant_prefix(prefix);
                let database = Box::new(database.connections(kept, most));
                let options = DatabaseOptions::Mysql(database);
                TenantsIn::Database { options, seal }
            }
        })
    }
}

impl Names {
    /// The space of a tenant is never that of the provider, nor one of the engine itself, and its
    /// name is not cut.
    fn check(
        &self,
        metadata_setting: &'static str,
        metadata: &str,
        prefix_setting: &'static str,
        prefix: &str,
    ) -> Result<(), ConfigError> {
        let refused = |setting, name: &str, why| {
            Err(ConfigError::Schema {
                setting,
                name: name.to_owned(),
                why,
            })
        };
        let own = "such names are those of the engine itself";
        if metadata.is_empty() || metadata.len() > self.most || !(self.takes)(metadata) {
            return refused(metadata_setting, metadata, self.how);
        }
        let begins = |prefix: &str| metadata.starts_with(prefix);
        if self.own.contains(&metadata) || self.own_prefix.is_some_and(begins) {
            return refused(metadata_setting, metadata, own);
        }
        if metadata
            .strip_prefix(prefix)
            .filter(|_| !prefix.is_empty())
            .is_some_and(|rest| rest.parse::<TenantId>().is_ok())
        {
            let why = "a tenant may have that name: choose another";
            return refused(metadata_setting, metadata, why);
        }
        if prefix.is_empty() || prefix.len() > MAX_PREFIX || !(self.takes)(prefix) {
            let why = "a prefix has 1 to 15 bytes, and what the engine takes in a name";
            return refused(prefix_setting, prefix, why);
        }
        let meets = |own: &str| own.starts_with(prefix) || prefix.starts_with(own);
        if self.own.iter().any(|own| own.starts_with(prefix)) || self.own_prefix.is_some_and(meets)
        {
            return refused(prefix_setting, prefix, own);
        }
        Ok(())
    }
}

/// The rest is for the tenant's id, which has up to 48.
const MAX_PREFIX: usize = 15;
const DEFAULT_CONNECTIONS: u16 = 32;
/// A start, a writer and a reader at once, and one more.
const LEAST_CONNECTIONS: u16 = 4;
