//! A tenant's file as it was at one moment.

use std::io;
use std::path::Path;

use crate::envelope::{ReadError, manifest_path, read_manifest};
use crate::sqlcipher::Ciphertext;

/// A tenant at the moment.
#[derive(Debug)]
pub struct Captured {
    /// Its manifest, as it lay on the disk.
    pub(crate) manifest: Vec<u8>,
    /// Its pages.
    pub(crate) pages: Ciphertext,
}

/// The manifest beside a database, as it lies on the disk.
pub(super) fn manifest_of(database: &Path) -> io::Result<Vec<u8>> {
    match read_manifest(&manifest_path(database)) {
        Ok(Some(sealed)) => Ok(sealed.as_bytes().to_vec()),
        Ok(None) => Err(io::Error::other("its manifest is missing")),
        Err(ReadError::Io(error)) => Err(error),
        Err(ReadError::Parse(error)) => Err(io::Error::other(error)),
    }
}
