//! Which tenants a database has, and their creation and deletion.
//!
//! Each is a state in the provider's table, which any server brings to its end. What a start, or the
//! next call, finds after a crash:
//!
//! | state | crash point | then |
//! | --- | --- | --- |
//! | being created, no tables | `tenants::relational::create-noted` | it is no tenant; creating it begins anew |
//! | exists (with its tables, one transaction) | `tenants::relational::created` | it is a tenant |
//! | being deleted, all tables there | `tenants::relational::delete-noted` | it is no tenant; its tables are removed |
//! | no row, no tables (one transaction) | `tenants::relational::deleted` | nothing is left |
//!
//! An engine whose DDL commits by itself passes through states between: a tenant that is being
//! created may have some tables, and one that is being deleted may have lost some. Both are handled
//! alike, for creation begins by removing what there is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::{
    engine::{
        Connection as _, Engine, Failure, FailureKind, Malformed, Row, Statement, Stops, Value,
        spell, values,
    },
    layout,
    reader::{COMMIT, ROLLBACK, Reader},
    store::{RelationalStorage, Space, ask, patiently},
};
use crate::envelope::{Envelope, Intent};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::backend::{Backend, JobRows as _, Opened, OpenedConnection};
use crate::tenants::error::NoRoom;
use crate::tenants::lifecycle::LifecycleOptions;
use crate::tenants::{CURSOR_KEY_BYTES, DeletionLog, DueLog, StoreError, Tenants, Unscheduled};

/// How many tenants are kept open, and what each may use.
#[derive(Debug, Clone)]
pub struct RelationalOptions {
    /// Tenants open at once. A further one makes the least recently used one close.
    pub max_open_tenants: usize,
    /// Reads of each tenant at once.
    pub readers_per_tenant: u32,
    /// How long a request waits while all open tenants are in use, before it is refused.
    pub open_patience: Duration,
    /// Who is told when work will be due.
    pub due: Arc<dyn DueLog>,
}

impl Default for RelationalOptions {
    fn default() -> Self {
        Self {
            max_open_tenants: 256,
            readers_per_tenant: 4,
            open_patience: Duration::from_secs(5),
            due: Arc::new(Unscheduled),
        }
    }
}

/// A database with tenants.
#[derive(Debug)]
pub struct Relational<E> {
    engine: Arc<E>,
}

impl<E: Engine> Tenants<Relational<E>> {
    /// The tenants in the database of an engine. Makes the provider's tables where there are none, and
    /// carries deletions to their end that a crash cut short.
    pub(super) async fn on(
        engine: E,
        envelope: Envelope,
        deletions: Arc<dyn DeletionLog>,
        options: RelationalOptions,
    ) -> Result<Self, StoreError> {
        let engine = Arc::new(engine);
        let making = Arc::clone(&engine);
        let database = Relational { engine };
        blocking(move || Relational { engine: making }.establish()).await?;
        let options = LifecycleOptions {
            max_open_tenants: options.max_open_tenants,
            open_patience: options.open_patience,
            readers_per_tenant: options.readers_per_tenant,
            due: options.due,
        };
        Self::start(database, envelope, deletions, options).await
    }
}

/// How far a tenant's creation or deletion has come, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Creating = 1,
    There = 2,
    Deleting = 3,
}

impl State {
    fn stored(row: &Row, column: usize) -> Result<Self, Malformed> {
        match row.integer(column)? {
            1 => Ok(Self::Creating),
            2 => Ok(Self::There),
            3 => Ok(Self::Deleting),
            _ => Err(Malformed("a state")),
        }
    }
}

/// What the tables of the provider say that no version of this one can go on with.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(
        "the tables in {space} were made by a newer Nimbus (layout {found}, this one knows {known}): start that version again",
        known = layout::VERSION
    )]
    TooNew { space: String, found: i64 },
    #[error("the tables in {space} are not Nimbus's: {what}; name another space for them")]
    Foreign { space: String, what: Malformed },
}

impl<E: Engine> Relational<E> {
    /// Makes the provider's tables where there are none.
    fn establish(&self) -> Result<(), StoreError> {
        let version = self.statement("SELECT version FROM @layout", Vec::new());
        let found = match self.ask(&version) {
            Err(Failure {
                kind: FailureKind::Missing,
                ..
            }) => {
                let space = self.engine.provider_space();
                let mut statements = vec![
                    Statement::bare(E::BEGIN),
                    Statement::bare(&self.engine.create_space(space)),
                ];
                let tables = layout::PROVIDER.iter();
                statements.extend(tables.map(|sql| self.statement(sql, Vec::new())));
                statements.push(Statement::bare(COMMIT));
                self.transaction(&statements)?;
                self.ask(&version)
            }
            found => found,
        };
        let found = found.map_err(failed)?;
        let Some(row) = found.first() else {
            let sql = "INSERT INTO @layout (one, version) VALUES (1, ?)";
            let noted = self.ask(&self.statement(sql, values![layout::VERSION]));
            return noted.map(drop).map_err(failed);
        };
        let space = || self.engine.provider_space().to_owned();
        let unusable = match row.integer(0) {
            Ok(found) if found <= layout::VERSION => return Ok(()),
            Ok(found) => Unusable::TooNew {
                space: space(),
                found,
            },
            Err(what) => Unusable::Foreign {
                space: space(),
                what,
            },
        };
        Err(StoreError::Provider {
            source: Arc::new(unusable),
        })
    }

    fn statement(&self, sql: &str, values: Vec<Value>) -> Statement {
        let space = self.engine.provider_space();
        Statement {
            sql: spell(&*self.engine, space, sql),
            values,
        }
    }

    fn ask(&self, statement: &Statement) -> Result<Vec<Row>, Failure> {
        ask(&*self.engine, &Stops::default(), statement)
    }

    /// A transaction that can be done again.
    fn transaction(&self, statements: &[Statement]) -> Result<(), StoreError> {
        let stops = Stops::default();
        let done = patiently(&*self.engine, &stops, |session| {
            session.run(statements, &stops)
        });
        let (_none, session) = done.map_err(failed)?;
        session.give_back();
        Ok(())
    }

    fn state(&self, tenant: &TenantId) -> Result<Option<State>, StoreError> {
        let rows = self.ask(&self.statement(
            "SELECT state FROM @tenants WHERE name = ?",
            values![tenant.as_str()],
        ));
        let state = rows
            .map_err(failed)?
            .first()
            .map(|row| State::stored(row, 0));
        state.transpose().map_err(malformed)
    }

    /// Creates a tenant that does not exist, whatever is left of one.
    fn create(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let exists = || StoreError::TenantExists {
            tenant: tenant.clone(),
        };
        match self.state(tenant)? {
            Some(State::There) => return Err(exists()),
            Some(State::Deleting) => self.remove(tenant)?,
            Some(State::Creating) | None => {}
        }
        if self.state(tenant)?.is_none() {
            let noted = self.ask(&self.statement(
                "INSERT INTO @tenants (name, state) VALUES (?, ?)",
                values![tenant.as_str(), State::Creating as i64],
            ));
            let _none = noted.map_err(failed)?;
        }
        crash_point!("tenants::relational::create-noted");
        let locking = [
            Statement::bare(E::BEGIN),
            self.statement(
                &format!("SELECT state FROM @tenants WHERE name = ?{}", E::LOCKING),
                values![tenant.as_str()],
            ),
        ];
        let stops = Stops::default();
        let begun = patiently(&*self.engine, &stops, |session| {
            session.run(&locking, &stops)
        });
        let (rows, mut session) = begun.map_err(failed)?;
        // Another server may have been faster, and it may be a tenant with documents by now.
        let state = rows[1].first().map(|row| State::stored(row, 0));
        if state.transpose().map_err(malformed)? != Some(State::Creating) {
            let _none = session
                .run(&[Statement::bare(ROLLBACK)], &stops)
                .map_err(failed)?;
            session.give_back();
            return Err(exists());
        }
        let made = session.run(&self.making(tenant)?, &stops);
        let _none = made.map_err(failed)?;
        session.give_back();
        crash_point!("tenants::relational::created");
        Ok(())
    }

    /// What makes a tenant's tables.
    fn making(&self, tenant: &TenantId) -> Result<Vec<Statement>, StoreError> {
        let (mut incarnation, mut key) = ([0; 16], Zeroizing::new([0; CURSOR_KEY_BYTES]));
        OsRandom.fill(&mut incarnation)?;
        OsRandom.fill(&mut *key)?;
        let name = self.engine.tenant_space(tenant);
        let space = Space::new(&self.engine, tenant, incarnation);
        let mut statements = vec![
            Statement::bare(&self.engine.drop_space(&name)),
            Statement::bare(&self.engine.create_space(&name)),
        ];
        let tables = layout::TENANT.iter();
        statements.extend(tables.map(|sql| space.statement(sql, Vec::new())));
        statements.push(space.statement(
            "INSERT INTO @head (one, seq, commits, structure, incarnation, cursor_key) VALUES (1, 0, 0, 0, ?, ?)",
            values![&incarnation, &key[..]],
        ));
        statements.push(self.statement(
            "UPDATE @tenants SET state = ? WHERE name = ?",
            values![State::There as i64, tenant.as_str()],
        ));
        statements.push(Statement::bare(COMMIT));
        Ok(statements)
    }

    /// Removes a tenant's tables, and then its row.
    fn remove(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let noted = self.ask(&self.statement(
            "UPDATE @tenants SET state = ? WHERE name = ?",
            values![State::Deleting as i64, tenant.as_str()],
        ));
        let _none = noted.map_err(failed)?;
        crash_point!("tenants::relational::delete-noted");
        let space = self.engine.tenant_space(tenant);
        self.transaction(&[
            Statement::bare(E::BEGIN),
            Statement::bare(&self.engine.drop_space(&space)),
            self.statement(
                "DELETE FROM @tenants WHERE name = ?",
                values![tenant.as_str()],
            ),
            Statement::bare(COMMIT),
        ])?;
        crash_point!("tenants::relational::deleted");
        Ok(())
    }

    fn open_or_create(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> Result<Opened<RelationalStorage<E>>, StoreError> {
        if matches!(intent, Intent::Create) {
            self.create(tenant)?;
        } else if self.state(tenant)? != Some(State::There) {
            return Err(StoreError::TenantNotFound {
                tenant: tenant.clone(),
            });
        }
        let space = Space::new(&self.engine, tenant, [0; 16]);
        let head = space.statement(
            "SELECT incarnation, cursor_key FROM @head WHERE one = 1",
            Vec::new(),
        );
        let mut rows = self.ask(&head).map_err(|failure| space.failed(failure))?;
        let mut read = || {
            let row = rows.first_mut().ok_or(Malformed("the head"))?;
            Ok((row.array(0)?, Zeroizing::new(row.array(1)?)))
        };
        let (incarnation, cursor_key) = read().map_err(|what| space.malformed(what))?;
        let space = Arc::new(Space::new(&self.engine, tenant, incarnation));
        let mut reader = Reader::new(&space);
        let earliest_due = reader.earliest_due()?;
        Ok(Opened {
            storage: RelationalStorage(space),
            connection: OpenedConnection::Reader(reader),
            halted: Arc::default(),
            cursor_key,
            earliest_due,
        })
    }

    fn share(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
        }
    }
}

#[async_trait]
impl<E: Engine> Backend for Relational<E> {
    type Storage = RelationalStorage<E>;

    /// What is known elsewhere is no tenant here: it has no manifests, and the database says which
    /// tenants it has.
    fn list(&self, _known: BTreeSet<TenantId>) -> Result<BTreeSet<TenantId>, StoreError> {
        let rows = self.ask(&self.statement("SELECT name, state FROM @tenants", Vec::new()));
        let mut tenants = BTreeSet::new();
        for mut row in rows.map_err(failed)? {
            let state = State::stored(&row, 1).map_err(malformed)?;
            let name = row.text(0).map_err(malformed)?.parse();
            let tenant: TenantId = name.map_err(|_| malformed(Malformed("a tenant's id")))?;
            match state {
                State::There => {
                    let _new = tenants.insert(tenant);
                }
                State::Deleting => {
                    if let Err(error) = self.remove(&tenant) {
                        tracing::error!(%tenant, %error, "a tenant's deletion could not be finished; the next start tries again");
                    }
                }
                State::Creating => {}
            }
        }
        Ok(tenants)
    }

    fn exists(&self, tenant: &TenantId) -> bool {
        matches!(self.state(tenant), Ok(Some(State::There)))
    }

    async fn open(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> Result<Opened<RelationalStorage<E>>, StoreError> {
        let (database, tenant) = (self.share(), tenant.clone());
        blocking(move || database.open_or_create(&tenant, intent)).await
    }

    fn forget(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.remove(tenant)
    }

    fn no_room(&self) -> Option<NoRoom> {
        None
    }

    async fn check(&self) -> Result<(), StoreError> {
        let database = self.share();
        blocking(move || {
            let stops = Stops::default();
            let mut session = database.engine.connect(&stops).map_err(failed)?;
            let one = [Statement::bare("SELECT 1")];
            let _one = session.run(&one, &stops).map_err(failed)?;
            session.give_back();
            Ok(())
        })
        .await
    }
}

fn failed(failure: Failure) -> StoreError {
    StoreError::Provider {
        source: failure.source,
    }
}

fn malformed(what: Malformed) -> StoreError {
    StoreError::Provider {
        source: Arc::new(what),
    }
}
