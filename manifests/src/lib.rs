//! The `.nimbus-enc` manifest, format 1: types, strict parser, canonical writer, MAC.
//!
//! ```text
//! nimbus-enc/1
//! subject: db:sqlite:tenant:demo:demo.sqlite3
//! file-id: 0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10
//! cipher: sqlcipher4
//! state: ready
//! revision: 3
//! created: 2026-11-22T18:04:05Z
//! dek: 4f1c0a9be2d35577 2026-11-22T18:04:05Z
//! wrap: master-key-file 9c0d2f6e1b7a4455 hkdf-sha256+aes-256-gcm 2026-11-22T18:04:05Z
//!  <base64, 64 characters a line, continuation lines begin with one space>
//! mac: <base64 of 32 bytes>
//! ```
//!
//! A slice goes in and a value comes out: this crate reads no file, no clock and no randomness, and
//! knows no key provider. There is exactly one spelling of each manifest: `write(parse(x)) == x`
//! for every accepted `x`, and whatever is not canonical is refused. `docs/manifest-format.md`
//! describes the format for readers in other languages.
#![forbid(unsafe_code)]

mod context;
mod error;
mod kinds;
mod manifest;
mod names;
mod parser;
mod seal;
mod time;
mod wiped_stack;

pub use context::WrapContext;
pub use error::{Field, InvalidManifest, MacMismatch, ParseError, Problem};
pub use kinds::{Cipher, ProviderKind, State, WrapAlgorithm};
pub use manifest::{DekEntry, Manifest, Wrap};
pub use names::{DekId, FileId, InvalidName, KeyId, Subject, SubjectKind, TenantId};
pub use seal::{MacKey, SealedManifest};
pub use time::Timestamp;
pub use wiped_stack::on_wiped_stack;

/// What the name of a manifest ends with: `<file>.nimbus-enc`.
pub const SUFFIX: &str = ".nimbus-enc";
/// The largest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 32 * 1024;
/// The longest line, in bytes, without its line end.
pub const MAX_LINE_BYTES: usize = 1024;
/// The most wraps of one data key.
pub const MAX_WRAPS: usize = 8;
/// The most data keys of one file.
pub const MAX_DEKS: usize = 2;
/// The largest wrapped key, in bytes.
pub const MAX_WRAPPED_BYTES: usize = 8 * 1024;

/// HKDF info of the key that the file itself is encrypted with.
pub const HKDF_INFO_DATA: &[u8] = b"nimbus-enc/1 data";
/// HKDF info of the manifest's MAC key.
pub const HKDF_INFO_MANIFEST: &[u8] = b"nimbus-enc/1 manifest";
/// HKDF info of the backup archive's MAC key.
pub const HKDF_INFO_ARCHIVE: &[u8] = b"nimbus-enc/1 archive";
/// HKDF info of the audit log's MAC key, from the control file's data key.
pub const HKDF_INFO_AUDIT: &[u8] = b"nimbus-enc/1 audit";
/// HKDF info of the key from which each sealed value of a database gets its own.
pub const HKDF_INFO_SEAL: &[u8] = b"nimbus-enc/1 seal";
/// HKDF info of the key that blinds index entries of a database.
pub const HKDF_INFO_BLIND: &[u8] = b"nimbus-enc/1 blind";
/// HKDF info of a local key's id.
pub const HKDF_INFO_KEK_ID: &[u8] = b"nimbus-enc/1 kek id";
/// What the context of every wrap begins with.
pub const WRAP_CONTEXT_LABEL: &[u8] = b"nimbus-enc/1 wrap";

/// The first line of every manifest of this format.
const VERSION_LINE: &str = "nimbus-enc/1";
