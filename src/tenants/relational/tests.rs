//! The suite of every backend on each engine, and what is special to a database that several
//! servers use.

mod sealed;
mod watched;

use std::{
    marker::PhantomData,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nimbus_keyproviders::{KeyProvider, MemoryProvider};
use nimbus_manifests::TenantId;
use nimbus_test_support::{MariaDb, Postgres as PostgresServer};
use serde_json::json;

use super::{
    catalog::Catalog,
    engine::{Connection, Engine, Failure, FailureKind, Row, Statement, Stops, Value, Word, spell},
    mysql::Mysql,
    postgres::Postgres,
    provider::Relational,
    *,
};
use crate::documents::query::reference;
use crate::documents::schema::TableSchema;
use crate::documents::{DocumentId, Mutation};
use crate::envelope::{Envelope, KeyRing};
use crate::runtime::blocking;
use crate::tenants::conformance::queries::read;
use crate::tenants::conformance::{
    Due, Fixture, Log, acme, add, bodies, conformance, fields, id, insert, table,
};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{ReaderLimits, StoreError, TenantProvider as _, TenantStore, Tenants};

use sealed::{
    a_manifest_is_replaced_where_it_is_what_was_read_alone,
    a_sealed_batch_takes_as_many_round_trips, a_server_that_seals_serves_no_tenant_that_is_not,
    nothing_of_a_sealed_tenant_is_in_the_database_in_the_clear,
    two_servers_that_make_a_sealed_tenant_have_one_key,
    what_is_changed_or_moved_in_the_database_does_not_open,
};
use watched::{Fault, Watch, Watched};

/// An engine that tests use.
trait Tested: Engine + Sized {
    /// The database that all tests share, with spaces for one of them.
    fn shared(unique: &str) -> DatabaseOptions;

    fn reach(options: DatabaseOptions) -> Self;

    /// What a clock says that is far behind.
    const LATE: &'static str;

    /// The same with so many connections at most.
    fn with_connections(options: DatabaseOptions, most: usize) -> DatabaseOptions;
}

impl Tested for Postgres {
    const LATE: &'static str =
        "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) - 95000";

    fn with_connections(options: DatabaseOptions, most: usize) -> DatabaseOptions {
        match options {
            DatabaseOptions::Postgres(options) => {
                DatabaseOptions::Postgres(Box::new(options.connections(0, most)))
            }
            DatabaseOptions::Mysql(_) => panic!("another engine's"),
        }
    }

    fn shared(unique: &str) -> DatabaseOptions {
        let options = PostgresOptions::new(&PostgresServer::shared_url()).unwrap();
        DatabaseOptions::Postgres(Box::new(
            options
                .metadata_schema(format!("nimbus {unique}"))
                .tenant_prefix(format!("{unique}_"))
                .connections(0, 16),
        ))
    }

    fn reach(options: DatabaseOptions) -> Self {
        match options {
            DatabaseOptions::Postgres(options) => Self::new(*options).unwrap(),
            DatabaseOptions::Mysql(_) => panic!("another engine's"),
        }
    }
}

impl Tested for Mysql {
    const LATE: &'static str = "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED) - 95000";

    fn with_connections(options: DatabaseOptions, most: usize) -> DatabaseOptions {
        match options {
            DatabaseOptions::Mysql(options) => {
                DatabaseOptions::Mysql(Box::new(options.connections(0, most)))
            }
            DatabaseOptions::Postgres(_) => panic!("another engine's"),
        }
    }

    fn shared(unique: &str) -> DatabaseOptions {
        let options = MysqlOptions::new(&MariaDb::shared_url()).unwrap();
        DatabaseOptions::Mysql(Box::new(
            options
                .metadata_database(format!("nimbus-{unique}"))
                .tenant_prefix(format!("{unique}_"))
                .connections(0, 16),
        ))
    }

    fn reach(options: DatabaseOptions) -> Self {
        match options {
            DatabaseOptions::Mysql(options) => Self::new(*options).unwrap(),
            DatabaseOptions::Postgres(_) => panic!("another engine's"),
        }
    }
}

/// Spaces of a test's own in a database, which can be opened again and again, as by one server
/// after another.
struct House<E> {
    database: DatabaseOptions,
    log: Arc<Log>,
    due: Arc<Due>,
    envelope: Envelope,
    seals: bool,
    engine: PhantomData<E>,
}

/// The same, whose servers seal what reaches the database.
struct SealedHouse<E>(House<E>);

impl<E: Tested> House<E> {
    fn options(&self) -> RelationalOptions {
        RelationalOptions {
            max_open_tenants: 16,
            readers: ReaderLimits::new(2, usize::MAX),
            open_patience: Duration::from_secs(20),
            due: self.due.clone(),
            seal: self.seals,
        }
    }

    async fn on<O: Engine>(&self, engine: O) -> Tenants<Relational<O>> {
        let catalog = blocking(move || Catalog::on(engine)).await.unwrap();
        let log = self.log.clone();
        let envelope = self.envelope.clone();
        let tenants = Tenants::of(catalog, envelope, log, self.options());
        tenants.await.unwrap()
    }

    /// A server whose round trips are counted, and may fail.
    async fn watched(&self) -> (Tenants<Relational<Watched<E>>>, Arc<Watch>) {
        let watch = Arc::<Watch>::default();
        let engine = Watched {
            inner: E::reach(self.database.clone()),
            watch: watch.clone(),
        };
        (self.on(engine).await, watch)
    }
}

impl<E: Tested> Fixture for House<E> {
    type Backend = Relational<E>;

    fn empty() -> Self {
        let unique = DocumentId::generate().to_string();
        let unique = unique.rsplit('-').next().unwrap();
        Self {
            database: E::shared(unique),
            log: Arc::default(),
            due: Arc::default(),
            envelope: Envelope::plaintext(),
            seals: false,
            engine: PhantomData,
        }
    }

    async fn open(&self) -> Tenants<Relational<E>> {
        self.on(E::reach(self.database.clone())).await
    }

    fn due(&self) -> &Due {
        &self.due
    }
}

impl<E: Tested> Fixture for SealedHouse<E> {
    type Backend = Relational<E>;

    const BLIND: bool = true;

    fn empty() -> Self {
        let key: Arc<dyn KeyProvider> = Arc::new(MemoryProvider::random().unwrap());
        Self(House {
            envelope: Envelope::new(KeyRing::new(key, Vec::new(), Vec::new())),
            seals: true,
            ..House::empty()
        })
    }

    async fn open(&self) -> Tenants<Relational<E>> {
        self.0.open().await
    }

    fn due(&self) -> &Due {
        self.0.due()
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

async fn a_batch_takes_as_many_round_trips_however_large_it_is<E: Tested>() {
    let house = House::<E>::empty();
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

async fn a_commit_that_was_not_answered_is_neither_lost_nor_doubled<E: Tested>() {
    for fault in [Fault::Done, Fault::NotDone, Fault::Overtaken] {
        let house = House::<E>::empty();
        let (tenants, watch) = house.watched().await;
        tenants.create_tenant(&id("acme")).await.unwrap();
        let store = tenants.open(&id("acme")).await.unwrap();
        store.put_schema(unique_index()).await.unwrap();
        let _first = add(&store, r#"{"n":1}"#).await;
        *watch.next_commit.lock().unwrap() = Some(fault);
        let written = store.apply(insert(r#"{"n":2}"#)).await;
        // Where another server came first it is done again.
        assert!(written.is_ok(), "{fault:?}: {written:?}");
        let expected = [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#];
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

async fn a_clock_that_is_far_from_the_engines_is_refused<E: Tested>() {
    let house = House::<E>::empty();
    let engine = Watched::<E, true> {
        inner: E::reach(house.database.clone()),
        watch: Arc::default(),
    };
    let refused = blocking(move || Catalog::on(engine)).await.unwrap_err();
    let said = match refused {
        StoreError::Provider { source } => source.to_string(),
        other => other.to_string(),
    };
    assert!(said.contains("differ by 9"), "{said}");
    let _sound = house.open().await;
}

async fn who_waits_for_a_connection_in_vain_is_told_that_all_are_in_use<E: Tested>() {
    let house = House::<E>::empty();
    let options = E::with_connections(house.database.clone(), 1);
    let told = blocking(move || {
        let engine = E::reach(options);
        let held = engine.connect(&Stops::default()).unwrap();
        let told = engine.connect(&Stops::default()).map(drop).unwrap_err();
        held.give_back();
        let _free = engine.connect(&Stops::default()).unwrap();
        told
    })
    .await;
    assert_eq!(told.kind, FailureKind::Exhausted);
    let said = told.source.to_string();
    assert!(said.contains("-max-connections"), "{said}");
}

async fn a_table_whose_creation_broke_off_gets_another_number<E: Tested>() {
    let house = House::<E>::empty();
    let (tenants, watch) = house.watched().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    watch.taken_table.store(true, Ordering::SeqCst);
    // Done again by itself.
    let _first = add(&store, r#"{"n":1}"#).await;
    assert!(!watch.taken_table.load(Ordering::SeqCst), "it happened");
    let documents = store.list(&table("t"), 10).await.unwrap();
    assert_eq!(bodies(&documents), [r#"{"n":1}"#]);
    assert_eq!(store.list(&table("taken"), 10).await.unwrap().len(), 0);
}

async fn two_servers_write_one_tenant_without_a_gap_and_see_each_others_schemas<E: Tested>() {
    let house = House::<E>::empty();
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

async fn texts_longer_than_a_key_are_ordered_found_and_kept_unique<E: Tested>() {
    let house = House::<E>::empty();
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

/// The suite, and the tests of this file, on an engine.
macro_rules! on_engine {
    ($name:ident, $engine:ty, $($test:ident),*) => {
        mod $name {
            use super::*;

            conformance!(House<$engine>);

            /// The same suite, sealed. What is refused there is listed by the cases.
            mod sealed {
                use super::*;

                conformance!(SealedHouse<$engine>);
            }

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test::<$engine>().await;
                }
            )*
        }
    };
    ($($name:ident: $engine:ty),*) => {
        $(on_engine! {
            $name, $engine,
            a_batch_takes_as_many_round_trips_however_large_it_is,
            a_commit_that_was_not_answered_is_neither_lost_nor_doubled,
            a_table_whose_creation_broke_off_gets_another_number,
            a_clock_that_is_far_from_the_engines_is_refused,
            who_waits_for_a_connection_in_vain_is_told_that_all_are_in_use,
            two_servers_write_one_tenant_without_a_gap_and_see_each_others_schemas,
            texts_longer_than_a_key_are_ordered_found_and_kept_unique,
            a_sealed_batch_takes_as_many_round_trips,
            nothing_of_a_sealed_tenant_is_in_the_database_in_the_clear,
            what_is_changed_or_moved_in_the_database_does_not_open,
            a_server_that_seals_serves_no_tenant_that_is_not,
            two_servers_that_make_a_sealed_tenant_have_one_key,
            a_manifest_is_replaced_where_it_is_what_was_read_alone
        })*
    };
}

on_engine!(on_postgres: Postgres, on_mariadb: Mysql);

#[test]
fn names_of_tables_and_parameters_are_spelled() {
    let sql = "SELECT x {key} FROM @job_history WHERE (a, b) IN ({rows} (?, ?))";
    let engine = Postgres::new(PostgresOptions::new("postgres://u@h/d").unwrap()).unwrap();
    assert_eq!(
        spell(&engine, "of \"a-b\"", sql),
        "SELECT x BYTEA FROM \"of \"\"a-b\"\"\".\"job_history\" WHERE (a, b) IN (VALUES ($1, $2))"
    );
    let engine = Mysql::new(MysqlOptions::new("mysql://u@h?ssl-mode=disabled").unwrap()).unwrap();
    assert_eq!(
        spell(&engine, "of-a-b", sql),
        "SELECT x VARBINARY(3000) FROM \"of-a-b\".\"job_history\" WHERE (a, b) IN ( (?, ?))"
    );
}
