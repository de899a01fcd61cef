//! The tenants of a database, as the core uses them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::{
    catalog::{Catalog, Shared, failed},
    engine::{Connection as _, Engine, FailureKind, Malformed, Statement, Stops},
    reader::Reader,
    space::{Space, ask},
    storage::RelationalStorage,
    watch::watch,
};
use crate::control::{AccessKeyId, KeyRecord};
use crate::envelope::{Envelope, Intent};
use crate::runtime::{self, Background, Kept, blocking};
use crate::tenants::backend::{Arrival, Backend, JobRows as _, Opened, OpenedConnection};
use crate::tenants::error::NoRoom;
use crate::tenants::lifecycle::LifecycleOptions;
use crate::tenants::others::{Claim, SharedStanding, SharedTenants};
use crate::tenants::{DeletionLog, DueLog, ReaderLimits, StoreError, Tenants, Unscheduled};

/// How many tenants are kept open, and what each may use.
#[derive(Debug, Clone)]
pub struct RelationalOptions {
    /// Tenants open at once. A further one makes the least recently used one close.
    pub max_open_tenants: usize,
    /// Reads of each tenant at once.
    pub readers: ReaderLimits,
    /// How long a request waits while all open tenants are in use, before it is refused.
    pub open_patience: Duration,
    /// Who is told when work will be due.
    pub due: Arc<dyn DueLog>,
}

impl Default for RelationalOptions {
    fn default() -> Self {
        Self {
            max_open_tenants: 256,
            readers: ReaderLimits::default(),
            open_patience: Duration::from_secs(5),
            due: Arc::new(Unscheduled),
        }
    }
}

/// A database with tenants.
#[derive(Debug)]
pub struct Relational<E: Engine> {
    catalog: Arc<Catalog<E>>,
    shared: Arc<Shared<E>>,
    /// Looks what other servers do, for as long as this exists.
    _watch: Kept<()>,
}

impl<E: Engine> Tenants<Relational<E>> {
    /// The tenants in the database of a catalog. Carries deletions to their end that a crash cut
    /// short. `local` is told of creations and deletions, too.
    ///
    /// # Errors
    ///
    /// [`StoreError::Provider`] when the database cannot be used, [`StoreError::Control`] when the
    /// control file fails.
    pub async fn of(
        catalog: Arc<Catalog<E>>,
        envelope: Envelope,
        local: Arc<dyn DeletionLog>,
        options: RelationalOptions,
    ) -> Result<Self, StoreError> {
        let watched = (Arc::downgrade(&catalog), Arc::clone(&options.due));
        let watching = runtime::keep(Background::SharedTenants, move || {
            let (catalog, due) = watched.clone();
            watch(catalog, due)
        });
        let deletions = Arc::new(SharedDeletions {
            catalog: Arc::clone(&catalog),
            local,
        });
        let database = Relational {
            shared: Arc::new(Shared(Arc::clone(&catalog))),
            catalog,
            _watch: watching,
        };
        let options = LifecycleOptions {
            max_open_tenants: options.max_open_tenants,
            open_patience: options.open_patience,
            readers: options.readers,
            due: options.due,
        };
        Self::start(database, envelope, deletions, options).await
    }
}

/// Deletions are states of the database; what this server alone knows of a tenant is forgotten with
/// them.
#[derive(Debug)]
struct SharedDeletions<E> {
    catalog: Arc<Catalog<E>>,
    local: Arc<dyn DeletionLog>,
}

impl<E: Engine> DeletionLog for SharedDeletions<E> {
    fn begin_create(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.local.begin_create(tenant)
    }

    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.catalog.begin_delete(tenant)
    }

    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.local.begin_create(tenant)?;
        self.catalog.finish_delete(tenant)
    }

    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        self.catalog.pending_deletes()
    }
}

fn open_or_create<E: Engine>(
    catalog: &Arc<Catalog<E>>,
    tenant: &TenantId,
    intent: Intent,
) -> Result<Opened<RelationalStorage<E>>, StoreError> {
    if matches!(intent, Intent::Create) {
        catalog.create(tenant)?;
    }
    let engine = &catalog.engine;
    let space = Space::new(engine, tenant, [0; 16]);
    let head = space.statement(
        "SELECT incarnation, cursor_key FROM @head WHERE one = 1",
        Vec::new(),
    );
    let mut rows = ask(&**engine, &Stops::default(), &head).map_err(|failure| {
        match failure.kind {
            // Another server deleted it.
            FailureKind::Missing => StoreError::TenantNotFound {
                tenant: tenant.clone(),
            },
            _ => space.failed(failure),
        }
    })?;
    let mut read = || {
        let row = rows.first_mut().ok_or(Malformed("the head"))?;
        Ok((row.array(0)?, Zeroizing::new(row.array(1)?)))
    };
    let (incarnation, cursor_key) = read().map_err(|what| space.malformed(what))?;
    if !catalog.knows(tenant, &incarnation) {
        // Who asks was let in by what is known of an earlier tenant of this name.
        catalog.look()?;
        return Err(StoreError::Closed {
            tenant: tenant.clone(),
        });
    }
    let space = Arc::new(Space::new(engine, tenant, incarnation));
    let mut reader = Reader::new(&space);
    let earliest_due = reader.earliest_due()?;
    Ok(Opened {
        storage: RelationalStorage::new(space),
        connection: OpenedConnection::Reader(reader),
        halted: Arc::default(),
        cursor_key,
        earliest_due,
    })
}

#[async_trait]
impl<E: Engine> Backend for Relational<E> {
    type Storage = RelationalStorage<E>;
    type Arriving = [u8; 16];

    /// What is known elsewhere is no tenant here: the database says which tenants it has.
    fn list(&self, _known: BTreeSet<TenantId>) -> Result<BTreeSet<TenantId>, StoreError> {
        Ok(self.shared.list().into_iter().collect())
    }

    fn exists(&self, tenant: &TenantId) -> bool {
        // What fails here is told by who asks next.
        self.catalog.look().is_ok()
            && matches!(
                self.shared.standing(tenant),
                SharedStanding::There | SharedStanding::Locked
            )
    }

    async fn open(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> Result<Opened<RelationalStorage<E>>, StoreError> {
        let (catalog, tenant) = (Arc::clone(&self.catalog), tenant.clone());
        blocking(move || open_or_create(&catalog, &tenant, intent)).await
    }

    fn forget(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.catalog.clear(tenant)
    }

    async fn arrive(
        &self,
        tenant: &TenantId,
    ) -> Result<Arrival<RelationalStorage<E>, [u8; 16]>, StoreError> {
        let (catalog, name) = (Arc::clone(&self.catalog), tenant.clone());
        let incarnation = blocking(move || catalog.arrive(&name)).await?;
        let space = Space::new(&self.catalog.engine, tenant, incarnation);
        Ok(Arrival {
            storage: RelationalStorage::arriving(space),
            arriving: incarnation,
        })
    }

    async fn arrived(
        &self,
        tenant: &TenantId,
        arriving: [u8; 16],
        keys: &[(AccessKeyId, KeyRecord)],
    ) -> Result<(), StoreError> {
        let (catalog, tenant) = (Arc::clone(&self.catalog), tenant.clone());
        let keys = keys.to_vec();
        blocking(move || catalog.arrived(&tenant, &arriving, &keys)).await
    }

    async fn turn_away(&self, tenant: &TenantId, arriving: [u8; 16]) -> Result<(), StoreError> {
        let (catalog, tenant) = (Arc::clone(&self.catalog), tenant.clone());
        blocking(move || catalog.turn_away(&tenant, &arriving)).await
    }

    fn shared(&self) -> Option<Arc<dyn SharedTenants>> {
        Some(Arc::clone(&self.shared) as _)
    }

    fn claim(&self, tenant: &TenantId, now_ms: i64) -> Result<Claim, StoreError> {
        self.catalog.claim(tenant, now_ms)
    }

    fn no_room(&self) -> Option<NoRoom> {
        None
    }

    async fn check(&self) -> Result<(), StoreError> {
        let engine = Arc::clone(&self.catalog.engine);
        blocking(move || {
            let stops = Stops::default();
            let mut session = engine.connect(&stops).map_err(failed)?;
            let one = [Statement::bare("SELECT 1")];
            let _one = session.run(&one, &stops).map_err(failed)?;
            session.give_back();
            Ok(())
        })
        .await
    }
}
