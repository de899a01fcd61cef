//! The identity of a document.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::{Uuid, Variant};

use super::{InputError, error::excerpt};

/// A document's id: a UUID version 7 (RFC 9562), written in lower case with hyphens and in no other
/// form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId(Uuid);

impl DocumentId {
    /// A fresh id. Within one process each is greater than all before it, whichever thread asked,
    /// also within one millisecond and when the clock is set back.
    #[must_use]
    pub fn generate() -> Self {
        Self(crate::clock::uuid())
    }

    /// The time in the id, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        // The first 48 bits (RFC 9562, section 5.7).
        i64::try_from(self.0.as_u128() >> 80).expect("48 bits fit")
    }

    /// The 16 bytes of the id, in the order in which they sort.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id of 16 stored bytes; `None` when they are no UUID version 7.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let id = Uuid::from_bytes(bytes);
        (id.get_version_num() == 7 && id.get_variant() == Variant::RFC4122).then_some(Self(id))
    }
}

impl FromStr for DocumentId {
    type Err = InputError;

    fn from_str(text: &str) -> Result<Self, InputError> {
        // The parser also takes braces, URNs and capitals; one id has one name here.
        Uuid::try_parse(text)
            .ok()
            .and_then(|id| Self::from_bytes(id.into_bytes()))
            .filter(|id| id.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text)
            .ok_or_else(|| InputError::DocumentId { id: excerpt(text) })
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.as_hyphenated(), f)
    }
}

impl Serialize for DocumentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DocumentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread, time::SystemTime};

    use super::*;

    const CANONICAL: &str = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"; // RFC 9562, appendix A.6

    #[test]
    fn reads_the_example_of_the_rfc() {
        let id: DocumentId = CANONICAL.parse().unwrap();
        assert_eq!(id.to_string(), CANONICAL);
        assert_eq!(id.unix_ms(), 1_645_557_742_000);
        assert_eq!(DocumentId::from_bytes(*id.as_bytes()), Some(id));
    }

    #[test]
    fn rejects_other_forms_and_versions() {
        for text in [
            "",
            "017F22E2-79B0-7CC3-98C4-DC0C0C07398F",
            "017f22e279b07cc398c4dc0c0c07398f",
            "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
            "urn:uuid:017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
            "017f22e2-79b0-4cc3-98c4-dc0c0c07398f", // version 4
            "017f22e2-79b0-7cc3-18c4-dc0c0c07398f", // another variant
            "00000000-0000-0000-0000-000000000000",
            " 017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        ] {
            assert!(
                matches!(
                    text.parse::<DocumentId>(),
                    Err(InputError::DocumentId { .. })
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn ids_ascend_across_threads() {
        let before = SystemTime::now();
        let runs: Vec<Vec<DocumentId>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..20_000).map(|_| DocumentId::generate()).collect()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for run in &runs {
            assert!(run.is_sorted_by(|a, b| a < b));
        }
        let all: BTreeSet<_> = runs.iter().flatten().collect();
        assert_eq!(all.len(), 80_000);
        let later = DocumentId::generate();
        assert!(all.iter().all(|id| **id < later));
        let started = before
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis();
        assert!(u128::try_from(later.unix_ms()).unwrap() >= started);
    }
}
