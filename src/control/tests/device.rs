//! The device under the control file, on a file in memory that fails: the power goes at every write
//! and every flush.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use nimbus_keyproviders::{Dek, OsRandom};
use nimbus_manifests::FileId;
use redb::{
    Builder, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
};

use super::super::device::{BLOCK, BLOCKS_AT, BlockFile, Device, SLOT_STRIDE};
use super::*;

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
        model.insert(round, vec![round as u8; 600 + 400 * round as usize]);
        model.insert(0, round.to_be_bytes().to_vec());
        if round % 3 == 2 {
            model.remove(&(round - 1));
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

/// How a power cut may leave the disk: all, none or every other of the unflushed writes, and any
/// prefix of the one under way.
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
    // The process is killed before its flush: what it wrote is in the page cache, and the next one
    // reads it there.
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
