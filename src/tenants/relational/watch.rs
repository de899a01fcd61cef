//! What a server does by itself about others on its database: it looks what they changed, takes
//! over work that is due and that nobody runs, and finishes what nobody finishes.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use nimbus_manifests::TenantId;

use super::{
    catalog::{Catalog, POLL, failed, malformed},
    engine::{Connection as _, Engine, Malformed, Row, Statement, Stops, values},
    reader::COMMIT,
    space::patiently,
};
use crate::control;
use crate::runtime::{blocking, panic_point};
use crate::scheduler::{Clock as _, DueRecord};
use crate::tenants::others::Claim;
use crate::tenants::{DueLog, StoreError};

/// Looks again and again, for as long as there is a catalog.
pub(super) async fn watch<E: Engine>(catalog: Weak<Catalog<E>>, due: Arc<dyn DueLog>) {
    let (mut failing, mut told) = (false, None::<Instant>);
    loop {
        tokio::time::sleep(POLL).await;
        panic_point!("tenants::relational::watch");
        let Some(catalog) = catalog.upgrade() else {
            return;
        };
        let (looking, due) = (Arc::clone(&catalog), Arc::clone(&due));
        let looked = match catalog.renew().await {
            Ok(()) => blocking(move || looking.take_overdue(&*due)).await,
            Err(error) => Err(error),
        };
        match looked {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::error!(%error, "what other servers change cannot be seen: requests wait, and are refused while it lasts");
            }
            Err(_told) => {}
        }
        catalog.tell_of_abandoned();
        if told.is_none_or(|told| told.elapsed() > TELL)
            && let Err(error) = catalog.check_clock()
        {
            told = Some(Instant::now());
            tracing::error!(%error, "the clocks are apart");
        }
    }
}

impl<E: Engine> Catalog<E> {
    /// Tells of work that is due and that its server has not run.
    fn take_overdue(&self, due: &dyn DueLog) -> Result<(), StoreError> {
        let by = self.now_ms().saturating_sub(GRACE_MS);
        let sql = "SELECT name, at FROM @due WHERE at <= ? ORDER BY at LIMIT ?";
        let rows = self.ask(sql, values![by, MOST_OVERDUE]);
        for row in rows.map_err(failed)? {
            let (tenant, at) = stored_due(row).map_err(malformed)?;
            due.overdue(&tenant, at);
        }
        Ok(())
    }

    /// Whether due work of a tenant is to be run here: not where another server has its lock, which
    /// it holds from before it runs the work until that is committed.
    pub(super) fn claim(&self, tenant: &TenantId, now_ms: i64) -> Result<Claim, StoreError> {
        let stops = Stops::default();
        let sql = "SELECT name, at FROM @due WHERE name = ?";
        let free = format!("{sql}{}", E::LOCKING_FREE);
        let statements = [
            Statement::bare(E::BEGIN),
            self.statement(sql, values![tenant.as_str()]),
            self.statement(&free, values![tenant.as_str()]),
            Statement::bare(COMMIT),
        ];
        let asked = patiently(&*self.engine, &stops, |session| {
            session.run(&statements, &stops)
        });
        let (mut rows, session) = asked.map_err(failed)?;
        session.give_back();
        let free = rows.swap_remove(2).pop();
        let there = rows.swap_remove(1).pop();
        let at = |row: Option<Row>| {
            let at = row.map(|row| row.integer(1)).transpose();
            at.map_err(malformed)
        };
        Ok(match (at(there)?, at(free)?) {
            (_, Some(at)) if at <= now_ms => Claim::Free,
            (_, Some(at)) => Claim::Later(Some(at)),
            (Some(_), None) => Claim::Taken,
            (None, None) => Claim::Later(None),
        })
    }
}

/// When work is due is noted by the transaction that makes it so: nothing is left to be noted.
impl<E: Engine> DueRecord for Catalog<E> {
    fn due(&self) -> Result<control::DueIndex, StoreError> {
        let rows = self.ask("SELECT name, at FROM @due", Vec::new());
        let entries: Result<Vec<_>, Malformed> =
            rows.map_err(failed)?.into_iter().map(stored_due).collect();
        Ok(control::DueIndex {
            entries: entries.map_err(malformed)?,
            clock_ms: None,
            complete: true,
        })
    }

    fn set_due(
        &self,
        _changes: &[(TenantId, Option<i64>)],
        _clock_ms: i64,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    fn complete_due(&self, _tenants: &[TenantId], _clock_ms: i64) -> Result<(), StoreError> {
        Ok(())
    }
}

fn stored_due(mut row: Row) -> Result<(TenantId, i64), Malformed> {
    let tenant = row
        .text(0)?
        .parse()
        .map_err(|_| Malformed::of("a tenant's id"))?;
    Ok((tenant, row.integer(1)?))
}

/// For so long work is left to the server that was told of it.
const GRACE_MS: i64 = 1000;
/// So much overdue work is taken over at once.
const MOST_OVERDUE: usize = 256;
/// How often it is said at most that clocks are apart.
const TELL: Duration = Duration::from_secs(60);
