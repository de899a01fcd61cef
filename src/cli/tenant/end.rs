//! Where a tenant is copied from, or to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nimbus_manifests::TenantId;

use super::super::encryption::{deployment, require_deployment};
use super::super::{CliError, settings};
use crate::config::{Settings, TenantsIn};
use crate::control::AccessKeys;
use crate::deployment::Deployment;
use crate::envelope::Envelope;
use crate::process::DataDirLock;
use crate::runtime::blocking;
use crate::tenants::relational::{DatabaseOptions, RelationalOptions};
use crate::tenants::sqlite::SqliteOptions;
use crate::tenants::{DeletionLog, StoreError, TenantProvider};

/// A place as a flag names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// That of the settings of this command.
    This,
    /// That of a file of settings.
    File(PathBuf),
}

/// Why a tenant cannot be copied from one place to the other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// Both are the same.
    #[error("--from and --to are both {place}: a tenant is copied to another place")]
    Same {
        /// The place.
        place: String,
    },
    /// What is copied there would not be sealed.
    #[error(
        "{place} is a place of sealed tenants (--encryption-seal-external), and no tenant is copied from or to one yet"
    )]
    Seals {
        /// The place.
        place: String,
    },
    /// Nobody said that plaintext is meant.
    #[error(
        "tenant {tenant} is encrypted where it is, and Nimbus does not encrypt tenants in {place}: who reads that database, its dumps or its \
         replicas reads the documents. Say --unencrypted if that is meant"
    )]
    Unencrypted {
        /// The tenant.
        tenant: TenantId,
        /// Where it would go.
        place: String,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("it is `this`, or a file of settings".to_owned()),
            "this" => Ok(Self::This),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl Place {
    /// What is said of it. A file says all of it: nothing comes from the environment, which is
    /// that of the other place.
    pub(super) fn settings(&self, config: Option<&Path>) -> Result<Settings, CliError> {
        match self {
            Self::This => settings(config, None),
            Self::File(path) => Ok(Settings::check(Default::default(), Some(path))?),
        }
    }
}

/// Where the tenants of some settings are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Location {
    Files(PathBuf),
    Database(String),
}

impl Location {
    pub(super) fn of(settings: &Settings) -> Self {
        match settings.tenants.database() {
            Some(place) => Self::Database(place),
            None => {
                let dir = &settings.data_dir;
                Self::Files(dir.canonicalize().unwrap_or_else(|_| dir.clone()))
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(dir) => write!(f, "files in {}", dir.display()),
            Self::Database(place) => f.write_str(place),
        }
    }
}

/// A place, opened.
pub(super) struct End {
    pub(super) tenants: Arc<dyn TenantProvider>,
    pub(super) keys: Arc<dyn AccessKeys>,
    /// The core of a deployment with keys of its own.
    pub(super) encrypts: Option<Envelope>,
    /// Whether other servers may use it.
    pub(super) shared: bool,
    /// Nobody else has its files.
    _lock: Option<DataDirLock>,
}

impl End {
    pub(super) async fn open(settings: &Settings) -> Result<Self, CliError> {
        match &settings.tenants {
            TenantsIn::Files => Self::files(settings).await,
            TenantsIn::Database {
                options,
                seal: true,
            } => Err(PlaceError::Seals {
                place: options.place(),
            }
            .into()),
            TenantsIn::Database { options, .. } => Self::database(options.clone()).await,
        }
    }

    async fn files(settings: &Settings) -> Result<Self, CliError> {
        require_deployment(settings)?;
        let lock = DataDirLock::acquire(&settings.data_dir)?;
        let Deployment {
            envelope, control, ..
        } = &deployment(settings).await?;
        let options = SqliteOptions {
            limits: settings.limits,
            ..SqliteOptions::default()
        };
        let dir = settings.data_dir.clone();
        let tenants = crate::tenants::sqlite::SqliteTenants::open(
            envelope.clone(),
            control.clone(),
            dir,
            options,
        );
        Ok(Self {
            tenants: Arc::new(tenants.await?),
            keys: control.clone(),
            encrypts: envelope.keys().is_some().then(|| envelope.clone()),
            shared: false,
            _lock: Some(lock),
        })
    }

    async fn database(database: DatabaseOptions) -> Result<Self, CliError> {
        let database = blocking(move || database.connect()).await?;
        let keys = Arc::clone(&database).keys();
        // It has all that belongs to a tenant: no deployment is opened.
        let (envelope, local) = (Envelope::plaintext(), Arc::new(NothingLocal));
        let tenants = database.tenants(envelope, local, RelationalOptions::default());
        Ok(Self {
            tenants: tenants.await?,
            keys,
            encrypts: None,
            shared: true,
            _lock: None,
        })
    }

    pub(super) async fn close(self) -> Result<(), StoreError> {
        self.tenants.close().await
    }
}

/// What a server alone knows of tenants in a database: this is none.
#[derive(Debug)]
struct NothingLocal;

impl DeletionLog for NothingLocal {
    fn begin_create(&self, _tenant: &TenantId) -> Result<(), StoreError> {
        Ok(())
    }

    fn begin_delete(&self, _tenant: &TenantId) -> Result<(), StoreError> {
        Ok(())
    }

    fn finish_delete(&self, _tenant: &TenantId) -> Result<(), StoreError> {
        Ok(())
    }

    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }
}
