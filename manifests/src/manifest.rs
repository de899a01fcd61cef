//! What a manifest says, and the rules its parts obey together.

use crate::error::InvalidManifest;
use crate::kinds::{Cipher, ProviderKind, State, WrapAlgorithm};
use crate::names::{DekId, FileId, KeyId, Subject};
use crate::seal::{MacKey, SealedManifest};
use crate::time::Timestamp;
use crate::{MAX_MANIFEST_BYTES, MAX_WRAPPED_BYTES, MAX_WRAPS, text};

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

    /// Writes the manifest and its MAC. `key` is derived from the first data key.
    #[must_use]
    pub fn seal(&self, key: &MacKey) -> SealedManifest {
        SealedManifest::new(self.clone(), key)
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
        if text::write(self).len() + text::MAC_VALUE_BYTES > MAX_MANIFEST_BYTES {
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

const MAX_REVISION: u64 = i64::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    fn time() -> Timestamp {
        Timestamp::from_unix(1_795_370_645).unwrap()
    }

    fn wrap(provider: ProviderKind, key_id: &str, algorithm: WrapAlgorithm) -> Wrap {
        Wrap {
            provider,
            key_id: key_id.parse().unwrap(),
            algorithm,
            at: time(),
            blob: vec![1, 2, 3],
        }
    }

    fn kms(number: usize) -> Wrap {
        wrap(
            ProviderKind::AwsKms,
            &format!("arn:{number}"),
            WrapAlgorithm::SymmetricDefault,
        )
    }

    fn dek(id: u8) -> DekEntry {
        DekEntry {
            id: DekId::from_bytes([id; 8]),
            created: time(),
            wraps: vec![kms(0)],
        }
    }

    fn made(state: State, revision: u64, deks: Vec<DekEntry>) -> Result<Manifest, InvalidManifest> {
        Manifest::new(
            "db:sqlite:tenant:demo:demo.sqlite3".parse().unwrap(),
            "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap(),
            Cipher::Sqlcipher4,
            state,
            revision,
            time(),
            deks,
        )
    }

    fn with_wraps(wraps: Vec<Wrap>) -> Result<Manifest, InvalidManifest> {
        made(State::Ready, 1, vec![DekEntry { wraps, ..dek(1) }])
    }

    #[test]
    fn rejects_a_number_of_deks_that_does_not_fit_the_state() {
        let deks = |count: u8| (0..count).map(dek).collect::<Vec<_>>();
        for (state, right) in [(State::New, 1), (State::Ready, 1), (State::Rekeying, 2)] {
            for count in 0..4 {
                let refused = made(state, 1, deks(count)).err();
                let expected = (count != right).then_some(InvalidManifest::DekCount);
                assert_eq!(refused, expected, "{state} {count}");
            }
        }
    }

    #[test]
    fn rejects_two_deks_of_one_id() {
        assert_eq!(
            made(State::Rekeying, 1, vec![dek(1), dek(1)]),
            Err(InvalidManifest::DuplicateDek)
        );
    }

    #[test]
    fn rejects_a_cipher_that_does_not_fit_the_subject() {
        for (subject, right, wrong) in [
            ("db:sqlite:tenant:a:f", Cipher::Sqlcipher4, Cipher::Blocks1),
            (
                "cache:libsql:tenant:a:f",
                Cipher::Sqlcipher4,
                Cipher::Blocks1,
            ),
            ("db:redb:control:f", Cipher::Blocks1, Cipher::Sqlcipher4),
        ] {
            let made = |cipher| {
                let id = made(State::Ready, 1, vec![dek(1)]).unwrap().file_id();
                let subject = subject.parse().unwrap();
                Manifest::new(subject, id, cipher, State::Ready, 1, time(), vec![dek(1)])
            };
            assert_eq!(made(right).unwrap().cipher(), right);
            assert_eq!(made(wrong), Err(InvalidManifest::Cipher));
        }
    }

    #[test]
    fn rejects_revisions_outside_1_to_2_to_the_63_less_1() {
        for revision in [1, 9_223_372_036_854_775_807] {
            let manifest = made(State::Ready, revision, vec![dek(1)]).unwrap();
            assert_eq!(manifest.revision(), revision);
        }
        for revision in [0, 9_223_372_036_854_775_808, u64::MAX] {
            assert_eq!(
                made(State::Ready, revision, vec![dek(1)]),
                Err(InvalidManifest::Revision)
            );
        }
    }

    #[test]
    fn rejects_a_dek_without_wraps_or_with_nine() {
        assert_eq!(with_wraps(vec![]), Err(InvalidManifest::WrapCount(0)));
        assert!(with_wraps((0..8).map(kms).collect()).is_ok());
        assert_eq!(
            with_wraps((0..9).map(kms).collect()),
            Err(InvalidManifest::WrapCount(9))
        );
    }

    #[test]
    fn rejects_a_second_wrap_by_the_same_key() {
        assert_eq!(
            with_wraps(vec![kms(0), kms(1), kms(0)]),
            Err(InvalidManifest::DuplicateWrap)
        );
        // The key ids of two providers have nothing to do with each other.
        let local = |kind| wrap(kind, "9c0d2f6e1b7a4455", WrapAlgorithm::HkdfSha256Aes256Gcm);
        let both = vec![
            local(ProviderKind::MasterKeyFile),
            local(ProviderKind::KeyDir),
        ];
        assert!(with_wraps(both).is_ok());
        // Nor have two algorithms: the same key is the same key.
        let mut other = local(ProviderKind::KeyDir);
        other.algorithm = WrapAlgorithm::HkdfSha256XChaCha20Poly1305;
        assert_eq!(
            with_wraps(vec![local(ProviderKind::KeyDir), other]),
            Err(InvalidManifest::DuplicateWrap)
        );
    }

    #[test]
    fn accepts_both_deks_wrapped_by_the_same_key() {
        assert!(made(State::Rekeying, 1, vec![dek(1), dek(2)]).is_ok());
    }

    #[test]
    fn rejects_wrapped_keys_of_0_bytes_and_more_than_8_kib() {
        for (length, refused) in [(0, true), (1, false), (8192, false), (8193, true)] {
            let mut wrap = kms(0);
            wrap.blob = vec![0; length];
            let expected = refused.then_some(InvalidManifest::WrappedSize);
            assert_eq!(with_wraps(vec![wrap]).err(), expected, "{length}");
        }
    }

    #[test]
    fn rejects_a_key_id_of_another_provider() {
        assert_eq!(
            with_wraps(vec![wrap(
                ProviderKind::AwsKms,
                "alias/nimbus",
                WrapAlgorithm::SymmetricDefault
            )]),
            Err(InvalidManifest::KeyId(ProviderKind::AwsKms))
        );
    }

    #[test]
    fn rejects_an_algorithm_of_another_provider() {
        assert_eq!(
            with_wraps(vec![wrap(
                ProviderKind::Age,
                "age1qx0",
                WrapAlgorithm::SymmetricDefault
            )]),
            Err(InvalidManifest::Algorithm(
                ProviderKind::Age,
                WrapAlgorithm::SymmetricDefault
            ))
        );
    }

    #[test]
    fn rejects_more_than_32_kib_as_text() {
        let wraps = |last: usize| {
            let sizes = [8192, 8192, last];
            let wraps = sizes.into_iter().enumerate().map(|(number, size)| Wrap {
                blob: vec![0; size],
                ..kms(number)
            });
            wraps.collect::<Vec<_>>()
        };
        // The text grows by 4 bytes for each 3: one of the sizes is the last that fits.
        let last = (1..8192)
            .rev()
            .find(|last| with_wraps(wraps(*last)).is_ok());
        let last = last.expect("two wraps of 8 KiB leave room for a third");
        let key = MacKey::init_with(|key| key.fill(7));
        let largest = with_wraps(wraps(last)).unwrap().seal(&key);
        assert!((32 * 1024 - 4..=32 * 1024).contains(&largest.as_bytes().len()));
        assert_eq!(with_wraps(wraps(last + 1)), Err(InvalidManifest::TooLarge));
    }

    #[test]
    fn settles_with_the_kept_dek_alone() {
        let manifest = made(State::Rekeying, 4, vec![dek(1), dek(2)]).unwrap();
        for kept in 0..2 {
            let settled = manifest.settled(kept).unwrap();
            assert_eq!(settled.state(), State::Ready);
            assert_eq!(settled.revision(), 5);
            assert_eq!(settled.deks(), &manifest.deks()[kept..=kept]);
            assert_eq!(settled.subject(), manifest.subject());
            assert_eq!(settled.file_id(), manifest.file_id());
            assert_eq!(settled.created(), manifest.created());
        }
        assert_eq!(manifest.settled(2), Err(InvalidManifest::DekCount));
        let new = made(State::New, 1, vec![dek(1)]).unwrap();
        assert_eq!(new.settled(0).unwrap().state(), State::Ready);
    }

    #[test]
    fn rekeys_to_one_more_dek() {
        let manifest = made(State::Ready, 1, vec![dek(1)]).unwrap();
        let rekeying = manifest.rekeying(dek(2)).unwrap();
        assert_eq!(rekeying.state(), State::Rekeying);
        assert_eq!(rekeying.revision(), 2);
        assert_eq!(rekeying.deks(), [dek(1), dek(2)]);
        assert_eq!(rekeying.rekeying(dek(3)), Err(InvalidManifest::DekCount));
        assert_eq!(
            manifest.rekeying(dek(1)),
            Err(InvalidManifest::DuplicateDek)
        );
    }

    #[test]
    fn rewraps_every_dek_in_one_revision_and_keeps_the_state() {
        let manifest = made(State::Rekeying, 1, vec![dek(1), dek(2)]).unwrap();
        let rewrapped = manifest
            .rewrapped(vec![vec![kms(8)], vec![kms(7)]])
            .unwrap();
        assert_eq!(rewrapped.state(), State::Rekeying);
        assert_eq!(rewrapped.revision(), 2);
        assert_eq!(rewrapped.deks()[0].id, dek(1).id);
        assert_eq!(rewrapped.deks()[0].wraps, [kms(8)]);
        assert_eq!(rewrapped.deks()[1].wraps, [kms(7)]);
        assert_eq!(
            manifest.rewrapped(vec![vec![kms(7)]]),
            Err(InvalidManifest::DekCount)
        );
        assert_eq!(
            manifest.rewrapped(vec![vec![kms(7)], vec![]]),
            Err(InvalidManifest::WrapCount(0))
        );
    }

    #[test]
    fn rejects_a_revision_after_the_last() {
        let last = made(State::Ready, 9_223_372_036_854_775_807, vec![dek(1)]).unwrap();
        assert_eq!(last.settled(0), Err(InvalidManifest::Revision));
    }
}
