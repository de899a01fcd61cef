//! `doctor`: everything around the files that an operator or an auditor asks about, looked at and
//! told with what to do next.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nimbus_keyproviders::{keyfile, locked_memory, same_key};
use nimbus_manifests::{KeyId, ProviderKind, Subject};
use serde::{Deserialize, Serialize};

use super::size_of;
use super::status::{EncryptionStatus, FileReport, Health, StatusError, StatusReader, Verify};
use crate::audit::{LogError, Verified};
use crate::backup::proofs::ProofStanding;
use crate::clock;
use crate::data_dir::{self, Entry, PLAINTEXT, Role, parent};
use crate::envelope::{FileKind, Trouble, classify};
use crate::pluralize::pluralize;
use crate::process::{Disk, Limits, Reserve, harden};
use crate::runtime::blocking;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and could be safer, or will not work for long.
    Warning,
    /// It needs an operator.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Examined)]
pub struct Check {
    /// What it is about; the name stays the same.
    pub name: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub remedy: Option<String>,
}

/// The answer of `nimbus doctor --format json`; `docs/doctor.md` documents it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Examination)]
pub struct Diagnosis {
    /// Each thing, always the same ones in the same order.
    pub checks: Vec<Check>,
    /// How many of them could be better.
    #[schema(value_type = u64)]
    pub warnings: usize,
    /// How many need an operator.
    #[schema(value_type = u64)]
    pub problems: usize,
}

/// What to look at.
#[derive(Debug)]
pub struct Doctor {
    /// Looks at the files.
    pub status_reader: StatusReader,
    /// How many tenants may be open: each needs locked memory for its keys.
    pub max_open_tenants: usize,
    /// How much may be written.
    pub limits: Limits,
    /// How proofs of restores stand; `None` where they are not asked for, or no server runs.
    pub proofs: Option<ProofStanding>,
}

impl Doctor {
    /// Looks at everything. `audit` is what a look at the whole audit log found.
    ///
    /// # Errors
    ///
    /// [`StatusError`] when the data directory cannot be read.
    pub async fn run(self, audit: Result<Verified, LogError>) -> Result<Diagnosis, StatusError> {
        let status = self.status_reader.clone().run(Some(Verify::None)).await?;
        let (behind, stuck) = self.behind(&status).await;
        let (data_dir, control_dir) = (
            self.status_reader.data_dir.clone(),
            self.status_reader.control_dir.clone(),
        );
        let key = status
            .provider
            .as_ref()
            .and_then(|provider| provider.path.as_deref())
            .map(PathBuf::from);
        let mut checks = vec![
            provider(&status),
            files(&status),
            newest_key(&status, &behind, &stuck),
            data_key_age(&status),
            pending(&status),
            recovery(&status, self.recipients()),
        ];
        let (max_open, limits) = (self.max_open_tenants, self.limits);
        let future = clock(&status);
        checks.extend(
            blocking(move || {
                vec![
                    key_place(key.as_deref(), &data_dir),
                    key_modes(key.as_deref()),
                    directory_modes(&[&data_dir, &control_dir]),
                    leftovers(&[&data_dir, &control_dir]),
                    disk(&data_dir, limits.reserve),
                    tenant_size(&data_dir, limits.tenant),
                    future,
                    memory_lock(max_open),
                    core_dumps(),
                ]
            })
            .await,
        );
        checks.push(audit_log(audit));
        checks.push(backup_proofs(self.proofs.as_ref()));
        let sum = |verdict| {
            checks
                .iter()
                .filter(|check| check.verdict == verdict)
                .count()
        };
        Ok(Diagnosis {
            warnings: sum(Verdict::Warning),
            problems: sum(Verdict::Problem),
            checks,
        })
    }

    fn recipients(&self) -> usize {
        let keys = self
            .status_reader
            .envelope
            .as_ref()
            .ok()
            .and_then(|envelope| envelope.keys());
        keys.map_or(0, |keys| keys.recipients().len())
    }

    /// Files that the key which wraps now does not wrap: those that a rotation moves, and those
    /// whose key cannot be had, which it does not.
    async fn behind(&self, status: &EncryptionStatus) -> (Vec<String>, Vec<String>) {
        let keys = self
            .status_reader
            .envelope
            .as_ref()
            .ok()
            .and_then(|envelope| envelope.keys());
        let Some(keys) = keys else {
            return (Vec::new(), Vec::new());
        };
        let current = keys.current();
        // A key directory has a key a file; the others have one for all.
        let shared = match current.kind() {
            ProviderKind::KeyDir => None,
            _ => current.key_id(&crate::control::subject()).await.ok(),
        };
        let (mut behind, mut stuck) = (Vec::new(), Vec::new());
        for file in &status.files {
            let Some(subject) = file
                .subject
                .as_ref()
                .and_then(|text| text.parse::<Subject>().ok())
            else {
                continue;
            };
            // Nothing of it is wrapped: what is wrong is told by the check of the files.
            if file.wraps.is_empty() {
                continue;
            }
            let by = keys.wraps_for(&subject);
            let wanted = match &shared {
                Some(id) if !by.is_mapped(&subject) => Some(id.clone()),
                _ => by.key_id(&subject).await.ok(),
            };
            let kind = by.kind().to_string();
            let mut wraps = file.wraps.iter().filter(|wrap| wrap.provider == kind);
            // A file whose own key cannot be had is told by the check of the files.
            let there = wraps.any(|wrap| {
                let found = KeyId::new(wrap.key_id.as_str());
                let is_it = |id| found.is_ok_and(|found| same_key(&found, id));
                wanted.as_ref().is_none_or(is_it)
            });
            if !there {
                let movable = file.health != Health::KeyUnavailable;
                if movable { &mut behind } else { &mut stuck }.push(file.path.clone());
            }
        }
        (behind, stuck)
    }
}

fn check(name: &str, verdict: Verdict, found: impl Into<String>, remedy: Option<&str>) -> Check {
    Check {
        name: name.to_owned(),
        verdict,
        found: found.into(),
        remedy: remedy.map(str::to_owned),
    }
}

fn fine(name: &str, found: impl Into<String>) -> Check {
    check(name, Verdict::Ok, found, None)
}

/// Whether tenants restore from the repository.
fn backup_proofs(standing: Option<&ProofStanding>) -> Check {
    let name = "backup-proofs";
    let Some(standing) = standing else {
        return fine(
            name,
            "not asked for: --backup-verify-every restores each tenant once in a while",
        );
    };
    if !standing.failed.is_empty() {
        let found = format!(
            "not restored at the last try: {}",
            standing.failed.join("; ")
        );
        let remedy = "`nimbus backup verify --deep` tells more; a tenant that no snapshot holds yet needs one";
        return check(name, Verdict::Problem, found, Some(remedy));
    }
    if !standing.late.is_empty() {
        let found = format!("not restored for long: {}", standing.late.join(", "));
        let remedy = "see nimbus_backup_proofs_failed_total, and the log of the server";
        return check(name, Verdict::Warning, found, Some(remedy));
    }
    let proven = pluralize(standing.proven, "tenant");
    let when = standing
        .times
        .as_ref()
        .map(|(oldest, newest)| format!(", between {oldest} and {newest}"));
    fine(
        name,
        format!("{proven} restored and proven{}", when.unwrap_or_default()),
    )
}

fn provider(status: &EncryptionStatus) -> Check {
    let name = "key-provider";
    match &status.provider {
        None => check(
            name,
            Verdict::Problem,
            "encryption is off: everything is stored in plaintext",
            Some("name a key provider, and encrypt what is there with `nimbus encryption migrate`"),
        ),
        Some(provider) => match &provider.error {
            None => fine(
                name,
                format!(
                    "{} {}",
                    provider.kind,
                    provider
                        .key_id
                        .as_deref()
                        .or(provider.path.as_deref())
                        .unwrap_or_default()
                ),
            ),
            Some(error) => check(
                name,
                Verdict::Problem,
                format!("{} cannot be used: {error}", provider.kind),
                Some("see docs/keys.md for each failure and its remedy"),
            ),
        },
    }
}

fn files(status: &EncryptionStatus) -> Check {
    let summary = status.summary;
    if summary.problems == 0 {
        let files = pluralize(summary.files, "file");
        return fine("files", format!("{files}, all in order"));
    }
    check(
        "files",
        Verdict::Problem,
        format!(
            "{} of {} in need of an operator",
            summary.problems,
            pluralize(summary.files, "file")
        ),
        Some("`nimbus encryption status` names them and what to do"),
    )
}

fn newest_key(status: &EncryptionStatus, behind: &[String], stuck: &[String]) -> Check {
    let name = "newest-key";
    match &status.provider {
        None => return fine(name, "encryption is off: no key wraps anything"),
        Some(provider) if provider.error.is_some() => {
            return check(
                name,
                Verdict::Warning,
                "whether every file is under the newest key cannot be told: that key cannot be used",
                Some("put right what key-provider says, then run `nimbus doctor` again"),
            );
        }
        Some(_) => {}
    }
    if !stuck.is_empty() {
        return check(
            name,
            Verdict::Warning,
            format!(
                "the key that wraps now does not wrap {}; and no configured key opens {}",
                named(&[stuck, behind].concat()),
                named(stuck)
            ),
            Some(
                "name the key that wraps them in the settings (NIMBUS_ENCRYPTION_PREVIOUS_…): `nimbus encryption status` says which it is; \
                 then `nimbus encryption rotate-kek --all --path <data directory>` moves them",
            ),
        );
    }
    if behind.is_empty() {
        return fine(name, "the key that wraps now wraps every file");
    }
    check(
        name,
        Verdict::Warning,
        format!("the key that wraps now does not wrap {}", named(behind)),
        Some(
            "`nimbus encryption rotate-kek --all --path <data directory>` moves them to the key of the settings; keep the old key until then. If a \
             rotation to another key was cut short, run that one again instead: `nimbus encryption audit` names its key",
        ),
    )
}

/// How many files, and the first of them.
fn named(files: &[impl AsRef<str>]) -> String {
    let first = files.first().map_or("", AsRef::as_ref);
    let more = if files.len() > 1 { ", …" } else { "" };
    format!("{}: {first}{more}", pluralize(files.len(), "file"))
}

fn data_key_age(status: &EncryptionStatus) -> Check {
    let name = "data-key-age";
    let now = clock::now();
    let ages = status.files.iter().filter_map(|file| {
        let created: jiff::Timestamp = file.dek_created.as_ref()?.parse().ok()?;
        Some((now.as_second() - created.as_second(), &file.path))
    });
    let Some((oldest, path)) = ages.max() else {
        return fine(name, "there is no data key yet");
    };
    let days = oldest / DAY;
    let days_old = pluralize(days.max(0), "day");
    let found = format!("the oldest is {days_old} old: {path}");
    if days < MAX_KEY_DAYS {
        return fine(name, found);
    }
    check(
        name,
        Verdict::Warning,
        found,
        Some(
            "NIST SP 800-57 gives a key that encrypts data two years: `nimbus encryption rotate-dek`",
        ),
    )
}

fn pending(status: &EncryptionStatus) -> Check {
    let name = "pending";
    let going = |file: &&FileReport| file.health == Health::Deleting;
    let deletions: Vec<_> = status.files.iter().filter(going).collect();
    if let Some(first) = deletions.first() {
        let found = match deletions.len() {
            1 => String::new(),
            count => format!("{}, the first: ", pluralize(count, "deletion")),
        };
        let told = first.detail.as_deref().unwrap_or_default();
        let remedy = "remove the cause, then run the command that it names for each of them";
        return check(
            name,
            Verdict::Problem,
            format!("{found}{told}"),
            Some(remedy),
        );
    }
    let unsettled: Vec<&str> = status
        .files
        .iter()
        .filter(|file| file.health == Health::Rekeying || file.state.as_deref() == Some("new"))
        .map(|file| &*file.path)
        .collect();
    match unsettled.is_empty() {
        true => fine(name, "nothing was cut short"),
        false => check(
            name,
            Verdict::Warning,
            format!("between two states: {}", named(&unsettled)),
            Some(
                "the next opening settles each; a creation is finished when the tenant is created again",
            ),
        ),
    }
}

fn recovery(status: &EncryptionStatus, recipients: usize) -> Check {
    let name = "recovery";
    let without = status
        .files
        .iter()
        .filter(|file| !file.wraps.is_empty())
        .filter(|file| !file.wraps.iter().any(|wrap| wrap.provider == "age"))
        .count();
    let remedy = "make an identity with age-keygen, keep it apart, set --encryption-recovery-recipient, and add it to what is there: \
                  `nimbus encryption rotate-kek --path <data directory> --all --add-recipient age1…`";
    match (recipients, without) {
        (_, 0) if status.files.is_empty() && recipients == 0 => check(
            name,
            Verdict::Warning,
            "there is no recovery recipient: a lost key will be the end of the data",
            Some(remedy),
        ),
        (_, 0) => fine(name, "every file opens with a recovery identity, too"),
        (_, without) => check(
            name,
            Verdict::Warning,
            format!(
                "without a recovery recipient: {}; what is lost with its key is lost for ever",
                pluralize(without, "file")
            ),
            Some(remedy),
        ),
    }
}

fn key_place(key: Option<&Path>, data_dir: &Path) -> Check {
    let name = "key-place";
    let Some(key) = key else {
        return fine(name, "no key lies on this machine");
    };
    let device = |path: &Path| fs::metadata(path).ok().map(|file| file.dev());
    let shown = key.display();
    let backup = key.components().any(|part| {
        part.as_os_str()
            .to_string_lossy()
            .to_lowercase()
            .contains("backup")
    });
    let (a, b) = (key.canonicalize().ok(), data_dir.canonicalize().ok());
    if a.zip(b).is_some_and(|(key, dir)| key.starts_with(dir)) {
        return check(
            name,
            Verdict::Problem,
            format!("{shown} lies in the data directory: who takes the data takes the key"),
            Some("move it elsewhere, and name it in the settings"),
        );
    }
    if backup {
        return check(
            name,
            Verdict::Warning,
            format!(
                "{shown} looks like a place of backups: a backup that holds data and key protects nothing"
            ),
            Some("keep the key where no backup of the data goes"),
        );
    }
    if device(key).is_some() && device(key) == device(data_dir) {
        return check(
            name,
            Verdict::Warning,
            format!("{shown} lies on the disk of the data: who takes that disk has both"),
            Some("keep the key on another file system (a mounted secret, say), or in a KMS"),
        );
    }
    fine(name, format!("{shown}, apart from the data"))
}

fn key_modes(key: Option<&Path>) -> Check {
    let name = "key-modes";
    let Some(key) = key else {
        return fine(name, "no key lies on this machine");
    };
    let mut looked_at = vec![key.to_owned()];
    looked_at.push(parent(key).to_owned());
    if let Ok(entries) = fs::read_dir(key) {
        looked_at.extend(entries.flatten().map(|entry| entry.path()));
    }
    for path in looked_at {
        let Ok(file) = fs::metadata(&path) else {
            return check(
                name,
                Verdict::Problem,
                format!("{} cannot be looked at", path.display()),
                Some("put the key in its place, readable for this user alone"),
            );
        };
        // A directory may be read by others, and not changed; a key neither.
        // A sticky directory lets nobody else replace what is in it.
        let fine = if file.is_dir() {
            file.mode() & 0o022 == 0 || file.mode() & 0o1000 != 0
        } else {
            keyfile::is_closed(&path).unwrap_or(file.mode() & 0o077 == 0)
        };
        if !fine {
            return check(
                name,
                Verdict::Problem,
                format!("{} has mode {:o}", path.display(), file.mode() & 0o7777),
                Some("`chmod go-rwx` it: others could read the key, or put another in its place"),
            );
        }
    }
    fine(
        name,
        "nobody else can read the key, or put another in its place",
    )
}

fn directory_modes(dirs: &[&Path]) -> Check {
    let name = "data-modes";
    for dir in dirs {
        let mode = fs::metadata(dir).map_or(0, |dir| dir.mode() & 0o7777);
        if mode & 0o077 != 0 {
            let verdict = if mode & 0o022 == 0 {
                Verdict::Warning
            } else {
                Verdict::Problem
            };
            return check(
                name,
                verdict,
                format!("{} has mode {mode:o}", dir.display()),
                Some(
                    "`chmod 700` it: others see which tenants there are, or can remove their files",
                ),
            );
        }
    }
    fine(name, "nobody else can look into the data directories")
}

fn leftovers(dirs: &[&Path]) -> Check {
    let name = "plaintext-left";
    let mut left: Vec<String> = dirs
        .iter()
        .flat_map(|dir| data_dir::scan_readable(dir))
        .filter(may_be_plaintext)
        .map(|entry| entry.path.display().to_string())
        .collect();
    // The two directories may be one.
    left.sort();
    left.dedup();
    if left.is_empty() {
        return fine(name, "no plaintext is left beside the data");
    }
    check(
        name,
        Verdict::Warning,
        format!(
            "left of a migration, an export or a creation: {}",
            named(&left)
        ),
        Some("look what it is, and remove it: it may be plaintext"),
    )
}

/// Whether it is left of something that handles plaintext. What is set aside holds whatever stood
/// there.
fn may_be_plaintext(entry: &Entry) -> bool {
    let set_aside = || {
        let derived = entry.derived();
        derived.is_some_and(|derived| derived.kind == data_dir::Kind::SetAside)
    };
    let plain = || {
        matches!(
            classify(&entry.path),
            Ok(FileKind::PlainSqlite | FileKind::PlainRedb)
        )
    };
    entry.name().contains(PLAINTEXT) || entry.role == Role::Temporary || set_aside() && plain()
}

fn disk(data_dir: &Path, reserve: Reserve) -> Check {
    let name = "disk-space";
    let Ok(disk) = Disk::of(data_dir) else {
        return check(
            name,
            Verdict::Problem,
            format!("the disk of {} cannot be looked at", data_dir.display()),
            None,
        );
    };
    let (free, kept) = (disk.free, reserve.on(disk));
    let sizes = data_dir::scan_readable(data_dir).map(|entry| entry.len());
    let largest = sizes.max().unwrap_or(0);
    let found = format!(
        "{} MiB free, of which {} MiB are kept free; the largest file has {} MiB",
        free >> 20,
        kept >> 20,
        largest >> 20
    );
    let remedy = "free some space: below what is kept free only deletes are let in, and `rotate-dek` and `migrate` need room for a second copy";
    if free < LEAST_FREE.max(kept) {
        check(name, Verdict::Problem, found, Some(remedy))
    } else if free < largest + largest / 20 {
        check(name, Verdict::Warning, found, Some(remedy))
    } else {
        fine(name, found)
    }
}

fn tenant_size(data_dir: &Path, limit: Option<u64>) -> Check {
    let name = "tenant-size";
    let Some(limit) = limit else {
        return fine(name, "a tenant may have as much as the disk has");
    };
    let largest = data_dir::scan_readable(data_dir)
        .filter(|entry| matches!(entry.role, Role::Database(_)))
        .map(|entry| (size_of(&entry.path), entry.path))
        .max();
    let Some((bytes, path)) = largest else {
        return fine(name, "there are no tenants");
    };
    let found = format!(
        "{} is the largest, with {} of {} MiB",
        path.file_name().unwrap_or_default().display(),
        bytes >> 20,
        limit >> 20
    );
    let remedy = "at its limit a tenant takes deletes alone: raise --max-tenant-bytes, or have documents deleted";
    if bytes >= limit {
        check(name, Verdict::Problem, found, Some(remedy))
    } else if bytes >= limit / 10 * 9 {
        check(name, Verdict::Warning, found, Some(remedy))
    } else {
        fine(name, found)
    }
}

fn clock(status: &EncryptionStatus) -> Check {
    let name = "clock";
    let now = clock::now().as_second();
    let ahead = status.files.iter().find(|file| {
        let times = file
            .wraps
            .iter()
            .map(|wrap| &wrap.at)
            .chain(&file.dek_created);
        times
            .filter_map(|time| time.parse::<jiff::Timestamp>().ok())
            .any(|time| time.as_second() > now + SKEW)
    });
    match ahead {
        None => fine(name, "no key was made in the future"),
        Some(file) => check(
            name,
            Verdict::Problem,
            format!("{} has a key that was made in the future", file.path),
            Some("set this machine's clock: ages of keys, jobs and leases go by it"),
        ),
    }
}

fn memory_lock(max_open: usize) -> Check {
    let name = "memory-lock";
    let memory = locked_memory();
    let limit = harden().memory_lock_limit;
    let needed = max_open as u64 * KEY_MEMORY_A_TENANT;
    let found = format!(
        "{} KiB of key memory locked, {} KiB refused; the limit is {}",
        memory.locked_bytes >> 10,
        memory.unlocked_bytes >> 10,
        limit.map_or("none".to_owned(), |bytes| format!("{} KiB", bytes >> 10))
    );
    if memory.unlocked_bytes == 0 && limit.is_none_or(|limit| limit >= needed) {
        return fine(name, found);
    }
    check(
        name,
        Verdict::Warning,
        found,
        Some(
            "raise it (`ulimit -l`, LimitMEMLOCK= in a systemd unit): keys beyond it may be swapped; or use no swap, or an encrypted one",
        ),
    )
}

fn core_dumps() -> Check {
    let hardening = harden();
    if hardening.no_core_dumps && hardening.not_dumpable {
        return fine(
            "core-dumps",
            "off, and no other process of this user may attach",
        );
    }
    check(
        "core-dumps",
        Verdict::Warning,
        "this platform does not let them be turned off for good",
        Some("turn them off for the user that Nimbus runs as"),
    )
}

fn audit_log(audit: Result<Verified, LogError>) -> Check {
    let name = "audit-log";
    match audit {
        Ok(Verified {
            rolled_back: Some(said),
            ..
        }) => check(name, Verdict::Problem, said, Some(ROLLED_BACK)),
        Ok(verified) if verified.problems.is_empty() => {
            let from = match verified.base {
                0 => String::new(),
                base => format!(" from line {} on, as an operator accepted", base + 1),
            };
            fine(
                name,
                format!("whole{from}: {}", pluralize(verified.lines, "line")),
            )
        }
        Ok(verified) => check(
            name,
            Verdict::Problem,
            format!(
                "not whole: {}: {}",
                pluralize(verified.faults, "fault"),
                verified.problems[0].problem
            ),
            Some(
                "`nimbus encryption audit --verify` names them; once it is known how they came, `nimbus encryption audit --accept-broken` goes on \
                 from there, with the server stopped",
            ),
        ),
        Err(LogError::EncryptionOff) => fine(name, "there is none: encryption is off"),
        Err(LogError::NoControlFile { .. }) => {
            fine(name, "there is none yet: no server has run here")
        }
        Err(LogError::ControlLost(lost)) => check(
            name,
            Verdict::Problem,
            format!(
                "its end was in the control file, and {} is gone",
                lost.path.display()
            ),
            Some("put the control file back, as `nimbus encryption status` says"),
        ),
        Err(error) => check(
            name,
            Verdict::Problem,
            format!(
                "it cannot be verified: {}",
                crate::error_chain::error_chain(&error)
            ),
            Some(match &error {
                LogError::Io { .. } => {
                    "make the log and its directory readable and writable for this user"
                }
                LogError::Control(error) => match error.trouble() {
                    Trouble::KeyUnavailable | Trouble::KeyRevoked => {
                        "the log is verified with the key of the control file: make that available, then run `nimbus doctor` again"
                    }
                    _ => {
                        "the log's end is in the control file: put that right as `nimbus encryption status` says, then run `nimbus doctor` again"
                    }
                },
                _ => ROLLED_BACK,
            }),
        ),
    }
}

const ROLLED_BACK: &str = "put the newest control file and its manifest back; if there is none, `nimbus start --accept-rolled-back-control`";
const DAY: i64 = 86_400;
/// NIST SP 800-57 part 1, table 1: two years for a symmetric data-encryption key.
const MAX_KEY_DAYS: i64 = 730;
/// A clock may be this many seconds behind the one that made a key.
const SKEW: i64 = 300;
/// Below this a server cannot write its WALs: 64 MiB.
const LEAST_FREE: u64 = 64 << 20;
/// Data key, cipher key and some that are derived for a moment.
const KEY_MEMORY_A_TENANT: u64 = 4 * 32;
