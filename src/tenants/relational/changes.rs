//! Changes of what all servers go by: creations, deletions and locks of tenants.
//!
//! Each locks the tenant's row, looks at its state, and goes on from there, whichever server
//! brought it there. What a crash leaves:
//!
//! | state | crash point | then |
//! | --- | --- | --- |
//! | being created, no tables | `tenants::relational::create-noted` | it is no tenant; creating it begins anew |
//! | being created, some tables (*) | `tenants::relational::create-begun` | the same |
//! | being created, all tables, none with a row (*) | `tenants::relational::create-made` | the same |
//! | exists | `tenants::relational::created` | it is a tenant |
//! | being deleted, all tables there | `tenants::relational::delete-noted` | it is no tenant; its deletion is carried on |
//! | being deleted, no tables, keys there (*) | `tenants::relational::delete-dropped` | the same |
//! | being deleted, no tables and no keys | `tenants::relational::deleted` | the same |
//! | gone | `tenants::relational::gone` | nothing is left; the row goes after a while |
//!
//! (*) where DDL is a transaction of its own. Elsewhere one transaction leads past these states.
//!
//! A deletion is carried on by the next start of any server, by the next creation or deletion of
//! the tenant, and by every server that has seen it go on for ten seconds. Two may carry it on at
//! once.
//!
//! **Where DDL commits by itself** the lock on the row does not last. Tables are made while the row
//! says that the tenant is being created by who makes them (its incarnation), and removed while it
//! says that it is being deleted: each such statement looks at the row in the engine itself, so
//! that one of a server that was stopped in between does nothing to the next tenant of the name.
//! Making tables that are there is no failure, for those of a tenant that does not exist yet are
//! empty. Who creates a tenant takes over from another one that is at it, and the other one fails
//! at its end.
//!
//! **The manifest of a sealed tenant** comes with the tenant, in the one transaction that makes it
//! one, and goes in the one that begins its deletion: no state has a tenant without the key that
//! its values are under. Of two servers that create a tenant at once, each has drawn a key, and
//! that of the one whose incarnation the row has is stored. What the other drew was used for
//! nothing.
//!
//! The making of an index is no state: it is part of the transaction that sets the schema.

use std::{thread, time::Instant};

use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::{
    catalog::{ATTEMPTS, Catalog, POLL, State, TENANT_ROW, TenantRow, failed, malformed},
    columns::CURSOR_KEY,
    engine::{Connection as _, Engine, Failure, FailureKind, Statement, Stops, Value, values},
    layout,
    reader::{COMMIT, ROLLBACK},
    sealed::Seal,
    space::{PATIENCE, Space, patiently},
};
use crate::failpoints::crash_point;
use crate::tenants::error::Limit;
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

/// What is done to a tenant whose row was looked at under its lock.
pub(super) enum Decision<T> {
    /// These statements, the last of which end the change of the row's number.
    Do(Vec<Statement>, T),
    /// Nothing.
    Leave(T),
}

impl<E: Engine> Catalog<E> {
    /// Changes something of a tenant under the lock of its row, by what `decide` finds; again where
    /// the connection breaks, so that `decide` may find its own work. What it does is one
    /// transaction, counted as one change, and in memory when this returns.
    pub(super) fn change<T>(
        &self,
        tenant: &TenantId,
        mut decide: impl FnMut(&mut E::Connection, Option<TenantRow>) -> Result<Decision<T>, StoreError>,
    ) -> Result<T, StoreError> {
        let stops = Stops::default();
        let locking = [
            Statement::bare(E::BEGIN),
            self.statement(
                &format!(
                    "SELECT {TENANT_ROW} FROM @tenants WHERE name = ?{}",
                    E::LOCKING
                ),
                values![tenant.as_str()],
            ),
        ];
        let mut attempts = 0;
        loop {
            attempts += 1;
            let begun = patiently(&*self.engine, &stops, |session| {
                session.run(&locking, &stops)
            });
            let (mut rows, mut session) = begun.map_err(failed)?;
            let row = rows[1].first_mut().map(|row| TenantRow::stored(row, 0));
            let decision = row
                .transpose()
                .map_err(malformed)
                .and_then(|row| decide(&mut session, row));
            // Dropped, the session is closed, and what was done on it undone.
            let (statements, result) = match decision? {
                Decision::Do(mut statements, result) => {
                    statements.push(Statement::bare(COMMIT));
                    (statements, result)
                }
                Decision::Leave(result) => (vec![Statement::bare(ROLLBACK)], result),
            };
            match session.run(&statements, &stops) {
                Ok(_) => {
                    session.give_back();
                    if let Err(error) = self.look() {
                        // It is done: only memory does not have it.
                        tracing::warn!(%tenant, %error, "what was changed could not be read again; the next request tries that");
                        self.distrust();
                    }
                    return Ok(result);
                }
                Err(Failure {
                    kind: FailureKind::Lost | FailureKind::Undone,
                    source,
                }) if attempts < ATTEMPTS => {
                    tracing::warn!(%tenant, error = %source, "a change of a tenant was not answered; what became of it is looked up");
                }
                Err(failure) => return Err(failed(failure)),
            }
        }
    }

    /// Counts a change: the statement after which [`NUMBER`] is its number. Others wait from here
    /// on until the transaction ends, so it comes late.
    pub(super) fn count(&self) -> Statement {
        self.statement(
            "UPDATE @layout SET number = number + 1 WHERE one = 1",
            Vec::new(),
        )
    }

    pub(super) fn set_state(&self, tenant: &TenantId, state: State) -> [Statement; 2] {
        let sql = format!("UPDATE @tenants SET state = ?, changed = {NUMBER} WHERE name = ?");
        let values = values![state as i64, tenant.as_str()];
        [self.count(), self.statement(&sql, values)]
    }

    /// Creates a tenant that does not exist, whatever is left of one: sealed, where it gets a
    /// manifest.
    pub(super) fn create(
        &self,
        tenant: &TenantId,
        sealed: Option<(&Seal, &[u8])>,
    ) -> Result<(), StoreError> {
        let (mut incarnation, mut key) = ([0; 16], Zeroizing::new([0; CURSOR_KEY_BYTES]));
        OsRandom.fill(&mut incarnation)?;
        OsRandom.fill(&mut *key)?;
        let key = match sealed {
            None => key[..].to_vec(),
            Some((seal, _manifest)) => {
                seal.seal(CURSOR_KEY, &[Value::from(&incarnation)], &key[..])?
            }
        };
        let manifest = sealed.map(|(_seal, manifest)| manifest);
        let noted = self.ask(
            "INSERT INTO @tenants (name, state, locked, incarnation, changed) VALUES (?, ?, 0, ?, 0)",
            values![tenant.as_str(), State::Creating as i64, &incarnation],
        );
        match noted {
            Ok(_)
            | Err(Failure {
                kind: FailureKind::Duplicate,
                ..
            }) => {}
            Err(failure) => return Err(failed(failure)),
        }
        crash_point!("tenants::relational::create-noted");
        let _changing = self.changing(tenant);
        if E::DDL_COMMITS && self.take_up(tenant, &incarnation)? {
            self.make_tables(tenant, &incarnation, State::Creating)?;
        }
        let created = self.change(tenant, |_, row| {
            let ours = |row: &TenantRow| row.incarnation.as_deref() == Some(&incarnation);
            Ok(match row {
                Some(row) if row.state == State::There => Decision::Leave(ours(&row)),
                // Another server took over.
                Some(row) if E::DDL_COMMITS && (row.state != State::Creating || !ours(&row)) => {
                    Decision::Leave(false)
                }
                // Its row is made by who creates it, and is not removed for long.
                None => Decision::Leave(false),
                Some(_) => Decision::Do(self.making(tenant, &incarnation, &key, manifest), true),
            })
        })?;
        if !created {
            return Err(self.not_created(tenant)?);
        }
        crash_point!("tenants::relational::created");
        Ok(())
    }

    /// Why a tenant was not created: another server does that, which is waited for.
    fn not_created(&self, tenant: &TenantId) -> Result<StoreError, StoreError> {
        let tenant = tenant.clone();
        let until = Instant::now() + PATIENCE;
        loop {
            let row = self.row_of(&tenant)?;
            if row.is_none_or(|row| row.state != State::Creating) {
                return Ok(StoreError::TenantExists { tenant });
            }
            if Instant::now() > until {
                // Who took over may have died.
                return Ok(StoreError::Busy {
                    what: Limit::Contention,
                    tenant,
                });
            }
            thread::sleep(POLL);
        }
    }

    pub(super) fn row_of(&self, tenant: &TenantId) -> Result<Option<TenantRow>, StoreError> {
        let sql = format!("SELECT {TENANT_ROW} FROM @tenants WHERE name = ?");
        let rows = self.ask(&sql, values![tenant.as_str()]).map_err(failed)?;
        let row = rows.into_iter().next();
        let row = row.map(|mut row| TenantRow::stored(&mut row, 0));
        row.transpose().map_err(malformed)
    }

    /// Has a tenant be one that this creation is at; whether it may be.
    fn take_up(&self, tenant: &TenantId, incarnation: &[u8; 16]) -> Result<bool, StoreError> {
        self.clear_arrival(tenant)?;
        self.change(tenant, |_, row| {
            Ok(match row {
                Some(row) if row.incarnation.as_deref() == Some(incarnation) => {
                    Decision::Leave(row.state == State::Creating)
                }
                Some(row) if matches!(row.state, State::Creating | State::Gone) => {
                    let taken = self.statement(
                        "UPDATE @tenants SET state = ?, locked = 0, incarnation = ?, manifest = NULL WHERE name = ?",
                        values![State::Creating as i64, incarnation, tenant.as_str()],
                    );
                    Decision::Do(vec![taken], true)
                }
                _ => Decision::Leave(false),
            })
        })
    }

    /// Makes the tables of a tenant, as long as it is one that this creation, or arrival, is at.
    pub(super) fn make_tables(
        &self,
        tenant: &TenantId,
        incarnation: &[u8; 16],
        state: State,
    ) -> Result<(), StoreError> {
        let row = self.statement(
            "SELECT 1 FROM @tenants WHERE name = ? AND state = ? AND incarnation = ?",
            values![tenant.as_str(), state as i64, incarnation],
        );
        for (number, ddl) in self.tables(tenant).into_iter().enumerate() {
            match self.run(&self.engine.only_where(&row, ddl)) {
                Ok(_)
                | Err(Failure {
                    kind: FailureKind::Duplicate,
                    ..
                }) => {}
                Err(failure) => return Err(failed(failure)),
            }
            if number == layout::TENANT.len() / 2 {
                crash_point!("tenants::relational::create-begun");
            }
        }
        crash_point!("tenants::relational::create-made");
        Ok(())
    }

    /// What makes the space of a tenant, and its tables.
    pub(super) fn tables(&self, tenant: &TenantId) -> Vec<String> {
        let space = Space::new(&self.engine, tenant);
        let name = self.engine.tenant_space(tenant);
        let tables = layout::TENANT.iter().map(|sql| space.spell(sql));
        [self.engine.create_space(&name)]
            .into_iter()
            .chain(tables)
            .collect()
    }

    /// What makes a tenant one: its tables, in place of whatever is left of an earlier one, unless
    /// they are made already.
    fn making(
        &self,
        tenant: &TenantId,
        incarnation: &[u8; 16],
        key: &[u8],
        manifest: Option<&[u8]>,
    ) -> Vec<Statement> {
        let space = Space::new(&self.engine, tenant);
        let mut statements = self.clearing(tenant);
        if !E::DDL_COMMITS {
            let tables = self.tables(tenant).into_iter();
            statements.extend(tables.map(|ddl| Statement::bare(&ddl)));
        }
        statements.push(space.statement(
            "INSERT INTO @head (one, seq, commits, structure, incarnation, cursor_key) VALUES (1, 0, 0, 0, ?, ?)",
            values![incarnation, key],
        ));
        statements.push(self.statement(
            "UPDATE @tenants SET locked = 0, incarnation = ?, manifest = ? WHERE name = ?",
            values![incarnation, manifest, tenant.as_str()],
        ));
        statements.extend(self.set_state(tenant, State::There));
        statements
    }

    /// What removes a tenant's tables, unless [`Self::drop_tables`] did, its keys, and when it is
    /// due.
    pub(super) fn clearing(&self, tenant: &TenantId) -> Vec<Statement> {
        let name = self.engine.tenant_space(tenant);
        let tables = (!E::DDL_COMMITS).then(|| Statement::bare(&self.engine.drop_space(&name)));
        let rows = [
            self.statement(
                "DELETE FROM @keys WHERE tenant = ?",
                values![tenant.as_str()],
            ),
            self.statement("DELETE FROM @due WHERE name = ?", values![tenant.as_str()]),
        ];
        tables.into_iter().chain(rows).collect()
    }

    /// Removes the tables of a tenant whose deletion has begun.
    fn drop_tables(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let row = self.statement(
            "SELECT 1 FROM @tenants WHERE name = ? AND state = ?",
            values![tenant.as_str(), State::Deleting as i64],
        );
        let ddl = self.engine.drop_space(&self.engine.tenant_space(tenant));
        self.run(&self.engine.only_where(&row, ddl))
            .map(drop)
            .map_err(failed)
    }

    /// Begins a deletion: from here on it is no tenant.
    pub(super) fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _changing = self.changing(tenant);
        self.change(tenant, |_, row| match row.map(|row| row.state) {
            Some(State::There | State::Creating | State::Arriving) => {
                // The key goes first: nothing of it opens from here on.
                let mut statements = vec![self.statement(
                    "UPDATE @tenants SET manifest = NULL WHERE name = ?",
                    values![tenant.as_str()],
                )];
                statements.extend(self.set_state(tenant, State::Deleting));
                Ok(Decision::Do(statements, ()))
            }
            Some(State::Deleting | State::Gone) | None => Ok(Decision::Leave(())),
        })?;
        crash_point!("tenants::relational::delete-noted");
        Ok(())
    }

    /// Removes what a tenant whose deletion has begun has stored.
    pub(super) fn clear(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _changing = self.changing(tenant);
        if E::DDL_COMMITS {
            self.drop_tables(tenant)?;
            crash_point!("tenants::relational::delete-dropped");
        }
        self.change(tenant, |_, row| {
            Ok(match row.map(|row| row.state) {
                Some(State::Deleting) => Decision::Do(self.clearing(tenant), ()),
                _ => Decision::Leave(()),
            })
        })?;
        crash_point!("tenants::relational::deleted");
        Ok(())
    }

    /// Ends a deletion whose tables are gone.
    pub(super) fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _changing = self.changing(tenant);
        // Another server's end of this deletion may lie between, and a creation and a deletion.
        if E::DDL_COMMITS {
            self.drop_tables(tenant)?;
        }
        self.change(tenant, |_, row| {
            Ok(match row.map(|row| row.state) {
                Some(State::Deleting) => {
                    let mut statements = self.clearing(tenant);
                    statements.extend(self.set_state(tenant, State::Gone));
                    statements.extend(self.forgetting());
                    Decision::Do(statements, ())
                }
                _ => Decision::Leave(()),
            })
        })?;
        crash_point!("tenants::relational::gone");
        Ok(())
    }

    /// What forgets tenants that have been gone for long. Who knows changes up to before the floor
    /// alone reads everything anew.
    fn forgetting(&self) -> [Statement; 2] {
        let floor = format!("number - {GONE_KEPT}");
        let moved = format!("UPDATE @layout SET floor = {floor} WHERE one = 1 AND floor < {floor}");
        let gone = "DELETE FROM @tenants WHERE state = ? AND changed <= (SELECT floor FROM @layout WHERE one = 1)";
        [
            self.statement(&moved, Vec::new()),
            self.statement(gone, values![State::Gone as i64]),
        ]
    }

    /// Deletions that have begun and not ended.
    pub(super) fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        let rows = self.ask(
            "SELECT name FROM @tenants WHERE state = ?",
            values![State::Deleting as i64],
        );
        let name = |mut row: super::engine::Row| {
            let name = row.text(0)?.parse();
            name.map_err(|_| super::engine::Malformed::of("a tenant's id"))
        };
        let names = rows.map_err(failed)?.into_iter().map(name);
        names.collect::<Result<_, _>>().map_err(malformed)
    }

    /// Locks or unlocks a tenant; whether it was locked before.
    pub(super) fn set_locked(&self, tenant: &TenantId, locked: bool) -> Result<bool, StoreError> {
        let mut before = None;
        self.change(tenant, |_, row| {
            let Some(row) = row.filter(|row| row.state == State::There) else {
                return Err(StoreError::TenantNotFound {
                    tenant: tenant.clone(),
                });
            };
            let before = *before.get_or_insert(row.locked);
            if row.locked == locked {
                return Ok(Decision::Leave(before));
            }
            let sql = format!("UPDATE @tenants SET locked = ?, changed = {NUMBER} WHERE name = ?");
            let values = values![i64::from(locked), tenant.as_str()];
            let statements = vec![self.count(), self.statement(&sql, values)];
            Ok(Decision::Do(statements, before))
        })
    }
}

/// The number of the change that was counted last.
pub(super) const NUMBER: &str = "(SELECT number FROM @layout WHERE one = 1)";
/// Rows of tenants that are gone are kept for so many changes.
const GONE_KEPT: i64 = 10_000;
