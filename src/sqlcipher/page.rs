//! One page of a SQLCipher 4 database, taken from under one key and put under another.
//!
//! For the pages that change while a whole database is copied under its next key: SQLCipher offers
//! no way to write one page at its place. The copy itself is SQLCipher's, and so is the last word:
//! what is made here is opened and checked by it (<https://www.zetetic.net/sqlcipher/design/>).
//!
//! ```text
//!              0          16                                     4016        4032             4096
//! page 1       │ salt     │ ciphertext                            │ IV        │ HMAC-SHA512    │
//! other pages  │ ciphertext                                       │ IV        │ HMAC-SHA512    │
//! ```
//!
//! AES-256-CBC without padding under the raw key; the MAC covers ciphertext, IV and the page's
//! number (4 bytes, little-endian), under PBKDF2-HMAC-SHA512(key, salt XOR 0x3a, 2 rounds). Page
//! 1's first 16 bytes in plaintext are `SQLite format 3\0`, always.

use aes::Aes256;
use cbc::cipher::{Array, BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use nimbus_keyproviders::{CipherKey, RandomError, SecureRandom};
use nimbus_manifests::on_wiped_stack;
use sha2::Sha512;
use zeroize::Zeroizing;

/// A page as it lies in the file.
pub(super) type Sealed = [u8; PAGE];

/// What tells one state of a page from another without reading it: [`tag`].
pub(crate) type Tag = [u8; 32];

/// The IV of a page and the beginning of its MAC. SQLCipher takes a fresh IV for each writing, and
/// the MAC is over all of the page: of pages that authenticate, two with one tag are the same.
pub(crate) fn tag(page: &[u8]) -> Tag {
    let mut tag = [0; size_of::<Tag>()];
    if let Some(bytes) = page.get(CONTENT..CONTENT + tag.len()) {
        tag.copy_from_slice(bytes);
    }
    tag
}

/// A page's content; what is in it was a tenant's, so it is wiped.
pub(super) type Content = Zeroizing<[u8; CONTENT]>;

/// What seals and opens the pages of one file.
pub(super) struct PageKey {
    cipher: CipherKey,
    /// Keyed already; wipes itself.
    mac: Hmac<Sha512>,
    salt: [u8; SALT],
}

impl PageKey {
    /// The key of a file whose first 16 bytes are `salt`.
    pub(super) fn new(key: CipherKey, salt: [u8; SALT]) -> Self {
        Self {
            mac: on_wiped_stack(|| page_mac(&key, salt)),
            cipher: key,
            salt,
        }
    }

    /// The content of page `number`; `None` when it does not authenticate.
    pub(super) fn open(&self, number: u32, page: &Sealed) -> Option<Content> {
        on_wiped_stack(|| self.open_here(number, page))
    }

    fn open_here(&self, number: u32, page: &Sealed) -> Option<Content> {
        let start = start(number);
        let mac = self.mac_of(number, page);
        mac.verify_slice(&page[MAC_AT..]).ok()?;
        let mut content = Content::new([0; CONTENT]);
        content.copy_from_slice(&page[..CONTENT]);
        let iv: &[u8; IV] = page[CONTENT..MAC_AT].try_into().ok()?;
        let (blocks, _none) = Array::slice_as_chunks_mut(&mut content[start..]);
        cbc::Decryptor::<Aes256>::new(self.cipher.expose().into(), iv.into())
            .decrypt_blocks(blocks);
        content[..start].copy_from_slice(&MAGIC[..start]);
        Some(content)
    }

    /// Page `number` of this file with `content`, under a fresh IV.
    pub(super) fn seal(
        &self,
        number: u32,
        content: &Content,
        random: &dyn SecureRandom,
    ) -> Result<Sealed, RandomError> {
        let start = start(number);
        let mut page = [0; PAGE];
        page[..CONTENT].copy_from_slice(&**content);
        let mut iv = [0; IV];
        random.fill(&mut iv)?;
        let (blocks, _none) = Array::slice_as_chunks_mut(&mut page[start..CONTENT]);
        on_wiped_stack(|| {
            cbc::Encryptor::<Aes256>::new(self.cipher.expose().into(), (&iv).into())
                .encrypt_blocks(blocks)
        });
        page[..start].copy_from_slice(&self.salt[..start]);
        page[CONTENT..MAC_AT].copy_from_slice(&iv);
        let mac = self.mac_of(number, &page).finalize().into_bytes();
        page[MAC_AT..].copy_from_slice(&mac);
        Ok(page)
    }

    fn mac_of(&self, number: u32, page: &Sealed) -> Hmac<Sha512> {
        let mut mac = self.mac.clone();
        mac.update(&page[start(number)..MAC_AT]);
        mac.update(&number.to_le_bytes());
        mac
    }
}

/// PBKDF2 (RFC 8018, 5.2), first block: the XOR of two rounds; half of it is the key.
fn page_mac(key: &CipherKey, salt: [u8; SALT]) -> Hmac<Sha512> {
    let keyed = hmac(key.expose());
    let mut first = keyed.clone();
    first.update(&salt.map(|byte| byte ^ MAC_SALT_MASK));
    first.update(&1_u32.to_be_bytes());
    let mut second = keyed;
    let mut block = Zeroizing::new([0_u8; 64]);
    block.copy_from_slice(&first.finalize().into_bytes());
    second.update(&*block);
    for (byte, other) in block.iter_mut().zip(second.finalize().into_bytes()) {
        *byte ^= other;
    }
    hmac(&block[..32])
}

fn hmac(key: &[u8]) -> Hmac<Sha512> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Where the ciphertext of a page begins.
fn start(number: u32) -> usize {
    if number == 1 { SALT } else { 0 }
}

/// The page that SQLite never uses, since its locks lie in it
/// (<https://www.sqlite.org/fileformat.html#the_lock_byte_page>).
pub(super) const LOCK_PAGE: u32 = (0x4000_0000 / PAGE + 1) as u32;
pub(super) const PAGE: usize = 4096;
pub(super) const SALT: usize = 16;
const IV: usize = 16;
const MAC_AT: usize = PAGE - 64;
pub(super) const CONTENT: usize = MAC_AT - IV;
const MAGIC: &[u8; SALT] = b"SQLite format 3\0";
const MAC_SALT_MASK: u8 = 0x3a;

#[cfg(test)]
mod tests {
    use nimbus_keyproviders::OsRandom;

    use super::*;
    use crate::sqlcipher::tests::Fixture;

    #[tokio::test]
    async fn opens_what_sqlcipher_sealed_and_sqlcipher_opens_what_is_sealed_here() {
        let fixture = Fixture::new();
        let path = fixture.filled("demo").await;
        let database = fixture.opened("demo").await;
        let mut file = std::fs::read(&path).unwrap();
        let salt = file[..SALT].try_into().unwrap();
        let key = PageKey::new(database.key().unwrap(), salt);
        let mut first = None;
        for (number, page) in (1..).zip(file.chunks_exact_mut(PAGE)) {
            let page: &mut Sealed = page.try_into().unwrap();
            let content = key.open(number, page).expect("it authenticates");
            let again = key.seal(number, &content, &OsRandom).unwrap();
            assert_ne!(*page, again, "a fresh IV");
            assert!(
                key.open(number + 1, &again).is_none(),
                "at its own place only"
            );
            let mut changed = again;
            changed[SALT + 1] ^= 1;
            assert!(key.open(number, &changed).is_none());
            *page = again;
            first.get_or_insert(content);
        }
        assert!(first.unwrap().starts_with(MAGIC));
        drop(database);
        std::fs::write(&path, file).unwrap();
        let database = fixture.opened("demo").await;
        database.verify_pages().unwrap();
        assert_eq!(fixture.rows(&database), 2000);
    }
}
