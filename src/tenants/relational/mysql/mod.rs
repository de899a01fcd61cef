//! MariaDB and MySQL: how they spell what the store says, and connections to them.
//!
//! What goes out together is one packet of several statements, with their values written into it: a
//! prepared statement takes a round trip of its own, and one of many rows is another for each
//! number of rows. A connection is set up so that nothing of the server's configuration changes
//! what statements mean (`session.rs`), and that is looked at before it is used.
//!
//! **A node of a Galera cluster undoes a transaction without a word** where another node's comes
//! first between two statements of a packet: what follows would be a transaction by itself. So
//! connections do not commit by themselves, a transaction that writes begins with a savepoint, and
//! its commit is preceded by the release of that, which fails where the transaction is not the one
//! that began. At a cluster the commit is a packet of its own: the last statement of a packet is
//! told what happened.

mod failure;
mod options;
mod session;
mod text;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mysql_async::{SslOpts, consts::ColumnType, prelude::Queryable as _};
use nimbus_manifests::TenantId;
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, time::timeout};

pub use options::MysqlOptions;

use super::{
    driver::{Driver, Pool, failure, unless_stopped},
    engine::{Connection, Engine, Failure, FailureKind, Row, Statement, Stops, Value, Word},
    reader::{COMMIT, ROLLBACK},
};
use failure::{TOO_LARGE, judged};
use session::{Open, Wire, connected, tls};

/// A MariaDB or MySQL database, or a cluster of them.
#[derive(Debug)]
pub(super) struct Mysql {
    options: MysqlOptions,
    tls: Option<SslOpts>,
    /// The host that is tried first: the one that was reached last, until a connection to it
    /// breaks.
    first: Arc<AtomicUsize>,
    driver: Driver<Wire>,
}

impl Mysql {
    pub(super) fn new(options: MysqlOptions) -> Result<Self, Failure> {
        let driver = Driver::new(options.place(), "mysql", options.connections)?;
        let tls = options.tls.then(|| tls(&driver.place)).transpose()?;
        Ok(Self {
            options,
            tls,
            first: Arc::default(),
            driver,
        })
    }

    /// A connection to the first of the hosts that takes writes.
    async fn establish(&self) -> Result<Wire, Failure> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.options.hosts.len());
        let mut failed = None;
        for host in (first..first + count).map(|host| host % count) {
            let opts = self.options.driver(host, self.tls.clone());
            let place = &self.driver.place;
            let connected = timeout(self.options.connect_timeout, connected(place, opts));
            let connected = connected.await.unwrap_or_else(|_elapsed| {
                let (name, port) = &self.options.hosts[host];
                let what = format!("{name}:{port} does not answer");
                Err(failure(place, FailureKind::Lost, what))
            });
            match connected {
                Ok(wire) => {
                    self.first.store(host, Ordering::Relaxed);
                    return Ok(Wire { host, ..wire });
                }
                // What can be waited for says more about the whole than what cannot.
                Err(error) => {
                    let waits = |error: &Failure| error.kind == FailureKind::Lost;
                    if failed.as_ref().is_none_or(|known| !waits(known)) {
                        failed = Some(error);
                    }
                }
            }
        }
        Err(failed.expect("a URL has at least one host"))
    }
}

impl Engine for Mysql {
    type Connection = MysqlConnection;

    const BEGIN: &'static str = "START TRANSACTION READ WRITE";
    const BEGIN_READING: &'static [&'static str] = &[
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION READ ONLY",
    ];
    const DDL_COMMITS: bool = true;
    const LOCKING: &'static str = " FOR UPDATE";
    const LOCKING_FREE: &'static str = " FOR UPDATE SKIP LOCKED";
    const NOW_MS: &'static str = "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)";

    fn place(&self) -> &str {
        &self.driver.place
    }

    fn connect(&self, stops: &Stops) -> Result<MysqlConnection, Failure> {
        let place = &self.driver.place;
        let connecting = async {
            let permit = self.driver.permit("--mysql-max-connections").await?;
            let wire = match self.driver.pool.take() {
                Some(wire) => wire,
                None => self.establish().await?,
            };
            Ok((permit, wire))
        };
        let handle = self.driver.handle().clone();
        let (permit, wire) = handle.block_on(unless_stopped(place, stops, connecting))?;
        Ok(MysqlConnection {
            wire: Some(wire),
            handle,
            place: Arc::clone(place),
            pool: Arc::clone(&self.driver.pool),
            first: Arc::clone(&self.first),
            _permit: permit,
        })
    }

    fn provider_space(&self) -> &str {
        &self.options.metadata_database
    }

    /// Quoted, a name keeps every byte: `a-b` and `a_b` are two tenants.
    fn tenant_space(&self, tenant: &TenantId) -> String {
        format!("{}{tenant}", self.options.tenant_prefix)
    }

    fn table(&self, space: &str, name: &str, out: &mut String) {
        text::quote(space, out);
        out.push('.');
        text::quote(name, out);
    }

    fn parameter(&self, _number: usize, out: &mut String) {
        out.push('?');
    }

    fn word(&self, word: Word) -> &'static str {
        match word {
            Word::Bytes => "LONGBLOB",
            // InnoDB takes 3072 bytes of a key, with what else is in it.
            Word::Key => "VARBINARY(3000)",
            Word::Rows => "",
        }
    }

    /// It finds its way in an index by columns alone, and not by rows of them.
    fn beyond(columns: [&str; 2], sign: &str, values: [Value; 2]) -> (String, Vec<Value>) {
        let [first, second] = columns;
        let sql = format!("({first} {sign} ? OR ({first} = ? AND {second} {sign} ?))");
        let [value, last] = values;
        (sql, vec![value.clone(), value, last])
    }

    fn only_where(&self, found: &Statement, ddl: String) -> Vec<Statement> {
        let mut values = found.values.clone();
        values.push(ddl.into());
        let choosing = Statement {
            sql: format!("SET @nimbus_ddl = IF(EXISTS({}), ?, 'DO 0')", found.sql),
            values,
        };
        let done = ["PREPARE nimbus_ddl FROM @nimbus_ddl", "EXECUTE nimbus_ddl"];
        let done = done.map(Statement::bare);
        // Asked by itself first, for which a node of a cluster waits until it is up to date.
        [found.clone(), choosing].into_iter().chain(done).collect()
    }

    fn create_space(&self, space: &str) -> String {
        let mut sql = "CREATE DATABASE IF NOT EXISTS ".to_owned();
        text::quote(space, &mut sql);
        sql
    }

    fn drop_space(&self, space: &str) -> String {
        let mut sql = "DROP DATABASE IF EXISTS ".to_owned();
        text::quote(space, &mut sql);
        sql
    }
}

/// A connection to MariaDB or MySQL.
#[derive(Debug)]
pub(super) struct MysqlConnection {
    /// There until it is given back or dropped.
    wire: Option<Wire>,
    handle: Handle,
    place: Arc<str>,
    pool: Arc<Pool<Wire>>,
    first: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for MysqlConnection {
    fn drop(&mut self) {
        // The driver takes leave of the server in a task of the runtime that it finds.
        let _in_it = self.handle.enter();
        drop(self.wire.take());
    }
}

impl MysqlConnection {
    /// Does something on it. Where it breaks, others to its server are closed, and another host is
    /// tried first.
    fn on<T>(
        &mut self,
        stops: &Stops,
        work: impl AsyncFnOnce(&mut Wire, &str) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let wire = self
            .wire
            .as_mut()
            .expect("a connection until it is dropped");
        let host = wire.host;
        let working = unless_stopped(&self.place, stops, work(wire, &self.place));
        let done = self.handle.block_on(working);
        if matches!(&done, Err(failure) if failure.kind == FailureKind::Lost) {
            // Unless another one has done that.
            let order = Ordering::Relaxed;
            let _first = self.first.compare_exchange(host, host + 1, order, order);
            let _in_it = self.handle.enter();
            self.pool.clear();
        }
        done
    }
}

impl Connection for MysqlConnection {
    fn run(&mut self, statements: &[Statement], stops: &Stops) -> Result<Vec<Vec<Row>>, Failure> {
        self.on(stops, async |wire, place| {
            let Some((first, last)) = statements.first().zip(statements.last()) else {
                return Ok(Vec::new());
            };
            let begins = first.sql == Mysql::BEGIN;
            if begins {
                wire.open = Open::Writing;
            } else if first.sql == Mysql::BEGIN_READING[0] {
                wire.open = Open::Reading;
            }
            let (open, commits) = (wire.open, last.sql == COMMIT);
            let mut sent: Vec<(&Statement, bool)> = Vec::with_capacity(statements.len() + 2);
            sent.extend(statements.iter().map(|statement| (statement, true)));
            let (save, release) = (Statement::bare(SAVE), Statement::bare(RELEASE));
            let commit = Statement::bare(COMMIT);
            if open == Open::Writing && commits {
                sent.insert(sent.len() - 1, (&release, false));
            }
            if begins {
                sent.insert(1, (&save, false));
            }
            if open == Open::No {
                sent.push((&commit, false));
            }
            let reads = |statement: &Statement| statement.sql.starts_with("SELECT");
            let alone = wire.clustered
                && match open {
                    Open::No => !statements.iter().all(reads),
                    Open::Reading => false,
                    Open::Writing => commits,
                };
            let mut all = Vec::with_capacity(statements.len());
            let (before, apart) = sent.split_at(sent.len() - usize::from(alone));
            for part in [before, apart] {
                let mut wanted = part.iter().map(|(_, wanted)| *wanted);
                let part: Vec<&Statement> = part.iter().map(|(statement, _)| *statement).collect();
                let packets = text::packets(&part, wire.most_bytes);
                for (packet, count) in packets.map_err(|wrong| miscounted(place, wrong))? {
                    let given = rows_of(wire, place, packet, count).await;
                    let given = given.map_err(|failure| lock_lost(wire, failure))?;
                    let given = given.into_iter().zip(&mut wanted);
                    all.extend(given.filter_map(|(rows, wanted)| wanted.then_some(rows)));
                }
            }
            if commits || last.sql == ROLLBACK {
                wire.open = Open::No;
            }
            Ok(all)
        })
    }

    fn each(
        &mut self,
        statement: &Statement,
        stops: &Stops,
        take: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.on(stops, async |wire, place| {
            let judge = |error| judged(place, &error);
            let text = text::packets(&[statement], wire.most_bytes);
            for (packet, _one) in text.map_err(|wrong| miscounted(place, wrong))? {
                fits(wire, place, &packet)?;
                let mut rows = wire.conn.query_iter(packet).await.map_err(judge)?;
                let mut taking = true;
                // Those after a break are read to their end.
                while let Some(row) = rows.next().await.map_err(judge)? {
                    if taking {
                        taking = take(read(place, row)?).is_continue();
                    }
                }
            }
            Ok(())
        })
    }

    fn give_back(mut self) {
        if let Some(wire) = self.wire.take() {
            let _in_it = self.handle.enter();
            self.pool.give_back(wire);
        }
    }
}

/// Sends a packet of statements, and gives the rows of each.
async fn rows_of(
    wire: &mut Wire,
    place: &str,
    packet: Vec<u8>,
    count: usize,
) -> Result<Vec<Vec<Row>>, Failure> {
    let judge = |error| judged(place, &error);
    fits(wire, place, &packet)?;
    let mut result = wire.conn.query_iter(packet).await.map_err(judge)?;
    let mut all = Vec::with_capacity(count);
    for _statement in 0..count {
        let mut rows = Vec::new();
        while let Some(row) = result.next().await.map_err(judge)? {
            rows.push(read(place, row)?);
        }
        all.push(rows);
    }
    Ok(all)
}

/// Writers of a tenant come one after another, and none finds a row that it does not know: where
/// one does, another node's transaction came first.
fn lock_lost(wire: &Wire, failure: Failure) -> Failure {
    let lost =
        wire.clustered && wire.open == Open::Writing && failure.kind == FailureKind::Duplicate;
    let kind = if lost {
        FailureKind::Undone
    } else {
        failure.kind
    };
    Failure { kind, ..failure }
}

fn miscounted(place: &str, wrong: text::Miscounted) -> Failure {
    failure(place, FailureKind::Statement, wrong.to_string())
}

/// A packet is one statement where that alone is too large.
fn fits(wire: &Wire, place: &str, packet: &[u8]) -> Result<(), Failure> {
    if packet.len() < wire.most_bytes {
        return Ok(());
    }
    Err(failure(place, FailureKind::Refused, TOO_LARGE))
}

/// A row of text: integers are in digits.
fn read(place: &str, row: mysql_async::Row) -> Result<Row, Failure> {
    let types: Vec<ColumnType> = row
        .columns_ref()
        .iter()
        .map(|column| column.column_type())
        .collect();
    let value = |(value, of): (mysql_async::Value, ColumnType)| {
        let bytes = match value {
            mysql_async::Value::NULL => None,
            mysql_async::Value::Bytes(bytes) => Some(bytes),
            _ => return None,
        };
        if !is_integer(of) {
            return Some(Value::Bytes(bytes));
        }
        let digits = bytes.map(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok());
        match digits {
            None => Some(Value::Integer(None)),
            Some(integer) => Some(Value::Integer(Some(integer?))),
        }
    };
    let values = row.unwrap().into_iter().zip(types).map(value);
    let row = values.collect::<Option<_>>().map(Row);
    row.ok_or_else(|| failure(place, FailureKind::Statement, "a column is malformed"))
}

fn is_integer(of: ColumnType) -> bool {
    matches!(
        of,
        ColumnType::MYSQL_TYPE_LONGLONG
            | ColumnType::MYSQL_TYPE_LONG
            | ColumnType::MYSQL_TYPE_INT24
            | ColumnType::MYSQL_TYPE_SHORT
            | ColumnType::MYSQL_TYPE_TINY
    )
}

const SAVE: &str = "SAVEPOINT nimbus_begun";
const RELEASE: &str = "RELEASE SAVEPOINT nimbus_begun";
