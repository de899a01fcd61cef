//! Backups: encrypted snapshots of a whole deployment in a repository, which is a directory or an
//! S3 bucket, and their restoration.
//!
//! What lies in a repository is specified in `docs/backup-format.md`. Pages travel as they lie on
//! the disk, encrypted; no page is opened on the way, and no tenant is opened for a backup. A
//! [`Catalogue`](catalogue::Catalogue) names what belongs to one moment, by its hash, under a MAC
//! whose key comes from the control file's data key.
//!
//! | module | does |
//! | --- | --- |
//! | `location` | what an operator calls a repository, and where none may be |
//! | `store` | the directory or the bucket: objects, created once and never changed |
//! | `repository` | which repository it is, and the bytes in it |
//! | `entries` | what stands in `snapshots/` |
//! | `manifests` | the manifests of a file, and which of them open it |
//! | `sealed` | what is said under a MAC |
//! | `prover` | that it is authentic |
//! | `sealing_keys` | which data keys of the control file seal, and which did |
//! | `chain` | whether entries follow one another |
//! | `removal`, `removing` | what leaves the repository, and that nobody refers to it then |
//! | `versions` | all versions of an object in a bucket |
//! | `limits` | how large objects may be |
//! | `room` | how many files at a time |
//! | `run` | pages of one file in one object |
//! | `catalogue` | what belongs to one moment |
//! | `bundle` | packs that were put together |
//! | `pack`, `epoch` | what was committed in an interval, and who shipped it |
//! | `ship` | continuous shipping |
//! | `timeline` | which instants there are, and what belongs to one |
//! | `create`, `restore`, `verify`, `verify_log`, `list`, `shred`, `rewrap`, `prune` | the operations |
//! | `tip`, `saving`, `changes` | what a snapshot goes on from, and what it adds |
//! | `requests` | what a server is asked |
//! | `shipped` | which objects packs name |
//! | `keep`, `retention` | which snapshots are kept, and that a server sees to it |
//! | `proofs` | that tenants restore, again and again |

mod bundle;
pub mod catalogue;
mod chain;
mod changes;
pub mod create;
mod entries;
pub mod epoch;
pub mod error;
pub mod keep;
mod limits;
pub mod list;
pub mod location;
mod manifests;
pub mod pack;
pub mod proofs;
mod prover;
pub mod prune;
mod removal;
mod removing;
pub mod repository;
pub mod requests;
pub mod restore;
pub mod retention;
pub mod rewrap;
mod room;
mod run;
mod saving;
pub mod sealed;
mod sealing_keys;
pub mod ship;
mod shipped;
pub mod shred;
mod store;
pub mod timeline;
mod tip;
pub mod verify;
mod verify_log;
mod versions;

pub use error::BackupError;
pub use location::{Location, Places, S3Settings};
pub use repository::Repository;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// SHA-256 in hex.
fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Text of others, for people: what would move the cursor or begin a line shows as what it is.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// Whether `text` is a SHA-256 in hex as [`sha256`] writes it.
fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
