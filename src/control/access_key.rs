//! What a tenant access key is: an id that everybody may see, and a secret that is shown once.
//!
//! ```text
//! nk_k7d2m4q6x3z5c2b4_c5…          the whole key, 76 characters
//! └┬┘└──────┬───────┘ └─┬─┘
//!  │        │           └ 56 characters: 32 random bytes and the check, 3 bytes
//!  │        └ 16 characters: the id, 10 random bytes
//!  └ what secret scanners look for: \bnk_[a-z2-7]{16}_[a-z2-7]{56}\b
//! ```
//!
//! Both parts are base32 (RFC 4648) in lower case without padding; both fill their characters
//! exactly, so that one key has one spelling. The check is the beginning of the SHA-256 of id and
//! random bytes: it tells a key from a string that only looks like one.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use nimbus_keyproviders::{RandomError, SecureRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// The public part of an access key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccessKeyId([u8; ID_BYTES]);

/// A whole access key, wiped when it is dropped.
#[derive(ZeroizeOnDrop)]
pub struct AccessKey {
    #[zeroize(skip)]
    id: AccessKeyId,
    secret: [u8; SECRET_BYTES],
}

/// What is kept of a secret: the SHA-256 of 32 random bytes, which nobody can find again by trying.
#[derive(Clone, Copy)]
pub(super) struct SecretHash([u8; 32]);

/// What a tenant access key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To read.
    Read,
    /// To read and to write.
    Write,
}

/// What people call a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(String);

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key's name is 1 to {MAX_NAME_CHARS} characters, with no space at either end and no control or direction characters"
)]
pub struct InvalidKeyName;

impl AccessKey {
    /// A new key.
    ///
    /// # Errors
    ///
    /// The system gave no random bytes.
    pub fn draw(random: &dyn SecureRandom) -> Result<Self, RandomError> {
        let mut id = [0; ID_BYTES];
        random.fill(&mut id)?;
        // Filled in place: no copy of it is left behind.
        let mut key = Self {
            id: AccessKeyId(id),
            secret: [0; SECRET_BYTES],
        };
        random.fill(&mut key.secret)?;
        Ok(key)
    }

    /// Reads a key as it was shown. `None` for everything that is not one, mistyped ones among it.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let (id, rest) = rest.split_at_checked(ID_CHARS)?;
        let secret = rest.strip_prefix(b"_")?;
        if secret.len() != SECRET_CHARS {
            return None;
        }
        let id = AccessKeyId::parse(id)?;
        let mut bytes = Zeroizing::new([0; SECRET_BYTES + CHECK_BYTES]);
        let length = BASE32.decode_mut(secret, &mut *bytes).ok()?;
        if length != bytes.len() {
            return None;
        }
        let mut key = Self {
            id,
            secret: [0; SECRET_BYTES],
        };
        let (random, check) = bytes.split_at(SECRET_BYTES);
        key.secret.copy_from_slice(random);
        (check == key.check()).then_some(key)
    }

    /// Its public part.
    #[must_use]
    pub fn id(&self) -> AccessKeyId {
        self.id
    }

    /// The key as its holder sends it. Shown once, to its holder.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES + CHECK_BYTES]);
        let (random, check) = bytes.split_at_mut(SECRET_BYTES);
        random.copy_from_slice(&self.secret);
        check.copy_from_slice(&self.check());
        let mut secret = Zeroizing::new([0; SECRET_CHARS]);
        BASE32.encode_mut(&*bytes, &mut *secret);
        // In one piece: a string that grows leaves copies of itself behind.
        let mut text = Zeroizing::new(String::with_capacity(KEY_CHARS));
        text.push_str("nk_");
        text.push_str(&self.id.to_string());
        text.push('_');
        text.extend(secret.iter().copied().map(char::from));
        text
    }

    /// What is kept of the secret.
    pub(super) fn hash(&self) -> SecretHash {
        let digest = Sha256::new()
            .chain_update(HASH_LABEL)
            .chain_update(self.id.0)
            .chain_update(self.secret);
        SecretHash(digest.finalize().into())
    }

    /// A well-formed key with this id and a secret that nobody was given.
    #[cfg(test)]
    pub(super) fn with_other_secret(&self) -> Self {
        let mut other = Self {
            id: self.id,
            secret: self.secret,
        };
        other.secret[31] ^= 1;
        other
    }

    fn check(&self) -> [u8; CHECK_BYTES] {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(CHECK_LABEL)
            .chain_update(self.id.0)
            .chain_update(self.secret)
            .finalize()
            .into();
        let [a, b, c, ..] = digest;
        [a, b, c]
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({}, [REDACTED])", self.id)
    }
}

impl AccessKeyId {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut id = [0; ID_BYTES];
        let whole = text.len() == ID_CHARS && BASE32.decode_mut(text, &mut id).ok()? == ID_BYTES;
        whole.then_some(Self(id))
    }
}

impl FromStr for AccessKeyId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::parse(text.as_bytes()).ok_or(())
    }
}

impl fmt::Display for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32.encode(&self.0))
    }
}

impl fmt::Debug for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKeyId({self})")
    }
}

impl SecretHash {
    /// What no secret has: compared with where there is no key, so that both ways take the same
    /// time.
    pub(super) const NONE: Self = Self([0; 32]);

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl subtle::ConstantTimeEq for SecretHash {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash([REDACTED])")
    }
}

impl Scope {
    /// The scope's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl KeyName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = InvalidKeyName;

    fn from_str(text: &str) -> Result<Self, InvalidKeyName> {
        // Marks and overrides of direction would make a list of names read as another.
        let direction = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let separator = |c| matches!(c, '\u{2028}' | '\u{2029}');
        let right = (1..=MAX_NAME_CHARS).contains(&text.chars().count())
            && text.trim() == text
            && !text
                .chars()
                .any(|c| c.is_control() || direction(c) || separator(c));
        if right {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidKeyName)
        }
    }
}

impl TryFrom<String> for KeyName {
    type Error = InvalidKeyName;

    fn try_from(text: String) -> Result<Self, InvalidKeyName> {
        text.parse()
    }
}

impl From<KeyName> for String {
    fn from(name: KeyName) -> Self {
        name.0
    }
}

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut form: Specification = BASE32_NOPAD.specification();
    form.symbols.make_ascii_lowercase();
    form.encoding()
        .expect("base32 in lower case is an encoding")
});

const PREFIX: &[u8] = b"nk_";
const ID_BYTES: usize = 10;
const ID_CHARS: usize = 16;
const SECRET_BYTES: usize = 32;
const CHECK_BYTES: usize = 3;
const SECRET_CHARS: usize = 56;
const KEY_CHARS: usize = PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS;
const HASH_LABEL: &[u8] = b"nimbus access key 1 hash\0";
const CHECK_LABEL: &[u8] = b"nimbus access key 1 check\0";
const MAX_NAME_CHARS: usize = 100;

#[cfg(test)]
mod tests {
    use nimbus_keyproviders::OsRandom;
    use subtle::ConstantTimeEq as _;

    use super::*;

    /// Bytes 0, 1, 2, …
    #[derive(Debug)]
    struct Counting;

    impl SecureRandom for Counting {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
            for (byte, n) in bytes.iter_mut().zip(0..) {
                *byte = n;
            }
            Ok(())
        }
    }

    #[test]
    fn a_key_has_one_spelling() {
        let key = AccessKey::draw(&Counting).unwrap();
        let text = key.expose();
        assert_eq!(*text, VECTOR);
        assert_eq!(text.len(), KEY_CHARS);
        assert_eq!(text.capacity(), KEY_CHARS, "it never grew");
        let again = AccessKey::parse(text.as_bytes()).unwrap();
        assert_eq!(again.id(), key.id());
        assert!(bool::from(again.hash().ct_eq(&key.hash())));
        assert!(!format!("{key:?}").contains(&text[20..]), "{key:?}");
    }

    #[test]
    fn rejects_every_change_of_one_character_and_every_other_length() {
        for at in 0..VECTOR.len() {
            for other in [b'a', b'b', b'7', b'A', b'0', b'1', b'_', b' ', 0, 0xff] {
                let mut text = VECTOR.as_bytes().to_vec();
                if text[at] == other {
                    continue;
                }
                text[at] = other;
                assert!(AccessKey::parse(&text).is_none(), "{at} {other}");
            }
            assert!(AccessKey::parse(&VECTOR.as_bytes()[..at]).is_none(), "{at}");
        }
        for text in [
            format!("{VECTOR}a"),
            format!("{VECTOR} "),
            VECTOR.to_uppercase(),
        ] {
            assert!(AccessKey::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn two_keys_differ_in_both_parts() {
        let (one, other) = (
            AccessKey::draw(&OsRandom).unwrap(),
            AccessKey::draw(&OsRandom).unwrap(),
        );
        assert_ne!(one.id(), other.id());
        assert!(!bool::from(one.hash().ct_eq(&other.hash())));
        assert_ne!(one.expose()[20..], other.expose()[20..]);
    }

    #[test]
    fn accepts_names_that_people_give_and_refuses_others() {
        for name in [
            "a",
            "CI of the shop",
            "ключ № 1",
            "鍵",
            "a_b-c/d@e:f",
            &"é".repeat(100),
        ] {
            assert_eq!(name.parse::<KeyName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            " ",
            " a",
            "a ",
            "a\n",
            "a\nb",
            "a\u{0}b",
            "a\u{7f}",
            "a\u{202e}b",
            "a\u{2028}b",
            &"é".repeat(101),
        ] {
            assert_eq!(name.parse::<KeyName>(), Err(InvalidKeyName), "{name:?}");
        }
    }

    const VECTOR: &str =
        "nk_aaaqeayeaudaocaj_aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyp6rrbp";
}
