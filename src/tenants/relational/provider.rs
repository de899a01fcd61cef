//! The tenants of a database, as the core uses them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::{
    catalog::{Catalog, Shared, State, failed},
    columns::CURSOR_KEY,
    engine::{Connection as _, Engine, FailureKind, Malformed, Statement, Stops, values},
    reader::Reader,
    sealed::{self, Seal},
    space::{Space, ask},
    storage::RelationalStorage,
    watch::watch,
};
use crate::control::{AccessKeyId, KeyRecord};
use crate::envelope::{Envelope, Event, EventKind, EventOutcome, Intent};
use crate::runtime::{self, Background, Kept, blocking};
use crate::tenants::backend::{Arrival, Backend, JobRows as _, Opened, OpenedConnection};
use crate::tenants::error::NoRoom;
use crate::tenants::lifecycle::LifecycleOptions;
use crate::tenants::others::{Claim, SharedStanding, SharedTenants};
use crate::tenants::{
    CURSOR_KEY_BYTES, DeletionLog, DueLog, ReaderLimits, StoreError, Tenants, Unscheduled,
};

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
    /// Whether tenants are sealed before they reach the database: those that are made are, and
    /// those that are not are not opened.
    pub seal: bool,
}

impl Default for RelationalOptions {
    fn default() -> Self {
        Self {
            max_open_tenants: 256,
            readers: ReaderLimits::default(),
            open_patience: Duration::from_secs(5),
            due: Arc::new(Unscheduled),
            seal: false,
        }
    }
}

/// A database with tenants.
#[derive(Debug)]
pub struct Relational<E: Engine> {
    catalog: Arc<Catalog<E>>,
    shared: Arc<Shared<E>>,
    envelope: Envelope,
    /// Whether tenants are made sealed, and no others are opened.
    seals: bool,
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
            envelope: envelope.clone(),
            seals: options.seal,
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

/// What a tenant is opened by.
struct Found {
    incarnation: [u8; 16],
    /// As it is stored.
    cursor_key: Zeroizing<Vec<u8>>,
    /// Of a sealed one.
    manifest: Option<Vec<u8>>,
}

/// Looks at a tenant in the database. Blocks.
fn find<E: Engine>(catalog: &Arc<Catalog<E>>, tenant: &TenantId) -> Result<Found, StoreError> {
    let engine = &catalog.engine;
    let space = Space::new(engine, tenant);
    let head = space.statement(
        &format!(
            "SELECT h.incarnation, h.cursor_key, t.manifest FROM @head h JOIN {} t ON t.incarnation = h.incarnation
             WHERE h.one = 1 AND t.name = ? AND t.state = {}",
            space.of_provider("tenants"),
            State::There as i64
        ),
        values![tenant.as_str()],
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
    let closed = || StoreError::Closed {
        tenant: tenant.clone(),
    };
    let Some(row) = rows.first_mut() else {
        // It is being made anew, or its deletion has begun.
        catalog.look()?;
        return Err(closed());
    };
    let mut read = || {
        Ok(Found {
            incarnation: row.array(0)?,
            cursor_key: Zeroizing::new(row.bytes(1)?),
            manifest: row.maybe_bytes(2)?,
        })
    };
    let found = read().map_err(|what| space.malformed(what))?;
    if !catalog.knows(tenant, &found.incarnation) {
        // Who asks was let in by what is known of an earlier tenant of this name.
        catalog.look()?;
        return Err(closed());
    }
    Ok(found)
}

/// Opens a tenant that was found, and whose key was had if it is sealed. Blocks.
fn establish<E: Engine>(
    catalog: &Arc<Catalog<E>>,
    tenant: &TenantId,
    found: Found,
    seal: Option<Seal>,
) -> Result<Opened<RelationalStorage<E>>, StoreError> {
    let Found {
        incarnation,
        mut cursor_key,
        ..
    } = found;
    let space = Space::of(&catalog.engine, tenant, incarnation, seal);
    let stored = std::mem::take(&mut *cursor_key);
    let opened = space.open(CURSOR_KEY, || values![&incarnation], stored);
    let opened = Zeroizing::new(opened.map_err(|what| space.malformed(what))?);
    let cursor_key: Result<[u8; CURSOR_KEY_BYTES], _> = opened[..].try_into();
    let cursor_key = cursor_key.map_err(|_| space.malformed(Malformed::of("the head")))?;
    let cursor_key = Zeroizing::new(cursor_key);
    let space = Arc::new(space);
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
        let place = self.catalog.place_of(tenant);
        let subject = sealed::subject(tenant);
        let failed = |error| sealed::not_opened(tenant, error);
        if matches!(intent, Intent::Create) {
            let draft = match self.seals {
                false => None,
                true => {
                    let draft = self.envelope.draft(&place, &subject).await;
                    Some(draft.map_err(failed)?)
                }
            };
            let (catalog, envelope) = (Arc::clone(&self.catalog), self.envelope.clone());
            let owner = tenant.clone();
            blocking(move || {
                let Some(draft) = draft else {
                    return catalog.create(&owner, None);
                };
                let (seal, text) = (Seal::of(&envelope, draft.file()), draft.text());
                let create = || catalog.create(&owner, Some((&seal, &text)));
                let stored = envelope.store_draft(&draft, create);
                stored.unwrap_or_else(|error| Err(sealed::not_opened(&owner, error)))
            })
            .await?;
        }
        let (catalog, owner) = (Arc::clone(&self.catalog), tenant.clone());
        let found = blocking(move || find(&catalog, &owner)).await?;
        let seal = match &found.manifest {
            None if self.seals => {
                return Err(StoreError::NotSealed {
                    tenant: tenant.clone(),
                });
            }
            None => None,
            Some(text) => {
                let file = self.envelope.open_row(&place, &subject, text).await;
                let file = file.map_err(failed)?;
                let event = Event::new(EventKind::Open, EventOutcome::Done).of(file.manifest());
                self.envelope.note(event);
                Some(Seal::of(&self.envelope, &file))
            }
        };
        let (catalog, owner) = (Arc::clone(&self.catalog), tenant.clone());
        blocking(move || establish(&catalog, &owner, found, seal)).await
    }

    fn forget(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.catalog.clear(tenant)
    }

    async fn arrive(
        &self,
        tenant: &TenantId,
    ) -> Result<Arrival<RelationalStorage<E>, [u8; 16]>, StoreError> {
        // What arrives is not sealed.
        if self.seals {
            let tenant = tenant.clone();
            return Err(StoreError::NotSealed { tenant });
        }
        let (catalog, name) = (Arc::clone(&self.catalog), tenant.clone());
        let incarnation = blocking(move || catalog.arrive(&name)).await?;
        let space = Space::of(&self.catalog.engine, tenant, incarnation, None);
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
