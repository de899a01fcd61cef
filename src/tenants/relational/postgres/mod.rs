//! Postgres: how it spells what the store says, and connections to it.
//!
//! Statements are unnamed and carry the types of their parameters: a pooler that gives each
//! transaction another connection (PgBouncer in transaction mode) may lie between.

mod failure;
mod options;

use std::{
    fmt::{self, Debug, Write as _},
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::pin,
    sync::Arc,
    task::Poll,
};

use futures_util::{StreamExt as _, future::maybe_done};
use nimbus_manifests::TenantId;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, task::JoinHandle};
use tokio_postgres::{
    Client, NoTls,
    config::SslMode,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::{ClientConfig, crypto::ring};

pub use options::PostgresOptions;

use super::{
    driver::{Driver, Pool, failure, unless_stopped},
    engine::{
        Connection, Engine, Failure, FailureKind, Malformed, Row, Statement, Stops, Value, Word,
    },
};
use crate::runtime::short_task;
use failure::judged;

/// A Postgres database.
#[derive(Debug)]
pub(super) struct Postgres {
    options: PostgresOptions,
    /// `None` where there is no TLS.
    tls: Option<Tls>,
    driver: Driver<Wire>,
}

#[derive(Clone)]
struct Tls(MakeRustlsConnect);

impl Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// A connection, and the task that moves its bytes.
struct Wire {
    client: Client,
    moving: JoinHandle<()>,
}

impl Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Otherwise it would wait for what is under way.
        self.moving.abort();
    }
}

impl Postgres {
    pub(super) fn new(options: PostgresOptions) -> Result<Self, Failure> {
        let driver = Driver::new(options.place(), "postgres", options.connections)?;
        let mode = options.config.get_ssl_mode();
        let tls = match mode {
            SslMode::Disable => None,
            _ => match tls() {
                Ok(config) => Some(Tls(MakeRustlsConnect::new(config))),
                // Without certificates to go by there is no TLS, which this mode lets be.
                Err(_none) if mode == SslMode::Prefer => None,
                Err(error) => {
                    let what = format!("no TLS: {error}");
                    return Err(failure(&driver.place, FailureKind::Refused, what));
                }
            },
        };
        Ok(Self {
            options,
            tls,
            driver,
        })
    }

    /// A connection that is open and not in use.
    fn idle(&self) -> Option<Wire> {
        while let Some(wire) = self.driver.pool.take() {
            if !wire.client.is_closed() {
                return Some(wire);
            }
        }
        None
    }

    async fn establish(&self) -> Result<Wire, tokio_postgres::Error> {
        let config = &self.options.config;
        match self.tls.clone() {
            Some(Tls(tls)) => {
                let (client, connection) = config.connect(tls).await?;
                let moving = short_task(async move { drop(connection.await) });
                Ok(Wire { client, moving })
            }
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                let moving = short_task(async move { drop(connection.await) });
                Ok(Wire { client, moving })
            }
        }
    }
}

/// TLS that goes by the certificates of this machine.
fn tls() -> Result<ClientConfig, tokio_rustls::rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(builder.with_platform_verifier()?.with_no_client_auth())
}

impl Engine for Postgres {
    type Connection = PostgresConnection;

    const BEGIN: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    const BEGIN_READING: &'static [&'static str] =
        &["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"];
    const DDL_COMMITS: bool = false;
    const LOCKING: &'static str = " FOR UPDATE";
    const LOCKING_FREE: &'static str = " FOR UPDATE SKIP LOCKED";
    const NOW_MS: &'static str = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)";

    fn place(&self) -> &str {
        &self.driver.place
    }

    fn connect(&self, stops: &Stops) -> Result<PostgresConnection, Failure> {
        let place = &self.driver.place;
        let connecting = async {
            let permit = self.driver.permit("--postgres-max-connections").await?;
            let wire = match self.idle() {
                Some(wire) => wire,
                None => self
                    .establish()
                    .await
                    .map_err(|error| judged(place, &error))?,
            };
            Ok((permit, wire))
        };
        let handle = self.driver.handle().clone();
        let (permit, wire) = handle.block_on(unless_stopped(place, stops, connecting))?;
        Ok(PostgresConnection {
            wire,
            handle,
            place: Arc::clone(place),
            pool: Arc::clone(&self.driver.pool),
            _permit: permit,
        })
    }

    fn provider_space(&self) -> &str {
        &self.options.metadata_schema
    }

    /// Quoted, a name of Postgres keeps every byte: `a-b` and `a_b` are two tenants.
    fn tenant_space(&self, tenant: &TenantId) -> String {
        format!("{}{tenant}", self.options.tenant_prefix)
    }

    fn table(&self, space: &str, name: &str, out: &mut String) {
        quote(space, out);
        out.push('.');
        quote(name, out);
    }

    fn parameter(&self, number: usize, out: &mut String) {
        write!(out, "${number}").expect("a String takes every write");
    }

    fn word(&self, word: Word) -> &'static str {
        match word {
            Word::Bytes | Word::Key => "BYTEA",
            Word::Rows => "VALUES",
        }
    }

    fn create_space(&self, space: &str) -> String {
        let mut sql = "CREATE SCHEMA IF NOT EXISTS ".to_owned();
        quote(space, &mut sql);
        sql
    }

    fn drop_space(&self, space: &str) -> String {
        let mut sql = "DROP SCHEMA IF EXISTS ".to_owned();
        quote(space, &mut sql);
        sql.push_str(" CASCADE");
        sql
    }
}

fn quote(name: &str, out: &mut String) {
    out.push('"');
    out.push_str(&name.replace('"', "\"\""));
    out.push('"');
}

/// A connection to Postgres.
#[derive(Debug)]
pub(super) struct PostgresConnection {
    wire: Wire,
    handle: Handle,
    place: Arc<str>,
    pool: Arc<Pool<Wire>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection for PostgresConnection {
    fn run(&mut self, statements: &[Statement], stops: &Stops) -> Result<Vec<Vec<Row>>, Failure> {
        let (client, place) = (&self.wire.client, &*self.place);
        let all = pipelined(statements.iter().map(|statement| async move {
            let mut rows = Vec::new();
            let mut take = |row| {
                rows.push(row);
                ControlFlow::Continue(())
            };
            each(client, place, statement, &mut take)
                .await
                .map(|()| rows)
        }));
        let all = async { all.await.into_iter().collect() };
        self.handle.block_on(unless_stopped(place, stops, all))
    }

    fn each(
        &mut self,
        statement: &Statement,
        stops: &Stops,
        take: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let place = &*self.place;
        let streaming = each(&self.wire.client, place, statement, take);
        self.handle
            .block_on(unless_stopped(place, stops, streaming))
    }

    fn give_back(self) {
        self.pool.give_back(self.wire);
    }
}

/// Hands out the rows of a statement. Those after a break are read to their end.
async fn each(
    client: &Client,
    place: &str,
    statement: &Statement,
    take: &mut dyn FnMut(Row) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let judge = |error| judged(place, &error);
    let parameters = statement.values.iter().map(|value| match value {
        Value::Integer(integer) => (integer as &(dyn ToSql + Sync), Type::INT8),
        Value::Bytes(bytes) => (bytes as &(dyn ToSql + Sync), Type::BYTEA),
    });
    let rows = client.query_typed_raw(&statement.sql, parameters).await;
    let mut rows = pin!(rows.map_err(judge)?);
    let mut taking = true;
    while let Some(row) = rows.next().await {
        let row = row.map_err(judge)?;
        if taking {
            let row = read(&row)
                .map_err(|what| failure(place, FailureKind::Statement, what.to_string()))?;
            taking = take(row).is_continue();
        }
    }
    Ok(())
}

fn read(row: &tokio_postgres::Row) -> Result<Row, Malformed> {
    let columns = row.columns().iter().enumerate();
    let value = columns.map(|(index, column)| {
        let value = match *column.type_() {
            Type::INT8 => row.try_get(index).map(Value::Integer),
            Type::INT4 => {
                let integer = row.try_get::<_, Option<i32>>(index);
                integer.map(|integer| Value::Integer(integer.map(i64::from)))
            }
            _ => row.try_get(index).map(Value::Bytes),
        };
        value.map_err(|_| Malformed::of("a column"))
    });
    value.collect::<Result<_, _>>().map(Row)
}

/// Begins each in its turn, and waits for all: what they send goes out together.
async fn pipelined<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = futures.map(|one| Box::pin(maybe_done(one))).collect();
    poll_fn(|cx| {
        let mut ready = true;
        for one in &mut all {
            ready &= one.as_mut().poll(cx).is_ready();
        }
        if ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    all.iter_mut()
        .filter_map(|one| one.as_mut().take_output())
        .collect()
}
