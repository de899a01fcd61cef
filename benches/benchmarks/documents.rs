//! Encrypted against plaintext on the same code path: the library's own tenants, with keys and
//! without.

use std::sync::Arc;

use nimbus::documents::DocumentId;
use nimbus::documents::query::{MAX_PAGE, Query};
use nimbus::tenants::TenantStore;
use tokio::runtime::Runtime;

use crate::report::{Measurement, Sides, Target, in_turn, seconds, time};
use crate::setup::{self, House, Numbers, insert, insertion, runtime, table, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let runtime = runtime();
    let dir = setup::directory();
    let encrypted = runtime.block_on(House::open(dir.path(), true));
    let plaintext = runtime.block_on(House::open(dir.path(), false));
    let mut measurements = Vec::new();

    let mut sides = [&encrypted, &plaintext].map(|house| Side::new(&runtime, house, 0));
    measurements.push(compare(
        "insert, 64 writers",
        1.15,
        11,
        &mut sides,
        Side::insert,
    ));
    measurements.push(Measurement {
        name: "point read, 98 304 documents",
        target: Target::None,
        ..compare("", 0.0, 15, &mut sides, Side::read)
    });

    let mut sides = [&encrypted, &plaintext].map(|house| Side::new(&runtime, house, 1));
    for side in &mut sides {
        side.ids = runtime.block_on(insert(&side.store, 64, 10_000 / 64));
    }
    measurements.push(compare(
        "point read, 10 000 documents",
        1.10,
        21,
        &mut sides,
        Side::read,
    ));
    measurements.push(compare("list of 1000", 1.15, 21, &mut sides, Side::list));
    measurements.push(Measurement {
        target: Target::None,
        ..compare(
            "list of 1000, each after a write",
            0.0,
            21,
            &mut sides,
            Side::list_after_write,
        )
    });

    for house in [&encrypted, &plaintext] {
        use nimbus::tenants::TenantProvider as _;
        runtime
            .block_on(house.tenants.close())
            .expect("tenants close");
    }
    measurements
}

/// One tenant, encrypted or not.
struct Side<'a> {
    runtime: &'a Runtime,
    store: Arc<dyn TenantStore>,
    ids: Vec<DocumentId>,
    numbers: Numbers,
}

impl<'a> Side<'a> {
    fn new(runtime: &'a Runtime, house: &House, number: usize) -> Self {
        Self {
            runtime,
            store: runtime.block_on(house.create(&tenant(number))),
            ids: Vec::new(),
            numbers: Numbers::new(),
        }
    }

    /// The time of one insertion among those of 64 writers.
    fn insert(&mut self) -> f64 {
        const EACH: usize = 128;
        let time = seconds(|| {
            let ids = self.runtime.block_on(insert(&self.store, 64, EACH));
            self.ids.extend(ids);
        });
        time / (64 * EACH) as f64
    }

    /// The time of reading one document, chosen at random.
    fn read(&mut self) -> f64 {
        const READS: usize = 4000;
        let ids: Vec<DocumentId> = (0..READS)
            .map(|_| self.ids[self.numbers.below(self.ids.len())])
            .collect();
        let table = table();
        let time = seconds(|| {
            self.runtime.block_on(async {
                for id in ids {
                    let document = self.store.get(&table, id).await.expect("a document");
                    assert_eq!(document.id, id);
                }
            });
        });
        time / READS as f64
    }

    fn list(&mut self) -> f64 {
        const LISTS: usize = 30;
        let time = seconds(|| {
            for _ in 0..LISTS {
                self.list_once();
            }
        });
        time / LISTS as f64
    }

    /// A write makes readers forget the pages that they hold.
    fn list_after_write(&mut self) -> f64 {
        const LISTS: usize = 10;
        let mut time = 0.0;
        for number in 0..LISTS {
            let outcome = self.runtime.block_on(self.store.apply(insertion(number)));
            let _id = outcome.expect("an insertion");
            time += seconds(|| self.list_once());
        }
        time / LISTS as f64
    }

    fn list_once(&self) {
        let all = Query::all(table());
        let page = self.runtime.block_on(self.store.query(all, None, MAX_PAGE));
        assert_eq!(page.expect("a page").documents.len(), MAX_PAGE);
    }
}

fn compare<'a>(
    name: &'static str,
    bound: f64,
    rounds: usize,
    [encrypted, plaintext]: &mut [Side<'a>; 2],
    measure: fn(&mut Side<'a>) -> f64,
) -> Measurement {
    let Sides {
        first,
        second,
        ratio,
        ..
    } = in_turn(rounds, || measure(encrypted), || measure(plaintext));
    Measurement {
        name,
        measured: format!("{} encrypted", time(first)),
        against: format!("{} plaintext", time(second)),
        value: ratio,
        unit: "×",
        target: Target::AtMost(bound),
    }
}
