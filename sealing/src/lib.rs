//! What is sealed beside SQLCipher's pages: blocks of temporary files, here, and values in
//! databases of other engines ([`value`]).
//!
//! Blocks of a temporary file are sealed with ChaCha20-Poly1305 ([RFC
//! 8439](https://www.rfc-editor.org/rfc/rfc8439)) under a key that is used for this one file.
//!
//! The nonce counts what was sealed under the key, and so is never used twice: RFC 8439 section 4
//! asks for no more, whatever the number of blocks. (AES-GCM with random nonces would end at 2^32
//! of them, NIST SP 800-38D section 8.3.) Where the processor has no instructions for AES, this
//! cipher still uses no tables, whose use would show in the caches. The number of the block is
//! authenticated with it.
//!
//! It is a crate of its own so that it is optimised in debug builds, too: tests seal gigabytes.
#![forbid(unsafe_code)]

pub mod value;

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// The cipher of one file. Its key is wiped when it is dropped.
pub struct BlockCipher {
    cipher: ChaCha20Poly1305,
    sealed: u64,
}

/// What opens a sealed block, and no other. The default opens none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seal {
    number: u64,
    tag: [u8; 16],
}

/// The block is not the one that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

impl Seal {
    /// Whether nothing was sealed with it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.number == 0
    }
}

impl BlockCipher {
    /// A cipher with a key that nothing else uses or will use.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: ChaCha20Poly1305::new(key.into()),
            sealed: 0,
        }
    }

    /// Encrypts the content of a block where it stands. Each call uses a nonce of its own, whatever
    /// becomes of the block.
    pub fn seal(&mut self, block: u64, content: &mut [u8; BLOCK]) -> Seal {
        self.sealed += 1;
        let number = self.sealed;
        let tag = self.cipher.encrypt_inout_detached(
            &nonce(number),
            &block.to_be_bytes(),
            content.as_mut_slice().into(),
        );
        let tag = tag
            .expect("a block is far shorter than the 256 GiB that the cipher takes")
            .into();
        Seal { number, tag }
    }

    /// Decrypts a block where it stands.
    ///
    /// # Errors
    ///
    /// [`Forged`]; the content is then of no use, and not decrypted.
    pub fn open(&self, block: u64, seal: &Seal, content: &mut [u8; BLOCK]) -> Result<(), Forged> {
        let opened = self.cipher.decrypt_inout_detached(
            &nonce(seal.number),
            &block.to_be_bytes(),
            content.as_mut_slice().into(),
            &Tag::from(seal.tag),
        );
        opened.map_err(|_forged| Forged)
    }

    /// How many blocks were sealed.
    #[must_use]
    pub fn sealed(&self) -> u64 {
        self.sealed
    }
}

impl std::fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCipher").finish_non_exhaustive()
    }
}

/// 32 bits of zeros and a count, as RFC 8439 section 2.8 has them.
fn nonce(count: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&count.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_opens_with_its_seal_in_its_place_and_in_no_other_way() {
        let mut cipher = BlockCipher::new(&[7; 32]);
        let plain = [5; BLOCK];
        let mut sealed = plain;
        let seal = cipher.seal(3, &mut sealed);
        let mut again = plain;
        let newer = cipher.seal(3, &mut again);
        assert_ne!(sealed, again);
        let open = |block, seal: &Seal, content: &[u8; BLOCK]| {
            let mut content = *content;
            cipher.open(block, seal, &mut content).map(|()| content)
        };
        assert_eq!(open(3, &seal, &sealed), Ok(plain));
        assert_eq!(open(4, &seal, &sealed), Err(Forged));
        assert_eq!(open(3, &newer, &sealed), Err(Forged));
        assert_eq!(open(3, &Seal::default(), &sealed), Err(Forged));
        for at in [0, BLOCK / 2, BLOCK - 1] {
            let mut changed = sealed;
            changed[at] ^= 1;
            assert_eq!(open(3, &seal, &changed), Err(Forged));
        }
        let other = BlockCipher::new(&[8; 32]);
        assert_eq!(other.open(3, &seal, &mut sealed), Err(Forged));
    }
}
