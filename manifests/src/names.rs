//! Names and identifiers, each with one spelling.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use uuid::Uuid;

use crate::kinds::{Cipher, ProviderKind};

/// Not a name of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// Not `[a-z0-9][a-z0-9_-]{0,47}`.
    #[error("a tenant id is 1 to 48 of a-z, 0-9, `_` and `-`, and begins with a letter or digit")]
    Tenant,
    /// Not a file name without a directory.
    #[error(
        "a file name is 1 to 255 printable ASCII characters without `/`, `\\`, `:` and spaces, and not `.` or `..`"
    )]
    File,
    /// Not one of the four forms of a subject.
    #[error(
        "a subject is db:sqlite:tenant:<tenant>:<file>, db:redb:control:<file>, db:external:tenant:<tenant>:<file> or \
         cache:libsql:tenant:<tenant>:<file>"
    )]
    Subject,
    /// Not a UUID in lower-case hex with hyphens.
    #[error("a file id is a UUID in lower case with hyphens")]
    FileId,
    /// Not 16 lower-case hex digits.
    #[error("a data key's id is 16 lower-case hex digits")]
    DekId,
    /// Not 1 to 512 printable ASCII characters without a space.
    #[error("a key id is 1 to 512 printable ASCII characters without spaces")]
    KeyId,
}

/// A tenant's id: `[a-z0-9][a-z0-9_-]{0,47}`, safe as a file name on every system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(String);

impl TenantId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let inner = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        let first = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
        let bytes = text.as_bytes();
        if bytes.len() <= MAX_TENANT_BYTES
            && bytes.first().is_some_and(first)
            && bytes.iter().all(inner)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Tenant)
        }
    }
}

/// Which of the four forms a subject has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubjectKind {
    /// `db:sqlite:tenant:<tenant>:<file>`
    SqliteTenant,
    /// `db:redb:control:<file>`
    Control,
    /// `cache:libsql:tenant:<tenant>:<file>`
    LibsqlCache,
    /// `db:external:tenant:<tenant>:<file>`
    ExternalTenant,
}

/// Who a file belongs to and which file it is; names the place the file is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    text: String,
    tenant: Option<TenantId>,
    file_name_at: usize,
}

impl Subject {
    /// The subject of a tenant's SQLite file.
    ///
    /// # Errors
    ///
    /// [`InvalidName::File`].
    pub fn sqlite_tenant(tenant: &TenantId, file_name: &str) -> Result<Self, InvalidName> {
        Self::new(SQLITE_TENANT, Some(tenant.clone()), file_name)
    }

    /// The subject of the control file.
    ///
    /// # Errors
    ///
    /// [`InvalidName::File`].
    pub fn control(file_name: &str) -> Result<Self, InvalidName> {
        Self::new(CONTROL, None, file_name)
    }

    /// The subject of a libSQL replica's cache.
    ///
    /// # Errors
    ///
    /// [`InvalidName::File`].
    pub fn libsql_cache(tenant: &TenantId, file_name: &str) -> Result<Self, InvalidName> {
        Self::new(LIBSQL_CACHE, Some(tenant.clone()), file_name)
    }

    /// The subject of a tenant whose documents are sealed in a database of another engine. There is
    /// no file: its manifest is a row beside them.
    #[must_use]
    pub fn external_tenant(tenant: &TenantId) -> Self {
        Self::new(EXTERNAL_TENANT, Some(tenant.clone()), EXTERNAL_FILE)
            .expect("a fixed name that is one of a file")
    }

    fn new(prefix: &str, tenant: Option<TenantId>, file_name: &str) -> Result<Self, InvalidName> {
        let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'\\');
        if file_name.is_empty()
            || file_name.len() > MAX_FILE_NAME_BYTES
            || !file_name.as_bytes().iter().all(plain)
            || matches!(file_name, "." | "..")
        {
            return Err(InvalidName::File);
        }
        let mut text = prefix.to_owned();
        if let Some(tenant) = &tenant {
            text.push_str(tenant.as_str());
            text.push(':');
        }
        let file_name_at = text.len();
        text.push_str(file_name);
        Ok(Self {
            text,
            tenant,
            file_name_at,
        })
    }

    /// The subject as it stands in a manifest.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Which form it has.
    #[must_use]
    pub fn kind(&self) -> SubjectKind {
        if self.tenant.is_none() {
            SubjectKind::Control
        } else if self.text.starts_with(SQLITE_TENANT) {
            SubjectKind::SqliteTenant
        } else if self.text.starts_with(EXTERNAL_TENANT) {
            SubjectKind::ExternalTenant
        } else {
            SubjectKind::LibsqlCache
        }
    }

    /// The tenant; `None` for the control file.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The name of the file, without its directory.
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.text[self.file_name_at..]
    }

    /// The cipher that files of this kind of subject have.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        match self.kind() {
            SubjectKind::SqliteTenant | SubjectKind::LibsqlCache => Cipher::Sqlcipher4,
            SubjectKind::Control => Cipher::Blocks1,
            SubjectKind::ExternalTenant => Cipher::Sealed1,
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if let Some(file_name) = text.strip_prefix(CONTROL) {
            return Self::control(file_name);
        }
        for prefix in [SQLITE_TENANT, LIBSQL_CACHE, EXTERNAL_TENANT] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (tenant, file_name) = rest.split_once(':').ok_or(InvalidName::Subject)?;
                return Self::new(prefix, Some(tenant.parse()?), file_name);
            }
        }
        Err(InvalidName::Subject)
    }
}

/// A UUID drawn when the file is created; it never changes, and tells two files of one name apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(Uuid);

impl FileId {
    /// The id that `uuid` stands for.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Its 16 bytes: the salt of the file's key derivations.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for FileId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let uuid = Uuid::try_parse(text).map_err(|_not_a_uuid| InvalidName::FileId)?;
        let id = Self(uuid);
        // The library reads other spellings of the same UUID; this format has one.
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(InvalidName::FileId)
        }
    }
}

/// The id of a data key: 8 random bytes, 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DekId([u8; 8]);

impl DekId {
    /// The id of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl FromStr for DekId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok())
            .map(Self)
            .ok_or(InvalidName::DekId)
    }
}

/// Which key of a provider: hex, an ARN or an age recipient, as the kind of provider has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// The key id that `text` spells.
    ///
    /// # Errors
    ///
    /// [`InvalidName::KeyId`].
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if (1..=MAX_KEY_ID_BYTES).contains(&text.len())
            && text.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            Ok(Self(text))
        } else {
            Err(InvalidName::KeyId)
        }
    }

    /// The key id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `kind` has key ids of this form.
    #[must_use]
    pub fn fits(&self, kind: ProviderKind) -> bool {
        let hex = |text: &str| text.len() == 16 && HEXLOWER.decode(text.as_bytes()).is_ok();
        match kind {
            ProviderKind::MasterKeyFile | ProviderKind::KeyDir => hex(&self.0),
            ProviderKind::AwsKms => self.0.starts_with("arn:"),
            ProviderKind::Age => {
                let bech32 = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
                self.0.starts_with("age1") && self.0.bytes().all(bech32)
            }
        }
    }
}

impl FromStr for KeyId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

macro_rules! display {
    ($($name:ident: $self:ident => $text:expr,)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&$self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad($text)
            }
        }
    )*};
}

display! {
    TenantId: self => &self.0,
    Subject: self => &self.text,
    FileId: self => self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()),
    DekId: self => &HEXLOWER.encode(&self.0),
    KeyId: self => &self.0,
}

const SQLITE_TENANT: &str = "db:sqlite:tenant:";
const CONTROL: &str = "db:redb:control:";
const LIBSQL_CACHE: &str = "cache:libsql:tenant:";
const EXTERNAL_TENANT: &str = "db:external:tenant:";
/// What stands for a file name where there is no file.
const EXTERNAL_FILE: &str = "documents";
const MAX_TENANT_BYTES: usize = 48;
const MAX_FILE_NAME_BYTES: usize = 255;
const MAX_KEY_ID_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_tenant_ids_of_1_to_48_characters() {
        for text in ["a", "0", "a-", "a_b-c", &"z".repeat(48)] {
            assert_eq!(text.parse::<TenantId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn rejects_tenant_ids_that_are_not_safe_file_names() {
        for text in [
            "",
            "-a",
            "_a",
            "A",
            "aB",
            "a.b",
            "..",
            "a/b",
            "a\\b",
            "a:b",
            "a b",
            "a\0",
            "é",
            &"z".repeat(49),
        ] {
            assert_eq!(
                text.parse::<TenantId>(),
                Err(InvalidName::Tenant),
                "{text:?}"
            );
        }
    }

    #[test]
    fn accepts_the_three_forms_of_a_subject() {
        for (text, kind, tenant, file_name, cipher) in [
            (
                "db:sqlite:tenant:demo:demo.sqlite3",
                SubjectKind::SqliteTenant,
                Some("demo"),
                "demo.sqlite3",
                Cipher::Sqlcipher4,
            ),
            (
                "db:redb:control:nimbus-control.db",
                SubjectKind::Control,
                None,
                "nimbus-control.db",
                Cipher::Blocks1,
            ),
            (
                "cache:libsql:tenant:a:...",
                SubjectKind::LibsqlCache,
                Some("a"),
                "...",
                Cipher::Sqlcipher4,
            ),
        ] {
            let subject: Subject = text.parse().unwrap();
            assert_eq!(subject.as_str(), text);
            assert_eq!(subject.kind(), kind);
            assert_eq!(subject.tenant().map(TenantId::as_str), tenant);
            assert_eq!(subject.file_name(), file_name);
            assert_eq!(subject.cipher(), cipher);
        }
    }

    #[test]
    fn makes_the_subjects_it_reads() {
        let tenant: TenantId = "demo".parse().unwrap();
        for (made, text) in [
            (
                Subject::sqlite_tenant(&tenant, "f"),
                "db:sqlite:tenant:demo:f",
            ),
            (Subject::control("f"), "db:redb:control:f"),
            (
                Subject::libsql_cache(&tenant, "f"),
                "cache:libsql:tenant:demo:f",
            ),
        ] {
            assert_eq!(made, text.parse());
            assert_eq!(made.unwrap().as_str(), text);
        }
        assert_eq!(Subject::control("a/b"), Err(InvalidName::File));
    }

    #[test]
    fn rejects_subjects_of_no_form() {
        for text in [
            "",
            "demo",
            "db:sqlite:tenant",
            "db:sqlite:tenant:demo",
            "DB:sqlite:tenant:demo:f",
            "db:sqlite:control:f",
            "db:redb:tenant:demo:f",
            "cache:sqlite:tenant:demo:f",
        ] {
            assert_eq!(
                text.parse::<Subject>(),
                Err(InvalidName::Subject),
                "{text:?}"
            );
        }
        assert_eq!(
            "db:sqlite:tenant::f".parse::<Subject>(),
            Err(InvalidName::Tenant)
        );
    }

    #[test]
    fn rejects_file_names_that_leave_their_directory() {
        for name in [
            "",
            ".",
            "..",
            "/etc",
            "a/b",
            "a\\b",
            "a:b",
            "a b",
            "a\n",
            "a\0",
            "é",
            "\x7f",
            &"f".repeat(256),
        ] {
            let text = format!("db:redb:control:{name}");
            assert_eq!(text.parse::<Subject>(), Err(InvalidName::File), "{text:?}");
        }
        let longest = format!("db:redb:control:{}", "f".repeat(255));
        assert_eq!(longest.parse::<Subject>().unwrap().file_name().len(), 255);
    }

    #[test]
    fn accepts_any_uuid_in_its_one_spelling() {
        let id: FileId = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap();
        assert_eq!(
            *id.as_bytes(),
            *b"\x01\x98\xf2\xc4\x7d\x0e\x7a\x51\x9a\x3e\x0f\x6f\x7f\x1f\x2a\x10"
        );
        for text in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ] {
            assert_eq!(text.parse::<FileId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rejects_other_spellings_of_a_uuid() {
        for text in [
            "",
            "0198F2C4-7d0e-7a51-9a3e-0f6f7f1f2a10",
            "0198f2c47d0e7a519a3e0f6f7f1f2a10",
            "{0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10}",
            "urn:uuid:0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10",
            "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a1",
            "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a100",
            "0198f2c4-7d0e-7a51-9a3e0-f6f7f1f2a10",
            "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a1g",
        ] {
            assert_eq!(text.parse::<FileId>(), Err(InvalidName::FileId), "{text:?}");
        }
    }

    #[test]
    fn rejects_dek_ids_that_are_not_16_lower_case_hex_digits() {
        let id: DekId = "4f1c0a9be2d35577".parse().unwrap();
        assert_eq!(
            id,
            DekId::from_bytes([0x4f, 0x1c, 0x0a, 0x9b, 0xe2, 0xd3, 0x55, 0x77])
        );
        for text in [
            "",
            "4f1c0a9be2d3557",
            "4f1c0a9be2d355",
            "4f1c0a9be2d3557700",
            "4F1C0A9BE2D35577",
            "4f1c0a9be2d3557g",
            "0x4f1c0a9be2d355",
        ] {
            assert_eq!(text.parse::<DekId>(), Err(InvalidName::DekId), "{text:?}");
        }
    }

    #[test]
    fn accepts_key_ids_of_1_to_512_printable_characters() {
        for text in ["!", "~", "arn:aws:kms:x", &"k".repeat(512)] {
            assert_eq!(KeyId::new(text).unwrap().as_str(), text);
        }
        for text in ["", " ", "a b", "a\n", "\x7f", "é", &"k".repeat(513)] {
            assert_eq!(KeyId::new(text), Err(InvalidName::KeyId), "{text:?}");
        }
    }

    #[test]
    fn tells_key_ids_of_one_provider_from_anothers() {
        let fits = |text: &str| -> Vec<ProviderKind> {
            let id = KeyId::new(text).unwrap();
            ProviderKind::ALL
                .iter()
                .copied()
                .filter(|kind| id.fits(*kind))
                .collect()
        };
        use ProviderKind::{Age, AwsKms, KeyDir, MasterKeyFile};
        assert_eq!(fits("9c0d2f6e1b7a4455"), [MasterKeyFile, KeyDir]);
        assert_eq!(fits("arn:aws:kms:eu-central-1:1:key/2"), [AwsKms]);
        assert_eq!(fits("age1qx0"), [Age]);
        for neither in [
            "9C0D2F6E1B7A4455",
            "9c0d2f6e1b7a44",
            "9c0d2f6e1b7a445500",
            "9c0d2f6e1b7a445g",
            "alias/nimbus",
            "ARN:aws:kms:x",
            "arn",
            "AGE1QX0",
            "age1-x",
            "age2qx0",
        ] {
            assert_eq!(fits(neither), [], "{neither}");
        }
    }
}
