//! Checks of the provider, of keys and of the files under them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nimbus_keyproviders::keyfile;

use super::{Check, Verdict, check, fine};
use crate::clock;
use crate::data_dir::parent;
use crate::encryption::status::{EncryptionStatus, FileReport, Health};
use crate::pluralize::pluralize;

pub(super) fn provider(status: &EncryptionStatus) -> Check {
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

pub(super) fn files(status: &EncryptionStatus) -> Check {
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

pub(super) fn newest_key(status: &EncryptionStatus, behind: &[String], stuck: &[String]) -> Check {
    let name = "newest-key";
    match &status.provider {
        None => return fine(name, "encryption is off: no key wraps anything"),
        Some(provider) if provider.error.is_some() => {
            return check(
                name,
                Verdict::Warning,
                "it is unknown whether every file is under the newest key: that key cannot be used",
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
pub(super) fn named(files: &[impl AsRef<str>]) -> String {
    let first = files.first().map_or("", AsRef::as_ref);
    let more = if files.len() > 1 { ", …" } else { "" };
    format!("{}: {first}{more}", pluralize(files.len(), "file"))
}

pub(super) fn data_key_age(status: &EncryptionStatus) -> Check {
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

pub(super) fn pending(status: &EncryptionStatus) -> Check {
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

pub(super) fn recovery(status: &EncryptionStatus, recipients: usize) -> Check {
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

pub(super) fn key_place(key: Option<&Path>, data_dir: &Path) -> Check {
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

pub(super) fn key_modes(key: Option<&Path>) -> Check {
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

const DAY: i64 = 86_400;
/// NIST SP 800-57 part 1, table 1: two years for a symmetric data-encryption key.
const MAX_KEY_DAYS: i64 = 730;
