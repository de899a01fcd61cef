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

mod creation;
mod deletion;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nimbus_manifests::{Subject, TenantId};
use tokio::runtime::Handle;

use super::backend::{Backend, Standing, Storage};
use super::copy::{Arriving, ArrivingTenant, Leaving, LeavingTenant};
use super::open_tenant::OpenTenant;
use super::others::{Claim, SharedListener, SharedStanding};
use super::readers::{GiveWay, ReaderLimits};
use super::registry::{Registry, TenantHandle};
use super::shared::{IdleTenants, KnownTenants, Shared};
use super::sqlite::instant::Instants;
use super::store::Store;
use super::{DeletionLog, DueLog, Frozen, StoreError, TenantProvider, TenantStore};
use crate::envelope::{Envelope, Holder, Intent, KeyedFile, Revocation};
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
    /// Read connections, opened as they are needed.
    pub(super) readers: ReaderLimits,
    /// Receives due times.
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
            readers: options.readers,
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

    async fn leave(&self, tenant: &TenantId) -> Result<Arc<dyn Leaving>, StoreError> {
        self.0.catch_up().await?;
        if !self.0.exists(tenant) {
            let tenant = tenant.clone();
            return Err(StoreError::TenantNotFound { tenant });
        }
        let opener = self.0.opener(tenant, Intent::Open);
        let handle = self.0.registry.open(tenant, opener).await?;
        Ok(Arc::new(LeavingTenant::<B>(handle)))
    }

    async fn arrive(&self, tenant: &TenantId) -> Result<Box<dyn Arriving>, StoreError> {
        self.0.begin_create(tenant).await?;
        let arrival = self.0.backend.arrive(tenant).await?;
        let (shared, tenant) = (Arc::clone(&self.0), tenant.clone());
        let arriving = blocking(move || ArrivingTenant::at(shared, tenant, arrival));
        Ok(Box::new(arriving.await?))
    }

    async fn is_locked(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        let Some(others) = &self.0.others else {
            return Ok(false);
        };
        others.refresh().await?;
        Ok(others.standing(tenant) == SharedStanding::Locked)
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
    /// was closed, and must be opened again.
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
        let (readers, due) = (self.readers.clone(), Arc::clone(&self.due));
        let way: Arc<dyn GiveWay> = Arc::clone(&self.way) as _;
        move || {
            let (backend, tenant) = (Arc::clone(&backend), tenant.clone());
            let (readers, due, way) = (readers.clone(), Arc::clone(&due), Arc::clone(&way));
            async move {
                let opened = backend.open(&tenant, intent).await?;
                // Its storage may have come from elsewhere, a backup say, with work that nobody
                // knows of.
                if let Some(earliest) = opened.earliest_due {
                    let (due, owner) = (Arc::clone(&due), tenant.clone());
                    blocking(move || due.found(&owner, earliest)).await;
                }
                OpenTenant::start(&tenant, opened, &readers, due, way)
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
