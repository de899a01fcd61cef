//! What a wrapped key is bound to.

use crate::WRAP_CONTEXT_LABEL;
use crate::kinds::{Cipher, ProviderKind};
use crate::names::{DekId, FileId, KeyId, Subject};

/// The file and data key that a wrap is made for: a wrapped key moved to another does not unwrap.
#[derive(Debug, Clone, Copy)]
pub struct WrapContext<'a> {
    /// Who the file belongs to.
    pub subject: &'a Subject,
    /// Which file.
    pub file_id: FileId,
    /// What the data key is for.
    pub cipher: Cipher,
    /// Which data key.
    pub dek_id: DekId,
}

impl WrapContext<'_> {
    /// The context bytes: a label, then each part as a 4-byte big-endian length and its text as it stands in the manifest. It is both the
    /// HKDF info and the associated data of a local wrap; its SHA-256 stands in a recovery wrap.
    #[must_use]
    pub fn encode(&self, provider: ProviderKind, key_id: &KeyId) -> Vec<u8> {
        let mut bytes = WRAP_CONTEXT_LABEL.to_vec();
        for part in [
            self.subject.as_str(),
            &self.file_id.to_string(),
            self.cipher.as_str(),
            &self.dek_id.to_string(),
            provider.as_str(),
            key_id.as_str(),
        ] {
            let length = u32::try_from(part.len()).expect("no name is longer than 512 bytes");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}
