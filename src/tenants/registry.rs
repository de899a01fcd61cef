//! Which tenants are open: at most so many, the least recently used closed first, each opened once
//! however many ask.
//!
//! A tenant is in use while a [`TenantHandle`] on it exists, and is not closed meanwhile to make
//! room for another. All decisions are taken under one lock that is never held across an await;
//! whatever waits registers for the next change before it looks, so that no change is missed.
//! Opening and closing run in tasks of their own: a client that goes away leaves neither half done.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::Instrument as _;

use super::{StoreError, error::Limit};
use crate::metrics;
use crate::runtime::{acting_as, actor, short_task};

/// What a registry keeps open.
#[async_trait]
pub(super) trait Resource: Debug + Send + Sync + 'static {
    /// Ends it. Whoever still uses it is answered with an error from here on.
    async fn close(&self) -> Result<(), StoreError>;

    /// Has work under way fail and not run to its end, before or while it is closed.
    fn halt(&self);

    /// Whether it cannot serve any more, so that it has to be opened afresh.
    fn is_broken(&self) -> bool;
}

/// The open tenants of one provider.
#[derive(Debug)]
pub(super) struct Registry<R> {
    max_open: usize,
    patience: Duration,
    state: Mutex<State<R>>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct State<R> {
    /// Tenants that count against the limit, whatever state they are in.
    slots: HashMap<TenantId, Slot<R>>,
    /// Tenants that are being deleted: they are not opened.
    barred: HashSet<TenantId>,
    /// Counts uses; the slot with the lowest number was used least recently.
    uses: u64,
    shut_down: bool,
}

#[derive(Debug)]
enum Slot<R> {
    Opening(Opened<R>),
    Open {
        resource: Arc<R>,
        used: u64,
    },
    /// There for as long as its closing takes.
    Closing(Weak<R>),
}

/// Where those who wait for an opening find its result.
type Opened<R> = watch::Receiver<Option<Result<TenantHandle<R>, StoreError>>>;

/// The right to use an open tenant.
#[derive(Debug)]
pub(super) struct TenantHandle<R> {
    // Dropped first, so that whoever is woken by `freed` finds the tenant unused.
    resource: Arc<R>,
    freed: Freed,
}

#[derive(Debug)]
struct Freed(Arc<Notify>);

/// While it exists, its tenant is not found.
#[derive(Debug)]
pub(super) struct Barred<R: Resource> {
    registry: Arc<Registry<R>>,
    tenant: TenantId,
}

/// What a look at the slots found.
enum Found<R> {
    Ready(TenantHandle<R>),
    Opening(Opened<R>),
    /// A slot was taken for this tenant; whoever asked opens it.
    Vacant(watch::Sender<Option<Result<TenantHandle<R>, StoreError>>>),
    /// Something has to change first.
    Wait,
}

impl<R: Resource> Registry<R> {
    /// A registry of at most `max_open` tenants. Who finds all of them in use waits as long as
    /// `patience`.
    pub(super) fn new(max_open: usize, patience: Duration) -> Arc<Self> {
        let state = State {
            slots: HashMap::new(),
            barred: HashSet::new(),
            uses: 0,
            shut_down: false,
        };
        Arc::new(Self {
            max_open: max_open.max(1),
            patience,
            state: Mutex::new(state),
            changed: Arc::new(Notify::new()),
        })
    }

    /// The tenant, if it is open and nothing must be done or waited for.
    pub(super) fn ready(&self, tenant: &TenantId) -> Option<TenantHandle<R>> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.shut_down || state.barred.contains(tenant) {
            return None;
        }
        match state.slots.get_mut(tenant) {
            Some(Slot::Open { resource, used }) if !resource.is_broken() => {
                state.uses += 1;
                *used = state.uses;
                Some(self.handle_on(resource))
            }
            _ => None,
        }
    }

    /// The open tenant, opened by `open` when it is not open yet and nobody else is opening it. It
    /// is tried again when the process has no files, threads or memory left for it, as long as
    /// there is an idle tenant that can be closed instead.
    pub(super) async fn open<F>(
        self: &Arc<Self>,
        tenant: &TenantId,
        open: impl Fn() -> F + Send + 'static,
    ) -> Result<TenantHandle<R>, StoreError>
    where
        F: Future<Output = Result<R, StoreError>> + Send + 'static,
    {
        let deadline = Instant::now() + self.patience;
        let mut open = Some(open);
        let mut first_look = true;
        loop {
            tokio::pin! { let changed = self.changed.notified(); }
            let _registered = changed.as_mut().enable();
            match self.look(tenant, first_look)? {
                Found::Ready(handle) => return Ok(handle),
                Found::Opening(opened) => return self.opened(tenant, opened).await,
                Found::Vacant(answer) => {
                    let opened = answer.subscribe();
                    let open = open.take().expect("a vacant slot ends the loop");
                    let fill = Arc::clone(self).fill(tenant.clone(), open, answer);
                    drop(short_task(acting_as(actor(), fill.in_current_span())));
                    return self.opened(tenant, opened).await;
                }
                Found::Wait => {
                    timeout_at(deadline, changed)
                        .await
                        .map_err(|_elapsed| StoreError::Busy {
                            what: Limit::OpenTenants,
                            tenant: tenant.clone(),
                        })?
                }
            }
            first_look = false;
        }
    }

    /// Closes one tenant, in use or not, and returns when it is closed. Work that was let in is
    /// done first.
    pub(super) async fn close(self: &Arc<Self>, tenant: &TenantId) -> Result<(), StoreError> {
        self.end(tenant, |_resource| {}).await
    }

    /// Closes one tenant that may not be used any more: work that is not done yet fails.
    pub(super) async fn cut_off(self: &Arc<Self>, tenant: &TenantId) -> Result<(), StoreError> {
        self.end(tenant, R::halt).await
    }

    async fn end(
        self: &Arc<Self>,
        tenant: &TenantId,
        first: impl Fn(&R) + Send,
    ) -> Result<(), StoreError> {
        loop {
            tokio::pin! { let changed = self.changed.notified(); }
            let _registered = changed.as_mut().enable();
            let closing = {
                let mut state = self.state();
                match state.slots.get(tenant) {
                    None => return Ok(()),
                    Some(Slot::Opening(_)) => None,
                    Some(Slot::Closing(resource)) => {
                        if let Some(resource) = resource.upgrade() {
                            first(&resource);
                        }
                        None
                    }
                    Some(Slot::Open { resource, .. }) => {
                        first(resource);
                        self.start_closing(&mut state, tenant)
                    }
                }
            };
            match closing {
                Some(closing) => return joined(tenant, closing.await),
                None => changed.await,
            }
        }
    }

    /// Closes all tenants and opens none any more. Returns the first failure, after all were tried.
    pub(super) async fn shut_down(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut result = Ok(());
        loop {
            tokio::pin! { let changed = self.changed.notified(); }
            let _registered = changed.as_mut().enable();
            let closing: Vec<_> = {
                let mut state = self.state();
                state.shut_down = true;
                if state.slots.is_empty() {
                    return result;
                }
                let tenants: Vec<_> = state.slots.keys().cloned().collect();
                tenants
                    .into_iter()
                    .filter_map(|tenant| {
                        let closing = self.start_closing(&mut state, &tenant)?;
                        Some((tenant, closing))
                    })
                    .collect()
            };
            if closing.is_empty() {
                changed.await;
            }
            for (tenant, closing) in closing {
                result = result.and(joined(&tenant, closing.await));
            }
        }
    }

    /// Makes `tenant` not found, for as long as the answer is held.
    pub(super) fn bar(self: &Arc<Self>, tenant: &TenantId) -> Barred<R> {
        self.state().barred.insert(tenant.clone());
        Barred {
            registry: Arc::clone(self),
            tenant: tenant.clone(),
        }
    }

    /// The tenants that are open, being opened or being closed.
    pub(super) fn in_hand(&self) -> Vec<TenantId> {
        self.state().slots.keys().cloned().collect()
    }

    /// How many tenants are open, being opened or being closed.
    #[cfg(test)]
    pub(super) fn occupied(&self) -> usize {
        self.state().slots.len()
    }

    fn look(self: &Arc<Self>, tenant: &TenantId, first_look: bool) -> Result<Found<R>, StoreError> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.barred.contains(tenant) {
            return Err(StoreError::TenantNotFound {
                tenant: tenant.clone(),
            });
        }
        if state.shut_down {
            return Err(StoreError::Closed {
                tenant: tenant.clone(),
            });
        }
        state.uses += 1;
        let room = state.slots.len() < self.max_open;
        match state.slots.get_mut(tenant) {
            Some(Slot::Open { resource, used }) if !resource.is_broken() => {
                *used = state.uses;
                return Ok(Found::Ready(self.handle_on(resource)));
            }
            Some(Slot::Opening(opened)) => return Ok(Found::Opening(opened.clone())),
            Some(Slot::Open { .. }) => drop(self.start_closing(state, tenant)),
            Some(Slot::Closing(_)) => {}
            None if room => {
                let (answer, opened) = watch::channel(None);
                state.slots.insert(tenant.clone(), Slot::Opening(opened));
                return Ok(Found::Vacant(answer));
            }
            None => {
                // Each newcomer makes one place; woken again, it relies on those that are being
                // made.
                let making_room = state
                    .slots
                    .values()
                    .any(|slot| matches!(slot, Slot::Closing(_)));
                if (first_look || !making_room)
                    && let Some(idle) = state.least_recently_used(tenant)
                {
                    drop(self.start_closing(state, &idle));
                }
            }
        }
        Ok(Found::Wait)
    }

    /// Opens a tenant into the slot that was taken for it.
    async fn fill<F>(
        self: Arc<Self>,
        tenant: TenantId,
        open: impl Fn() -> F + Send + 'static,
        answer: watch::Sender<Option<Result<TenantHandle<R>, StoreError>>>,
    ) where
        F: Future<Output = Result<R, StoreError>> + Send + 'static,
    {
        let started = std::time::Instant::now();
        let result = loop {
            // In a task of its own, so that a panic in it does not leave the slot taken.
            let opening = acting_as(actor(), open().in_current_span());
            let result = joined(&tenant, short_task(opening).await);
            match &result {
                Err(error) if error.is_exhaustion() && self.give_way(&tenant, error).await => {}
                _ => break result,
            }
        };
        metrics::OPENING_SECONDS.record(metrics::since(started));
        metrics::count(&result, &metrics::OPENED, &metrics::OPENING_FAILED);
        let result = {
            let mut state = self.state();
            match result {
                Ok(resource) => {
                    let resource = Arc::new(resource);
                    let handle = self.handle_on(&resource);
                    let used = state.uses;
                    state.slots.insert(tenant, Slot::Open { resource, used });
                    Ok(handle)
                }
                Err(error) => {
                    state.slots.remove(&tenant);
                    Err(error)
                }
            }
        };
        answer.send_replace(Some(result));
        self.changed.notify_waiters();
    }

    /// Closes the tenant that is idle longest, for `tenant` to be opened. `false` when all are in
    /// use.
    pub(super) async fn give_way(self: &Arc<Self>, tenant: &TenantId, error: &StoreError) -> bool {
        let closing = {
            let mut state = self.state();
            let idle = state.least_recently_used(tenant);
            let closing = idle.and_then(|idle| self.start_closing(&mut state, &idle));
            let open = state.slots.len();
            tracing::warn!(%tenant, open, %error, "the process has nothing left to open a tenant with, or a connection to it; the one idle longest is closed");
            closing
        };
        match closing {
            // Closed badly, it has let go of what it had all the same.
            Some(closing) => closing.await.is_ok(),
            None => false,
        }
    }

    /// Waits for an opening under way.
    async fn opened(
        &self,
        tenant: &TenantId,
        mut opened: Opened<R>,
    ) -> Result<TenantHandle<R>, StoreError> {
        match opened.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            Ok(None) | Err(_) => Err(StoreError::Closed {
                tenant: tenant.clone(),
            }),
        }
    }

    /// Starts to close an open tenant; its slot stays taken until it is closed.
    fn start_closing(
        self: &Arc<Self>,
        state: &mut State<R>,
        tenant: &TenantId,
    ) -> Option<JoinHandle<Result<(), StoreError>>> {
        let slot = state.slots.get_mut(tenant)?;
        let Slot::Open { resource, .. } = slot else {
            return None;
        };
        let resource = Arc::clone(resource);
        *slot = Slot::Closing(Arc::downgrade(&resource));
        let (registry, tenant) = (Arc::clone(self), tenant.clone());
        Some(short_task(async move {
            let closing = short_task(async move { resource.close().await });
            let result = joined(&tenant, closing.await);
            metrics::count(&result, &metrics::CLOSED, &metrics::CLOSING_FAILED);
            if let Err(error) = &result {
                tracing::warn!(%tenant, %error, "a tenant was not closed cleanly; its next opening recovers it");
            }
            registry.state().slots.remove(&tenant);
            registry.changed.notify_waiters();
            result
        }))
    }

    fn handle_on(&self, resource: &Arc<R>) -> TenantHandle<R> {
        TenantHandle {
            resource: Arc::clone(resource),
            freed: Freed(Arc::clone(&self.changed)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        // Every change under the lock is one statement: a panic leaves no half of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> State<R> {
    /// The open tenant that nobody uses and that was used longest ago, but not `asking` itself: its
    /// writer may work for who has gone.
    fn least_recently_used(&self, asking: &TenantId) -> Option<TenantId> {
        self.slots
            .iter()
            .filter_map(|(tenant, slot)| match slot {
                // New handles are made under the lock alone, so a count of one stays one.
                Slot::Open { resource, used }
                    if tenant != asking && Arc::strong_count(resource) == 1 =>
                {
                    Some((used, tenant))
                }
                _ => None,
            })
            .min()
            .map(|(_, tenant)| tenant.clone())
    }
}

/// The result of a task of its own. One that panicked has said so in the log; its caller learns
/// that nothing came of it.
fn joined<T>(
    tenant: &TenantId,
    result: Result<Result<T, StoreError>, tokio::task::JoinError>,
) -> Result<T, StoreError> {
    result.unwrap_or_else(|error| {
        tracing::error!(%tenant, %error, "a task of this tenant ended early");
        Err(StoreError::Closed {
            tenant: tenant.clone(),
        })
    })
}

impl<R> Clone for TenantHandle<R> {
    fn clone(&self) -> Self {
        Self {
            resource: Arc::clone(&self.resource),
            freed: Freed(Arc::clone(&self.freed.0)),
        }
    }
}

impl<R> Deref for TenantHandle<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.resource
    }
}

impl<R: Resource> Drop for Barred<R> {
    fn drop(&mut self) {
        self.registry.state().barred.remove(&self.tenant);
    }
}

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
