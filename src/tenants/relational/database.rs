//! A database with tenants, whatever its engine.

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    catalog::{Catalog, failed},
    engine::Engine,
    mysql::{Mysql, MysqlOptions},
    postgres::{Postgres, PostgresOptions},
    provider::{Relational, RelationalOptions},
};
use crate::control::AccessKeys;
use crate::envelope::{Envelope, ManifestRows};
use crate::scheduler::{Clock, DueRecord};
use crate::tenants::{DeletionLog, StoreError, TenantProvider, Tenants};

/// Which database, and how it is reached.
#[derive(Clone)]
pub enum DatabaseOptions {
    /// Postgres.
    Postgres(Box<PostgresOptions>),
    /// MariaDB or MySQL.
    Mysql(Box<MysqlOptions>),
}

impl Debug for DatabaseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseOptions")
            .field(&self.place())
            .finish()
    }
}

impl DatabaseOptions {
    /// Hosts and database, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Postgres(options) => options.place(),
            Self::Mysql(options) => options.place(),
        }
    }

    /// The manifests of its sealed tenants. Nothing is made: without the provider's tables there
    /// are none. Blocks.
    ///
    /// # Errors
    ///
    /// [`StoreError::Provider`] when the database cannot be used.
    pub fn manifests(self) -> Result<Arc<dyn ManifestRows>, StoreError> {
        Ok(match self {
            Self::Postgres(options) => Catalog::looking(Postgres::new(*options).map_err(failed)?)?,
            Self::Mysql(options) => Catalog::looking(Mysql::new(*options).map_err(failed)?)?,
        })
    }

    /// Connects to it, and makes the provider's tables where there are none. Blocks.
    ///
    /// # Errors
    ///
    /// [`StoreError::Provider`] when the database cannot be used.
    pub fn connect(self) -> Result<Arc<dyn Database>, StoreError> {
        Ok(match self {
            Self::Postgres(options) => Catalog::on(Postgres::new(*options).map_err(failed)?)?,
            Self::Mysql(options) => Catalog::on(Mysql::new(*options).map_err(failed)?)?,
        })
    }
}

/// A database that servers share: what they all go by, and the tenants in it.
#[async_trait]
pub trait Database: Debug + Send + Sync {
    /// The tenants. Carries deletions to their end that a crash cut short. `local` is told of
    /// creations and deletions, too.
    async fn tenants(
        self: Arc<Self>,
        envelope: Envelope,
        local: Arc<dyn DeletionLog>,
        options: RelationalOptions,
    ) -> Result<Arc<dyn TenantProvider>, StoreError>;

    /// The manifests of sealed tenants.
    fn manifests(self: Arc<Self>) -> Arc<dyn ManifestRows>;

    /// The access keys of all servers on it.
    fn keys(self: Arc<Self>) -> Arc<dyn AccessKeys>;

    /// Where it is noted when work is due, and the clock that this goes by.
    fn due(self: Arc<Self>) -> (Arc<dyn DueRecord>, Arc<dyn Clock>);
}

#[async_trait]
impl<E: Engine> Database for Catalog<E> {
    async fn tenants(
        self: Arc<Self>,
        envelope: Envelope,
        local: Arc<dyn DeletionLog>,
        options: RelationalOptions,
    ) -> Result<Arc<dyn TenantProvider>, StoreError> {
        let tenants = Tenants::<Relational<E>>::of(self, envelope, local, options);
        Ok(Arc::new(tenants.await?))
    }

    fn manifests(self: Arc<Self>) -> Arc<dyn ManifestRows> {
        self
    }

    fn keys(self: Arc<Self>) -> Arc<dyn AccessKeys> {
        self.access_keys()
    }

    fn due(self: Arc<Self>) -> (Arc<dyn DueRecord>, Arc<dyn Clock>) {
        (self.clone(), self)
    }
}
