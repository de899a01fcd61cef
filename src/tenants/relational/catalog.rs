//! What all servers on a database go by: which tenants there are, whether they are locked, and the
//! access keys. It is in the provider's tables, and in the memory of each server.
//!
//! Each change counts up one number and stands under it. A server looks at the number every
//! [`POLL`], and reads what stands under higher ones than it knows. **It goes by its memory for
//! [`TRUSTED`] after it began the last look that succeeded**, and refuses after that: a revoked key
//! or a locked tenant is refused by all servers within a second. What is not found is looked for
//! anew before it is refused, so that what one server made the others find at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use tokio::time::timeout;

use super::{
    engine::{
        Connection as _, Engine, Failure, Malformed, Row, Statement, Stops, Value, begin_reading,
        spell, values,
    },
    reader::COMMIT,
    space::{PATIENCE, ask, patiently},
};
use crate::clock::{self, Moment};
use crate::control::{AccessKeyId, KeyIndex, KeyRecord};
use crate::runtime::blocking;
use crate::scheduler::Clock;
use crate::tenants::StoreError;
use crate::tenants::others::{SharedListener, SharedStanding, SharedTenants};

/// What all servers on a database go by.
#[derive(Debug)]
pub struct Catalog<E> {
    pub(super) engine: Arc<E>,
    known: RwLock<Memory>,
    /// Held while the database is looked at and memory changed: looks are taken over in their
    /// order.
    looking: Mutex<()>,
    /// When the last look that succeeded began, and what the engine's clock said when it ended.
    seen: Mutex<Option<Seen>>,
    listener: Mutex<Option<Weak<dyn SharedListener>>>,
    /// Tenants that this server creates or deletes at this moment: it need not be told of that.
    own: Mutex<BTreeSet<TenantId>>,
    /// Counts looks that were asked for, and keeps what came of the last.
    asked: AtomicU64,
    last: tokio::sync::Mutex<(u64, Result<(), StoreError>)>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// `None` where something is known to be missing.
    begun: Option<Moment>,
    ended: Moment,
    engine_ms: i64,
}

/// The memory of one server.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Of the last change that is in it.
    number: i64,
    tenants: BTreeMap<TenantId, TenantRow>,
    pub(super) keys: KeyIndex,
}

/// How far a tenant's creation or deletion has come, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Creating = 1,
    There = 2,
    Deleting = 3,
    /// It is kept for a while, so that servers that look at changes learn of it.
    Gone = 4,
    /// It comes from elsewhere, and is no tenant yet.
    Arriving = 5,
}

/// A row of `tenants`.
#[derive(Debug, Clone)]
pub(super) struct TenantRow {
    pub(super) state: State,
    pub(super) locked: bool,
    /// What tells it from another tenant of its name.
    pub(super) incarnation: Option<Vec<u8>>,
    /// When this server learned of it.
    since: Moment,
}

impl TenantRow {
    /// The columns [`TENANT_ROW`], from one on.
    pub(super) fn stored(row: &mut Row, first: usize) -> Result<Self, Malformed> {
        Ok(Self {
            state: match row.integer(first)? {
                1 => State::Creating,
                2 => State::There,
                3 => State::Deleting,
                4 => State::Gone,
                5 => State::Arriving,
                _ => return Err(Malformed::of("a state")),
            },
            locked: row.integer(first + 1)? != 0,
            incarnation: row.maybe_bytes(first + 2)?,
            since: Moment::now(),
        })
    }

    fn standing(&self) -> SharedStanding {
        match self.state {
            State::There if self.locked => SharedStanding::Locked,
            State::There => SharedStanding::There,
            State::Deleting => SharedStanding::Deleting,
            State::Creating | State::Arriving | State::Gone => SharedStanding::None,
        }
    }
}

impl<E: Engine> Catalog<E> {
    /// The catalog of an engine. Makes the provider's tables where there are none. Blocks.
    pub(super) fn on(engine: E) -> Result<Arc<Self>, StoreError> {
        let catalog = Self::new(engine);
        catalog.establish()?;
        catalog.look()?;
        catalog.check_clock()?;
        Ok(Arc::new(catalog))
    }

    /// The same of who only looks: where there are no tables, none are made. Blocks.
    pub(super) fn looking(engine: E) -> Result<Arc<Self>, StoreError> {
        let catalog = Self::new(engine);
        if catalog.is_established()? {
            catalog.look()?;
        }
        Ok(Arc::new(catalog))
    }

    fn new(engine: E) -> Self {
        Self {
            engine: Arc::new(engine),
            known: RwLock::default(),
            looking: Mutex::default(),
            seen: Mutex::default(),
            listener: Mutex::default(),
            own: Mutex::default(),
            asked: AtomicU64::new(0),
            last: tokio::sync::Mutex::new((0, Ok(()))),
        }
    }

    /// Reads what changed, and takes it into memory. Blocks.
    pub(super) fn look(&self) -> Result<(), StoreError> {
        let _in_order = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Moment::now();
        let sql = format!(
            "SELECT version, number, floor, {} FROM @layout WHERE one = 1",
            E::NOW_MS
        );
        let mut rows = self.ask(&sql, Vec::new()).map_err(failed)?;
        let (number, floor, engine_ms) = self.layout(rows.first_mut())?;
        let ended = Moment::now();
        let before = self.known().number;
        if number != before {
            // A number that went back is of an engine that lost changes, or was put back.
            let continues = floor <= before && before < number;
            self.take_over(if continues { before } else { 0 })?;
        }
        *self.seen() = Some(Seen {
            begun: Some(begun),
            ended,
            engine_ms,
        });
        Ok(())
    }

    /// Takes over the changes after one; after 0 all that there is.
    fn take_over(&self, after: i64) -> Result<(), StoreError> {
        let mut statements = begin_reading::<E>();
        let begun = statements.len();
        statements.extend([
            self.statement("SELECT number FROM @layout WHERE one = 1", Vec::new()),
            self.statement(
                &format!("SELECT name, {TENANT_ROW} FROM @tenants WHERE changed > ?"),
                values![after],
            ),
            self.statement(
                "SELECT id, record FROM @keys WHERE changed > ?",
                values![after],
            ),
            Statement::bare(COMMIT),
        ]);
        let mut rows = self
            .run(&statements)
            .map_err(failed)?
            .into_iter()
            .skip(begun);
        let mut next = || rows.next().unwrap_or_default();
        let number = next().first().map_or(Ok(after), |row| row.integer(0));
        let tenants: Result<Vec<_>, Malformed> = next().into_iter().map(stored_tenant).collect();
        let keys: Result<Vec<_>, Malformed> = next().into_iter().map(stored_key).collect();
        let (number, tenants, keys) = (
            number.map_err(malformed)?,
            tenants.map_err(malformed)?,
            keys.map_err(malformed)?,
        );
        let mut ended = Vec::new();
        let mut known = self.known_mut();
        // All that is there is read anew, and what was not found has gone.
        let mut old = match after {
            0 => std::mem::take(&mut *known).tenants,
            _ => BTreeMap::new(),
        };
        known.number = number;
        for (tenant, row) in tenants {
            let before = old
                .remove(&tenant)
                .or_else(|| known.tenants.remove(&tenant));
            let is_another = before
                .as_ref()
                .is_some_and(|before| before.incarnation != row.incarnation);
            if is_another || row.state == State::Gone {
                known.keys.forget(&tenant);
            }
            if is_another || row.standing() != SharedStanding::There {
                ended.push(tenant.clone());
            }
            if matches!(row.state, State::There | State::Deleting) {
                let _none = known.tenants.insert(tenant, row);
            }
        }
        ended.extend(old.into_keys());
        {
            let own = self.own();
            ended.retain(|tenant| !own.contains(tenant));
        }
        for (id, record) in keys {
            known.keys.insert(id, record);
        }
        drop(known);
        if let Some(listener) = self.listener().filter(|_| !ended.is_empty()) {
            listener.ended(ended);
        }
        Ok(())
    }

    /// Whether memory has this tenant of the name, and so its keys and no other's.
    pub(super) fn knows(&self, tenant: &TenantId, incarnation: &[u8; 16]) -> bool {
        let known = self.known();
        let row = known.tenants.get(tenant);
        row.is_some_and(|row| row.incarnation.as_deref() == Some(incarnation))
    }

    /// Tells of deletions that go on for long.
    pub(super) fn tell_of_abandoned(&self) {
        let Some(listener) = self.listener() else {
            return;
        };
        let now = Moment::now();
        let long = |row: &TenantRow| {
            row.state == State::Deleting && now.saturating_duration_since(row.since) > ABANDONED
        };
        let mut found = Vec::new();
        for (tenant, row) in &mut self.known_mut().tenants {
            if long(row) {
                // Told again after as long.
                row.since = now;
                found.push(tenant.clone());
            }
        }
        found
            .into_iter()
            .for_each(|tenant| listener.abandoned(tenant));
    }

    pub(super) fn statement(&self, sql: &str, values: Vec<Value>) -> Statement {
        let space = self.engine.provider_space();
        Statement {
            sql: spell(&*self.engine, space, sql),
            values,
        }
    }

    pub(super) fn ask(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Row>, Failure> {
        let statement = self.statement(sql, values);
        ask(&*self.engine, &Stops::default(), &statement)
    }

    /// A transaction that can be done again.
    pub(super) fn run(&self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Failure> {
        let stops = Stops::default();
        let (rows, session) = patiently(&*self.engine, &stops, |session| {
            session.run(statements, &stops)
        })?;
        session.give_back();
        Ok(rows)
    }

    /// Whether memory is young enough to go by.
    pub(super) fn is_trusted(&self) -> bool {
        let begun = self.seen().and_then(|seen| seen.begun);
        let now = Moment::now();
        begun.is_some_and(|begun| now.saturating_duration_since(begun) < TRUSTED)
    }

    /// Has memory not be trusted until the next look that succeeds.
    pub(super) fn distrust(&self) {
        if let Some(seen) = &mut *self.seen() {
            seen.begun = None;
        }
    }

    /// Has memory be newer than this call. Those who wait together have one look.
    pub(super) async fn renew(self: &Arc<Self>) -> Result<(), StoreError> {
        let wanted = self.asked.load(Ordering::SeqCst) + 1;
        let mut last = self.last.lock().await;
        if last.0 >= wanted {
            return last.1.clone();
        }
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let catalog = Arc::clone(self);
        // One that goes on for longer ends by itself, and changes memory in its order.
        let looked = timeout(PATIENCE, blocking(move || catalog.look())).await;
        let looked = looked.unwrap_or_else(|_elapsed| Err(self.silent()));
        *last = (number, looked.clone());
        looked
    }

    pub(super) fn known(&self) -> RwLockReadGuard<'_, Memory> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This server creates or deletes a tenant, until the answer is dropped.
    pub(super) fn changing(&self, tenant: &TenantId) -> impl Drop {
        let _new = self.own().insert(tenant.clone());
        Changing(self, tenant.clone())
    }

    fn listener(&self) -> Option<Arc<dyn SharedListener>> {
        let listener = self.listener.lock();
        let listener = listener.unwrap_or_else(PoisonError::into_inner);
        listener.as_ref()?.upgrade()
    }
}

struct Changing<'a, E: Engine>(&'a Catalog<E>, TenantId);

impl<E: Engine> Drop for Changing<'_, E> {
    fn drop(&mut self) {
        let _was_there = self.0.own().remove(&self.1);
    }
}

/// The engine's clock, by what it said last: never ahead of it.
impl<E: Engine> Clock for Catalog<E> {
    fn now_ms(&self) -> i64 {
        let Some(seen) = *self.seen() else {
            return clock::now_ms();
        };
        let since = Moment::now().saturating_duration_since(seen.ended);
        let since = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        seen.engine_ms.saturating_add(since)
    }
}

/// The catalog as the core of the tenants sees it.
#[derive(Debug)]
pub(super) struct Shared<E>(pub(super) Arc<Catalog<E>>);

#[async_trait]
impl<E: Engine> SharedTenants for Shared<E> {
    fn standing(&self, tenant: &TenantId) -> SharedStanding {
        let known = self.0.known();
        let row = known.tenants.get(tenant);
        row.map_or(SharedStanding::None, TenantRow::standing)
    }

    fn list(&self) -> Vec<TenantId> {
        let known = self.0.known();
        let there = known.tenants.iter();
        let there = there.filter(|(_, row)| row.state == State::There);
        there.map(|(tenant, _)| tenant.clone()).collect()
    }

    fn is_fresh(&self) -> bool {
        self.0.is_trusted()
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        self.0.renew().await
    }

    fn set_locked(&self, tenant: &TenantId, locked: bool) -> Result<bool, StoreError> {
        self.0.set_locked(tenant, locked)
    }

    fn tell(&self, listener: Weak<dyn SharedListener>) {
        let mut told = self
            .0
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *told = Some(listener);
    }
}

fn stored_tenant(mut row: Row) -> Result<(TenantId, TenantRow), Malformed> {
    let tenant = row
        .text(0)?
        .parse()
        .map_err(|_| Malformed::of("a tenant's id"))?;
    Ok((tenant, TenantRow::stored(&mut row, 1)?))
}

pub(super) fn stored_key(mut row: Row) -> Result<(AccessKeyId, KeyRecord), Malformed> {
    let id = row
        .text(0)?
        .parse()
        .map_err(|()| Malformed::of("a key's id"))?;
    let record = KeyRecord::from_json(&row.bytes(1)?).map_err(|_| Malformed::of("a key"))?;
    Ok((id, record))
}

pub(super) fn failed(failure: Failure) -> StoreError {
    StoreError::Provider {
        source: failure.source,
    }
}

pub(super) fn malformed(what: Malformed) -> StoreError {
    StoreError::Provider {
        source: Arc::new(what),
    }
}

/// The columns of [`TenantRow`].
pub(super) const TENANT_ROW: &str = "state, locked, incarnation";
/// How often a server looks whether something changed.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// How long a server goes by its memory after it began the last look that succeeded.
const TRUSTED: Duration = Duration::from_millis(900);
/// So long after a change no server goes by what was before it.
pub(in crate::tenants) const SEEN_WITHIN: Duration = Duration::from_secs(1);
/// After this long another server finishes a deletion.
const ABANDONED: Duration = Duration::from_secs(10);
/// How often something is tried again that another server may be in the way of.
pub(super) const ATTEMPTS: usize = 5;
