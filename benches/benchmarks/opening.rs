//! From a manifest to a key, and from a closed tenant to its first document.

use std::path::Path;

use nimbus::documents::DocumentId;
use nimbus::envelope::manifest_path;
use nimbus::tenants::TenantProvider as _;
use nimbus_keyproviders::{KeyProvider, Unwrapped};
use nimbus_manifests::{SealedManifest, WrapContext};
use rusqlite::{Connection, OpenFlags, params};
use tokio::runtime::Runtime;

use crate::report::{Measurement, Sides, Target, in_turn, median, seconds, time};
use crate::setup::{self, House, insert, runtime, table, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let runtime = runtime();
    let dir = setup::directory();
    let encrypted = runtime.block_on(House::open(dir.path(), true));
    let plaintext = runtime.block_on(House::open(dir.path(), false));
    let mut sides = [&encrypted, &plaintext].map(|house| Closed::new(&runtime, house));
    let mut measurements = vec![unwrap(&runtime, dir.path(), &encrypted)];

    let [encrypted, plaintext] = &mut sides;
    let against_sqlite = in_turn(ROUNDS, || encrypted.open(), || plaintext.open_bare());
    measurements.push(opening(
        "cold open, against bare SQLite",
        "SQLite",
        against_sqlite,
        Target::AtMost(3.0),
    ));
    let against_plain = in_turn(ROUNDS, || encrypted.open(), || plaintext.open());
    measurements.push(opening(
        "cold open, against our plaintext",
        "plaintext",
        against_plain,
        Target::AtMost(3.0),
    ));
    measurements
}

fn opening(name: &'static str, other: &str, sides: Sides, target: Target) -> Measurement {
    Measurement {
        name,
        measured: format!("{} encrypted", time(sides.first)),
        against: format!("{} {other}", time(sides.second)),
        value: sides.ratio,
        unit: "×",
        target,
    }
}

/// Parse, unwrap with the master key, verify.
fn unwrap(runtime: &Runtime, dir: &Path, house: &House) -> Measurement {
    let path = house.dir.join(format!("{}.sqlite3", tenant(0)));
    let text = std::fs::read(manifest_path(&path)).expect("a manifest");
    let envelope = runtime.block_on(setup::encryption(dir));
    let keys = envelope.keys().expect("keys");
    let provider = keys.current();
    let times = (0..31).map(|_| {
        let time = seconds(|| {
            runtime.block_on(async {
                for _ in 0..UNWRAPS {
                    unwrap_once(&text, provider).await;
                }
            });
        });
        time / f64::from(UNWRAPS)
    });
    let value = median(times.collect()) * 1e6;
    Measurement {
        name: "manifest: parse, unwrap, verify",
        measured: format!("{value:.1} µs"),
        against: String::new(),
        value,
        unit: "µs",
        target: Target::AtMost(50.0),
    }
}

async fn unwrap_once(text: &[u8], provider: &dyn KeyProvider) {
    let sealed = SealedManifest::parse(text).expect("a manifest");
    let claims = sealed.claims();
    let entry = &claims.deks()[0];
    let context = WrapContext {
        subject: claims.subject(),
        file_id: claims.file_id(),
        cipher: claims.cipher(),
        dek_id: entry.id,
    };
    let unwrapped = provider.unwrap(&entry.wraps[0], &context).await;
    let Unwrapped::Key(dek) = unwrapped.expect("an unwrapped key") else {
        panic!("a wrap of this key")
    };
    let key = dek.manifest_key(&claims.file_id());
    let _manifest = sealed.verify(&key).expect("its MAC");
}

/// Tenants that are closed, each with a document to look for. What the operating system caches is
/// warm; nothing of this process is.
struct Closed<'a> {
    runtime: &'a Runtime,
    house: &'a House,
    ids: Vec<DocumentId>,
}

impl<'a> Closed<'a> {
    fn new(runtime: &'a Runtime, house: &'a House) -> Self {
        let ids = (0..TENANTS).map(|number| {
            runtime.block_on(async {
                let store = house.create(&tenant(number)).await;
                let ids = insert(&store, 8, 25).await;
                store.close().await.expect("it closes");
                ids[100]
            })
        });
        Self {
            runtime,
            house,
            ids: ids.collect(),
        }
    }

    /// Opens each tenant by the library and reads one document.
    fn open(&mut self) -> f64 {
        let mut time = 0.0;
        for (number, &id) in self.ids.iter().enumerate() {
            let mut opened = None;
            time += seconds(|| {
                self.runtime.block_on(async {
                    let store = self.house.tenants.open(&tenant(number)).await;
                    let store = store.expect("it opens");
                    let document = store.get(&table(), id).await.expect("a document");
                    assert_eq!(document.id, id);
                    opened = Some(store);
                });
            });
            let store = opened.expect("it was opened");
            self.runtime.block_on(store.close()).expect("it closes");
        }
        time / self.ids.len() as f64
    }

    /// Opens each tenant's file with rusqlite alone, with the settings that a server needs, and
    /// reads one document.
    #[expect(
        clippy::disallowed_methods,
        reason = "what our opener is compared with is SQLite without it"
    )]
    fn open_bare(&mut self) -> f64 {
        let mut time = 0.0;
        for (number, id) in self.ids.iter().enumerate() {
            let path = self.house.dir.join(format!("{}.sqlite3", tenant(number)));
            let mut opened = None;
            time += seconds(|| {
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&path, flags).expect("it opens");
                connection.execute_batch(SETTINGS).expect("settings");
                let fields: String = connection
                    .prepare_cached("SELECT json(fields) FROM documents_1 WHERE id = ?1")
                    .and_then(|mut select| {
                        select.query_row(params![id.as_bytes()], |row| row.get(0))
                    })
                    .expect("a document");
                assert!(fields.starts_with('{'));
                opened = Some(connection);
            });
            drop(opened);
        }
        time / self.ids.len() as f64
    }
}

const UNWRAPS: u32 = 500;
const ROUNDS: usize = 15;
const TENANTS: usize = 40;
const SETTINGS: &str = "\
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA temp_store = MEMORY;
    PRAGMA foreign_keys = ON;";
