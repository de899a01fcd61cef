//! The suite of every backend on Postgres, and what is special to a database that several servers use.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nimbus_manifests::TenantId;
use nimbus_test_support::Postgres as Server;
use serde_json::json;

use super::{
    engine::{Connection, Engine, Failure, FailureKind, Row, Statement, Stops, spell},
    postgres::PostgresConnection,
    *,
};
use crate::documents::query::reference;
use crate::documents::schema::TableSchema;
use crate::documents::{DocumentId, Mutation};
use crate::envelope::Envelope;
use crate::runtime::blocking;
use crate::tenants::conformance::queries::read;
use crate::tenants::conformance::{
    Due, Fixture, Log, acme, add, bodies, conformance, fields, id, insert, table,
};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{StoreError, TenantProvider as _, TenantStore, Tenants};

/// Schemas of a test's own in a database, which can be opened again and again, as by one server after another.
struct House {
    database: PostgresOptions,
    log: Arc<Log>,
    due: Arc<Due>,
}

impl House {
    fn new(url: &str) -> Self {
        let unique = DocumentId::generate().to_string();
        let unique = unique.rsplit('-').next().unwrap();
        let database = PostgresOptions::new(url).unwrap();
        Self {
            database: database
                .metadata_schema(format!("nimbus {unique}"))
                .tenant_prefix(format!("{unique}_"))
                .connections(0, 16),
            log: Arc::default(),
            due: Arc::default(),
        }
    }
}

impl House {
    fn options(&self) -> RelationalOptions {
        RelationalOptions {
            max_open_tenants: 16,
            readers_per_tenant: 2,
            open_patience: Duration::from_secs(20),
            due: self.due.clone(),
        }
    }

    /// A server whose round trips are counted, and may fail.
    async fn watched(&self) -> (Tenants<Relational<Watched>>, Arc<Watch>) {
        let watch = Arc::<Watch>::default();
        let engine = Watched {
            inner: Postgres::new(self.database.clone()).unwrap(),
            watch: watch.clone(),
        };
        let catalog = blocking(move || Catalog::on(engine)).await.unwrap();
        let log = self.log.clone();
        let tenants = Tenants::of(catalog, Envelope::plaintext(), log, self.options());
        (tenants.await.unwrap(), watch)
    }
}

impl Fixture for House {
    type Backend = Relational<Postgres>;

    fn empty() -> Self {
        Self::new(&Server::shared_url())
    }

    async fn open(&self) -> PostgresTenants {
        let (database, log) = (self.database.clone(), self.log.clone());
        let catalog = blocking(move || PostgresCatalog::connect(database)).await;
        let tenants =
            PostgresTenants::of(catalog.unwrap(), Envelope::plaintext(), log, self.options());
        tenants.await.unwrap()
    }

    fn due(&self) -> &Due {
        &self.due
    }
}

conformance!(House);

/// Postgres, and what is done to it on the way.
#[derive(Debug)]
struct Watched {
    inner: Postgres,
    watch: Arc<Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    round_trips: AtomicUsize,
    next_commit: Mutex<Option<Fault>>,
}

/// What happens to a commit whose connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is done, and not answered.
    Done,
    /// It never arrives.
    NotDone,
    /// It never arrives, and another server commits before anybody asks.
    Overtaken,
}

#[derive(Debug)]
struct WatchedConnection {
    inner: PostgresConnection,
    watch: Arc<Watch>,
    tenant_space: String,
}

impl Engine for Watched {
    type Connection = WatchedConnection;

    const BEGIN: &'static str = Postgres::BEGIN;
    const BEGIN_READING: &'static str = Postgres::BEGIN_READING;
    const LOCKING: &'static str = Postgres::LOCKING;
    const LOCKING_FREE: &'static str = Postgres::LOCKING_FREE;
    const NOW_MS: &'static str = Postgres::NOW_MS;

    fn place(&self) -> &str {
        self.inner.place()
    }

    fn connect(&self, stops: &Stops) -> Result<WatchedConnection, Failure> {
        Ok(WatchedConnection {
            inner: self.inner.connect(stops)?,
            watch: self.watch.clone(),
            tenant_space: self.inner.tenant_space(&id("acme")),
        })
    }

    fn provider_space(&self) -> &str {
        self.inner.provider_space()
    }

    fn tenant_space(&self, tenant: &TenantId) -> String {
        self.inner.tenant_space(tenant)
    }

    fn table(&self, space: &str, name: &str, out: &mut String) {
        self.inner.table(space, name, out);
    }

    fn parameter(&self, number: usize, out: &mut String) {
        self.inner.parameter(number, out);
    }

    fn column_type(&self, name: &str) -> &'static str {
        self.inner.column_type(name)
    }

    fn create_space(&self, space: &str) -> String {
        self.inner.create_space(space)
    }

    fn drop_space(&self, space: &str) -> String {
        self.inner.drop_space(space)
    }
}

impl Connection for WatchedConnection {
    fn run(&mut self, statements: &[Statement], stops: &Stops) -> Result<Vec<Vec<Row>>, Failure> {
        // The looks at what other servers do come when they come.
        let tenant = |statement: &Statement| statement.sql.contains(&self.tenant_space);
        if !statements.iter().any(tenant) {
            return self.inner.run(statements, stops);
        }
        let _before = self.watch.round_trips.fetch_add(1, Ordering::SeqCst);
        let writes =
            statements.len() > 1 && statements.last().is_some_and(|last| last.sql == "COMMIT");
        let fault = writes.then(|| self.watch.next_commit.lock().unwrap().take());
        let lost = Failure {
            kind: FailureKind::Lost,
            source: Arc::new(std::io::Error::other("the line is cut")),
        };
        match fault.flatten() {
            None => self.inner.run(statements, stops),
            Some(Fault::Done) => {
                let _rows = self.inner.run(statements, stops)?;
                Err(lost)
            }
            Some(Fault::NotDone) => Err(lost),
            Some(Fault::Overtaken) => {
                // The lock goes with the transaction, and another one is faster.
                let _none = self.inner.run(&[Statement::bare("ROLLBACK")], stops)?;
                let space = &self.tenant_space;
                let sql = format!("UPDATE \"{space}\".head SET commits = commits + 1");
                let _none = self.inner.run(&[Statement::bare(&sql)], stops)?;
                Err(lost)
            }
        }
    }

    fn each(
        &mut self,
        statement: &Statement,
        stops: &Stops,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let _before = self.watch.round_trips.fetch_add(1, Ordering::SeqCst);
        self.inner.each(statement, stops, each)
    }

    fn give_back(self) {
        self.inner.give_back();
    }
}

fn unique_index() -> TableSchema {
    let indexes = json!([
        {"name": "one", "fields": ["n"], "unique": true},
        {"name": "two", "fields": ["m"]},
    ]);
    TableSchema::from_json(&json!({"table": "t", "indexes": indexes}).to_string()).unwrap()
}

async fn sequences(store: &Arc<dyn TenantStore>) -> Vec<i64> {
    let page = store.journal(None, 1000).await.unwrap();
    assert!(!page.has_more);
    page.records.iter().map(|record| record.sequence).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_takes_as_many_round_trips_however_large_it_is() {
    let house = House::empty();
    let (tenants, watch) = house.watched().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    store.put_schema(unique_index()).await.unwrap();
    let all = (0..400).map(|n| insert(&format!(r#"{{"n":{n},"m":1}}"#)));
    let inserted = store.apply_all(all.collect()).await.unwrap();
    let ids: Vec<DocumentId> = inserted.iter().map(|outcome| outcome.id()).collect();
    let mut taken = Vec::new();
    for (round, size) in [(1, 3), (2, 150)] {
        let change = |(n, id): (usize, &DocumentId)| Mutation::Update {
            table: table("t"),
            id: *id,
            patch: fields(&format!(r#"{{"n":{}}}"#, round * 10_000 + n)),
            if_version: None,
        };
        let delete = |id: &DocumentId| Mutation::Delete {
            table: table("t"),
            id: *id,
            if_version: None,
        };
        let changed = ids[..size].iter().enumerate().map(change);
        let deleted = ids[200 * round - size..200 * round].iter().map(delete);
        let new = (0..size).map(|n| insert(&format!(r#"{{"n":{},"m":2}}"#, round * 100_000 + n)));
        let batch: Vec<Mutation> = changed.chain(deleted).chain(new).collect();
        let before = watch.round_trips.load(Ordering::SeqCst);
        let _outcomes = store.apply_all(batch).await.unwrap();
        taken.push(watch.round_trips.load(Ordering::SeqCst) - before);
    }
    assert_eq!(taken[0], taken[1], "{taken:?}");
    assert!(taken[0] <= 5, "{taken:?}");
    let sequences = sequences(&store).await;
    assert!(sequences.iter().copied().eq(1..=sequences.len() as i64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_not_answered_is_neither_lost_nor_doubled() {
    for fault in [Fault::Done, Fault::NotDone, Fault::Overtaken] {
        let house = House::empty();
        let (tenants, watch) = house.watched().await;
        tenants.create_tenant(&id("acme")).await.unwrap();
        let store = tenants.open(&id("acme")).await.unwrap();
        store.put_schema(unique_index()).await.unwrap();
        let _first = add(&store, r#"{"n":1}"#).await;
        *watch.next_commit.lock().unwrap() = Some(fault);
        let written = store.apply(insert(r#"{"n":2}"#)).await;
        let mut expected = vec![r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#];
        if fault == Fault::Overtaken {
            assert!(
                matches!(written, Err(StoreError::Busy { .. })),
                "{written:?}"
            );
            let _not_there = expected.remove(1);
        } else {
            assert!(written.is_ok(), "{fault:?}: {written:?}");
        }
        let _third = add(&store, r#"{"n":3}"#).await;
        let documents = store.list(&table("t"), 10).await.unwrap();
        assert_eq!(bodies(&documents), expected, "{fault:?}");
        let numbers = sequences(&store).await;
        let count = expected.len() as i64;
        assert!(
            numbers.iter().copied().eq(1..=count),
            "{fault:?}: {numbers:?}"
        );
        // Their entries are there once, too.
        for n in [1, 3] {
            let twice = store.apply(insert(&format!(r#"{{"n":{n}}}"#))).await;
            assert!(
                matches!(twice, Err(StoreError::NotUnique { .. })),
                "{twice:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_write_one_tenant_without_a_gap_and_see_each_others_schemas() {
    let house = House::empty();
    let (first, one) = acme(&house).await;
    let _made = add(&one, r#"{"n":0}"#).await;
    let second = house.open().await;
    let other = second.open(&id("acme")).await.unwrap();
    let write = |store: Arc<dyn TenantStore>, from: i64| async move {
        for n in from..from + 60 {
            let _id = add(&store, &format!(r#"{{"n":{n}}}"#)).await;
        }
    };
    let ((), ()) = tokio::join!(write(one.clone(), 1000), write(other.clone(), 2000));
    assert!(sequences(&one).await.iter().copied().eq(1..=121));
    assert_eq!(sequences(&other).await, sequences(&one).await);
    one.put_schema(unique_index()).await.unwrap();
    // The next write through the other server is held to it.
    let twice = other.apply(insert(r#"{"n":2000}"#)).await;
    assert!(
        matches!(twice, Err(StoreError::NotUnique { .. })),
        "{twice:?}"
    );
    other.delete_schema(&table("t")).await.unwrap();
    let _free_again = add(&one, r#"{"n":2000}"#).await;
    drop((one, other));
    first.close().await.unwrap();
    second.close().await.unwrap();
}

#[tokio::test]
async fn texts_longer_than_a_key_are_ordered_found_and_kept_unique() {
    let house = House::empty();
    let (_tenants, store) = acme(&house).await;
    store.put_schema(unique_index()).await.unwrap();
    let long = "é".repeat(2000);
    let text = |end: &str| format!("{long}{end}");
    for (n, m) in [("b", "z"), ("a", "y"), ("d", "y"), ("c", "x")] {
        let _id = add(&store, &json!({"n": text(n), "m": text(m)}).to_string()).await;
    }
    let _short = add(&store, r#"{"n":"short","m":"short"}"#).await;
    let twice = store
        .apply(insert(&json!({"n": text("a")}).to_string()))
        .await;
    assert!(
        matches!(twice, Err(StoreError::NotUnique { .. })),
        "{twice:?}"
    );
    let all = store.list(&table("t"), 10).await.unwrap();
    let filters = [
        json!([]),
        json!([{"field": "n", "op": "eq", "value": text("c")}]),
        json!([{"field": "n", "op": "gt", "value": text("b")}]),
        json!([{"field": "m", "op": "lte", "value": text("y")}]),
    ];
    for filter in filters {
        for (direction, field) in [("asc", "n"), ("asc", "m"), ("desc", "n"), ("desc", "m")] {
            let order = json!({"field": field, "direction": direction});
            let query = json!({"table": "t", "filters": filter, "order": order});
            let query = read(&query.to_string());
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = store.query(query.clone(), after, 2).await.unwrap();
                found.extend(page.documents);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            let expected = reference::find(&all, &query);
            assert_eq!(
                found.iter().collect::<Vec<_>>(),
                expected,
                "{direction} {field}"
            );
        }
    }
}

#[test]
fn names_of_tables_and_parameters_are_spelled() {
    let database = PostgresOptions::new("postgres://u@h/d").unwrap();
    let engine = Postgres::new(database).unwrap();
    let sql = "SELECT x {key} FROM @job_history WHERE (a, b) > (?, ?)";
    assert_eq!(
        spell(&engine, "of \"a-b\"", sql),
        "SELECT x BYTEA FROM \"of \"\"a-b\"\"\".\"job_history\" WHERE (a, b) > ($1, $2)"
    );
}
