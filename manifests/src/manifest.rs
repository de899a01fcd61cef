//! What a manifest says, and the rules its parts obey together.

use data_encoding::BASE64;

use crate::error::InvalidManifest;
use crate::kinds::{Cipher, ProviderKind, State, WrapAlgorithm};
use crate::names::{DekId, FileId, KeyId, Subject};
use crate::time::Timestamp;
use crate::{MAX_MANIFEST_BYTES, MAX_WRAPPED_BYTES, MAX_WRAPS, VERSION_LINE};

/// One wrapping of a data key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrap {
    /// Who wrapped it.
    pub provider: ProviderKind,
    /// With which key.
    pub key_id: KeyId,
    /// How.
    pub algorithm: WrapAlgorithm,
    /// When.
    pub at: Timestamp,
    /// The wrapped key.
    pub blob: Vec<u8>,
}

/// One data key and its wraps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DekEntry {
    /// Its id.
    pub id: DekId,
    /// When it was drawn.
    pub created: Timestamp,
    /// 1 to 8 wraps.
    pub wraps: Vec<Wrap>,
}

/// All that a manifest says but its MAC. Made only by [`Manifest::new`] and the parser, which check
/// the same rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    subject: Subject,
    file_id: FileId,
    cipher: Cipher,
    state: State,
    revision: u64,
    created: Timestamp,
    deks: Vec<DekEntry>,
}

impl Manifest {
    /// A manifest of these parts.
    ///
    /// # Errors
    ///
    /// [`InvalidManifest`] names the rule that they break together.
    pub fn new(
        subject: Subject,
        file_id: FileId,
        cipher: Cipher,
        state: State,
        revision: u64,
        created: Timestamp,
        deks: Vec<DekEntry>,
    ) -> Result<Self, InvalidManifest> {
        let manifest = Self {
            subject,
            file_id,
            cipher,
            state,
            revision,
            created,
            deks,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Who the file belongs to.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Which file.
    #[must_use]
    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// What it is encrypted with.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// How far its life has come.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// How often the manifest was written, from 1.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When the file was created.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// The data keys: one, or two while rekeying (the one in the file, then the next). Never empty.
    #[must_use]
    pub fn deks(&self) -> &[DekEntry] {
        &self.deks
    }

    /// The next revision, in state `ready` with the data key at `kept` alone: after the file was
    /// initialised, or a rekey ended.
    ///
    /// # Errors
    ///
    /// [`InvalidManifest::DekCount`] when there is no such key.
    pub fn settled(&self, kept: usize) -> Result<Self, InvalidManifest> {
        let dek = self.deks.get(kept).ok_or(InvalidManifest::DekCount)?;
        self.next(State::Ready, vec![dek.clone()])
    }

    /// The next revision, in state `rekeying`, with `dek` as the key after the present one.
    ///
    /// # Errors
    ///
    /// [`InvalidManifest::DekCount`] when a rekey is under way already; otherwise what is wrong
    /// with `dek`.
    pub fn rekeying(&self, dek: DekEntry) -> Result<Self, InvalidManifest> {
        let mut deks = self.deks.clone();
        deks.push(dek);
        self.next(State::Rekeying, deks)
    }

    /// The next revision, with the wraps of each data key replaced, in their order.
    ///
    /// # Errors
    ///
    /// [`InvalidManifest::DekCount`] when there are not as many; otherwise what is wrong with
    /// `wraps`.
    pub fn rewrapped(&self, wraps: Vec<Vec<Wrap>>) -> Result<Self, InvalidManifest> {
        if wraps.len() != self.deks.len() {
            return Err(InvalidManifest::DekCount);
        }
        let mut deks = self.deks.clone();
        for (dek, wraps) in deks.iter_mut().zip(wraps) {
            dek.wraps = wraps;
        }
        self.next(self.state, deks)
    }

    /// Writes all that the MAC covers: every line up to and including `mac: `.
    pub(crate) fn covered_text(&self) -> String {
        let mut text = format!(
            "{VERSION_LINE}\nsubject: {}\nfile-id: {}\ncipher: {}\nstate: {}\nrevision: {}\ncreated: {}\n",
            self.subject(),
            self.file_id(),
            self.cipher(),
            self.state(),
            self.revision(),
            self.created(),
        );
        for dek in self.deks() {
            text.push_str(&format!("dek: {} {}\n", dek.id, dek.created));
            for wrap in &dek.wraps {
                text.push_str(&format!(
                    "wrap: {} {} {} {}\n",
                    wrap.provider, wrap.key_id, wrap.algorithm, wrap.at
                ));
                for line in wrap.blob.chunks(CONTINUATION_BYTES) {
                    text.push(' ');
                    BASE64.encode_append(line, &mut text);
                    text.push('\n');
                }
            }
        }
        text.push_str("mac: ");
        text
    }

    fn next(&self, state: State, deks: Vec<DekEntry>) -> Result<Self, InvalidManifest> {
        let manifest = Self {
            state,
            deks,
            revision: self.revision.saturating_add(1),
            ..self.clone()
        };
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), InvalidManifest> {
        let expected = match self.state {
            State::New | State::Ready => 1,
            State::Rekeying => 2,
        };
        if self.deks.len() != expected {
            return Err(InvalidManifest::DekCount);
        }
        if let [first, second] = self.deks.as_slice()
            && first.id == second.id
        {
            return Err(InvalidManifest::DuplicateDek);
        }
        if self.cipher != self.subject.cipher() {
            return Err(InvalidManifest::Cipher);
        }
        if !(1..=MAX_REVISION).contains(&self.revision) {
            return Err(InvalidManifest::Revision);
        }
        for dek in &self.deks {
            dek.check()?;
        }
        if self.covered_text().len() + MAC_VALUE_BYTES > MAX_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLarge);
        }
        Ok(())
    }
}

impl DekEntry {
    fn check(&self) -> Result<(), InvalidManifest> {
        if !(1..=MAX_WRAPS).contains(&self.wraps.len()) {
            return Err(InvalidManifest::WrapCount(self.wraps.len()));
        }
        for (index, wrap) in self.wraps.iter().enumerate() {
            let provider = wrap.provider;
            if !provider.uses(wrap.algorithm) {
                return Err(InvalidManifest::Algorithm(provider, wrap.algorithm));
            }
            if !wrap.key_id.fits(provider) {
                return Err(InvalidManifest::KeyId(provider));
            }
            if !(1..=MAX_WRAPPED_BYTES).contains(&wrap.blob.len()) {
                return Err(InvalidManifest::WrappedSize);
            }
            let same = |other: &Wrap| other.provider == provider && other.key_id == wrap.key_id;
            if self.wraps.iter().take(index).any(same) {
                return Err(InvalidManifest::DuplicateWrap);
            }
        }
        Ok(())
    }
}

/// The base64 of a MAC and the final line end.
pub(crate) const MAC_VALUE_BYTES: usize = 44 + 1;
/// The bytes of a wrapped key on one line.
pub(crate) const CONTINUATION_BYTES: usize = 48;
const MAX_REVISION: u64 = i64::MAX as u64;

#[cfg(test)]
mod tests;
