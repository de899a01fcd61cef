//! What the core hands out: leave to open a plaintext file, or proof that a manifest was read,
//! authenticated and unwrapped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::{ArchiveKey, AuditKey, BlindKey, CipherKey, Dek, SealKey};
use nimbus_manifests::{Manifest, SealedManifest, State};

use super::EnvelopeError;
use super::lease::{LeaseGuard, LeaseStanding};
use crate::data_dir::{REKEY, beside};

/// What [`Envelope::prepare`](super::Envelope::prepare) allows.
#[derive(Debug)]
pub enum Prepared {
    /// Encryption is off.
    Plain(PlainFile),
    /// The manifest was read, authenticated and unwrapped, or is new.
    Keyed(KeyedFile),
}

/// Leave to open or make a plaintext file.
#[derive(Debug)]
pub struct PlainFile {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
}

impl PlainFile {
    /// Where it stands.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there already, or must be made.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.exists
    }
}

/// How far a keyed file's life has come: the [`State`] of its manifest, and what the mirror knows
/// beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The file must be initialised, then
    /// [`Envelope::publish_ready`](super::Envelope::publish_ready) called. Nothing was ever in it.
    Initialise,
    /// The creation was cut short at its end: the file is there and must open, then
    /// [`Envelope::publish_ready`](super::Envelope::publish_ready) is called.
    Initialised,
    /// The file holds data under [`KeyedFile::cipher_key`].
    Ready,
    /// The file holds data under [`KeyedFile::cipher_key`] or [`KeyedFile::next_cipher_key`]: find
    /// out, then call [`Envelope::settle`](super::Envelope::settle).
    Rekeying {
        /// How the rekey ended, if its copy in the mirror says so.
        ended: Option<Opened>,
    },
}

impl From<State> for Stage {
    /// What the manifest says alone.
    fn from(state: State) -> Self {
        match state {
            State::New => Self::Initialise,
            State::Ready => Self::Ready,
            State::Rekeying => Self::Rekeying { ended: None },
        }
    }
}

/// Under which of a rekey's two keys page 1 authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The first: the swap never happened.
    First,
    /// The next: the swap happened.
    Next,
}

impl Opened {
    /// The place of that key in the manifest.
    pub(super) const fn kept(self) -> usize {
        match self {
            Self::First => 0,
            Self::Next => 1,
        }
    }
}

/// Proof that a manifest was read, authenticated and unwrapped; the only thing that opens an
/// encrypted file.
#[derive(Debug)]
pub struct KeyedFile {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    /// Shared, never copied: a rekey's copy is opened under the next key while this file still
    /// holds both.
    pub(super) dek: Arc<Dek>,
    pub(super) next: Option<Arc<Dek>>,
    pub(super) stage: Stage,
    /// Where the key came from a remote provider. It ends with the last that shares it.
    pub(super) lease: Option<Arc<LeaseGuard>>,
}

impl KeyedFile {
    /// The protected file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its verified manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How far its life has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether the mirror has the end of a rekey that the manifest says is under way.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.stage, Stage::Rekeying { ended: Some(_) })
    }

    /// The key of the file's cipher.
    #[must_use]
    pub fn cipher_key(&self) -> CipherKey {
        self.dek.cipher_key(&self.manifest.file_id())
    }

    /// The key that seals the audit log, which comes from the control file's data key.
    #[must_use]
    pub(crate) fn audit_key(&self) -> AuditKey {
        self.dek.audit_key(&self.manifest.file_id())
    }

    /// The key that authenticates what backups hold of the file.
    #[must_use]
    pub(crate) fn archive_key(&self) -> ArchiveKey {
        self.dek.archive_key(&self.manifest.file_id())
    }

    /// The key of the values that are sealed in a database.
    #[must_use]
    pub(crate) fn seal_key(&self) -> SealKey {
        self.dek.seal_key(&self.manifest.file_id())
    }

    /// The key that blinds index entries in a database.
    #[must_use]
    pub(crate) fn blind_key(&self) -> BlindKey {
        self.dek.blind_key(&self.manifest.file_id())
    }

    /// In [`Stage::Rekeying`], the key that the file has if the swap happened.
    #[must_use]
    pub fn next_cipher_key(&self) -> Option<CipherKey> {
        self.next
            .as_ref()
            .map(|dek| dek.cipher_key(&self.manifest.file_id()))
    }

    /// This file with the key that opened it alone; nothing is written.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Invalid`] when the manifest has no revision left,
    /// [`EnvelopeError::ManifestOlder`] when the rekey is known to have ended with the other key.
    pub(crate) fn under(mut self, opened: Opened) -> Result<Self, EnvelopeError> {
        if let Stage::Rekeying { ended: Some(ended) } = self.stage
            && ended != opened
        {
            return Err(EnvelopeError::ManifestOlder { path: self.path });
        }
        self.manifest = match self.manifest.settled(opened.kept()) {
            Ok(manifest) => manifest,
            Err(source) => {
                let path = self.path;
                return Err(EnvelopeError::Invalid { path, source });
            }
        };
        if let (Opened::Next, Some(next)) = (opened, self.next.take()) {
            self.dek = next;
        }
        self.next = None;
        self.stage = Stage::Ready;
        Ok(self)
    }

    /// The same file once more: the keys are shared, not copied.
    pub(crate) fn share(&self) -> Self {
        Self {
            path: self.path.clone(),
            manifest: self.manifest.clone(),
            dek: self.dek.clone(),
            next: self.next.clone(),
            stage: self.stage,
            lease: self.lease.clone(),
        }
    }

    /// In [`Stage::Rekeying`], the copy that is made under the next key.
    pub(crate) fn copy_under_next(&self) -> Option<Self> {
        let both = self.next.is_some().then(|| self.share())?;
        let mut copy = both.under(Opened::Next).ok()?;
        copy.path = beside(&self.path, REKEY);
        Some(copy)
    }

    /// What keeps the core asking for this file's key, for who takes the key out and lets go of the
    /// file.
    pub(crate) fn lease(&self) -> Option<HeldLease> {
        self.lease.clone().map(HeldLease)
    }

    /// Whether it may be used now.
    pub(crate) fn standing(&self) -> LeaseStanding {
        let lease = self.lease.as_ref();
        lease.map_or(LeaseStanding::Good, |lease| lease.standing())
    }

    pub(crate) fn seal(&self) -> SealedManifest {
        self.manifest
            .seal(&self.dek.manifest_key(&self.manifest.file_id()))
    }
}

/// A lease, to be held for as long as the key of its file.
#[derive(Debug)]
pub(crate) struct HeldLease(Arc<LeaseGuard>);

impl HeldLease {
    /// Whether the key may be used now.
    pub(crate) fn standing(&self) -> LeaseStanding {
        self.0.standing()
    }
}
