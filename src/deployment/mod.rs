//! The one place where a deployment is put together: keys, control file, audit log, copies of
//! manifests, tenants. The server and the commands that run without one start from here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use nimbus_manifests::Cipher;

use crate::audit::{self, AuditLog, LogError, RolledBack};
use crate::config::TenantsIn;
use crate::control::{self, AccessKeys, Control, ControlError, MirrorSeen};
use crate::envelope::{Envelope, Holder, Intent, ManifestRows, Prepared};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::scheduler::{Clock, DueRecord, SystemClock};
use crate::tenants::relational::{Database, RelationalOptions};
use crate::tenants::sqlite::{self, SqliteOptions, SqliteTenants};
use crate::tenants::{StoreError, TenantProvider};

/// A deployment whose control file is open. The caller holds the lock of its data directory.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The core: it keeps copies of manifests in the control file, and writes its events to the
    /// audit log.
    pub envelope: Envelope,
    /// The control file.
    pub control: Arc<Control>,
    /// The audit log; `None` while encryption is off.
    pub audit: Option<Arc<AuditLog>>,
    /// What the acceptance of an older control file did again, a line each.
    pub done_again: Vec<String>,
    data_dir: PathBuf,
}

/// Where the tenants of a deployment live.
#[derive(Debug)]
pub enum Home {
    /// In files of the data directory: nobody else uses them.
    Files,
    /// In a database, which other servers may use, too.
    Database {
        /// Which.
        database: Arc<dyn Database>,
        /// Whether tenants are sealed before they reach it.
        seal: bool,
    },
}

/// What is done with a control file that is older than its audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OlderControl {
    /// It is refused.
    Refuse,
    /// It is taken, and what the log proves beyond it is done again.
    Accept,
}

impl Deployment {
    /// Opens the control file in `control_dir`, which is made where there is none, and the audit
    /// log beside it. The tenants' files are in `data_dir`.
    ///
    /// # Errors
    ///
    /// [`LogError`]; its variant [`LogError::Control`] when the control file cannot be opened.
    pub async fn open(
        envelope: Envelope,
        data_dir: &Path,
        control_dir: &Path,
        older: OlderControl,
    ) -> Result<Self, LogError> {
        let control = Arc::new(Control::open(&envelope, control_dir).await?);
        crash_point!("deployment::control-opened");
        let dir = data_dir.to_owned();
        let marked = blocking(move || audit::mark_deployed(&dir)).await;
        if let Err(error) = marked {
            // A full disk must not keep away what makes room; the next opening tries again.
            tracing::warn!(%error, "the data directory could not be marked as a deployment's: a control file that is removed may not be missed");
        }
        let holder: Weak<dyn Holder> = Arc::<Control>::downgrade(&control);
        envelope.held_by(holder);
        let mut envelope = envelope.with_mirror(control.clone(), data_dir);
        let (mut audit, mut done_again) = (None, Vec::new());
        if envelope.keys().is_some() {
            let (control, dirs) = (control.clone(), [control_dir, data_dir].map(Path::to_owned));
            let [control_dir, data_dir] = dirs;
            let opened = blocking(move || match older {
                OlderControl::Refuse => AuditLog::open(control, &control_dir, &data_dir),
                OlderControl::Accept => AuditLog::open_accepting(control, &control_dir, &data_dir),
            });
            let log = opened.await?;
            done_again.extend_from_slice(log.done_again());
            let log = Arc::new(log);
            envelope = envelope.with_audit(log.clone());
            audit = Some(log);
        }
        Ok(Self {
            envelope,
            control,
            audit,
            done_again,
            data_dir: data_dir.to_owned(),
        })
    }

    /// Keeps the keys of locked tenants away from everybody. Answers how many tenants are locked.
    ///
    /// # Errors
    ///
    /// [`ControlError`] when the control file cannot be read.
    pub async fn keep_locked(&self) -> Result<usize, ControlError> {
        let control = self.control.clone();
        let locked = blocking(move || control.locked_tenants()).await?;
        let count = locked.len();
        self.envelope.keep_locked(locked);
        Ok(count)
    }

    /// Where the settings say that tenants live, reached.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; a database is refused while there are tenants in files of the data
    /// directory, which nobody would see any more.
    pub async fn home(&self, place: &TenantsIn) -> Result<Home, StoreError> {
        let (database, seal) = match place {
            TenantsIn::Files => return Ok(Home::Files),
            TenantsIn::Database { options, seal } => (options.clone(), *seal),
        };
        let dir = self.data_dir.clone();
        blocking(move || sqlite::require_none(&dir)).await?;
        match seal {
            true => tracing::info!(
                place = database.place(),
                "tenants are in a database, and sealed before they reach it"
            ),
            false => tracing::warn!(
                place = database.place(),
                "tenants are in a database: Nimbus does not encrypt them, but those that were made with --encryption-seal-external"
            ),
        }
        let database = blocking(move || database.connect()).await?;
        self.control.keys_are_elsewhere();
        Ok(Home::Database { database, seal })
    }

    /// The tenants of this deployment, none of them open yet.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn tenants_in(
        &self,
        home: &Home,
        options: SqliteOptions,
    ) -> Result<Arc<dyn TenantProvider>, StoreError> {
        let (database, seal) = match home {
            Home::Files => return Ok(Arc::new(self.tenants(options).await?)),
            Home::Database { database, seal } => (Arc::clone(database), *seal),
        };
        let options = RelationalOptions {
            max_open_tenants: options.max_open_tenants,
            readers: options.readers,
            open_patience: options.open_patience,
            due: options.due,
            seal,
        };
        let (envelope, control) = (self.envelope.clone(), self.control.clone());
        database.tenants(envelope, control, options).await
    }

    /// Where the access keys are.
    #[must_use]
    pub fn access_keys(&self, home: &Home) -> Arc<dyn AccessKeys> {
        match home {
            Home::Files => self.control.clone(),
            Home::Database { database, .. } => Arc::clone(database).keys(),
        }
    }

    /// Where it is noted when work is due, and the clock that this goes by.
    #[must_use]
    pub fn due_record(&self, home: &Home) -> (Arc<dyn DueRecord>, Arc<dyn Clock>) {
        match home {
            Home::Files => (self.control.clone(), Arc::new(SystemClock)),
            Home::Database { database, .. } => Arc::clone(database).due(),
        }
    }

    /// The manifests that are rows of a database.
    #[must_use]
    pub fn manifests(&self, home: &Home) -> Option<Arc<dyn ManifestRows>> {
        match home {
            Home::Files => None,
            Home::Database { database, .. } => Some(Arc::clone(database).manifests()),
        }
    }

    /// The tenants in files of this deployment, none of them open yet.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn tenants(&self, options: SqliteOptions) -> Result<SqliteTenants, StoreError> {
        let (envelope, control) = (self.envelope.clone(), self.control.clone());
        SqliteTenants::open(envelope, control, self.data_dir.clone(), options).await
    }
}

/// The same core, which also goes by what the control file in `control_dir` knows of the tenants,
/// where that can be read: the file is only looked at, and a server may run. Also answers what is
/// wrong when that file is older than its audit log.
pub async fn look(
    envelope: Envelope,
    data_dir: &Path,
    control_dir: &Path,
) -> (Envelope, Option<RolledBack>) {
    let path = Control::path_in(control_dir);
    let prepared = envelope
        .prepare(&path, &control::subject(), Cipher::Blocks1, Intent::Open)
        .await;
    let Ok(Prepared::Keyed(file)) = prepared else {
        return (envelope, None);
    };
    let dir = control_dir.to_owned();
    let (seen, rolled_back) = blocking(move || {
        let rolled_back = audit::rolled_back(&file, &dir).ok().flatten();
        (MirrorSeen::of(&file), rolled_back)
    })
    .await;
    match seen {
        Ok(seen) => (envelope.with_mirror(Arc::new(seen), data_dir), rolled_back),
        Err(_told_by_its_own_line) => (envelope, rolled_back),
    }
}
