//! Changes of what all servers go by: creations, deletions and locks of tenants.
//!
//! Each locks the tenant's row, looks at its state, and goes on from there, whichever server brought
//! it there. What a crash leaves:
//!
//! | state | crash point | then |
//! | --- | --- | --- |
//! | being created, no tables | `tenants::relational::create-noted` | it is no tenant; creating it begins anew |
//! | exists (with its tables, one transaction) | `tenants::relational::created` | it is a tenant |
//! | being deleted, all tables there | `tenants::relational::delete-noted` | it is no tenant; its deletion is carried on |
//! | being deleted, no tables and no keys | `tenants::relational::deleted` | the same |
//! | gone | `tenants::relational::gone` | nothing is left; the row goes after a while |
//!
//! A deletion is carried on by the next start of any server, by the next creation or deletion of the
//! tenant, and by every server that has seen it go on for ten seconds. Two may carry it on at once.
//!
//! An engine whose DDL commits by itself passes through states between: a tenant that is being
//! created may have some tables, and one that is being deleted may have lost some. Both are handled
//! alike, for creation begins by removing what there is.
//!
//! The making of an index is no state: it is part of the transaction that sets the schema.

use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::{
    catalog::{ATTEMPTS, Catalog, State, TENANT_ROW, TenantRow, failed, malformed},
    engine::{Connection as _, Engine, Failure, FailureKind, Statement, Stops, values},
    layout,
    reader::{COMMIT, ROLLBACK},
    space::{Space, patiently},
};
use crate::failpoints::crash_point;
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

    /// Counts a change: the statement after which [`NUMBER`] is its number. Others wait from here on
    /// until the transaction ends, so it comes late.
    pub(super) fn count(&self) -> Statement {
        self.statement(
            "UPDATE @layout SET number = number + 1 WHERE one = 1",
            Vec::new(),
        )
    }

    fn set_state(&self, tenant: &TenantId, state: State) -> [Statement; 2] {
        let sql = format!("UPDATE @tenants SET state = ?, changed = {NUMBER} WHERE name = ?");
        let values = values![state as i64, tenant.as_str()];
        [self.count(), self.statement(&sql, values)]
    }

    /// Creates a tenant that does not exist, whatever is left of one.
    pub(super) fn create(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let noted = self.ask(
            "INSERT INTO @tenants (name, state, locked, changed) VALUES (?, ?, 0, 0)",
            values![tenant.as_str(), State::Creating as i64],
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
        let (mut incarnation, mut key) = ([0; 16], Zeroizing::new([0; CURSOR_KEY_BYTES]));
        OsRandom.fill(&mut incarnation)?;
        OsRandom.fill(&mut *key)?;
        let _changing = self.changing(tenant);
        let created = self.change(tenant, |_, row| {
            let ours = |row: &TenantRow| row.incarnation.as_deref() == Some(&incarnation);
            Ok(match row {
                Some(row) if row.state == State::There => Decision::Leave(ours(&row)),
                // Its row is made by who creates it, and is not removed for long.
                None => Decision::Leave(false),
                Some(_) => Decision::Do(self.making(tenant, &incarnation, &key[..]), true),
            })
        })?;
        if !created {
            return Err(StoreError::TenantExists {
                tenant: tenant.clone(),
            });
        }
        crash_point!("tenants::relational::created");
        Ok(())
    }

    /// What makes a tenant's tables, in place of whatever is left of an earlier one.
    fn making(&self, tenant: &TenantId, incarnation: &[u8; 16], key: &[u8]) -> Vec<Statement> {
        let space = Space::new(&self.engine, tenant, *incarnation);
        let mut statements = self.clearing(tenant);
        let name = self.engine.tenant_space(tenant);
        statements.push(Statement::bare(&self.engine.create_space(&name)));
        let tables = layout::TENANT.iter();
        statements.extend(tables.map(|sql| space.statement(sql, Vec::new())));
        statements.push(space.statement(
            "INSERT INTO @head (one, seq, commits, structure, incarnation, cursor_key) VALUES (1, 0, 0, 0, ?, ?)",
            values![incarnation, key],
        ));
        statements.push(self.statement(
            "UPDATE @tenants SET locked = 0, incarnation = ? WHERE name = ?",
            values![incarnation, tenant.as_str()],
        ));
        statements.extend(self.set_state(tenant, State::There));
        statements
    }

    /// What removes a tenant's tables, its keys, and when it is due.
    fn clearing(&self, tenant: &TenantId) -> Vec<Statement> {
        let name = self.engine.tenant_space(tenant);
        vec![
            Statement::bare(&self.engine.drop_space(&name)),
            self.statement(
                "DELETE FROM @keys WHERE tenant = ?",
                values![tenant.as_str()],
            ),
            self.statement("DELETE FROM @due WHERE name = ?", values![tenant.as_str()]),
        ]
    }

    /// Begins a deletion: from here on it is no tenant.
    pub(super) fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _changing = self.changing(tenant);
        self.change(tenant, |_, row| match row.map(|row| row.state) {
            Some(State::There | State::Creating) => {
                let noted = self.set_state(tenant, State::Deleting);
                Ok(Decision::Do(noted.into(), ()))
            }
            Some(State::Deleting | State::Gone) | None => Ok(Decision::Leave(())),
        })?;
        crash_point!("tenants::relational::delete-noted");
        Ok(())
    }

    /// Removes what a tenant whose deletion has begun has stored.
    pub(super) fn clear(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _changing = self.changing(tenant);
        self.change(tenant, |_, row| {
            Ok(match row.map(|row| row.state) {
                Some(State::Deleting) => Decision::Do(self.clearing(tenant), ()),
                _ => Decision::Leave(()),
            })
        })?;
        crash_point!("tenants::relational::deleted");
        Ok(())
    }

    /// Ends a deletion.
    pub(super) fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let _changing = self.changing(tenant);
        self.change(tenant, |_, row| {
            Ok(match row.map(|row| row.state) {
                Some(State::Deleting) => {
                    // Another server's end of this deletion may lie between, and a creation.
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
            name.map_err(|_| super::engine::Malformed("a tenant's id"))
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
