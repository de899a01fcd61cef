//! Queries by the server's own fields: 500 000 places, encrypted, no index but those that every
//! table has.

use std::sync::Arc;

use nimbus::documents::Mutation;
use nimbus::documents::query::Query;
use nimbus::tenants::{TenantProvider as _, TenantStore};
use tokio::runtime::Runtime;

use crate::report::{Measurement, Target, median, seconds, time};
use crate::setup::{self, House, Numbers, insertion, runtime, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let runtime = runtime();
    let dir = setup::directory();
    let house = runtime.block_on(House::open(dir.path(), true));
    let (store, ids) = runtime.block_on(fill(&house));
    let mut numbers = Numbers::new();
    let by = |field: &str| format!(r#""order": {{"field": "{field}", "direction": "desc"}}"#);
    let mut some_ids = |count: usize| {
        let ids = (0..count).map(|_| format!("{:?}", ids[numbers.below(ids.len())]));
        let ids: Vec<String> = ids.collect();
        format!(
            r#""filters": [{{"field": "_id", "op": "in", "value": [{}]}}]"#,
            ids.join(",")
        )
    };
    let now = r#""filters": [{"field": "_creationTime", "op": "gt", "value": 1}, {"field": "_creationTime", "op": "lt", "value": 99999999999999}]"#;
    let rows: [(&'static str, Vec<String>, f64); 6] = [
        (
            "the first 20 by `_creationTime`",
            vec![by("_creationTime")],
            1.0,
        ),
        (
            "the same, within a range",
            vec![format!("{now}, {}", by("_creationTime"))],
            1.0,
        ),
        ("the first 20 by `_id`", vec![by("_id")], 1.0),
        (
            "`_id` in a list of 1",
            (0..QUERIES).map(|_| some_ids(1)).collect(),
            1.0,
        ),
        (
            "`_id` in a list of 100",
            (0..QUERIES).map(|_| some_ids(100)).collect(),
            3.0,
        ),
        (
            "the first 20 by `_updateTime`, a scan",
            vec![by("_updateTime")],
            0.0,
        ),
    ];
    let measurements = rows.into_iter().map(|(name, queries, target)| {
        let times = (0..ROUNDS).map(|round| {
            let query = &queries[round % queries.len()];
            ask(&runtime, &store, query)
        });
        let median = median(times.collect());
        Measurement {
            name,
            measured: time(median),
            against: String::new(),
            value: median * 1e3,
            unit: " ms",
            target: match target {
                0.0 => Target::None,
                target => Target::AtMost(target),
            },
        }
    });
    let measurements = measurements.collect();
    drop(store);
    runtime
        .block_on(house.tenants.close())
        .expect("tenants close");
    measurements
}

async fn fill(house: &House) -> (Arc<dyn TenantStore>, Vec<String>) {
    let store = house.create(&tenant(0)).await;
    let mut ids = Vec::with_capacity(PLACES);
    for batch in 0..PLACES / BATCH {
        let batch: Vec<Mutation> = (0..BATCH)
            .map(|number| insertion(batch * BATCH + number))
            .collect();
        let outcomes = store.apply_all(batch).await.expect("insertions");
        ids.extend(outcomes.iter().map(|outcome| outcome.id().to_string()));
    }
    (store, ids)
}

fn ask(runtime: &Runtime, store: &Arc<dyn TenantStore>, query: &str) -> f64 {
    let query = format!(r#"{{"table": "places", {query}}}"#);
    let query = Query::from_json(&query).expect("a query");
    let limit = if query.order.is_some() { 20 } else { 100 };
    seconds(|| {
        let page = store.query(query, None, limit);
        let page = runtime.block_on(page).expect("a page");
        assert!(!page.documents.is_empty());
    })
}

const PLACES: usize = 500_000;
const BATCH: usize = 1000;
const QUERIES: usize = 64;
const ROUNDS: usize = 101;
