//! Tenants as SQLite files, encrypted or plain: one file a tenant, `<data-dir>/<tenant>.sqlite3`.
//!
//! Deleting a tenant is a sequence that a crash can cut short; what the next start does with each state:
//!
//! | step | crash point after it | next start |
//! | --- | --- | --- |
//! | 1. tombstone in the control file | `tenants::delete::condemned` | carries the deletion out; the tenant is not listed |
//! | 2. tenant closed | `tenants::delete::closed` | the same |
//! | 3. manifest removed: the data is unreadable now | `tenants::delete::key-removed` | the same |
//! | 4. all its other files (`data_dir`) removed | `tenants::delete::files-removed` | the same |
//! | 5. tombstone and the manifest's mirror removed, one commit | `tenants::delete::finished` | nothing is left |
//!
//! The key goes first, so that a tenant created later under the same name can never come into the old one's key or
//! data. A creation that was cut short leaves a manifest that says `new`, which is no tenant; creating it again goes on
//! from there. Once the control file has a copy of the manifest the tenant exists, also when its files are lost; its tables are made when it is first opened
//! (`tenants::create::opened` lies after both).

mod apply;
mod catalog;
mod checkpoint;
mod deploys;
mod expressions;
mod files;
mod layout;
mod lookups;
mod plans;
mod query;
mod readers;
mod rekey;
mod remembered;
mod room;
mod schedule;
mod schemas;
mod statement;
mod store;
mod writer;

pub(crate) use layout::is_served;

use std::{
    collections::{BTreeSet, HashSet},
    error::Error as StdError,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt as _, future::BoxFuture};
use nimbus_keyproviders::ProviderError;
use nimbus_manifests::{Subject, TenantId};
use rusqlite::ErrorCode;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::{
    DeletionLog, DueLog, StoreError, TenantProvider, TenantStore, Unscheduled,
    error::Limit,
    registry::{Lease, Registry},
};
use crate::{
    budget::Refused,
    data_dir::{self, subject},
    envelope::{
        Envelope, EnvelopeError, Event, EventKind, EventOutcome, Holder, Intent, LeaseStanding,
        Revocation, Trouble, acting_as, actor, blocking,
    },
    failpoints::crash_point,
    metrics,
    process::Limits,
    runtime::short_task,
    sqlcipher::{OpenError, Progress},
};
use room::Room;
use store::{Idle, Means, OpenTenant, SqliteTenant};

/// How many tenants are kept open, and what each may use.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Tenants open at once. A further one makes the least recently used one close.
    pub max_open_tenants: usize,
    /// Read connections of each tenant, opened as they are needed.
    pub readers_per_tenant: u32,
    /// How long a request waits while all open tenants are in use, before it is refused.
    pub open_patience: Duration,
    /// Who is told when work will be due.
    pub due: Arc<dyn DueLog>,
    /// How much may be written.
    pub limits: Limits,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            max_open_tenants: 256,
            readers_per_tenant: 4,
            open_patience: Duration::from_secs(5),
            due: Arc::new(Unscheduled),
            limits: Limits::default(),
        }
    }
}

/// Tenants in a directory of SQLite files. Cloning is cheap; all clones are the same tenants.
#[derive(Debug, Clone)]
pub struct SqliteTenants(Arc<Shared>);

/// What the provider and its open tenants share.
#[derive(Debug)]
struct Shared {
    envelope: Envelope,
    deletions: Arc<dyn DeletionLog>,
    dir: PathBuf,
    means: Means,
    registry: Arc<Registry<OpenTenant>>,
    known: Mutex<Known>,
    /// Some tenant's creation or deletion has ended.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Known {
    tenants: BTreeSet<TenantId>,
    /// Tenants whose deletion could not be carried to its end yet.
    condemned: HashSet<TenantId>,
    /// Tenants being created, deleted or given a new key right now.
    changing: HashSet<TenantId>,
    /// Tenants that somebody waits to delete: a new key is not made to its end.
    awaited: HashSet<TenantId>,
    /// The provider is being closed.
    closing: bool,
}

impl SqliteTenants {
    /// The tenants in `dir`, which exists. Carries deletions to their end that a crash cut short; opens no tenant and
    /// asks no key provider.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] when the directory cannot be read, [`StoreError::Control`] when the control file fails. A
    /// single tenant's trouble is not among them.
    pub async fn open(
        envelope: Envelope,
        deletions: Arc<dyn DeletionLog>,
        dir: PathBuf,
        options: SqliteOptions,
    ) -> Result<Self, StoreError> {
        let registry = Registry::new(options.max_open_tenants, options.open_patience);
        let mut shared = Shared {
            envelope,
            deletions,
            means: Means {
                readers: options.readers_per_tenant,
                due: options.due,
                room: Arc::new(Room::new(dir.clone(), options.limits)),
                way: Arc::new(Idle {
                    registry: Arc::downgrade(&registry),
                    runtime: Handle::current(),
                }),
            },
            dir,
            registry,
            known: Mutex::default(),
            settled: Notify::new(),
        };
        let (shared, finished) = blocking(move || {
            let (mut known, mut finished) = (Known::default(), Vec::new());
            for tenant in shared.deletions.pending_deletes()? {
                match shared.carry_out(&tenant) {
                    Ok(()) => {
                        tracing::info!(%tenant, "finished the deletion of a tenant");
                        let event = Event::new(EventKind::Delete, EventOutcome::Done);
                        let event = event.about(&subject(&tenant));
                        finished.push(event.saying("it was cut short; this start finished it"));
                    }
                    Err(error @ StoreError::Control { .. }) => return Err(error),
                    Err(error) => {
                        tracing::error!(%tenant, %error, "a tenant's deletion could not be finished; the next start tries again");
                        let _new = known.condemned.insert(tenant);
                    }
                }
            }
            known.tenants = catalog::scan(&shared.dir, shared.mirrored()?)?;
            known.tenants.retain(|tenant| !known.condemned.contains(tenant));
            shared.known = Mutex::new(known);
            Ok((shared, finished))
        })
        .await?;
        if shared.envelope.keys().is_some() && !finished.is_empty() {
            let recorded = shared.envelope.record_all(finished).await;
            recorded.map_err(|source| StoreError::Control {
                source: Arc::new(source),
            })?;
        }
        let shared = Arc::new(shared);
        let holder: Weak<dyn Holder> = Arc::<Shared>::downgrade(&shared);
        shared.envelope.held_by(holder);
        Ok(Self(shared))
    }
}

#[cfg(test)]
impl SqliteTenants {
    /// Runs SQL at a tenant's writer, for tests that need an engine in trouble.
    pub(crate) async fn execute(&self, tenant: &TenantId, sql: &'static str) {
        let opener = self.0.opener(tenant, Intent::Open);
        let lease = self.0.registry.lease(tenant, opener).await.unwrap();
        let work = move |writing: &mut apply::Writing<'_>| {
            writing.execute_batch(sql);
            Ok(())
        };
        let done = lease.writer().run(writer::Size::SMALL, work).unwrap();
        done.await.unwrap().unwrap();
    }
}

#[async_trait]
impl TenantProvider for SqliteTenants {
    async fn create_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.0.in_task(tenant, Shared::create).await
    }

    async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _new = self.0.known().awaited.insert(tenant.clone());
        let deleted = self.0.in_task(tenant, Shared::delete).await;
        let _was_there = self.0.known().awaited.remove(tenant);
        deleted
    }

    async fn erase_leftovers(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.0.in_task(tenant, Shared::erase_leftovers).await
    }

    async fn rotate_dek(&self, tenant: &TenantId, progress: Progress) -> Result<(), StoreError> {
        self.0
            .in_task(tenant, |shared, tenant| shared.renew_key(tenant, progress))
            .await
    }

    async fn list_tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.0.known().tenants.iter().cloned().collect())
    }

    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, StoreError> {
        if !self.0.exists(tenant) {
            return Err(StoreError::TenantNotFound {
                tenant: tenant.clone(),
            });
        }
        let registry = &self.0.registry;
        let lease = match registry.ready(tenant) {
            Some(lease) => self.0.in_good_standing(tenant, lease).await?,
            None => None,
        };
        let lease = match lease {
            Some(lease) => lease,
            None => {
                let opener = self.0.opener(tenant, Intent::Open);
                registry.lease(tenant, opener).await?
            }
        };
        Ok(Arc::new(SqliteTenant {
            tenant: tenant.clone(),
            lease,
            shared: Arc::clone(&self.0),
        }))
    }

    async fn check(&self) -> Result<(), StoreError> {
        let path = self.0.dir.clone();
        let found = tokio::fs::read_dir(&path).await;
        found.map(drop).map_err(|source| StoreError::Io {
            action: "read",
            path,
            source: Arc::new(source),
        })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.0.known().closing = true;
        self.0.quiet().await;
        self.0.registry.shut_down().await
    }
}

#[async_trait]
impl Holder for Shared {
    async fn revoke(&self, tenant: Option<&TenantId>, _why: &Revocation) {
        let Some(tenant) = tenant else { return };
        if let Err(error) = self.registry.cut_off(tenant).await {
            tracing::warn!(%tenant, %error, "a tenant whose key was taken back was not closed cleanly");
        }
    }
}

impl Shared {
    /// Runs a change of the set of tenants to its end, also when the client goes away, one at a time for each tenant.
    async fn in_task<F>(
        self: &Arc<Self>,
        tenant: &TenantId,
        change: impl FnOnce(Arc<Self>, TenantId) -> F + Send + 'static,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let (shared, changing) = (Arc::clone(self), tenant.clone());
        let work = async move {
            let turn = Turn::take(&shared, &changing).await;
            let result = change(Arc::clone(&shared), changing.clone()).await;
            drop(turn);
            result
        };
        let task = short_task(acting_as(actor(), work));
        task.await.unwrap_or_else(|_panic| {
            Err(StoreError::Closed {
                tenant: tenant.clone(),
            })
        })
    }

    /// An open tenant whose key may be used. `None` for one of which nobody renews the lease: it was closed, and is to be opened again.
    async fn in_good_standing(
        &self,
        tenant: &TenantId,
        lease: Lease<OpenTenant>,
    ) -> Result<Option<Lease<OpenTenant>>, StoreError> {
        let database = lease.readers().database();
        match database.standing() {
            LeaseStanding::Good => Ok(Some(lease)),
            LeaseStanding::RanOut => {
                let unwrap = EnvelopeError::Unwrap {
                    path: database.path().to_owned(),
                    source: Arc::new(ProviderError::LeaseRanOut),
                };
                Err(opening(tenant, unwrap.into()))
            }
            LeaseStanding::Abandoned => {
                drop((lease, database));
                if let Err(error) = self.registry.cut_off(tenant).await {
                    tracing::warn!(%tenant, %error, "a tenant whose lease nobody renewed was not closed cleanly");
                }
                Ok(None)
            }
        }
    }

    async fn create(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        let (exists, condemned) = {
            let known = self.known();
            (
                known.tenants.contains(&tenant),
                known.condemned.contains(&tenant),
            )
        };
        if exists {
            return Err(StoreError::TenantExists { tenant });
        }
        if let Err(what) = self.means.room.on_disk() {
            metrics::REFUSED_DISK_RESERVE.increment(1);
            return Err(StoreError::NoRoom { tenant, what });
        }
        if condemned {
            self.finish(&tenant).await?;
        }
        let (shared, new) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_create(&new)).await?;
        loop {
            let opener = self.opener(&tenant, Intent::Create);
            match self.registry.lease(&tenant, opener).await {
                Ok(_lease) => break,
                // Not this opening's answer, but one's that began before the tenant was deleted and was met under way.
                Err(StoreError::TenantNotFound { .. }) => {}
                Err(error) => {
                    // It may have failed so late (a disk that got full, say) that the next start would list the tenant: then it is
                    // one from now on, and is not told to exist while it cannot be found.
                    let (shared, new) = (Arc::clone(&self), tenant.clone());
                    if blocking(move || shared.is_tenant(&new)).await {
                        let _new = self.known().tenants.insert(tenant);
                    }
                    return Err(error);
                }
            }
        }
        crash_point!("tenants::create::opened");
        let _new = self.known().tenants.insert(tenant);
        Ok(())
    }

    async fn delete(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        if !self.exists(&tenant) {
            if self.known().condemned.contains(&tenant) {
                return self.finish(&tenant).await;
            }
            return Err(StoreError::TenantNotFound { tenant });
        }
        let event = Event::new(EventKind::Delete, EventOutcome::Begun).about(&subject(&tenant));
        if self.envelope.keys().is_some() {
            self.record(&tenant, event.clone(), false).await?;
        }
        // From here on nobody opens it; should the tombstone not come to be, it is let go again unharmed.
        let barred = self.registry.bar(&tenant);
        let (shared, condemned) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_delete(&condemned)).await?;
        crash_point!("tenants::delete::condemned");
        {
            let mut known = self.known();
            let _was_there = known.tenants.remove(&tenant);
            let _new = known.condemned.insert(tenant.clone());
        }
        if let Err(error) = self.registry.cut_off(&tenant).await {
            tracing::debug!(%tenant, %error, "a tenant that is being deleted was not closed cleanly");
        }
        crash_point!("tenants::delete::closed");
        let result = self.finish(&tenant).await;
        // The next tenant of this name is another one.
        let _was_locked = self.envelope.unlock(&tenant);
        if self.envelope.keys().is_some() {
            let recorded = self.record(&tenant, event.ended(&result), true).await;
            // What is wrong with the deletion comes first.
            return result.and(recorded);
        }
        drop(barred);
        result
    }

    /// A deletion of what is no tenant.
    async fn erase_leftovers(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        if self.exists(&tenant) {
            return Err(StoreError::TenantExists { tenant });
        }
        let (shared, condemned) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_delete(&condemned)).await?;
        let _new = self.known().condemned.insert(tenant.clone());
        self.finish(&tenant).await
    }

    async fn record(&self, tenant: &TenantId, event: Event, done: bool) -> Result<(), StoreError> {
        self.envelope
            .record(event)
            .await
            .map_err(|source| StoreError::Unaudited {
                tenant: tenant.clone(),
                done,
                source: Arc::new(source),
            })
    }

    /// Carries a deletion to its end whose tombstone is written.
    async fn finish(self: &Arc<Self>, tenant: &TenantId) -> Result<(), StoreError> {
        let (shared, condemned) = (Arc::clone(self), tenant.clone());
        blocking(move || shared.carry_out(&condemned)).await?;
        let _was_there = self.known().condemned.remove(tenant);
        Ok(())
    }

    /// Steps 3 to 5 of a deletion. Each can be done again. Blocks.
    fn carry_out(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let path = self.path(tenant);
        self.envelope
            .forget(&path)
            .map_err(|source| StoreError::Envelope {
                tenant: tenant.clone(),
                source: Arc::new(source),
            })?;
        crash_point!("tenants::delete::key-removed");
        catalog::remove_files(&self.dir, tenant)?;
        crash_point!("tenants::delete::files-removed");
        self.deletions.finish_delete(tenant)?;
        self.means.due.forget(tenant);
        crash_point!("tenants::delete::finished");
        Ok(())
    }

    /// Opens a tenant's file, as often as it is asked to.
    fn opener(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> impl Fn() -> BoxFuture<'static, Result<OpenTenant, StoreError>> + Send + use<> {
        let (envelope, path, tenant) = (self.envelope.clone(), self.path(tenant), tenant.clone());
        let means = self.means.clone();
        move || {
            let (envelope, path) = (envelope.clone(), path.clone());
            let (subject, tenant, means) = (subject(&tenant), tenant.clone(), means.clone());
            OpenTenant::open(envelope, path, subject, tenant, intent, means).boxed()
        }
    }

    /// Waits until no tenant is being created, deleted or given a new key.
    async fn quiet(&self) {
        loop {
            tokio::pin! { let settled = self.settled.notified(); }
            let _registered = settled.as_mut().enable();
            if self.known().changing.is_empty() {
                return;
            }
            settled.await;
        }
    }

    /// Whether somebody waits for a tenant's turn who is not to wait long.
    fn is_awaited(&self, tenant: &TenantId) -> bool {
        let known = self.known();
        known.closing || known.awaited.contains(tenant)
    }

    /// Tenants whose manifests the core has copies of. Blocks.
    fn mirrored(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        let subjects = self
            .envelope
            .mirrored()
            .map_err(|source| StoreError::Control {
                source: Arc::new(source),
            })?;
        let tenants = subjects.iter().filter_map(Subject::tenant);
        Ok(tenants.cloned().collect())
    }

    /// Whether the next start would list the tenant. Blocks.
    fn is_tenant(&self, tenant: &TenantId) -> bool {
        let known = self.mirrored();
        catalog::is_tenant(&self.path(tenant)) || known.is_ok_and(|known| known.contains(tenant))
    }

    fn exists(&self, tenant: &TenantId) -> bool {
        self.known().tenants.contains(tenant)
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(data_dir::database_name(tenant))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change under the lock is complete in itself: a panic leaves no half of it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to create or delete one tenant, or to give it a new key; there is one at a time.
struct Turn<'a> {
    shared: &'a Shared,
    tenant: &'a TenantId,
}

impl<'a> Turn<'a> {
    async fn take(shared: &'a Shared, tenant: &'a TenantId) -> Self {
        loop {
            tokio::pin! { let settled = shared.settled.notified(); }
            let _registered = settled.as_mut().enable();
            if shared.known().changing.insert(tenant.clone()) {
                return Self { shared, tenant };
            }
            settled.await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _was_there = self.shared.known().changing.remove(self.tenant);
        self.shared.settled.notify_waiters();
    }
}

/// What an opening that failed means to who asked for the tenant.
fn opening(tenant: &TenantId, error: OpenError) -> StoreError {
    let tenant = tenant.clone();
    match error.trouble() {
        Trouble::NotFound => StoreError::TenantNotFound { tenant },
        Trouble::AlreadyExists => StoreError::TenantExists { tenant },
        _ => StoreError::Open {
            tenant,
            source: Arc::new(error),
        },
    }
}

/// What it means that an answer may not take more memory.
fn no_room(tenant: &TenantId, _refused: Refused) -> StoreError {
    StoreError::Busy {
        what: Limit::BufferedBytes,
        tenant: tenant.clone(),
    }
}

/// The `LIMIT` of SQL by which it shows whether there are more.
fn one_more(limit: usize) -> i64 {
    i64::try_from(limit).map_or(i64::MAX, |limit| limit.saturating_add(1))
}

/// What a failure of the engine means. Corruption stays corruption and a full disk a full disk.
fn failure(tenant: &TenantId, error: rusqlite::Error) -> StoreError {
    if let rusqlite::Error::UserFunctionError(ours) = &error
        && let Some(refused) = ours.downcast_ref::<Refused>()
    {
        return no_room(tenant, *refused);
    }
    let tenant = tenant.clone();
    let code = error.sqlite_error_code();
    // A stored value of the wrong kind is damage, too.
    let malformed = matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..)
    );
    let source: Arc<dyn StdError + Send + Sync> = Arc::new(error);
    match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy {
            what: Limit::FileLock,
            tenant,
        },
        Some(ErrorCode::DiskFull) => StoreError::StorageFull { tenant },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { tenant, source }
        }
        None if malformed => StoreError::Corrupt { tenant, source },
        _ => StoreError::Engine { tenant, source },
    }
}

#[cfg(test)]
mod tests;
