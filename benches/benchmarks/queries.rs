//! Queries that go into an index: the library's against the same SQL on a bare connection, and
//! encrypted against plaintext. 150 000 places, of which each query finds twenty.

use std::sync::Arc;

use nimbus::documents::query::Query;
use nimbus::documents::schema::TableSchema;
use nimbus::documents::{Fields, Mutation};
use nimbus::tenants::{TenantProvider as _, TenantStore};
use rusqlite::{Connection, params};
use tokio::runtime::Runtime;

use crate::report::{Measurement, Sides, Target, in_turn, seconds, time};
use crate::setup::{self, House, Numbers, insertion, runtime, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let runtime = runtime();
    let dir = setup::directory();
    let encrypted = runtime.block_on(House::open(dir.path(), true));
    let plaintext = runtime.block_on(House::open(dir.path(), false));
    let [mut first, mut second] = [&encrypted, &plaintext].map(|house| Side::new(&runtime, house));
    let file = plaintext.dir.join("tenant-00000.sqlite3");
    let mut bare = Bare::open(&file);
    let mut measurements = Vec::new();

    for (name, kind) in [
        ("equal to a value, 20 of 150 000", Kind::Equal),
        ("a range in its order, the first 20", Kind::Range),
    ] {
        let sides = in_turn(ROUNDS, || second.ask(kind, WARM), || bare.ask(kind, WARM));
        measurements.push(measurement(
            name,
            ["plaintext", "bare SQLite"],
            &sides,
            Target::AtMost(2.0),
        ));
        let sides = in_turn(ROUNDS, || first.ask(kind, WARM), || second.ask(kind, WARM));
        measurements.push(measurement(
            "the same, in the page cache",
            ["encrypted", "plaintext"],
            &sides,
            Target::AtMost(1.10),
        ));
        let sides = in_turn(
            ROUNDS,
            || first.ask(kind, ANYWHERE),
            || second.ask(kind, ANYWHERE),
        );
        measurements.push(measurement(
            "the same, anywhere in the table",
            ["encrypted", "plaintext"],
            &sides,
            Target::None,
        ));
    }

    for house in [&encrypted, &plaintext] {
        runtime
            .block_on(house.tenants.close())
            .expect("tenants close");
    }
    measurements
}

fn measurement(
    name: &'static str,
    [first, second]: [&str; 2],
    sides: &Sides,
    target: Target,
) -> Measurement {
    Measurement {
        name,
        measured: format!("{} {first}", time(sides.first)),
        against: format!("{} {second}", time(sides.second)),
        value: sides.ratio,
        unit: "×",
        target,
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// Twenty documents have the value.
    Equal,
    /// Most have a greater one, and the first twenty are asked for.
    Range,
}

/// One tenant, encrypted or not.
struct Side<'a> {
    runtime: &'a Runtime,
    store: Arc<dyn TenantStore>,
    numbers: Numbers,
}

impl<'a> Side<'a> {
    fn new(runtime: &'a Runtime, house: &House) -> Self {
        let store = runtime.block_on(async {
            let store = house.create(&tenant(0)).await;
            for batch in 0..PLACES / BATCH {
                let batch = (0..BATCH).map(|number| numbered(batch * BATCH + number));
                let outcomes = store.apply_all(batch.collect()).await;
                assert_eq!(outcomes.expect("insertions").len(), BATCH);
            }
            let schema = r#"{"table": "places", "fields": [{"name": "name", "field_type": "string", "required": true}],
                "indexes": [{"name": "by_region", "fields": ["region"]}, {"name": "by_population", "fields": ["population"]}]}"#;
            let schema = TableSchema::from_json(schema).expect("a schema");
            store.put_schema(schema).await.expect("its indexes");
            store
        });
        Self {
            runtime,
            store,
            numbers: Numbers::new(),
        }
    }

    /// The time of one query, among those for `different` values.
    fn ask(&mut self, kind: Kind, different: usize) -> f64 {
        let queries: Vec<Query> = (0..QUERIES)
            .map(|_| {
                let value = value(self.numbers.below(different), different);
                let query = match kind {
                    Kind::Equal => format!(
                        r#"{{"table": "places", "filters": [{{"field": "region", "op": "eq", "value": {value}}}], "limit": 20}}"#
                    ),
                    Kind::Range => format!(
                        r#"{{"table": "places", "filters": [{{"field": "population", "op": "gte", "value": {value}}}],
                            "order": {{"field": "population"}}, "limit": 20}}"#
                    ),
                };
                Query::from_json(&query).expect("a query")
            })
            .collect();
        let time = seconds(|| {
            self.runtime.block_on(async {
                for query in queries {
                    let page = self.store.query(query, None, 20).await.expect("a page");
                    assert_eq!(page.documents.len(), 20);
                }
            });
        });
        time / QUERIES as f64
    }
}

/// The same file, with SQLite alone.
struct Bare {
    connection: Connection,
    numbers: Numbers,
}

impl Bare {
    fn open(file: &std::path::Path) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "what the one opener is compared with"
        )]
        let connection = Connection::open(file).expect("a plaintext file");
        connection
            .execute_batch(
                "PRAGMA query_only = ON; PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY;",
            )
            .expect("settings");
        Self {
            connection,
            numbers: Numbers::new(),
        }
    }

    fn ask(&mut self, kind: Kind, different: usize) -> f64 {
        let values: Vec<usize> = (0..QUERIES)
            .map(|_| value(self.numbers.below(different), different))
            .collect();
        let field = match kind {
            Kind::Equal => "'$.\"region\"'",
            Kind::Range => "'$.\"population\"'",
        };
        let rank = format!(
            "CASE json_type(fields, {field}) WHEN 'null' THEN 1 WHEN 'true' THEN 2 WHEN 'false' THEN 2 WHEN 'integer' THEN 3 \
             WHEN 'real' THEN 3 WHEN 'text' THEN 4 WHEN 'array' THEN 5 WHEN 'object' THEN 6 ELSE 0 END"
        );
        let key = format!(
            "CASE WHEN json_type(fields, {field}) IN ('true', 'false', 'integer', 'real', 'text') THEN fields ->> {field} END"
        );
        let (relation, order) = match kind {
            Kind::Equal => ("=", "seq".to_owned()),
            Kind::Range => (">=", format!("{key}, seq")),
        };
        let sql = format!(
            "SELECT id, created, updated, ifnull(version, seq), json(fields) FROM documents_1
             WHERE {rank} = 3 AND {key} {relation} ?1 ORDER BY {order} LIMIT 21"
        );
        let time = seconds(|| {
            for value in values {
                let mut statement = self.connection.prepare_cached(&sql).expect("SQL");
                let mut rows = statement.query(params![value as i64]).expect("rows");
                let mut found: Vec<([u8; 16], i64, i64, i64, String)> = Vec::with_capacity(20);
                // One more says whether there are more, which is part of the library's answer.
                while let Some(row) = rows.next().expect("a row")
                    && found.len() < 20
                {
                    let get = |row: &rusqlite::Row<'_>| {
                        Ok::<_, rusqlite::Error>((
                            row.get(0)?,
                            row.get(1)?,
                            row.get(2)?,
                            row.get(3)?,
                            row.get(4)?,
                        ))
                    };
                    found.push(get(row).expect("its columns"));
                }
                assert_eq!(found.len(), 20);
            }
        });
        time / QUERIES as f64
    }
}

/// A place that is one of twenty in its region.
fn numbered(number: usize) -> Mutation {
    let Mutation::Insert { table, fields, id } = insertion(number) else {
        unreachable!("it is an insertion");
    };
    let region = format!(r#"{{"region":{}}}"#, number * 37 % (PLACES / 20));
    let region = Fields::from_json(&region).expect("a patch");
    Mutation::Insert {
        table,
        fields: fields.merged_with(&region).expect("a document"),
        id,
    }
}

/// The values asked for lie all over the index.
fn value(number: usize, different: usize) -> usize {
    number * (PLACES / 20 / different)
}

const PLACES: usize = 150_000;
const BATCH: usize = 1000;
/// So few that what they find stays in a reader's page cache.
const WARM: usize = 16;
/// As many as there are regions.
const ANYWHERE: usize = PLACES / 20;
const QUERIES: usize = 500;
const ROUNDS: usize = 15;
