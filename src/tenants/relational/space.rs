//! Where the tables of an open tenant are, and how statements reach them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nimbus_manifests::TenantId;

use super::engine::{
    Connection as _, Engine, Failure, FailureKind, Malformed, Row, Statement, Stops, Value, spell,
    values,
};
use super::sealed::Seal;
use crate::budget;
use crate::tenants::StoreError;
use crate::tenants::error::{EngineFault, Limit};

/// An open tenant, shared by its connections.
pub(super) struct Space<E> {
    pub(super) tenant: TenantId,
    pub(super) engine: Arc<E>,
    name: String,
    /// What tells the tenant from an earlier one of its name.
    pub(super) incarnation: [u8; 16],
    /// What seals its values, if the tenant is sealed.
    pub(super) seal: Option<Seal>,
    /// The tenant is not what it was when it was opened: it is opened afresh.
    lost: AtomicBool,
}

impl<E> fmt::Debug for Space<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Space").field(&self.name).finish()
    }
}

impl<E: Engine> Space<E> {
    /// The space of a tenant whose values are not looked at.
    pub(super) fn new(engine: &Arc<E>, tenant: &TenantId) -> Self {
        Self::of(engine, tenant, [0; 16], None)
    }

    /// The space of a tenant that is opened.
    pub(super) fn of(
        engine: &Arc<E>,
        tenant: &TenantId,
        incarnation: [u8; 16],
        seal: Option<Seal>,
    ) -> Self {
        Self {
            seal,
            tenant: tenant.clone(),
            engine: Arc::clone(engine),
            name: engine.tenant_space(tenant),
            incarnation,
            lost: AtomicBool::new(false),
        }
    }

    /// A statement in the words of the engine.
    pub(super) fn spell(&self, sql: &str) -> String {
        spell(&*self.engine, &self.name, sql)
    }

    pub(super) fn statement(&self, sql: &str, values: Vec<Value>) -> Statement {
        Statement {
            sql: self.spell(sql),
            values,
        }
    }

    /// A table of the provider, in the words of the engine.
    pub(super) fn of_provider(&self, table: &str) -> String {
        let mut name = String::new();
        let space = self.engine.provider_space();
        self.engine.table(space, table, &mut name);
        name
    }

    /// What notes for all servers when the tenant's first work is due: in the transaction that has
    /// it so, and after all else of it.
    pub(super) fn noting_due(&self) -> [Statement; 2] {
        let (due, name) = (self.of_provider("due"), self.tenant.as_str());
        let note = format!(
            "INSERT INTO {due} (name, at) SELECT ?, at FROM (SELECT min(due) AS at FROM
             (SELECT min(due) AS due FROM @jobs UNION ALL SELECT min(due) AS due FROM @crons) AS both_) AS first_ WHERE at IS NOT NULL"
        );
        [
            self.statement(&format!("DELETE FROM {due} WHERE name = ?"), values![name]),
            self.statement(&note, values![name]),
        ]
    }

    /// The tenant is to be opened afresh.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// What a failure of the engine means for the tenant.
    pub(super) fn failed(&self, failure: Failure) -> StoreError {
        let tenant = self.tenant.clone();
        let busy = |what| StoreError::Busy {
            what,
            tenant: tenant.clone(),
        };
        let fault = match failure.kind {
            FailureKind::Exhausted => return busy(Limit::Connections),
            FailureKind::Undone => return busy(Limit::Contention),
            FailureKind::Missing => {
                self.lose();
                return StoreError::Closed { tenant };
            }
            FailureKind::Statement | FailureKind::Duplicate => EngineFault::Statement,
            FailureKind::Lost | FailureKind::Stopped | FailureKind::Refused => EngineFault::Machine,
        };
        StoreError::Engine {
            tenant,
            fault,
            source: failure.source,
        }
    }

    /// A stored value that no version of Nimbus has written.
    pub(super) fn malformed(&self, what: Malformed) -> StoreError {
        StoreError::Corrupt {
            tenant: self.tenant.clone(),
            source: Arc::new(what),
        }
    }

    /// Takes room in memory for part of an answer.
    pub(super) fn take_room(&self, bytes: usize) -> Result<(), StoreError> {
        budget::take(bytes).map_err(|_refused| StoreError::Busy {
            what: Limit::BufferedBytes,
            tenant: self.tenant.clone(),
        })
    }
}

/// Does some work on a connection; again, on another, while the engine is away or undoes it. Such
/// work changes nothing, or is the beginning of a transaction.
pub(super) fn patiently<E: Engine, T>(
    engine: &E,
    stops: &Stops,
    mut work: impl FnMut(&mut E::Connection) -> Result<T, Failure>,
) -> Result<(T, E::Connection), Failure> {
    let until = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        let done = engine.connect(stops).and_then(|mut connection| {
            let done = work(&mut connection)?;
            Ok((done, connection))
        });
        match done {
            Err(failure)
                if matches!(failure.kind, FailureKind::Lost | FailureKind::Undone)
                    && Instant::now() + pause < until
                    && !stops.is_set() =>
            {
                thread::sleep(pause);
                pause = (pause * 2).min(LAST_PAUSE);
            }
            done => return done,
        }
    }
}

/// The same for one statement by itself.
pub(super) fn ask<E: Engine>(
    engine: &E,
    stops: &Stops,
    statement: &Statement,
) -> Result<Vec<Row>, Failure> {
    let statements = std::slice::from_ref(statement);
    let (mut rows, connection) = patiently(engine, stops, |connection| {
        connection.run(statements, stops)
    })?;
    connection.give_back();
    Ok(rows.pop().unwrap_or_default())
}

/// How long an engine that is away is waited for: a restart, or another that takes its place.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);
