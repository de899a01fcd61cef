//! Where tenants live, as the settings say it.

use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::secret_url::SecretUrl;
use super::{ConfigError, Persistence, TenantProviderKind, is_utf16, without_mark};
use crate::tenants::relational::PostgresOptions;

/// Where tenants live.
#[derive(Debug, Clone, Default)]
pub enum TenantsIn {
    /// In files of the data directory.
    #[default]
    Files,
    /// In a Postgres database.
    Postgres(Box<PostgresOptions>),
}

impl TenantsIn {
    /// Where they live, unless it is files.
    #[must_use]
    pub fn database(&self) -> Option<String> {
        match self {
            Self::Files => None,
            Self::Postgres(database) => Some(database.place()),
        }
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

impl Persistence {
    /// Where tenants live, with the settings of that provider and no other's.
    pub(super) fn tenants_in(&self) -> Result<TenantsIn, ConfigError> {
        if let None | Some(TenantProviderKind::Sqlite) = self.tenant_provider {
            let given = [
                ("--postgres-url", self.postgres_url.is_some()),
                ("--postgres-url-file", self.postgres_url_file.is_some()),
                (
                    "--postgres-metadata-schema",
                    self.postgres_metadata_schema.is_some(),
                ),
                (
                    "--postgres-tenant-schema-prefix",
                    self.postgres_tenant_schema_prefix.is_some(),
                ),
                (
                    "--postgres-min-connections",
                    self.postgres_min_connections.is_some(),
                ),
                (
                    "--postgres-max-connections",
                    self.postgres_max_connections.is_some(),
                ),
            ];
            return match given.into_iter().find(|(_, given)| *given) {
                None => Ok(TenantsIn::Files),
                Some((setting, _)) => Err(ConfigError::ForeignTenants {
                    setting,
                    needs: "postgres",
                    selected: "sqlite",
                }),
            };
        }
        if self.max_tenant_bytes.is_some() {
            return Err(ConfigError::ForeignTenants {
                setting: "--max-tenant-bytes",
                needs: "sqlite",
                selected: "postgres",
            });
        }
        let (setting, url) = self.postgres_url()?;
        let database = PostgresOptions::new(&url)
            .map_err(|source| ConfigError::Database { setting, source })?;
        let metadata = self.postgres_metadata_schema.as_deref();
        let metadata = metadata.unwrap_or("nimbus_provider");
        let prefix = self.postgres_tenant_schema_prefix.as_deref();
        let prefix = prefix.unwrap_or("tenant_");
        check_schemas(metadata, prefix)?;
        let most = self.postgres_max_connections.unwrap_or(DEFAULT_CONNECTIONS);
        let kept = self.postgres_min_connections.unwrap_or(0);
        if most < LEAST_CONNECTIONS || kept > most {
            return Err(ConfigError::OutOfBounds {
                setting: "--postgres-max-connections",
                bounds: "at least 4, and at least --postgres-min-connections",
            });
        }
        let database = database
            .metadata_schema(metadata.to_owned())
            .tenant_prefix(prefix.to_owned())
            .connections(kept.into(), most.into());
        Ok(TenantsIn::Postgres(Box::new(database)))
    }

    /// The URL, and the setting that has it.
    fn postgres_url(&self) -> Result<(&'static str, Zeroizing<String>), ConfigError> {
        match (&self.postgres_url, &self.postgres_url_file) {
            (None, None) => Err(ConfigError::NoDatabase),
            (Some(_), Some(_)) => Err(ConfigError::TwoDatabases),
            (Some(SecretUrl(url)), None) => Ok(("--postgres-url", url.clone())),
            (None, Some(path)) => {
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
                Ok(("--postgres-url-file", url))
            }
        }
    }
}

/// A tenant's schema is never that of the provider, nor one of Postgres itself, and its name is not
/// cut.
fn check_schemas(metadata: &str, prefix: &str) -> Result<(), ConfigError> {
    let refused = |setting, name: &str, why| ConfigError::Schema {
        setting,
        name: name.to_owned(),
        why,
    };
    let setting = "--postgres-metadata-schema";
    if metadata.is_empty() || metadata.len() > MAX_NAME || metadata.contains('\0') {
        return Err(refused(
            setting,
            metadata,
            "a name of Postgres has 1 to 63 bytes",
        ));
    }
    if metadata.starts_with("pg_") {
        return Err(refused(
            setting,
            metadata,
            "such names are those of Postgres itself",
        ));
    }
    if metadata
        .strip_prefix(prefix)
        .filter(|_| !prefix.is_empty())
        .is_some_and(|rest| rest.parse::<TenantId>().is_ok())
    {
        return Err(refused(
            setting,
            metadata,
            "a tenant's schema may have that name: choose another",
        ));
    }
    let setting = "--postgres-tenant-schema-prefix";
    if prefix.is_empty() || prefix.len() > MAX_PREFIX || prefix.contains('\0') {
        return Err(refused(setting, prefix, "a prefix has 1 to 15 bytes"));
    }
    if prefix.starts_with("pg_") || "pg_".starts_with(prefix) {
        return Err(refused(
            setting,
            prefix,
            "such names are those of Postgres itself",
        ));
    }
    Ok(())
}

/// Bytes of a name of Postgres, at most.
const MAX_NAME: usize = 63;
/// The rest is for the tenant's id, which has up to 48.
const MAX_PREFIX: usize = 15;
const DEFAULT_CONNECTIONS: u16 = 32;
/// A start, a writer and a reader at once, and one more.
const LEAST_CONNECTIONS: u16 = 4;
