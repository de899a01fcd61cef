//! One line of the log, and what chains it to the one before.
//!
//! ```text
//! {"seq":7,"settled":6,"time":"…","event":"rewrap",…,"prev":"<hex>","key":"<hex>","mac":"<base64>"}\n
//!  └──────────────── under the MAC ────────────────────────────────┘
//!  └──────────────── under the SHA-256 that the next line has as "prev" ──────────────┘
//! ```
//!
//! `key` is the id of the control file's data key, from which the MAC key is derived (HMAC-SHA-256,
//! RFC 2104). A line under a key that was replaced since is authenticated by the lines after it,
//! through `prev`.

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use nimbus_keyproviders::AuditKey;
use nimbus_manifests::DekId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::control::AuditHead as Head;
use crate::envelope::Event;

/// A line, as its readers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number, one more than that of the line before; the first is 1.
    pub seq: u64,
    /// Up to which line the control file had the head, durably, when it was written. Lines of
    /// earlier releases do not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub settled: Option<u64>,
    /// When it was written, RFC 3339, UTC.
    pub time: String,
    /// What happened.
    pub event: String,
    /// `begun`, `done` or `failed`.
    pub outcome: String,
    /// Whose file.
    pub subject: Option<String>,
    /// The file's data keys.
    pub deks: Vec<String>,
    /// The keys that wrap them.
    pub keys: Vec<String>,
    /// Who did it.
    pub actor: String,
    /// What else there is to say.
    pub detail: Option<String>,
    /// SHA-256 of the line before, in hex; zeros for the first.
    prev: String,
    /// The data key of the control file, from which the MAC's key comes.
    key: String,
    /// The MAC.
    mac: String,
}

impl Line {
    /// The head that it says it follows on.
    pub(super) fn follows(&self) -> Head {
        let mut hash = [0; 32];
        if let Ok(before) = HEXLOWER.decode(self.prev.as_bytes())
            && before.len() == hash.len()
        {
            hash.copy_from_slice(&before);
        }
        Head {
            seq: self.seq.saturating_sub(1),
            hash,
        }
    }
}

/// What a line without its MAC is written from.
#[derive(Serialize)]
struct Unsealed<'a> {
    seq: u64,
    settled: u64,
    time: &'a str,
    event: &'a str,
    outcome: &'a str,
    subject: Option<&'a str>,
    deks: Vec<String>,
    keys: &'a [String],
    actor: &'a str,
    detail: Option<&'a str>,
    prev: String,
    key: String,
}

/// The key that seals lines, and its name in them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealer<'a> {
    pub(super) key: &'a AuditKey,
    pub(super) id: DekId,
}

/// Why a line does not follow on the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// It is no line of this log.
    #[error("it is not a line of this log")]
    Malformed,
    /// Its number is not the next one.
    #[error(
        "its number is {found}, and the next one would be {expected}: lines are missing, or were moved"
    )]
    OutOfOrder {
        /// The next number.
        expected: u64,
        /// Its number.
        found: u64,
    },
    /// Its `prev` is not the hash of the line before.
    #[error("it does not follow on the line before it, which was changed, or put there")]
    Unchained,
    /// Its MAC is wrong.
    #[error("its MAC is wrong: it was changed, or not written by Nimbus")]
    Forged,
}

/// The line of an event, line end included, and the head after it. `settled` is the number of the
/// head that is durable now.
pub(super) fn seal(
    sealer: Sealer<'_>,
    before: Head,
    settled: u64,
    time: &str,
    event: &Event,
) -> (String, Head) {
    let unsealed = Unsealed {
        seq: before.seq + 1,
        settled,
        time,
        event: event.kind.as_str(),
        outcome: event.outcome.as_str(),
        subject: event.subject.as_ref().map(|subject| subject.as_str()),
        deks: event.deks.iter().map(ToString::to_string).collect(),
        keys: &event.keys,
        actor: &event.actor,
        detail: event.detail.as_deref(),
        prev: HEXLOWER.encode(&before.hash),
        key: sealer.id.to_string(),
    };
    let mut line = serde_json::to_string(&unsealed).expect("strings and numbers are JSON");
    let closing = line.pop();
    debug_assert_eq!(closing, Some('}'));
    let mac = BASE64.encode(&mac(sealer.key, line.as_bytes()).finalize().into_bytes());
    line.push_str(MAC_BEGINS);
    line.push_str(&mac);
    line.push_str(MAC_ENDS);
    let head = Head {
        seq: unsealed.seq,
        hash: Sha256::digest(line.as_bytes()).into(),
    };
    line.push('\n');
    (line, head)
}

/// Reads a line, without its line end, and checks that it follows on `before`. Its MAC is checked
/// where it is under `sealer`'s key; answers whether it was.
pub(super) fn check(
    sealer: Option<Sealer<'_>>,
    before: Option<Head>,
    text: &str,
) -> Result<(Line, Head, bool), LineError> {
    let line: Line = serde_json::from_str(text).map_err(|_| LineError::Malformed)?;
    let under_mac = text
        .strip_suffix(MAC_ENDS)
        .and_then(|rest| rest.strip_suffix(&*line.mac))
        .and_then(|rest| rest.strip_suffix(MAC_BEGINS))
        .ok_or(LineError::Malformed)?;
    if let Some(before) = before {
        if line.seq != before.seq + 1 {
            return Err(LineError::OutOfOrder {
                expected: before.seq + 1,
                found: line.seq,
            });
        }
        if line.prev != HEXLOWER.encode(&before.hash) {
            return Err(LineError::Unchained);
        }
    }
    let sealer = sealer.filter(|sealer| line.key == sealer.id.to_string());
    if let Some(sealer) = sealer {
        let given = BASE64
            .decode(line.mac.as_bytes())
            .map_err(|_| LineError::Malformed)?;
        // In constant time.
        mac(sealer.key, under_mac.as_bytes())
            .verify_slice(&given)
            .map_err(|_| LineError::Forged)?;
    }
    let head = Head {
        seq: line.seq,
        hash: Sha256::digest(text.as_bytes()).into(),
    };
    Ok((line, head, sealer.is_some()))
}

fn mac(key: &AuditKey, text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes any key");
    mac.update(text);
    mac
}

const MAC_BEGINS: &str = r#","mac":""#;
const MAC_ENDS: &str = r#""}"#;
