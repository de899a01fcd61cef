//! A client that rotates keys while everybody works: data keys of single tenants, of all files, and
//! the master key.
//!
//! A master key is destroyed as soon as a rotation away from it was answered with no file that
//! failed: whatever was left behind would not open again. A rotation that was cut short leaves both
//! keys in the settings of the next start, as the manual says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nimbus_test_support::Machine;
use serde_json::{Value, json};

use crate::client::{Broken, Client, Hand};
use crate::random::Random;

pub(crate) struct Rotator {
    tenants: &'static [&'static str],
    data_dir: PathBuf,
    random: Random,
    /// The master key of the settings.
    key: PathBuf,
    /// The one that a rotation goes to which is not known to be done.
    next_key: Option<PathBuf>,
    /// Made and not used.
    spare: Vec<PathBuf>,
    made: u64,
    /// The data key of each file, as a rotation that was answered left it.
    deks: BTreeMap<String, String>,
    /// A rotation of data keys that was not answered.
    renewing: bool,
    audited: u64,
    master_keys: u64,
    data_keys: u64,
    all_data_keys: u64,
}

impl Rotator {
    pub(crate) fn new(seed: u64, machine: &Machine, tenants: &'static [&'static str]) -> Self {
        Self {
            tenants,
            data_dir: machine.data_dir(),
            random: Random::new(seed, 3004),
            key: machine.master_key(),
            next_key: None,
            spare: Vec::new(),
            made: 0,
            deks: BTreeMap::new(),
            renewing: false,
            audited: 0,
            master_keys: 0,
            data_keys: 0,
            all_data_keys: 0,
        }
    }

    /// The keys that everything opens with, and no others.
    pub(crate) fn settings(&self, command: &mut Command) {
        command.env("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", &self.key);
        if let Some(next) = &self.next_key {
            command.env("NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE", next);
        }
    }

    /// Makes the keys that the next rotations go to.
    pub(crate) fn prepare(&mut self, machine: &Machine) {
        while self.spare.len() < SPARE {
            self.made += 1;
            let key = machine.path(&format!("master-{}.key", self.made));
            let mut keygen = machine.nimbus(&["encryption", "keygen", "--master-key-file"]);
            let made = keygen.arg(&key).output().expect("nimbus runs");
            assert!(
                made.status.success(),
                "{}",
                String::from_utf8_lossy(&made.stderr)
            );
            self.spare.push(key);
        }
    }

    fn rotate_master_key(&mut self, client: &mut Client) -> Result<(), Broken> {
        let Some(next) = self.next_key.take().or_else(|| self.spare.pop()) else {
            return Ok(());
        };
        self.next_key = Some(next.clone());
        let request = json!({"path": self.data_dir, "all": true, "new_master_key_file": next});
        let result = run(client, "rotate-kek", &request)?;
        // As the manual says: as long as one file failed, both keys are kept, and the rotation is
        // run again.
        if result["failed"] == json!([]) {
            fs::remove_file(&self.key).expect("the old key");
            self.key = next;
            self.next_key = None;
            self.master_keys += 1;
        }
        Ok(())
    }

    fn rotate_data_key(&mut self, client: &mut Client) -> Result<(), Broken> {
        let tenant = self.tenants[self.random.below(self.tenants.len() as u64) as usize];
        let file = format!("{tenant}.sqlite3");
        let before = data_keys(client)?;
        self.renewing = true;
        let request = json!({"path": self.data_dir.join(&file), "tenant_id": tenant});
        let result = run(client, "rotate-dek", &request)?;
        assert_eq!(result["failed"], json!([]), "{result}");
        self.note(client)?;
        assert_ne!(
            self.deks.get(&file),
            before.get(&file),
            "{file} has a new data key"
        );
        self.data_keys += 1;
        Ok(())
    }

    fn rotate_all_data_keys(&mut self, client: &mut Client) -> Result<(), Broken> {
        let before = data_keys(client)?;
        self.renewing = true;
        let result = run(
            client,
            "rotate-dek",
            &json!({"path": self.data_dir, "all": true}),
        )?;
        let failed = failures(&result);
        assert!(failed.is_empty(), "{failed:?}");
        self.note(client)?;
        for file in self.files() {
            assert_ne!(
                self.deks.get(&file),
                before.get(&file),
                "{file} has a new data key"
            );
        }
        self.all_data_keys += 1;
        Ok(())
    }

    /// What a rotation that was answered must leave for ever.
    fn note(&mut self, client: &mut Client) -> Result<(), Broken> {
        let mut deks = data_keys(client)?;
        let files = self.files();
        deks.retain(|file, _| files.contains(file));
        self.deks = deks;
        self.renewing = false;
        Ok(())
    }

    /// The files whose data keys nobody else changes.
    fn files(&self) -> Vec<String> {
        let tenants = self
            .tenants
            .iter()
            .map(|tenant| format!("{tenant}.sqlite3"));
        tenants.chain(["nimbus-control.db".to_owned()]).collect()
    }
}

impl Hand for Rotator {
    fn step(&mut self, client: &mut Client) -> Result<(), Broken> {
        match self.random.below(4) {
            0 => self.rotate_master_key(client),
            1 => self.rotate_all_data_keys(client),
            _ => self.rotate_data_key(client),
        }
    }

    /// No data key went back to the one before it, and every line of the audit log is there as it
    /// was written.
    fn settle(&mut self, client: &mut Client) {
        if !self.renewing {
            let found = data_keys(client).expect("the server runs");
            for (file, dek) in &self.deks {
                assert_eq!(found.get(file), Some(dek), "the data key of {file}");
            }
        }
        self.note(client).expect("the server runs");
        let path = "/api/admin/encryption/audit";
        let (status, log) = client.get_at_last(path).expect("the server runs");
        assert_eq!((status, &log["problems"]), (200, &json!([])), "{log}");
        let lines = log["lines"].as_u64().expect("a number");
        assert!(
            lines >= self.audited,
            "{lines} lines, and there were {}",
            self.audited
        );
        self.audited = lines;
    }

    fn done(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("master keys rotated", self.master_keys),
            ("data keys rotated", self.data_keys),
            ("rotations of all data keys", self.all_data_keys),
            ("lines of the audit log", self.audited),
        ]
    }
}

/// Begins an operation, and waits for what comes of it.
pub(crate) fn run(client: &mut Client, kind: &str, request: &Value) -> Result<Value, Broken> {
    let path = format!("/api/admin/encryption/{kind}");
    let (status, begun) = client.post(&path, request)?;
    assert_eq!(status, 202, "{begun}");
    let operation = begun["operation"].as_str().expect("an id");
    let started = Instant::now();
    loop {
        let path = format!("/api/admin/operations/{operation}");
        let (status, answer) = client.get_at_last(&path)?;
        assert_eq!(status, 200, "{answer}");
        match answer["state"].as_str() {
            Some("done") => return Ok(answer["result"].clone()),
            Some("running") => assert!(started.elapsed() < PATIENCE, "{answer}"),
            _ => panic!("{kind}: {answer}"),
        }
        thread::sleep(PAUSE);
    }
}

/// Files that a rotation failed for, but for tenants that come and go.
fn failures(result: &Value) -> Vec<&Value> {
    let failed = result["failed"].as_array().expect("failed").iter();
    let lasting = |one: &&Value| {
        let path = Path::new(one["path"].as_str().expect("a path"));
        let name = path.file_name().and_then(|name| name.to_str());
        !name.is_some_and(|name| name.starts_with("churn-"))
    };
    failed.filter(lasting).collect()
}

/// The data key of each file.
fn data_keys(client: &mut Client) -> Result<BTreeMap<String, String>, Broken> {
    let (status, found) = client.get_at_last("/debug/encryption/status?verify=none")?;
    assert_eq!(status, 200, "{found}");
    let files = found["files"].as_array().expect("files").iter();
    let keys = files.filter_map(|file| {
        let text = |member: &str| file[member].as_str().map(str::to_owned);
        Some((text("path")?, text("dek_id")?))
    });
    Ok(keys.collect())
}

const SPARE: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(120);
