//! The parts of a server, made from its settings.

use std::convert::Infallible;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use super::announcements::{announce_keys, announce_new_control};
use super::{Start, StartError};
use crate::audit::ControlLost;
use crate::backup::proofs::ProofReport;
use crate::backup::ship::{Shipper, Shipping};
use crate::backup::{BackupError, Places, create};
use crate::cli::CliError;
use crate::config::Settings;
use crate::config::keys::{self, Keys, Purpose};
use crate::data_dir::remove_leftovers;
use crate::deployment::{Deployment, Home, OlderControl};
use crate::encryption::status::{InDatabase, StatusReader};
use crate::envelope::{Envelope, ManifestRows};
use crate::error_chain::error_chain;
use crate::process::{DataDirLock, FileLimit, LockId};
use crate::runtime::{self, Background, Kept, blocking};
use crate::scheduler::{Clock, DueIndex};
use crate::server::Backups;
use crate::sqlcipher::page_cache;
use crate::tenants::sqlite::SqliteOptions;
use crate::tenants::{ReaderLimits, StoreError, TenantProvider};

pub(super) fn backups(settings: &Settings) -> Result<Backups, BackupError> {
    let to = settings.shipping.as_ref();
    let to = to.map(|shipping| shipping.to.clone().absolute());
    Ok(Backups {
        s3: settings.backup_s3.clone(),
        places: Places::of(settings),
        turn: Arc::default(),
        report: settings.shipping.as_ref().map(|_shipping| Arc::default()),
        to: to.transpose()?,
        keep: settings.backup_keep,
        proofs: settings
            .backup_verify_every
            .map(|every| Arc::new(ProofReport::new(every))),
    })
}

/// How tenants in files are kept.
pub(super) fn sqlite_options(
    settings: &Settings,
    files: FileLimit,
    max_open_tenants: usize,
    due: Arc<DueIndex>,
) -> SqliteOptions {
    SqliteOptions {
        max_open_tenants,
        readers: ReaderLimits::new(
            ReaderLimits::PER_TENANT,
            files.spare_readers(max_open_tenants),
        ),
        limits: settings.limits,
        due,
        ..SqliteOptions::default()
    }
}

/// Renews the leases on data keys for as long as the server runs.
pub(super) fn keep_leases(envelope: &Envelope) -> Kept<Infallible> {
    let envelope = envelope.clone();
    runtime::keep(Background::LeaseKeeper, move || {
        envelope.clone().keep_leases()
    })
}

/// Begins to ship what is committed, where that is wanted.
pub(super) fn shipper(
    settings: &Settings,
    backups: &Backups,
    deployment: &Deployment,
    tenants: &Arc<dyn TenantProvider>,
) -> Result<Option<Shipper>, BackupError> {
    let (Some(shipping), Some(report)) = (&settings.shipping, &backups.report) else {
        return Ok(None);
    };
    let shipping = Shipping {
        to: shipping.to.clone().absolute()?,
        ..shipping.clone()
    };
    let shipped = create::Deployment {
        envelope: deployment.envelope.clone(),
        control: Arc::clone(&deployment.control),
        tenants: tenants.clone(),
        turn: Arc::clone(&backups.turn),
    };
    Ok(Shipper::start(shipping, shipped, Arc::clone(report)))
}

/// Everything works without it, slower: what is in its way ends no start.
async fn start_page_cache(settings: &Settings) {
    let bytes = settings
        .page_cache_bytes
        .unwrap_or_else(page_cache::default_bytes);
    if bytes == 0 {
        tracing::info!("the page cache is off, as --page-cache-bytes says");
        return;
    }
    let dir = settings.data_dir.clone();
    match blocking(move || page_cache::start(bytes, &dir)).await {
        Ok(started) => tracing::info!(?started, "the page cache is on"),
        Err(error) => tracing::warn!(
            error = error_chain(&error),
            "the page cache is off: every page that is read is decrypted anew"
        ),
    }
}

/// How a server that has the control file open looks at its files.
pub(super) fn status_reader(
    settings: &Settings,
    envelope: &Envelope,
    rows: Option<Arc<dyn ManifestRows>>,
) -> StatusReader {
    let database = settings.tenants.database().zip(rows);
    StatusReader {
        data_dir: settings.data_dir.clone(),
        control_dir: settings.control_data_dir.clone(),
        provider: settings.provider.clone(),
        database: database.map(|(place, rows)| InDatabase {
            place,
            seal: settings.tenants.seals(),
            rows: Ok(rows),
        }),
        envelope: Ok(envelope.clone()),
        dek_max_age: settings.dek_max_age,
        holds_control: true,
        rolled_back: None,
    }
}

/// What is noted of work that is due, and the clock that it goes by.
pub(super) async fn due_index(
    deployment: &Deployment,
    home: &Home,
) -> Result<(Arc<DueIndex>, Arc<dyn Clock>), StoreError> {
    let (record, clock) = deployment.due_record(home);
    let by = clock.clone();
    let index = blocking(move || DueIndex::load(record, by)).await?;
    Ok((Arc::new(index), clock))
}

/// Makes the directories where they are missing, takes the data directory, and removes what a crash
/// left.
fn take_dirs(data_dir: &Path, control_dir: &Path) -> Result<DataDirLock, CliError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::DataDir { path, source }
    };
    for dir in [data_dir, control_dir] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed(dir))?;
    }
    let lock = DataDirLock::acquire(data_dir)?;
    for dir in [data_dir, control_dir] {
        remove_leftovers(dir).map_err(failed(dir))?;
    }
    Ok(lock)
}

impl Start {
    /// Takes the data directory, connects the keys, and opens what lies around the control file.
    pub(super) async fn open(&self, settings: &Settings) -> Result<(Deployment, LockId), CliError> {
        let (data_dir, control_dir) = (&settings.data_dir, &settings.control_data_dir);
        let dirs = [data_dir.clone(), control_dir.clone()];
        let (lost, lock) = blocking(move || {
            // Before this start uses the directory itself.
            let lost = ControlLost::look(&dirs[1], &dirs[0]);
            take_dirs(&dirs[0], &dirs[1]).map(|lock| (lost, lock))
        })
        .await?;
        let lock = lock.keep();
        let Keys { envelope, made } = keys::connect(settings, Purpose::Start).await?;
        announce_keys(made.as_deref(), settings);
        if let Some(keys) = envelope.keys() {
            keys.current()
                .check()
                .await
                .map_err(keys::KeysError::from)?;
        }
        if envelope.keys().is_some() {
            start_page_cache(settings).await;
        }
        let older = match self.accept_rolled_back_control {
            false => OlderControl::Refuse,
            true => OlderControl::Accept,
        };
        let deployment = Deployment::open(envelope, data_dir, control_dir, older).await?;
        // After the log: that may have locked some again.
        let locked = deployment.keep_locked().await?;
        if let Some(lost) = lost {
            announce_new_control(&lost, locked, settings.tenants.database().is_some());
        }
        Ok((deployment, lock))
    }
}
