//! Tenants that come from elsewhere (`src/tenants/copy`), in many transactions.
//!
//! | state | crash point | then |
//! | --- | --- | --- |
//! | arriving, no tables or some (*) | `tenants::relational::arrival-noted` | it is no tenant; the next copy, creation or deletion of the name removes what there is |
//! | arriving, all tables, no rows or some | `tenants::copy::begun`, `tenants::copy::put` | the same |
//! | arriving, all rows, compared | `tenants::copy::compared` | the same |
//! | exists, with its keys, and due | `tenants::copy::arrived` | it is a tenant |
//!
//! (*) where DDL is a transaction of its own.
//!
//! Who takes the name over ends the arrival: its transactions find no head, or that of another one.

use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use nimbus_manifests::TenantId;
use zeroize::Zeroizing;

use super::{
    catalog::{Catalog, State, failed},
    changes::{Decision, NUMBER},
    engine::{Engine, Failure, FailureKind, Statement, values},
    space::Space,
};
use crate::control::{AccessKeyId, KeyRecord};
use crate::failpoints::crash_point;
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

impl<E: Engine> Catalog<E> {
    /// Makes the tables of a tenant that is none yet, in place of whatever is left under its name.
    pub(super) fn arrive(&self, tenant: &TenantId) -> Result<[u8; 16], StoreError> {
        let exists = || StoreError::TenantExists {
            tenant: tenant.clone(),
        };
        let (mut incarnation, mut key) = ([0; 16], Zeroizing::new([0; CURSOR_KEY_BYTES]));
        OsRandom.fill(&mut incarnation)?;
        OsRandom.fill(&mut *key)?;
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
        self.clear_arrival(tenant)?;
        let ours = |incarnation_found: Option<&[u8]>| incarnation_found == Some(&incarnation[..]);
        let made = |statements: &mut Vec<Statement>| {
            let space = Space::new(&self.engine, tenant);
            statements.push(space.statement(
                "INSERT INTO @head (one, seq, commits, structure, incarnation, cursor_key) VALUES (1, 0, 0, 0, ?, ?)",
                values![&incarnation, &key[..]],
            ));
        };
        let taken = self.change(tenant, |_, row| {
            Ok(match row {
                Some(row) if ours(row.incarnation.as_deref()) && row.state == State::Arriving => {
                    Decision::Leave(true)
                }
                Some(row) if matches!(row.state, State::Creating | State::Gone) => {
                    let mut statements = self.clearing(tenant);
                    statements.push(self.statement(
                        "UPDATE @tenants SET state = ?, locked = 0, incarnation = ?, manifest = NULL WHERE name = ?",
                        values![State::Arriving as i64, &incarnation, tenant.as_str()],
                    ));
                    if !E::DDL_COMMITS {
                        let tables = self.tables(tenant).into_iter();
                        statements.extend(tables.map(|ddl| Statement::bare(&ddl)));
                        made(&mut statements);
                    }
                    Decision::Do(statements, true)
                }
                _ => Decision::Leave(false),
            })
        })?;
        if !taken {
            return Err(exists());
        }
        crash_point!("tenants::relational::arrival-noted");
        if E::DDL_COMMITS {
            self.make_tables(tenant, &incarnation, State::Arriving)?;
            let headed = self.change(tenant, |session, row| {
                let arrives = row.is_some_and(|row| {
                    ours(row.incarnation.as_deref()) && row.state == State::Arriving
                });
                if !arrives {
                    return Ok(Decision::Leave(false));
                }
                if self.has_head(session, tenant)? {
                    return Ok(Decision::Leave(true));
                }
                let mut statements = Vec::new();
                made(&mut statements);
                Ok(Decision::Do(statements, true))
            })?;
            if !headed {
                return Err(exists());
            }
        }
        Ok(incarnation)
    }

    /// Whether a try that was not answered has made the head of an arriving tenant.
    fn has_head(&self, session: &mut E::Connection, tenant: &TenantId) -> Result<bool, StoreError> {
        use super::engine::{Connection as _, Stops};
        let space = Space::new(&self.engine, tenant);
        let head = space.statement("SELECT one FROM @head", Vec::new());
        let rows = session.run(&[head], &Stops::default()).map_err(failed)?;
        Ok(rows.first().is_some_and(|rows| !rows.is_empty()))
    }

    /// Makes a tenant of what arrived, with its keys; whether it still arrived. Found again where
    /// the answer was lost.
    pub(super) fn arrived(
        &self,
        tenant: &TenantId,
        incarnation: &[u8; 16],
        keys: &[(AccessKeyId, KeyRecord)],
    ) -> Result<(), StoreError> {
        let keys: Result<Vec<_>, _> = keys
            .iter()
            .map(|(id, record)| Ok((id.to_string(), record.to_json()?)))
            .collect();
        let keys = keys.map_err(|error: serde_json::Error| StoreError::Provider {
            source: std::sync::Arc::new(error),
        })?;
        let _changing = self.changing(tenant);
        let arrived = self.change(tenant, |_, row| {
            let row = row.filter(|row| row.incarnation.as_deref() == Some(incarnation));
            Ok(match row.map(|row| row.state) {
                Some(State::There) => Decision::Leave(true),
                Some(State::Arriving) => {
                    let space = Space::new(&self.engine, tenant);
                    let mut statements = space.noting_due().to_vec();
                    let [count, there] = self.set_state(tenant, State::There);
                    statements.push(count);
                    let insert = format!(
                        "INSERT INTO @keys (id, tenant, record, changed) VALUES (?, ?, ?, {NUMBER})"
                    );
                    statements.extend(keys.iter().map(|(id, record)| {
                        let values = values![&**id, tenant.as_str(), &record[..]];
                        self.statement(&insert, values)
                    }));
                    statements.push(there);
                    Decision::Do(statements, true)
                }
                _ => Decision::Leave(false),
            })
        })?;
        match arrived {
            true => Ok(()),
            // Another copy, or a creation, took the name over.
            false => Err(StoreError::TenantExists {
                tenant: tenant.clone(),
            }),
        }
    }

    /// Removes what an arrival, or a deletion that was cut short, has left under a name.
    pub(super) fn clear_arrival(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let left = self.row_of(tenant)?.map(|row| row.state);
        if matches!(left, Some(State::Arriving | State::Deleting)) {
            self.begin_delete(tenant)?;
            self.clear(tenant)?;
            self.finish_delete(tenant)?;
        }
        Ok(())
    }

    /// Removes what this arrival has left.
    pub(super) fn turn_away(
        &self,
        tenant: &TenantId,
        incarnation: &[u8; 16],
    ) -> Result<(), StoreError> {
        let row = self.row_of(tenant)?;
        match row.filter(|row| row.incarnation.as_deref() == Some(incarnation)) {
            Some(row) if row.state == State::Arriving => self.clear_arrival(tenant),
            _ => Ok(()),
        }
    }
}
