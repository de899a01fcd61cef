//! The provider's tables, as a server finds them: made where there are none, and refused where they
//! are of another version.

use std::{sync::Arc, thread};

use super::{
    catalog::{ATTEMPTS, Catalog, POLL, failed},
    engine::{Engine, Failure, FailureKind, Malformed, Row, Statement, values},
    layout,
    reader::COMMIT,
};
use crate::clock;
use crate::failpoints::crash_point;
use crate::scheduler::Clock as _;
use crate::tenants::StoreError;

/// What the tables of the provider, or the clocks, say that this server cannot go on with.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(
        "{place}: the tables in {space} were made by a newer Nimbus (layout {found}, this one knows {known}): start that version",
        known = layout::VERSION
    )]
    TooNew {
        place: String,
        space: String,
        found: i64,
    },
    #[error(
        "{place}: the tables in {space} were made by a Nimbus that was never released (layout {found}): name another schema for the tables of this one"
    )]
    TooOld {
        place: String,
        space: String,
        found: i64,
    },
    #[error("{place}: the tables in {space} are not Nimbus's: {what}; name another space for them")]
    Foreign {
        place: String,
        space: String,
        what: Malformed,
    },
    #[error(
        "{place}: its clock and that of this machine differ by {seconds} seconds: set both (NTP); documents and jobs would get times of several clocks"
    )]
    Skewed { place: String, seconds: i64 },
    #[error("{place}: it does not answer")]
    Silent { place: String },
}

impl<E: Engine> Catalog<E> {
    /// Makes the provider's tables where there are none. Where each is made by itself, the row of
    /// `layout` comes last: without it they are made anew, as far as they are missing.
    pub(super) fn establish(&self) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            if self.is_established()? {
                return Ok(());
            }
            match self.make_provider() {
                // Another server makes them at this moment; how an engine says so differs.
                Err(Failure {
                    kind: FailureKind::Duplicate | FailureKind::Statement,
                    source,
                }) => {
                    tracing::info!(error = %source, "the provider's tables could not be made; it is looked whether another server did");
                    thread::sleep(POLL);
                }
                made => made.map_err(failed)?,
            }
        }
        let found = self.ask("SELECT version FROM @layout", Vec::new());
        found.map(drop).map_err(failed)
    }

    /// Whether the provider's tables are there.
    pub(super) fn is_established(&self) -> Result<bool, StoreError> {
        match self.ask("SELECT version FROM @layout", Vec::new()) {
            Err(Failure {
                kind: FailureKind::Missing,
                ..
            }) => Ok(false),
            // The row comes last where each table is made by itself.
            Ok(rows) => Ok(!(rows.is_empty() && E::DDL_COMMITS)),
            Err(failure) => Err(failed(failure)),
        }
    }

    /// Makes the provider's tables.
    fn make_provider(&self) -> Result<(), Failure> {
        let space = self.engine.provider_space();
        let space = Statement::bare(&self.engine.create_space(space));
        let tables = layout::PROVIDER.iter();
        let tables = tables.map(|sql| self.statement(sql, Vec::new()));
        let ddl = [space].into_iter().chain(tables);
        let row = self.statement(
            "INSERT INTO @layout (one, version, number, floor) VALUES (1, ?, 0, 0)",
            values![layout::VERSION],
        );
        if !E::DDL_COMMITS {
            let mut statements = vec![Statement::bare(E::BEGIN)];
            statements.extend(ddl);
            statements.extend([row, Statement::bare(COMMIT)]);
            return self.run(&statements).map(drop);
        }
        for statement in ddl.chain([row]) {
            match self.run(&[statement]) {
                // By a server that died at it, or that is at it.
                Ok(_)
                | Err(Failure {
                    kind: FailureKind::Duplicate,
                    ..
                }) => {}
                Err(failure) => return Err(failure),
            }
            crash_point!("tenants::relational::provider-begun");
        }
        Ok(())
    }

    /// Refuses a clock of this machine that is far from the engine's.
    pub(super) fn check_clock(&self) -> Result<(), StoreError> {
        let ahead = clock::now_ms().saturating_sub(self.now_ms());
        if ahead.abs() <= MOST_SKEW_MS {
            return Ok(());
        }
        Err(self.unusable(Unusable::Skewed {
            place: self.place(),
            seconds: ahead / 1000,
        }))
    }

    /// The number of the last change, the floor, and the engine's clock, of a layout that is known.
    pub(super) fn layout(&self, row: Option<&mut Row>) -> Result<(i64, i64, i64), StoreError> {
        let (place, space) = (self.place(), self.engine.provider_space().to_owned());
        let read = |row: Option<&mut Row>| {
            let row = row.ok_or(Malformed::of("the layout"))?;
            let numbers = (row.integer(1)?, row.integer(2)?, row.integer(3)?);
            Ok((row.integer(0)?, numbers))
        };
        Err(self.unusable(match read(row) {
            Ok((layout::VERSION, numbers)) => return Ok(numbers),
            Ok((found, _)) if found > layout::VERSION => Unusable::TooNew {
                place,
                space,
                found,
            },
            Ok((found, _)) => Unusable::TooOld {
                place,
                space,
                found,
            },
            Err(what) => Unusable::Foreign { place, space, what },
        }))
    }

    fn place(&self) -> String {
        self.engine.place().to_owned()
    }

    fn unusable(&self, unusable: Unusable) -> StoreError {
        StoreError::Provider {
            source: Arc::new(unusable),
        }
    }

    /// The engine does not answer.
    pub(super) fn silent(&self) -> StoreError {
        let place = self.place();
        self.unusable(Unusable::Silent { place })
    }
}

/// How far the clock of a server and the engine's may differ: one minute.
const MOST_SKEW_MS: i64 = 60_000;
