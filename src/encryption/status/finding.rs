//! What was found of one file.

use std::path::Path;

use nimbus_keyproviders::same_key;
use nimbus_manifests::{KeyId, Manifest, ProviderKind};

use super::Health;
use crate::control::ControlError;
use crate::envelope::{Envelope, EnvelopeError, Trouble};
use crate::error_chain::error_chain;
use crate::sqlcipher::{self, OpenError};
use crate::tenants::sqlite;

/// What is wrong, and what to do next.
pub(super) struct Finding {
    pub(super) health: Health,
    pub(super) detail: Option<String>,
    /// What takes the place of the detail where the control file has no copy of the manifest.
    pub(super) without_copy: Option<String>,
}

impl Finding {
    pub(super) fn new(health: Health, detail: Option<String>) -> Self {
        Self {
            health,
            detail,
            without_copy: None,
        }
    }

    pub(super) fn of(error: &EnvelopeError) -> Self {
        let health = match (error, error.trouble()) {
            (EnvelopeError::SubjectMismatch { .. }, _) => Health::SubjectMismatch,
            // Its key may have been taken back; whatever it is, the control file's own line says
            // it.
            (EnvelopeError::Mirror { .. }, _) => Health::KeyUnavailable,
            (_, trouble) => Self::health(trouble),
        };
        Self {
            without_copy: Some(error.without_copy()),
            ..Self::new(health, Some(error_chain(error)))
        }
    }

    /// In words that do not send to `repair` where that has no copy to put back.
    pub(super) fn knowing(self, lacks_copy: bool) -> Self {
        let detail = match self.without_copy {
            Some(ref without_copy) if lacks_copy => Some(without_copy.clone()),
            _ => self.detail,
        };
        Self {
            detail,
            without_copy: None,
            ..self
        }
    }

    pub(super) fn of_open(error: &OpenError) -> Self {
        match error {
            OpenError::Envelope(error) => Self::of(error),
            error => Self::new(Self::health(error.trouble()), Some(error_chain(error))),
        }
    }

    pub(super) fn of_control(error: &ControlError) -> Self {
        match error {
            ControlError::Envelope(error) => Self::of(error),
            error => Self::new(Self::health(error.trouble()), Some(error_chain(error))),
        }
    }

    fn health(trouble: Trouble) -> Health {
        match trouble {
            Trouble::Plaintext => Health::Plaintext,
            Trouble::ManifestMissing => Health::ManifestMissing,
            Trouble::ManifestCorrupt => Health::ManifestCorrupt,
            Trouble::KeyUnavailable | Trouble::KeyRevoked | Trouble::Locked => {
                Health::KeyUnavailable
            }
            Trouble::KeyMismatch => Health::KeyMismatch,
            Trouble::Corrupt => Health::PageCorrupt,
            // The file cannot be had: it is gone, or the machine refuses it; the detail says which.
            Trouble::NotFound
            | Trouble::AlreadyExists
            | Trouble::DatabaseMissing
            | Trouble::Storage => Health::DatabaseMissing,
        }
    }
}

/// Whether a configured key is among those that wrap the data key, by their names alone.
pub(super) async fn named_key(
    envelope: &Envelope,
    path: &Path,
    manifest: &Manifest,
) -> Result<(), Finding> {
    let path_owned = path.to_owned();
    let Some(keys) = envelope.keys() else {
        return Err(Finding::of(&EnvelopeError::EncryptionOff {
            path: path_owned,
        }));
    };
    let mut configured = Vec::new();
    for provider in keys.providers() {
        match provider.key_id(manifest.subject()).await {
            Ok(id) => configured.push((provider.kind(), id)),
            Err(error) => {
                return Err(Finding::new(
                    Health::KeyUnavailable,
                    Some(error_chain(&error)),
                ));
            }
        }
    }
    for dek in manifest.deks() {
        let known = dek.wraps.iter().any(|wrap| {
            let is_it = |(kind, id): &(ProviderKind, KeyId)| {
                *kind == wrap.provider && same_key(id, &wrap.key_id)
            };
            configured.iter().any(is_it)
        });
        if !known {
            return Err(Finding::of(&EnvelopeError::NoMatchingKey {
                path: path_owned,
                wrapped_by: dek
                    .wraps
                    .iter()
                    .map(|wrap| format!("{} {}", wrap.provider, wrap.key_id))
                    .collect(),
                configured: configured
                    .iter()
                    .map(|(kind, id)| format!("{kind} {id}"))
                    .collect(),
            }));
        }
    }
    Ok(())
}

/// Whether a server serves it, as far as it can be read just now.
pub(super) fn is_served(database: &sqlcipher::Database) -> bool {
    let reader = database.reader().ok();
    let served = reader.and_then(|reader| sqlite::is_served(&reader).ok());
    served.unwrap_or(true)
}

/// Said of a database that is whole, and that no server serves.
pub(super) const UNSERVED: &str = "it is whole, and another application's database: no server serves it. `nimbus encryption export` takes it out again";
