//! The control file and its device: against tampering on real files, and against torn writes on a file that fails.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use nimbus_keyproviders::{Dek, MemoryProvider, OsRandom};
use nimbus_manifests::{FileId, TenantId};
use redb::{
    Builder, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
    TableHandle as _,
};

use super::device::{BLOCK, BLOCKS_AT, BlockFile, Device, SLOT_STRIDE, STORED};
use super::tables::{LAYOUT, META};
use super::*;
use crate::envelope::{KeyRing, ManifestMirror as _, Trouble, manifest_path};

mod access_keys;
mod usage;

// ---- the control file ----

struct House {
    dir: tempfile::TempDir,
    envelope: Envelope,
}

impl House {
    fn new() -> Self {
        let key = Arc::new(MemoryProvider::random().unwrap());
        Self {
            dir: tempfile::tempdir().unwrap(),
            envelope: Envelope::new(KeyRing::new(key, vec![], vec![])),
        }
    }

    async fn open(&self) -> Result<Control, ControlError> {
        Control::open(&self.envelope, self.dir.path()).await
    }

    /// A closed control file with some manifests in it.
    async fn filled(&self) -> PathBuf {
        let control = self.open().await.unwrap();
        for round in 0_u8..4 {
            let entries: Vec<_> = (0..40)
                .map(|n| (tenant_subject(&format!("t{n}")), vec![round; 700]))
                .collect();
            control
                .put_many(entries.iter().map(|(subject, text)| (subject, &text[..])))
                .unwrap();
        }
        Control::path_in(self.dir.path())
    }
}

/// Under a new data key, whatever happens to its opening after that.
#[tokio::test(flavor = "multi_thread")]
async fn goes_on_under_its_new_key_when_it_could_not_be_opened_again_at_once() {
    let _turn = fail::FailScenario::setup();
    let house = House::new();
    let _path = house.filled().await;
    let control = Arc::new(house.open().await.unwrap());
    fail::cfg("control::open-again", "1*return->off").unwrap();
    control.rotate_dek(&house.envelope).await.unwrap();
    let tenant: TenantId = "t1".parse().unwrap();
    let keeper = Arc::clone(&control);
    blocking(move || keeper.lock_tenant(&tenant).unwrap()).await;
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.locked_tenants().unwrap().len(), 1);
}

/// As when it is not known whether the swap happened: the file is under the next key, its manifest has both, and the key was let go.
#[tokio::test(flavor = "multi_thread")]
async fn finds_out_which_key_it_has_when_the_end_of_a_rekey_was_not_written() {
    let house = House::new();
    let path = house.filled().await;
    let control = Arc::new(house.open().await.unwrap());
    let prepared = house
        .envelope
        .prepare(&path, &subject(), Cipher::Blocks1, Intent::Open)
        .await
        .unwrap();
    let Prepared::Keyed(file) = prepared else {
        panic!("it is encrypted")
    };
    let file = house.envelope.begin_rekey(file).await.unwrap();
    let (keeper, next) = (Arc::clone(&control), file.share());
    blocking(move || {
        let mut open = keeper.changing();
        open.database = None;
        open.key = Key::Withheld;
        swap_to_next_key(&next, None).unwrap();
    })
    .await;
    let keeper = Arc::clone(&control);
    assert_eq!(blocking(move || keeper.locked_tenants()).await.unwrap(), []);
    let (_, sealer) = control.audit_sealer().unwrap();
    assert_eq!(sealer, file.manifest().deks()[1].id);
}

/// The line would be under a key that the next opening of the log does not have.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_data_key_waits_for_the_head_of_a_line_and_writes_one_that_was_not_written() {
    let house = House::new();
    let _path = house.filled().await;
    let control = Arc::new(house.open().await.unwrap());
    let before = control.audit_sealer().unwrap().1;
    let head = AuditHead {
        seq: 7,
        hash: [7; 32],
    };
    let rotating = {
        let mut unsettled = control.chaining();
        *unsettled = Some(head);
        let (control, envelope) = (Arc::clone(&control), house.envelope.clone());
        let rotating = tokio::spawn(async move { control.rotate_dek(&envelope).await });
        // Time enough for it to be done.
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!rotating.is_finished());
        rotating
    };
    rotating.await.unwrap().unwrap();
    assert_ne!(control.audit_sealer().unwrap().1, before);
    assert_eq!(control.audit_head().unwrap(), head);
}

fn tenant_subject(tenant: &str) -> Subject {
    format!("db:sqlite:tenant:{tenant}:{tenant}.sqlite3")
        .parse()
        .unwrap()
}

#[tokio::test]
async fn keeps_manifests_across_a_restart() {
    let house = House::new();
    let subject = tenant_subject("demo");
    house
        .open()
        .await
        .unwrap()
        .put_many([(&subject, &b"text"[..])])
        .unwrap();
    let control = house.open().await.unwrap();
    assert_eq!(control.get(&subject).unwrap(), [b"text"]);
    control.remove(&subject).unwrap();
    assert_eq!(control.get(&subject).unwrap().len(), 0);
}

#[tokio::test]
async fn keeps_an_announced_manifest_beside_the_one_in_force_until_one_is_put() {
    let house = House::new();
    let (subject, other) = (tenant_subject("demo"), tenant_subject("other"));
    let control = house.open().await.unwrap();
    control.put_many([(&subject, &b"old"[..])]).unwrap();
    control
        .announce(&[(&subject, b"new"), (&other, b"alone")])
        .unwrap();
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.get(&subject).unwrap(), [b"new", b"old"]);
    let all = control.manifests().unwrap();
    assert_eq!(
        all,
        [
            vec![b"new".to_vec(), b"old".to_vec()],
            vec![b"alone".to_vec()]
        ]
    );
    assert_eq!(
        control.announced().unwrap(),
        [subject.clone(), other.clone()]
    );
    control.put_many([(&subject, &b"new"[..])]).unwrap();
    assert_eq!(control.get(&subject).unwrap(), [b"new"]);
    assert_eq!(control.announced().unwrap(), std::slice::from_ref(&other));
    control.remove(&other).unwrap();
    assert_eq!(control.get(&other).unwrap().len(), 0);
}

#[tokio::test]
async fn ends_a_deletion_with_the_tenants_manifests_and_no_others() {
    let control = House::new().open().await.unwrap();
    let (one, other) = (tenant_subject("one"), tenant_subject("one-more"));
    control.put_many([(&one, &b"1"[..])]).unwrap();
    control.put_many([(&other, &b"2"[..])]).unwrap();
    control.announce(&[(&one, b"3"), (&other, b"4")]).unwrap();
    let tenant: TenantId = "one".parse().unwrap();
    control.begin_delete(&tenant).unwrap();
    assert_eq!(
        control.pending_deletes().unwrap(),
        std::slice::from_ref(&tenant)
    );
    control.finish_delete(&tenant).unwrap();
    assert_eq!(control.pending_deletes().unwrap(), []);
    assert_eq!(control.get(&one).unwrap().len(), 0);
    assert_eq!(control.get(&other).unwrap(), [b"4", b"2"]);
}

#[tokio::test]
async fn refuses_a_second_opener() {
    let house = House::new();
    let _first = house.open().await.unwrap();
    let error = house.open().await.unwrap_err();
    assert!(matches!(error, ControlError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn holds_nothing_in_plaintext() {
    let house = House::new();
    let path = house.filled().await;
    let bytes = std::fs::read(path).unwrap();
    for word in [&b"tenant"[..], b"redb", b"manifests", b"t17.sqlite3"] {
        assert!(!bytes.windows(word.len()).any(|window| window == word));
    }
}

#[tokio::test]
async fn refuses_plaintext_while_encryption_is_on_and_the_reverse() {
    let house = House::new();
    drop(
        Control::open(&Envelope::plaintext(), house.dir.path())
            .await
            .unwrap(),
    );
    let error = house.open().await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Plaintext);

    let house = House::new();
    let _path = house.filled().await;
    let error = Control::open(&Envelope::plaintext(), house.dir.path())
        .await
        .unwrap_err();
    assert_eq!(error.trouble(), Trouble::KeyUnavailable);
}

#[tokio::test]
async fn refuses_another_files_content() {
    let (one, two) = (House::new(), House::new());
    let (from, to) = (one.filled().await, two.filled().await);
    let _bytes = std::fs::copy(from, to).unwrap();
    let error = two.open().await.unwrap_err();
    assert!(
        matches!(error, ControlError::KeyMismatch { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn refuses_a_file_that_was_emptied_cut_or_removed() {
    let house = House::new();
    let path = house.filled().await;
    let whole = std::fs::read(&path).unwrap();
    for length in [whole.len() / 2, BLOCKS_AT as usize + 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = house.open().await.unwrap_err();
        assert_eq!(error.trouble(), Trouble::Corrupt, "{length}: {error:?}");
    }
    std::fs::write(&path, b"").unwrap();
    let error = house.open().await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::DatabaseMissing);
    std::fs::remove_file(&path).unwrap();
    let error = house.open().await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::DatabaseMissing);
    std::fs::write(&path, &whole).unwrap();
    drop(house.open().await.unwrap());
}

/// Where each stored block of a file lies, but for the header's two slots.
fn blocks(length: usize) -> Vec<std::ops::Range<usize>> {
    let (first, stored) = (BLOCKS_AT as usize, STORED as usize);
    (0..(length - first) / stored)
        .map(|block| first + block * stored..first + (block + 1) * stored)
        .collect()
}

#[tokio::test]
async fn refuses_any_single_block_that_is_zeroed_changed_or_swapped_and_used() {
    let house = House::new();
    let path = house.filled().await;
    let whole = std::fs::read(&path).unwrap();
    let all = blocks(whole.len());
    let mut refused = 0;
    for (index, block) in all.iter().enumerate() {
        let mut zeroed = whole.clone();
        zeroed[block.clone()].fill(0);
        let mut changed = whole.clone();
        changed[block.start + 100] ^= 1;
        let mut swapped = whole.clone();
        let other = &all[(index + 1) % all.len()];
        swapped[block.clone()].copy_from_slice(&whole[other.clone()]);
        let outcomes = [zeroed, changed, swapped].map(|bytes| {
            std::fs::write(&path, bytes).unwrap();
            house.envelope.clone()
        });
        for envelope in outcomes {
            match Control::open(&envelope, house.dir.path()).await {
                // A block that nothing refers to is not read, and is written whole before it is.
                Ok(control) => {
                    for n in 0..40 {
                        let copy = control.get(&tenant_subject(&format!("t{n}"))).unwrap();
                        assert_eq!(copy, [vec![3; 700]]);
                    }
                }
                Err(error) => {
                    assert_eq!(error.trouble(), Trouble::Corrupt, "{index}: {error:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 10, "only {refused} of {} mattered", all.len() * 3);
}

#[tokio::test]
async fn refuses_a_single_block_put_back_from_an_older_copy() {
    let house = House::new();
    let path = house.filled().await;
    let old = std::fs::read(&path).unwrap();
    let _path = house.filled().await;
    let new = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for block in blocks(old.len().min(new.len())) {
        if old[block.clone()] == new[block.clone()] {
            continue;
        }
        let mut bytes = new.clone();
        bytes[block.clone()].copy_from_slice(&old[block]);
        std::fs::write(&path, bytes).unwrap();
        match house.open().await {
            Ok(control) => {
                // Nothing refers to it: what is read is the newest.
                for n in 0..40 {
                    let copy = control.get(&tenant_subject(&format!("t{n}"))).unwrap();
                    assert_eq!(copy, [vec![3; 700]]);
                }
            }
            Err(error) => {
                assert_eq!(error.trouble(), Trouble::Corrupt, "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn lives_with_one_damaged_header_slot_and_not_with_two() {
    let house = House::new();
    let path = house.filled().await;
    let whole = std::fs::read(&path).unwrap();
    let damage = |slots: &[u64]| {
        let mut bytes = whole.clone();
        for slot in slots {
            bytes[*slot as usize + 50] ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
    };
    damage(&[0, SLOT_STRIDE]);
    let error = house.open().await.unwrap_err();
    assert!(
        matches!(error, ControlError::KeyMismatch { .. }),
        "{error:?}"
    );
    // The newest of the two is lost: the one before it leads to the state of the last flush but one, which redb repairs or refuses.
    for slot in [0, SLOT_STRIDE] {
        damage(&[slot]);
        if let Err(error) = house.open().await {
            assert_eq!(error.trouble(), Trouble::Corrupt, "{error:?}");
        }
    }
}

#[tokio::test]
async fn sets_aside_what_does_not_open_beside_a_new_manifest() {
    let house = House::new();
    let path = Control::path_in(house.dir.path());
    let prepared = house
        .envelope
        .prepare(&path, &subject(), Cipher::Blocks1, Intent::Create)
        .await;
    drop(prepared.unwrap());
    std::fs::write(&path, [9; 100]).unwrap();
    drop(house.open().await.unwrap());
    assert!(manifest_path(&path).exists());
    let aside = house.dir.path().join("nimbus-control.db.set-aside-1");
    assert_eq!(std::fs::read(aside).unwrap(), [9; 100]);
}

#[tokio::test]
async fn refuses_a_newer_layout() {
    let house = House::new();
    let control = house.open().await.unwrap();
    control
        .write(|transaction| {
            drop(transaction.open_table(META)?.insert(LAYOUT, 9)?);
            Ok(())
        })
        .unwrap();
    drop(control);
    let error = house.open().await.unwrap_err();
    assert!(
        matches!(error, ControlError::NewerLayout { found: 9, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn brings_a_file_of_the_first_layout_up_and_keeps_what_is_in_it() {
    const FIRST_USAGE: TableDefinition<'_, (&str, &[u8]), u64> = TableDefinition::new("usage");
    let house = House::new();
    let control = house.open().await.unwrap();
    control
        .put_many([(&tenant_subject("demo"), &b"text"[..])])
        .unwrap();
    control
        .write(|transaction| {
            for table in transaction.list_tables()? {
                if !["meta", "manifests", "deletions"].contains(&table.name()) {
                    let _was_there = transaction.delete_table(table)?;
                }
            }
            drop(transaction.open_table(FIRST_USAGE)?);
            drop(transaction.open_table(META)?.insert(LAYOUT, 1)?);
            Ok(())
        })
        .unwrap();
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.with(tables::layout).unwrap(), tables::KNOWN_LAYOUT);
    let copy = control.get(&tenant_subject("demo")).unwrap();
    assert_eq!(copy, [b"text"]);
    let tables = control
        .with(|database| {
            let transaction = database.begin_read()?;
            drop(transaction.open_table(tables::ACCESS_KEYS)?);
            drop(transaction.open_table(tables::IDENTITIES)?);
            Ok(transaction.open_table(FIRST_USAGE).is_err())
        })
        .unwrap();
    assert!(tables, "what was only reserved is gone");
}

// ---- the device ----

/// A file in memory that remembers what was not flushed, and can stop at any write.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    flushed: Vec<u8>,
    /// What a reader sees: `flushed` with `unflushed` applied.
    current: Vec<u8>,
    /// Writes and length changes since the last flush, in order.
    unflushed: Vec<Change>,
    /// Every write and flush counts one; at `stop` the power fails.
    count: usize,
    stop: Option<usize>,
    /// The write at which it failed, as far as it got.
    torn: Option<Change>,
    /// Reads at this offset fail.
    unreadable: Option<u64>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = *offset as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset as usize..end].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length as usize, 0),
        }
    }
}

impl DiskState {
    fn step(&mut self, change: Option<Change>) -> io::Result<()> {
        if self.torn.is_some() || self.stop.is_some_and(|stop| self.count > stop) {
            return Err(io::Error::other("the power is gone"));
        }
        self.count += 1;
        if self.stop == Some(self.count - 1) {
            self.count += 1;
            self.torn = change;
            return Err(io::Error::other("the power fails"));
        }
        match change {
            Some(change) => {
                change.apply(&mut self.current);
                self.unflushed.push(change);
            }
            None => {
                for change in self.unflushed.drain(..) {
                    change.apply(&mut self.flushed);
                }
            }
        }
        Ok(())
    }
}

impl BlockFile for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        if state.unreadable == Some(offset) {
            return Err(io::Error::other("the disk does not read this"));
        }
        let source = state
            .current
            .get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .unwrap()
            .step(Some(Change::Write(offset, data.to_vec())))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().step(Some(Change::Length(len)))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.lock().unwrap().step(None)
    }
}

struct Lab {
    dek: Dek,
    file_id: FileId,
}

impl Lab {
    fn new() -> Self {
        Self {
            dek: Dek::generate(&OsRandom).unwrap(),
            file_id: "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap(),
        }
    }

    fn device(&self, disk: Disk) -> io::Result<Device<Disk>> {
        Device::open(
            disk,
            &self.dek.cipher_key(&self.file_id),
            self.file_id,
            Arc::new(OsRandom),
        )
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the device under test is in memory"
    )]
    fn database(&self, disk: Disk) -> Result<Database, redb::DatabaseError> {
        let device = self.device(disk).map_err(redb::StorageError::from)?;
        Builder::new()
            .set_cache_size(1 << 20)
            .set_check_integrity_on_open(true)
            .create_with_backend(device)
    }
}

const MODEL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("model");

/// One commit of the workload: overwrites, adds and removes.
fn commit(database: &Database, round: u64) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    {
        let mut table = transaction.open_table(MODEL)?;
        drop(table.insert(round, &vec![round as u8; 600 + 400 * round as usize][..])?);
        drop(table.insert(0, &round.to_be_bytes()[..])?);
        if round % 3 == 2 {
            drop(table.remove(round - 1)?);
        }
    }
    transaction.commit()?;
    Ok(())
}

fn model(rounds: u64) -> BTreeMap<u64, Vec<u8>> {
    let mut model = BTreeMap::new();
    for round in 0..rounds {
        let _old = model.insert(round, vec![round as u8; 600 + 400 * round as usize]);
        let _old = model.insert(0, round.to_be_bytes().to_vec());
        if round % 3 == 2 {
            let _old = model.remove(&(round - 1));
        }
    }
    model
}

fn content(database: &Database) -> BTreeMap<u64, Vec<u8>> {
    let transaction = database.begin_read().unwrap();
    match transaction.open_table(MODEL) {
        Ok(table) => table
            .iter()
            .unwrap()
            .map(|entry| {
                entry
                    .map(|(key, value)| (key.value(), value.value().to_vec()))
                    .unwrap()
            })
            .collect(),
        Err(_) => BTreeMap::new(),
    }
}

/// How a power cut may leave the disk: all, none or every other of the unflushed writes, and any prefix of the one under way.
fn outcomes(state: &DiskState) -> Vec<Vec<u8>> {
    let keep: [fn(usize) -> bool; 4] = [|_| true, |_| false, |n| n % 2 == 0, |n| n % 2 == 1];
    let mut all = Vec::new();
    for keep in keep {
        let mut bytes = state.flushed.clone();
        for (_, change) in state.unflushed.iter().enumerate().filter(|(n, _)| keep(*n)) {
            change.apply(&mut bytes);
        }
        if !all.contains(&bytes) {
            all.push(bytes);
        }
    }
    if let Some(Change::Write(offset, data)) = &state.torn {
        let whole = all[0].clone();
        for prefix in [
            1,
            8,
            32,
            33,
            512,
            2048,
            3584,
            4096,
            4120,
            data.len() - 1,
            data.len(),
        ] {
            let mut torn = whole.clone();
            Change::Write(*offset, data[..prefix].to_vec()).apply(&mut torn);
            all.push(torn);
        }
    }
    all
}

const ROUNDS: u64 = 4;

#[test]
fn survives_a_power_cut_at_every_write_and_every_flush() {
    let lab = Lab::new();
    // A database that exists: creation itself happens under a temporary name.
    let base = Disk::default();
    drop(lab.database(base.clone()).unwrap());
    let base = base.0.lock().unwrap().current.clone();
    let disk_of = |bytes: Vec<u8>, stop| {
        let state = DiskState {
            current: bytes.clone(),
            flushed: bytes,
            stop,
            ..DiskState::default()
        };
        Disk(Arc::new(Mutex::new(state)))
    };
    let (mut stop, mut checked) = (0, 0);
    loop {
        let disk = disk_of(base.clone(), Some(stop));
        let mut acknowledged = 0;
        if let Ok(database) = lab.database(disk.clone()) {
            while acknowledged < ROUNDS && commit(&database, acknowledged).is_ok() {
                acknowledged += 1;
            }
        }
        let state = disk.0.lock().unwrap();
        for bytes in outcomes(&state) {
            let database = lab.database(disk_of(bytes, None)).unwrap_or_else(|error| {
                panic!("stopped at {stop} after {acknowledged} commits: {error}")
            });
            let found = content(&database);
            assert!(
                found == model(acknowledged) || found == model(acknowledged + 1),
                "stopped at {stop} after {acknowledged} commits: {:?}",
                found.keys()
            );
            checked += 1;
        }
        if state.count <= stop {
            assert_eq!(acknowledged, ROUNDS);
            break;
        }
        drop(state);
        stop += 1;
    }
    assert!(stop > 30 && checked > 300, "{stop} stops, {checked} disks");
}

#[test]
fn survives_a_kill_and_then_a_power_cut() {
    let lab = Lab::new();
    let disk = Disk::default();
    let device = lab.device(disk.clone()).unwrap();
    device.set_len(2 * BLOCK as u64).unwrap();
    for text in [b"one", b"two"] {
        device.write(0, text).unwrap();
        device.sync_data().unwrap();
    }
    // The process is killed before its flush: what it wrote is in the page cache, and the next one reads it there.
    device.write(0, b"six").unwrap();
    drop(device);
    let device = lab.device(disk.clone()).unwrap();
    device.write(0, b"ten").unwrap();
    // Now the power fails, and tears all that was never flushed.
    let state = disk.0.lock().unwrap();
    let mut bytes = state.flushed.clone();
    for change in &state.unflushed {
        if let Change::Write(offset, data) = change {
            Change::Write(*offset, data[..data.len() / 2].to_vec()).apply(&mut bytes);
        }
    }
    drop(state);
    let after = DiskState {
        current: bytes,
        ..DiskState::default()
    };
    let device = lab.device(Disk(Arc::new(Mutex::new(after)))).unwrap();
    let mut out = [0; 3];
    device.read(0, &mut out).unwrap();
    assert_eq!(&out, b"six");
}

#[test]
fn takes_no_older_header_for_one_that_the_disk_does_not_read() {
    let lab = Lab::new();
    let disk = Disk::default();
    let device = lab.device(disk.clone()).unwrap();
    device.set_len(2 * BLOCK as u64).unwrap();
    for text in [b"one", b"two"] {
        device.write(0, text).unwrap();
        device.sync_data().unwrap();
    }
    drop(device);
    for slot in [0, SLOT_STRIDE] {
        disk.0.lock().unwrap().unreadable = Some(slot);
        let error = lab.device(disk.clone()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Other);
    }
}

#[test]
fn never_seals_again_what_does_not_authenticate() {
    let lab = Lab::new();
    let disk = Disk::default();
    let device = lab.device(disk.clone()).unwrap();
    device.set_len(4 * BLOCK as u64).unwrap();
    device.write(BLOCK as u64, &[5; BLOCK]).unwrap();
    device.sync_data().unwrap();
    disk.0.lock().unwrap().current[BLOCKS_AT as usize + 50] ^= 1;
    let error = device.write(BLOCK as u64 + 10, b"part").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut out = [0; 16];
    assert!(device.read(BLOCK as u64, &mut out).is_err());
    // Written whole, it is sound again.
    device.write(BLOCK as u64, &[6; BLOCK]).unwrap();
    device.read(BLOCK as u64, &mut out).unwrap();
    assert_eq!(out, [6; 16]);
}

#[test]
fn reads_zeros_where_it_grew_and_refuses_what_lies_beyond() {
    let lab = Lab::new();
    let disk = Disk::default();
    let device = lab.device(disk.clone()).unwrap();
    assert_eq!(device.len().unwrap(), 0);
    device.set_len(3 * BLOCK as u64).unwrap();
    device.write(4000, &[1; 200]).unwrap();
    let mut out = [9; 300];
    device.read(3950, &mut out).unwrap();
    assert_eq!(
        (&out[..50], &out[50..250], &out[250..]),
        (&[0; 50][..], &[1; 200][..], &[0; 50][..])
    );
    assert!(device.read(3 * BLOCK as u64 - 1, &mut [0; 2]).is_err());
    assert!(device.write(3 * BLOCK as u64, &[0]).is_err());
    device.sync_data().unwrap();
    drop(device);
    let device = lab.device(disk).unwrap();
    assert_eq!(device.len().unwrap(), 3 * BLOCK as u64);
    device.read(3950, &mut out).unwrap();
    assert_eq!(&out[50..250], &[1; 200]);
}
