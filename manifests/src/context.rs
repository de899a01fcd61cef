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
    /// The context bytes: a label, then each part as a 4-byte big-endian length and its text as it
    /// stands in the manifest. It is both the HKDF info and the associated data of a local wrap;
    /// its SHA-256 stands in a recovery wrap.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_label_lengths_and_texts() {
        let subject: Subject = "db:sqlite:tenant:demo:demo.sqlite3".parse().unwrap();
        let context = WrapContext {
            subject: &subject,
            file_id: "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap(),
            cipher: Cipher::Sqlcipher4,
            dek_id: "4f1c0a9be2d35577".parse().unwrap(),
        };
        let key_id = "9c0d2f6e1b7a4455".parse().unwrap();
        let expected = b"nimbus-enc/1 wrap\
            \0\0\0\x22db:sqlite:tenant:demo:demo.sqlite3\
            \0\0\0\x240198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10\
            \0\0\0\x0asqlcipher4\
            \0\0\0\x104f1c0a9be2d35577\
            \0\0\0\x0fmaster-key-file\
            \0\0\0\x109c0d2f6e1b7a4455";
        assert_eq!(
            context
                .encode(ProviderKind::MasterKeyFile, &key_id)
                .as_slice(),
            expected.as_slice()
        );
    }

    #[test]
    fn encodes_a_length_of_more_than_one_byte_big_endian() {
        let subject: Subject = "db:redb:control:nimbus-control.db".parse().unwrap();
        let context = WrapContext {
            subject: &subject,
            file_id: "00000000-0000-0000-0000-000000000000".parse().unwrap(),
            cipher: Cipher::Blocks1,
            dek_id: DekId::from_bytes([0; 8]),
        };
        let key_id = KeyId::new("arn:".to_owned() + &"x".repeat(508)).unwrap();
        let bytes = context.encode(ProviderKind::AwsKms, &key_id);
        let expected = b"nimbus-enc/1 wrap\
            \0\0\0\x21db:redb:control:nimbus-control.db\
            \0\0\0\x2400000000-0000-0000-0000-000000000000\
            \0\0\0\x07blocks1\
            \0\0\0\x100000000000000000\
            \0\0\0\x07aws-kms\
            \0\0\x02\0arn:xxxx";
        assert_eq!(bytes[..expected.len()], expected[..]);
        assert_eq!(bytes.len(), expected.len() - "arn:xxxx".len() + 512);
    }
}
