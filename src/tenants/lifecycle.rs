//! Which tenants there are, and their creation, deletion and opening, on any backend.
//!
//! Deleting a tenant is a sequence that a crash can cut short; what the next start does with each
//! state:
//!
//! | step | crash point after it | next start |
//! | --- | --- | --- |
//! | 1. tombstone in the control file | `tenants::delete::condemned` | carries the deletion out; the tenant is not listed |
//! | 2. tenant closed | `tenants::delete::closed` | the same |
//! | 3. manifest removed: the data is unreadable now (files) | `tenants::delete::key-removed` | the same |
//! | 4. all else that is stored of it removed | `tenants::delete::files-removed` | the same |
//! | 5. its end recorded in the audit log | `tenants::delete::recorded` | the same; the end is recorded twice |
//! | 6. tombstone and the manifest's mirror removed, one commit | `tenants::delete::finished` | nothing is left |
//!
//! The key goes first, so that a tenant created later under the same name can never come into the
//! old one's key or data. A creation that was cut short leaves a manifest that says `new`, which is
//! no tenant; creating it again goes on from there. Once the control file has a copy of the
//! manifest the tenant exists, also when its files are lost. Its tables are in the file when that
//! gets its name (`tenants::create::opened` lies after both).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt as _, future::BoxFuture};
use nimbus_manifests::{Subject, TenantId};
use tokio::runtime::Handle;

use super::backend::{Backend, Standing, Storage};
use super::open_tenant::OpenTenant;
use super::others::{Claim, SharedListener, SharedStanding};
use super::readers::GiveWay;
use super::registry::{Registry, TenantHandle};
use super::shared::{IdleTenants, KnownTenants, Shared};
use super::sqlite::Instants;
use super::store::Store;
use super::{DeletionLog, DueLog, Frozen, StoreError, TenantProvider, TenantStore};
use crate::data_dir::subject;
use crate::envelope::{
    Envelope, Event, EventKind, EventOutcome, Holder, Intent, KeyedFile, Revocation,
};
use crate::failpoints::crash_point;
use crate::metrics;
use crate::runtime::{Progress, acting_as, actor, blocking, short_task};
use crate::tenant_mutex::TenantMutex;

/// How many tenants are kept open, and what each may use.
#[derive(Debug, Clone)]
pub(super) struct LifecycleOptions {
    /// Tenants open at once. A further one makes the least recently used one close.
    pub(super) max_open_tenants: usize,
    /// How long a request waits while all open tenants are in use, before it is refused.
    pub(super) open_patience: Duration,
    /// Read connections of each tenant, opened as they are needed.
    pub(super) readers_per_tenant: u32,
    /// Who is told when work will be due.
    pub(super) due: Arc<dyn DueLog>,
}

/// The tenants of one backend. Cloning is cheap; all clones are the same tenants.
#[derive(Debug)]
pub struct Tenants<B: Backend>(pub(super) Arc<Shared<B>>);

impl<B: Backend> Clone for Tenants<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Backend> Tenants<B> {
    /// The tenants of `backend`. Carries deletions to their end that a crash cut short; opens no
    /// tenant and asks no key provider.
    pub(super) async fn start(
        backend: B,
        envelope: Envelope,
        deletions: Arc<dyn DeletionLog>,
        options: LifecycleOptions,
    ) -> Result<Self, StoreError> {
        metrics::OPEN_TENANTS_LIMIT.set(options.max_open_tenants as f64);
        let registry = Registry::new(options.max_open_tenants, options.open_patience);
        let shared = Arc::new_cyclic(|myself| Shared {
            myself: myself.clone(),
            others: backend.shared(),
            backend: Arc::new(backend),
            envelope,
            deletions,
            due: options.due,
            readers_per_tenant: options.readers_per_tenant,
            way: Arc::new(IdleTenants {
                registry: Arc::downgrade(&registry),
                runtime: Handle::current(),
            }),
            registry,
            known: Mutex::default(),
            changing: TenantMutex::default(),
        });
        let begun = Arc::clone(&shared);
        for tenant in blocking(move || begun.deletions.pending_deletes()).await? {
            match shared
                .finish(&tenant, Some("it was cut short; this start finished it"))
                .await
            {
                Ok(()) => tracing::info!(%tenant, "finished the deletion of a tenant"),
                Err(error @ StoreError::Control { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(%tenant, %error, "a tenant's deletion could not be finished; the next start tries again, and so does `nimbus encryption shred`");
                    shared.known().condemned.insert(tenant);
                }
            }
        }
        let listing = Arc::clone(&shared);
        blocking(move || {
            let listed = listing.backend.list(listing.mirrored()?)?;
            let mut known = listing.known();
            known.tenants = listed;
            let KnownTenants {
                tenants, condemned, ..
            } = &mut *known;
            tenants.retain(|tenant| !condemned.contains(tenant));
            Ok::<_, StoreError>(())
        })
        .await?;
        let holder: Weak<dyn Holder> = Arc::<Shared<B>>::downgrade(&shared);
        shared.envelope.held_by(holder);
        if let Some(others) = &shared.others {
            let listener: Weak<dyn SharedListener> = Arc::<Shared<B>>::downgrade(&shared);
            others.tell(listener);
        }
        Ok(Self(shared))
    }
}

#[async_trait]
impl<B: Backend> TenantProvider for Tenants<B> {
    async fn create_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.0.in_task(tenant, Shared::create).await
    }

    async fn adopt_tenant(
        &self,
        tenant: &TenantId,
        source: KeyedFile,
        progress: Progress,
    ) -> Result<(), StoreError> {
        self.0
            .in_task(tenant, |shared, tenant| {
                shared.adopt(tenant, source, progress)
            })
            .await
    }

    async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.0.known().awaited.insert(tenant.clone());
        let deleted = self.0.in_task(tenant, Shared::delete).await;
        self.0.known().awaited.remove(tenant);
        deleted
    }

    fn require_files(&self, instead: &'static str) -> Result<(), StoreError> {
        match self.0.backend.instants() {
            Some(_) => Ok(()),
            None => Err(StoreError::NotInFiles { instead }),
        }
    }

    async fn erase_leftovers(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.0.in_task(tenant, Shared::erase_leftovers).await
    }

    async fn rotate_dek(&self, tenant: &TenantId, progress: Progress) -> Result<(), StoreError> {
        self.0
            .in_task(tenant, |shared, tenant| shared.rekey(tenant, progress))
            .await
    }

    async fn set_locked(
        &self,
        tenant: &TenantId,
        locked: bool,
    ) -> Result<Option<bool>, StoreError> {
        let Some(others) = self.0.others.clone() else {
            return Ok(None);
        };
        let tenant = tenant.clone();
        let before = blocking(move || others.set_locked(&tenant, locked)).await?;
        Ok(Some(before))
    }

    async fn claim(&self, tenant: &TenantId, now_ms: i64) -> Result<Claim, StoreError> {
        if self.0.others.is_none() {
            return Ok(Claim::Free);
        }
        let (shared, tenant) = (Arc::clone(&self.0), tenant.clone());
        blocking(move || shared.backend.claim(&tenant, now_ms)).await
    }

    async fn list_tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        if let Some(others) = &self.0.others {
            others.refresh().await?;
            return Ok(others.list());
        }
        Ok(self.0.known().tenants.iter().cloned().collect())
    }

    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, StoreError> {
        self.0.require(tenant).await?;
        let registry = &self.0.registry;
        let handle = match registry.ready(tenant) {
            Some(handle) => self.0.in_good_standing(tenant, handle).await?,
            None => None,
        };
        let handle = match handle {
            Some(handle) => handle,
            None => {
                let opener = self.0.opener(tenant, Intent::Open);
                registry.open(tenant, opener).await?
            }
        };
        Ok(Arc::new(Store {
            tenant: tenant.clone(),
            handle,
            shared: Arc::clone(&self.0),
        }))
    }

    fn instants(&self) -> Option<Arc<Instants>> {
        self.0.backend.instants().map(|(instants, _dir)| instants)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.0.backend.check().await
    }

    async fn freeze(&self, rest: Box<dyn FnOnce() + Send>) -> Option<Frozen> {
        let (instants, dir) = self.0.backend.instants()?;
        let shared = Arc::clone(&self.0);
        let frozen = move || {
            let capturing = instants.begin(dir);
            // Outside of the moment: this waits for checkpoints.
            for tenant in shared.registry.in_hand() {
                instants.before_use(&tenant);
            }
            let tenants = || (shared.known().tenants.clone(), shared.registry.in_hand());
            let ((), mark, held_up) = instants.freeze(&capturing.capture, tenants, rest);
            Frozen {
                capturing,
                mark,
                held_up,
            }
        };
        Some(blocking(frozen).await)
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.0.known().closing = true;
        self.0.changing.wait_idle().await;
        self.0.registry.shut_down().await
    }
}

#[async_trait]
impl<B: Backend> Holder for Shared<B> {
    async fn revoke(&self, tenant: Option<&TenantId>, _why: &Revocation) {
        let Some(tenant) = tenant else { return };
        if let Err(error) = self.registry.cut_off(tenant).await {
            tracing::warn!(%tenant, %error, "a tenant whose key was taken back was not closed cleanly");
        }
    }
}

impl<B: Backend> Shared<B> {
    /// Runs a change of the set of tenants to its end, also when the client goes away, one at a
    /// time for each tenant.
    pub(super) async fn in_task<F>(
        self: &Arc<Self>,
        tenant: &TenantId,
        change: impl FnOnce(Arc<Self>, TenantId) -> F + Send + 'static,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let (shared, changing) = (Arc::clone(self), tenant.clone());
        let work = async move {
            let guard = shared.changing.lock(&changing).await;
            let result = change(Arc::clone(&shared), changing.clone()).await;
            drop(guard);
            result
        };
        let task = short_task(acting_as(actor(), work));
        task.await.unwrap_or_else(|_panic| {
            Err(StoreError::Closed {
                tenant: tenant.clone(),
            })
        })
    }

    /// An open tenant whose key may be used. `None` for one of which nobody renews the lease: it
    /// was closed, and is to be opened again.
    async fn in_good_standing(
        &self,
        tenant: &TenantId,
        handle: TenantHandle<OpenTenant<B::Storage>>,
    ) -> Result<Option<TenantHandle<OpenTenant<B::Storage>>>, StoreError> {
        match handle.readers().storage().standing() {
            Standing::Good => Ok(Some(handle)),
            Standing::Refused(error) => Err(error),
            Standing::Unknown => {
                drop(handle);
                if let Err(error) = self.registry.cut_off(tenant).await {
                    tracing::warn!(%tenant, %error, "a tenant whose lease nobody renewed was not closed cleanly");
                }
                Ok(None)
            }
        }
    }

    /// What a creation begins with: there is no tenant of the name, and room for one; what is kept
    /// of an earlier one goes.
    async fn begin_create(self: &Arc<Self>, tenant: &TenantId) -> Result<(), StoreError> {
        self.catch_up().await?;
        let (exists, condemned) = (self.exists(tenant), self.is_condemned(tenant));
        let of = tenant.clone();
        if exists {
            return Err(StoreError::TenantExists { tenant: of });
        }
        if self.others.is_some()
            && let Err(error) = self.registry.cut_off(tenant).await
        {
            tracing::debug!(%tenant, %error, "a tenant that another server deleted was not closed cleanly");
        }
        if let Some(what) = self.backend.no_room() {
            metrics::REFUSED_DISK_RESERVE.increment(1);
            return Err(StoreError::NoRoom { tenant: of, what });
        }
        if condemned {
            self.finish(tenant, Some(FINISHED_LATER)).await?;
        }
        let shared = Arc::clone(self);
        blocking(move || shared.deletions.begin_create(&of)).await
    }

    /// A creation failed, maybe so late (a disk that got full, say) that the next start would list
    /// the tenant: then it is one from now on, and is not told to exist while it cannot be found.
    /// Answers whether it is.
    async fn came_to_be(self: &Arc<Self>, tenant: &TenantId) -> bool {
        let (shared, new) = (Arc::clone(self), tenant.clone());
        let is_one = blocking(move || shared.is_tenant(&new)).await;
        if is_one {
            self.known().tenants.insert(tenant.clone());
        }
        is_one
    }

    /// A creation out of a database that there is. Its first opening finds what it has due.
    async fn adopt(
        self: Arc<Self>,
        tenant: TenantId,
        source: KeyedFile,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let (shared, lost) = (Arc::clone(&self), tenant.clone());
        if self.exists(&tenant) && blocking(move || shared.backend.is_lost(&lost)).await {
            // Only what is known of it is left, and would keep another one from having its name.
            Arc::clone(&self).delete(tenant.clone()).await?;
        }
        self.begin_create(&tenant).await?;
        let (shared, going) = (Arc::clone(&self), tenant.clone());
        let progress: Progress =
            Arc::new(move |done, total| progress(done, total) && !shared.is_awaited(&going));
        if let Err(error) = self.backend.adopt(&tenant, source, progress).await {
            let _is_one = self.came_to_be(&tenant).await;
            return Err(error);
        }
        self.known().tenants.insert(tenant.clone());
        let opener = self.opener(&tenant, Intent::Open);
        self.registry.open(&tenant, opener).await.map(drop)
    }

    async fn create(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        self.begin_create(&tenant).await?;
        let open = loop {
            let opener = self.opener(&tenant, Intent::Create);
            match self.registry.open(&tenant, opener).await {
                Ok(handle) => break handle,
                // Not this opening's answer, but one's that began before the tenant was deleted and
                // was met under way.
                Err(StoreError::TenantNotFound { .. }) => {}
                Err(error) => {
                    let _is_one = self.came_to_be(&tenant).await;
                    return Err(error);
                }
            }
        };
        crash_point!("tenants::create::opened");
        let (shared, new) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.backend.created(&new)).await;
        self.known().tenants.insert(tenant);
        drop(open);
        Ok(())
    }

    async fn delete(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        self.catch_up().await?;
        if !self.exists(&tenant) {
            if self.is_condemned(&tenant) {
                return self.finish(&tenant, Some(FINISHED_LATER)).await;
            }
            return Err(StoreError::TenantNotFound { tenant });
        }
        let event = Event::new(EventKind::Delete, EventOutcome::Begun).about(&subject(&tenant));
        if self.envelope.keys().is_some() {
            self.record(&tenant, event, false).await?;
        }
        // From here on nobody opens it; should the tombstone not come to be, it is let go again
        // unharmed.
        let barred = self.registry.bar(&tenant);
        let (shared, condemned) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_delete(&condemned)).await?;
        crash_point!("tenants::delete::condemned");
        {
            let mut known = self.known();
            known.tenants.remove(&tenant);
            known.condemned.insert(tenant.clone());
        }
        if let Err(error) = self.registry.cut_off(&tenant).await {
            tracing::debug!(%tenant, %error, "a tenant that is being deleted was not closed cleanly");
        }
        crash_point!("tenants::delete::closed");
        let result = self.finish(&tenant, None).await;
        drop(barred);
        result
    }

    /// A deletion of what is no tenant.
    async fn erase_leftovers(self: Arc<Self>, tenant: TenantId) -> Result<(), StoreError> {
        self.catch_up().await?;
        if self.exists(&tenant) {
            return Err(StoreError::TenantExists { tenant });
        }
        let (shared, condemned) = (Arc::clone(&self), tenant.clone());
        blocking(move || shared.deletions.begin_delete(&condemned)).await?;
        self.known().condemned.insert(tenant.clone());
        self.finish(&tenant, None).await
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

    /// Steps 3 to 6 of a deletion, whose tombstone is written; each can be done again. Whoever
    /// comes to the end records it, and whoever does not why; the tombstone goes after that, so
    /// that no deletion ends without its line.
    pub(super) async fn finish(
        self: &Arc<Self>,
        tenant: &TenantId,
        said: Option<&'static str>,
    ) -> Result<(), StoreError> {
        let (shared, condemned) = (Arc::clone(self), tenant.clone());
        let forgotten = blocking(move || shared.backend.forget(&condemned)).await;
        let mut recorded = Ok(());
        if self.envelope.keys().is_some() {
            let event = Event::new(EventKind::Delete, EventOutcome::Begun).about(&subject(tenant));
            let event = match (event.ended(&forgotten), said) {
                (event, Some(said)) if forgotten.is_ok() => event.saying(said),
                (event, _) => event,
            };
            recorded = self.record(tenant, event, forgotten.is_ok()).await;
        }
        // What is wrong with the deletion comes first.
        forgotten.and(recorded)?;
        crash_point!("tenants::delete::recorded");
        let (shared, condemned) = (Arc::clone(self), tenant.clone());
        blocking(move || shared.deletions.finish_delete(&condemned)).await?;
        self.due.forget(tenant);
        crash_point!("tenants::delete::finished");
        // The next tenant of this name is another one.
        self.envelope.unlock(tenant);
        self.known().condemned.remove(tenant);
        Ok(())
    }

    /// Gives a tenant a new data key. It is opened for it when it is not open.
    async fn rekey(
        self: Arc<Self>,
        tenant: TenantId,
        progress: Progress,
    ) -> Result<(), StoreError> {
        if self.known().closing {
            return Err(StoreError::Closed { tenant });
        }
        if !self.exists(&tenant) {
            return Err(StoreError::TenantNotFound { tenant });
        }
        let opener = self.opener(&tenant, Intent::Open);
        let handle = self.registry.open(&tenant, opener).await?;
        let (shared, going) = (Arc::clone(&self), tenant.clone());
        let progress: Progress =
            Arc::new(move |done, total| progress(done, total) && !shared.is_awaited(&going));
        self.backend.rekey(&tenant, &handle, progress).await
    }

    /// Opens a tenant, as often as it is asked to.
    fn opener(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> impl Fn() -> BoxFuture<'static, Result<OpenTenant<B::Storage>, StoreError>> + Send + use<B>
    {
        let (backend, tenant) = (Arc::clone(&self.backend), tenant.clone());
        let (readers, due) = (self.readers_per_tenant, Arc::clone(&self.due));
        let way: Arc<dyn GiveWay> = Arc::clone(&self.way) as _;
        move || {
            let (backend, tenant) = (Arc::clone(&backend), tenant.clone());
            let (due, way) = (Arc::clone(&due), Arc::clone(&way));
            async move {
                let opened = backend.open(&tenant, intent).await?;
                // Its storage may have come from elsewhere, a backup say, with work that nobody
                // knows of.
                if let Some(earliest) = opened.earliest_due {
                    let (due, owner) = (Arc::clone(&due), tenant.clone());
                    blocking(move || due.found(&owner, earliest)).await;
                }
                OpenTenant::start(&tenant, opened, readers, due, way)
            }
            .boxed()
        }
    }

    /// An open tenant.
    #[cfg(test)]
    pub(super) async fn open_handle(
        &self,
        tenant: &TenantId,
    ) -> Result<TenantHandle<OpenTenant<B::Storage>>, StoreError> {
        let opener = self.opener(tenant, Intent::Open);
        self.registry.open(tenant, opener).await
    }

    /// Closes one tenant ahead of time.
    pub(super) async fn close_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.registry.close(tenant).await
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
        self.backend.exists(tenant) || known.is_ok_and(|known| known.contains(tenant))
    }

    pub(super) fn exists(&self, tenant: &TenantId) -> bool {
        match self.standing(tenant) {
            Some(standing) => matches!(standing, SharedStanding::There | SharedStanding::Locked),
            None => self.is_known(tenant),
        }
    }

    pub(super) fn is_known(&self, tenant: &TenantId) -> bool {
        self.known().tenants.contains(tenant)
    }

    pub(super) fn known(&self) -> MutexGuard<'_, KnownTenants> {
        // Every change under the lock is complete in itself: a panic leaves no half of it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the audit log says of a deletion that a later call finished.
const FINISHED_LATER: &str = "it was cut short; a later call finished it";
