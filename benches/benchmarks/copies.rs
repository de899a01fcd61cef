//! One large tenant copied whole: a new data key for it against SQLite's backup, its export against
//! SQLCipher's own.

use std::path::Path;
use std::sync::Arc;

use nimbus::encryption::Engine;
use nimbus::encryption::export::Export;
use nimbus::encryption::rotate_dek::rotate_dek;
use nimbus::envelope::{Envelope, Intent};
use nimbus::sqlcipher;
use nimbus::tenants::TenantProvider as _;
use nimbus_manifests::Subject;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use tokio::runtime::Runtime;

use crate::report::{Measurement, Sides, Target, in_turn, seconds};
use crate::setup::{self, House, insert, runtime, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let runtime = runtime();
    let dir = setup::directory();
    let large = Large::new(&runtime, dir.path());
    let rekeyed = in_turn(ROUNDS, || large.rotate_dek(), || large.backup());
    let exported = in_turn(ROUNDS, || large.export(), || large.bare_export());
    vec![
        large.measurement("rotate-dek against bare sqlite3_backup", &rekeyed),
        large.measurement("export against bare sqlcipher_export", &exported),
    ]
}

/// A tenant that nobody has open.
struct Large<'a> {
    runtime: &'a Runtime,
    envelope: Envelope,
    dir: &'a Path,
    house: House,
}

impl<'a> Large<'a> {
    fn new(runtime: &'a Runtime, dir: &'a Path) -> Self {
        let house = runtime.block_on(async {
            let house = House::open(dir, true).await;
            let store = house.create(&tenant(0)).await;
            while size(&house.dir.join("tenant-00000.sqlite3")) < bytes() {
                insert(&store, 64, 500).await;
            }
            store.close().await.expect("it closes");
            house.tenants.close().await.expect("tenants close");
            house
        });
        Self {
            runtime,
            envelope: runtime.block_on(setup::encryption(dir)),
            dir,
            house,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.house.dir.join("tenant-00000.sqlite3")
    }

    /// By speed, which is the inverse of what was measured.
    fn measurement(&self, name: &'static str, sides: &Sides) -> Measurement {
        let mib = size(&self.path()) as f64 / f64::from(1 << 20);
        Measurement {
            name,
            measured: format!("{:.0} MiB/s of {mib:.0} MiB", mib / sides.first),
            against: format!("{:.0} MiB/s bare", mib / sides.second),
            value: 1.0 / sides.ratio,
            unit: "×",
            target: Target::AtLeast(0.6),
        }
    }

    fn rotate_dek(&self) -> f64 {
        let (path, tenant) = (self.path(), tenant(0));
        seconds(|| {
            let progress: nimbus::runtime::Progress = Arc::new(|_done, _total| true);
            let rotated = rotate_dek(&self.envelope, &path, None, Some(&tenant), progress);
            let _subject = self.runtime.block_on(rotated).expect("a new data key");
        })
    }

    fn export(&self) -> f64 {
        let target = self.dir.join("exported.sqlite3");
        let export = Export {
            source: self.path(),
            target: target.clone(),
            engine: Engine::Sqlite,
            tenant: Some(tenant(0)),
        };
        let time = seconds(|| {
            let exported = self.runtime.block_on(export.run(&self.envelope, None));
            let _subject = exported.expect("an export");
        });
        std::fs::remove_file(target).expect("it goes");
        time
    }

    /// A connection to the tenant's file, its key set, as whoever writes the bare loop would have
    /// one.
    fn source(&self) -> Connection {
        let subject =
            Subject::sqlite_tenant(&tenant(0), "tenant-00000.sqlite3").expect("a subject");
        let path = self.path();
        let open = sqlcipher::open(&self.envelope, &path, &subject, Intent::Open);
        let database = self.runtime.block_on(open).expect("it opens");
        database.writer().expect("a connection")
    }

    /// Encrypted to encrypted under another key, page for page, flushed.
    #[expect(
        clippy::disallowed_methods,
        reason = "what our copy is compared with is SQLite without it"
    )]
    fn backup(&self) -> f64 {
        let source = self.source();
        let path = self.dir.join("backup.sqlite3");
        let time = seconds(|| {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
            let mut copy = Connection::open_with_flags(&path, flags).expect("a new file");
            copy.execute_batch(KEY).expect("its key");
            {
                let backup = Backup::new(&source, &mut copy).expect("a backup");
                while backup.step(1024).expect("pages") != StepResult::Done {}
            }
            copy.close().expect("it closes");
        });
        std::fs::remove_file(path).expect("it goes");
        time
    }

    /// To plaintext by SQLCipher's own function, flushed at its end.
    fn bare_export(&self) -> f64 {
        let source = self.source();
        let path = self.dir.join("bare-export.sqlite3");
        // A connection of ours creates no file.
        let _file = std::fs::File::create_new(&path).expect("a new file");
        let time = seconds(|| {
            source
                .execute("ATTACH DATABASE ?1 AS other KEY ''", [path.to_str()])
                .expect("a new file");
            source
                .query_row("SELECT sqlcipher_export('other')", [], |_row| Ok(()))
                .expect("an export");
            source.execute_batch("DETACH other").expect("it closes");
        });
        std::fs::remove_file(path).expect("it goes");
        time
    }
}

pub(crate) fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

const ROUNDS: usize = 3;

/// Kept small so that the bench is short; `--gib` has it done with a gibibyte.
pub(crate) fn bytes() -> u64 {
    if std::env::args().any(|argument| argument == "--gib") {
        1 << 30
    } else {
        256 << 20
    }
}

const KEY: &str =
    "PRAGMA key = \"x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'\";";
