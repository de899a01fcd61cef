//! Snapshots and restorations against `cp` and a flush of the same files, and the same with restic
//! and Litestream where they are installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nimbus::documents::{DocumentId, Fields, Mutation};
use nimbus::tenants::TenantProvider as _;
use nimbus_test_support::{Machine, files_under};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::copies::{bytes, size};
use crate::report::{Measurement, Sides, Target, in_turn, median, seconds, time};
use crate::setup::{House, Numbers, insert, runtime, table, tenant};

pub(crate) fn run() -> Vec<Measurement> {
    let files = Files::new();
    let mut measurements = files.snapshots();
    measurements.extend(files.changed());
    measurements.extend(files.restorations());
    measurements.extend(files.restic());
    measurements.extend(files.litestream());
    measurements
}

/// A deployment that nobody has open, of large tenants.
struct Files {
    machine: Machine,
    /// No repository lies beside the master key.
    apart: TempDir,
    ids: Vec<Vec<DocumentId>>,
}

impl Files {
    fn new() -> Self {
        let machine = Machine::new(env!("CARGO_BIN_EXE_nimbus"));
        let ids = fill(machine.root(), true, TENANTS, bytes());
        let apart = tempfile::tempdir().expect("a directory");
        Self {
            machine,
            apart,
            ids,
        }
    }

    fn data(&self) -> PathBuf {
        self.machine.path("encrypted")
    }

    /// `nimbus backup`, to its end.
    fn backup(&self, arguments: &[&str]) -> f64 {
        let mut command = self.machine.nimbus(&["backup"]);
        command
            .args(arguments)
            .env("NIMBUS_DATA_DIR", self.data())
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file")
            .env(
                "NIMBUS_ENCRYPTION_MASTER_KEY_FILE",
                self.machine.path("master.key"),
            );
        timed(&mut command)
    }

    /// A copy of the files, flushed.
    fn copy(&self) -> f64 {
        copied(&self.machine, &self.data())
    }

    fn repository(&self) -> PathBuf {
        self.apart.path().join("repository")
    }

    fn create(&self) -> f64 {
        let to = self.repository().display().to_string();
        self.backup(&["create", "--to", &to])
    }

    fn mib(&self) -> f64 {
        length_of(&self.data()) as f64 / f64::from(1 << 20)
    }

    fn speed(&self, name: &'static str, sides: &Sides, target: Target) -> Measurement {
        speed(name, self.mib(), sides, target)
    }

    fn snapshots(&self) -> Vec<Measurement> {
        let sides = in_turn(
            ROUNDS,
            || {
                clear(&self.repository());
                self.create()
            },
            || self.copy(),
        );
        vec![self.speed(
            "first snapshot against cp and sync",
            &sides,
            Target::AtLeast(0.8),
        )]
    }

    /// A hundredth of the pages changes, again and again: anywhere, and of a few tenants.
    fn changed(&self) -> Vec<Measurement> {
        clear(&self.repository());
        settle();
        let full = self.create();
        let whole = length_of(&self.repository());
        let mut numbers = Numbers::new();
        let mut measure = |tenants: &dyn Fn(usize) -> Vec<usize>| {
            let (mut times, mut shares) = (vec![], vec![]);
            for round in 0..=ROUNDS {
                self.change(&mut numbers, &tenants(round));
                let before = length_of(&self.repository());
                flush(self.machine.root());
                settle();
                let time = self.create();
                let added = length_of(&self.repository()) - before;
                // The first one reads what stood too little before the one that was made anew.
                if round > 0 {
                    times.push(time);
                    shares.push(added as f64 / whole as f64);
                }
            }
            (median(times), median(shares))
        };
        let anywhere = measure(&|_round| (0..TENANTS).collect());
        let few = measure(&|round| vec![2 * round % TENANTS, (2 * round + 1) % TENANTS]);
        settle();
        let still = self.create();
        let percent = |name, measured, against, value, target| Measurement {
            name,
            measured,
            against,
            value: 100.0 * value,
            unit: "%",
            target,
        };
        let times = |name, of: f64, target| {
            percent(
                name,
                time(of),
                format!("{} for all", time(full)),
                of / full,
                target,
            )
        };
        let bytes = |name, share: f64| {
            let mib = |share: f64| share * whole as f64 / f64::from(1 << 20);
            let (measured, all) = (mib(share), mib(1.0));
            percent(
                name,
                format!("{measured:.1} MiB"),
                format!("{all:.0} MiB for all"),
                share,
                Target::AtMost(5.0),
            )
        };
        vec![
            times(
                "snapshot with 1 % of the pages changed, of 2 tenants of 64: time",
                few.0,
                Target::AtMost(5.0),
            ),
            bytes("the same: bytes", few.1),
            times(
                "snapshot with 1 % of the pages changed, of all tenants: time",
                anywhere.0,
                Target::AtMost(5.0),
            ),
            bytes("the same: bytes", anywhere.1),
            times("snapshot with nothing changed: time", still, Target::None),
        ]
    }

    /// A hundredth of all pages, in these tenants.
    fn change(&self, numbers: &mut Numbers, tenants: &[usize]) {
        let pages = usize::try_from(length_of(&self.data()) / 4096).expect("a count");
        let each = pages / 100 / tenants.len();
        runtime().block_on(async {
            let house = House::open(self.machine.root(), true).await;
            for &number in tenants {
                let ids = &self.ids[number];
                let store = house.tenants.open(&tenant(number)).await.expect("it opens");
                let mut tasks = JoinSet::new();
                // A document lies in a page of its own as good as always; what it changes beside
                // that is the end of the journal.
                let chosen: Vec<DocumentId> = (0..each * 9 / 10)
                    .map(|_| ids[numbers.below(ids.len())])
                    .collect();
                for share in chosen.chunks(chosen.len() / 16 + 1) {
                    let (store, share) = (Arc::clone(&store), share.to_vec());
                    drop(tasks.spawn(async move {
                        for id in share {
                            let update = Mutation::Update {
                                table: table(),
                                id,
                                patch: Fields::from_json(r#"{"population":4711}"#).expect("fields"),
                                if_version: None,
                            };
                            let _outcome = store.apply(update).await.expect("an update");
                        }
                    }));
                }
                let _done = tasks.join_all().await;
                store.close().await.expect("it closes");
            }
            house.tenants.close().await.expect("tenants close");
        });
    }

    fn restorations(&self) -> Vec<Measurement> {
        clear(&self.repository());
        self.create();
        let names = [
            ("none", "restoration, --verify none, against cp and sync"),
            ("chain", "restoration, --verify chain, the same"),
            ("pages", "restoration, --verify pages (default), the same"),
        ];
        let restored = names.map(|(verify, name)| {
            let sides = in_turn(
                ROUNDS,
                || {
                    clear(&self.machine.path("new"));
                    let from = self.repository().display().to_string();
                    let restore = ["restore", "--from", &from, "--data-dir", "new"];
                    self.backup(&[&restore[..], &["--verify", verify]].concat())
                },
                || self.copy(),
            );
            self.speed(name, &sides, Target::AtLeast(0.7))
        });
        restored.into()
    }

    fn restic(&self) -> Vec<Measurement> {
        let restic = |arguments: &[&str]| {
            let mut command = Command::new("restic");
            command
                .args(["--quiet", "--no-cache", "--repo", "restic"])
                .args(arguments)
                .env("RESTIC_PASSWORD", "bench")
                .current_dir(self.machine.root());
            command
        };
        if restic(&["version"]).output().is_err() {
            println!("restic is not installed: its measurements are left out");
            return Vec::new();
        }
        let backup = in_turn(
            ROUNDS,
            || {
                clear(&self.machine.path("restic"));
                let _time = timed(&mut restic(&["init"]));
                flush(self.machine.root());
                flushed(self.machine.root(), || {
                    timed(&mut restic(&["backup", "encrypted"]))
                })
            },
            || self.copy(),
        );
        let restore = in_turn(
            ROUNDS,
            || {
                clear(&self.machine.path("new"));
                flushed(self.machine.root(), || {
                    timed(&mut restic(&["restore", "latest", "--target", "new"]))
                })
            },
            || self.copy(),
        );
        vec![
            self.speed("restic: first snapshot, the same", &backup, Target::None),
            self.speed("restic: restoration, the same", &restore, Target::None),
        ]
    }

    /// Of a plaintext tenant: it cannot read others.
    fn litestream(&self) -> Vec<Measurement> {
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-env/bin/litestream");
        let program = if bundled.exists() {
            bundled
        } else {
            PathBuf::from("litestream")
        };
        let litestream = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).current_dir(self.machine.root());
            command
        };
        if litestream(&["version"]).output().is_err() {
            println!("litestream is not installed: its measurements are left out");
            return Vec::new();
        }
        let machine = &self.machine;
        let _ids = fill(machine.root(), false, 1, bytes() / 4);
        let data = machine.path("plaintext");
        let database = "plaintext/tenant-00000.sqlite3";
        let url = format!("file://{}", machine.path("litestream").display());
        let kept = machine.path("kept");
        let _time = timed(Command::new("cp").arg("-r").arg(&data).arg(&kept));
        let backup = in_turn(
            ROUNDS,
            || {
                // Its state is beside the database.
                clear(&machine.path("litestream"));
                clear(&machine.path("plaintext"));
                let _time = timed(Command::new("cp").arg("-r").arg(&kept).arg(&data));
                flush(machine.root());
                flushed(machine.root(), || {
                    timed(&mut litestream(&["replicate", "-once", database, &url]))
                })
            },
            || copied(machine, &kept),
        );
        let restore = in_turn(
            ROUNDS,
            || {
                clear(&machine.path("new"));
                flushed(machine.root(), || {
                    timed(&mut litestream(&["restore", "-o", "new/out", &url]))
                })
            },
            || copied(machine, &kept),
        );
        let mib = length_of(&kept) as f64 / f64::from(1 << 20);
        vec![
            speed(
                "Litestream, plaintext: first snapshot, the same",
                mib,
                &backup,
                Target::None,
            ),
            speed(
                "Litestream, plaintext: restoration, the same",
                mib,
                &restore,
                Target::None,
            ),
        ]
    }
}

/// By speed, which is the inverse of what was measured.
fn speed(name: &'static str, mib: f64, sides: &Sides, target: Target) -> Measurement {
    Measurement {
        name,
        measured: format!("{:.0} MiB/s of {mib:.0} MiB", mib / sides.first),
        against: format!("{:.0} MiB/s cp", mib / sides.second),
        value: 1.0 / sides.ratio,
        unit: "×",
        target,
    }
}

/// Tenants with this many bytes in all; the ids of their documents.
fn fill(dir: &Path, encrypted: bool, tenants: usize, bytes: u64) -> Vec<Vec<DocumentId>> {
    runtime().block_on(async {
        let house = House::open(dir, encrypted).await;
        let mut ids = Vec::new();
        for number in 0..tenants {
            let store = house.create(&tenant(number)).await;
            let path = house.dir.join(format!("{}.sqlite3", tenant(number)));
            let mut of = Vec::new();
            while size(&path) < bytes / tenants as u64 {
                of.extend(insert(&store, 64, 200).await);
            }
            store.close().await.expect("it closes");
            ids.push(of);
        }
        house.tenants.close().await.expect("tenants close");
        ids
    })
}

/// Waits until no file changed only now.
fn settle() {
    std::thread::sleep(Duration::from_secs(4));
}

/// `cp` and a flush.
fn copied(machine: &Machine, data: &Path) -> f64 {
    clear(&machine.path("copy"));
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(data).arg(machine.path("copy"));
    flushed(machine.root(), || timed(&mut copy))
}

/// Removes what a round made, and has the disk be done with it.
fn clear(path: &Path) {
    let _none = fs::remove_dir_all(path);
    flush(path.parent().expect("it is in a directory"));
}

fn flush(dir: &Path) {
    let dir = File::open(dir).expect("a directory");
    rustix::fs::syncfs(&dir).expect("it is flushed");
}

fn flushed(dir: &Path, work: impl FnOnce() -> f64) -> f64 {
    seconds(|| {
        let _time = work();
        flush(dir);
    })
}

/// How long a command takes, which must succeed.
fn timed(command: &mut Command) -> f64 {
    let mut ran = None;
    let time = seconds(|| ran = Some(command.output().expect("it runs")));
    let ran = ran.expect("it ran");
    let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
    assert!(ran.status.success(), "{command:?}: {said}");
    time
}

fn length_of(dir: &Path) -> u64 {
    files_under(dir).iter().map(|file| size(file)).sum()
}

const TENANTS: usize = 64;
const ROUNDS: usize = 3;
