//! The opening table: what is on disk decides.
//!
//! One row of `docs/lifecycle.md`, "Opening", is one arm of [`decide`]. No path leads from
//! encrypted to plaintext, from a wrong key to a new key, from a missing manifest to a new
//! database, or from a newer manifest back to an older one.

use std::path::Path;

use nimbus_manifests::{Cipher, State};

use super::EnvelopeError;
use super::file::Stage;
use super::probe::FileKind;
use super::standing::Standing;

/// What the caller wants of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// An existing file; a missing one is [`EnvelopeError::NotFound`].
    Open,
    /// A new file; an existing one is [`EnvelopeError::AlreadyExists`]. A creation that a crash cut
    /// short is finished.
    Create,
    /// Whichever of the two applies.
    OpenOrCreate,
}

/// What to do with a file, once the table allowed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a plaintext file.
    CreatePlain,
    /// Open a plaintext file.
    OpenPlain,
    /// Draw a key, publish a `new` manifest, initialise the file.
    Create,
    /// Unwrap the key of the manifest: how far the file's life has come.
    Keyed(Stage),
}

/// Applies the table.
pub(super) fn decide(
    path: &Path,
    manifest: Option<State>,
    standing: Standing,
    file: FileKind,
    cipher: Cipher,
    encryption: bool,
    intent: Intent,
) -> Result<Step, EnvelopeError> {
    let known = standing != Standing::Unknown;
    let path = path.to_owned();
    let plain = match cipher {
        Cipher::Sqlcipher4 => FileKind::PlainSqlite,
        Cipher::Blocks1 => FileKind::PlainRedb,
        // What is sealed so is in no file.
        Cipher::Sealed1 => return Err(EnvelopeError::NotAFile { path }),
    };
    let existing = |step| match intent {
        Intent::Create => Err(EnvelopeError::AlreadyExists { path: path.clone() }),
        Intent::Open | Intent::OpenOrCreate => Ok(step),
    };
    match (manifest, file) {
        (_, FileKind::NotAFile) => Err(EnvelopeError::NotAFile { path }),
        (None, FileKind::Absent) if known => Err(EnvelopeError::Lost { path }),
        (None, FileKind::Absent) if intent == Intent::Open => Err(EnvelopeError::NotFound { path }),
        (None, FileKind::Absent) if encryption => Ok(Step::Create),
        (None, FileKind::Absent) => Ok(Step::CreatePlain),
        (None, kind) if kind == plain && encryption => Err(EnvelopeError::Plaintext { path }),
        (None, kind) if kind == plain => existing(Step::OpenPlain),
        (None, _) => Err(EnvelopeError::ManifestMissing { path }),
        (Some(_), _) if !encryption => Err(EnvelopeError::EncryptionOff { path }),
        (Some(State::New), _) if !known => Ok(Step::Keyed(Stage::Initialise)),
        (Some(State::New), FileKind::Absent | FileKind::Empty) => Err(EnvelopeError::Lost { path }),
        (Some(State::Ready | State::Rekeying), FileKind::Absent) => {
            Err(EnvelopeError::DatabaseMissing { path })
        }
        (Some(State::Ready | State::Rekeying), FileKind::Empty) => {
            Err(EnvelopeError::DatabaseEmpty { path })
        }
        (Some(_), FileKind::PlainSqlite | FileKind::PlainRedb) => {
            Err(EnvelopeError::NotEncrypted { path })
        }
        (Some(_), FileKind::Other) if standing == Standing::Older => {
            Err(EnvelopeError::ManifestOlder { path })
        }
        (Some(State::New), FileKind::Other) => existing(Step::Keyed(Stage::Initialised)),
        (Some(State::Ready), FileKind::Other) => existing(Step::Keyed(Stage::Ready)),
        (Some(State::Rekeying), FileKind::Other) => existing(Step::Keyed(Stage::Rekeying {
            ended: match standing {
                Standing::Ended(opened) => Some(opened),
                Standing::Unknown | Standing::Same | Standing::Known | Standing::Older => None,
            },
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Opened;
    use FileKind::{Absent, Empty, Other, PlainRedb, PlainSqlite};

    fn ask(
        manifest: Option<State>,
        file: FileKind,
        encryption: bool,
        intent: Intent,
    ) -> Result<Step, EnvelopeError> {
        ask_knowing(Standing::Unknown, manifest, file, encryption, intent)
    }

    fn ask_knowing(
        standing: Standing,
        manifest: Option<State>,
        file: FileKind,
        encryption: bool,
        intent: Intent,
    ) -> Result<Step, EnvelopeError> {
        decide(
            Path::new("t.sqlite3"),
            manifest,
            standing,
            file,
            Cipher::Sqlcipher4,
            encryption,
            intent,
        )
    }

    fn both(
        manifest: Option<State>,
        file: FileKind,
        encryption: bool,
    ) -> Result<Step, EnvelopeError> {
        let answer = ask(manifest, file, encryption, Intent::OpenOrCreate);
        if answer.is_err() {
            // What is refused is refused whatever the caller wants.
            assert!(ask(manifest, file, encryption, Intent::Open).is_err());
            assert!(ask(manifest, file, encryption, Intent::Create).is_err());
        }
        answer
    }

    #[test]
    fn creates_only_where_nothing_is() {
        assert_eq!(both(None, Absent, true).unwrap(), Step::Create);
        assert_eq!(both(None, Absent, false).unwrap(), Step::CreatePlain);
        assert!(matches!(
            ask(None, Absent, true, Intent::Open),
            Err(EnvelopeError::NotFound { .. })
        ));
    }

    #[test]
    fn rejects_plaintext_while_encryption_is_on() {
        assert!(matches!(
            both(None, PlainSqlite, true),
            Err(EnvelopeError::Plaintext { .. })
        ));
        assert_eq!(both(None, PlainSqlite, false).unwrap(), Step::OpenPlain);
    }

    #[test]
    fn rejects_a_missing_sidecar() {
        for encryption in [true, false] {
            for file in [Other, Empty, PlainRedb] {
                assert!(matches!(
                    both(None, file, encryption),
                    Err(EnvelopeError::ManifestMissing { .. })
                ));
            }
        }
    }

    #[test]
    fn rejects_an_encrypted_file_without_a_provider() {
        for state in [State::New, State::Ready, State::Rekeying] {
            for file in [Absent, Empty, Other, PlainSqlite] {
                assert!(matches!(
                    both(Some(state), file, false),
                    Err(EnvelopeError::EncryptionOff { .. })
                ));
            }
        }
    }

    #[test]
    fn initialises_a_new_file_again() {
        for file in [Absent, Empty, Other] {
            for intent in [Intent::Open, Intent::Create, Intent::OpenOrCreate] {
                assert_eq!(
                    ask(Some(State::New), file, true, intent).unwrap(),
                    Step::Keyed(Stage::Initialise)
                );
            }
        }
    }

    #[test]
    fn never_takes_a_lost_database_for_a_new_one() {
        for state in [State::Ready, State::Rekeying] {
            assert!(matches!(
                both(Some(state), Absent, true),
                Err(EnvelopeError::DatabaseMissing { .. })
            ));
            assert!(matches!(
                both(Some(state), Empty, true),
                Err(EnvelopeError::DatabaseEmpty { .. })
            ));
            assert!(matches!(
                both(Some(state), PlainSqlite, true),
                Err(EnvelopeError::NotEncrypted { .. })
            ));
        }
    }

    #[test]
    fn opens_what_is_ready_and_settles_a_rekey() {
        assert_eq!(
            both(Some(State::Ready), Other, true).unwrap(),
            Step::Keyed(Stage::Ready)
        );
        assert_eq!(
            both(Some(State::Rekeying), Other, true).unwrap(),
            Step::Keyed(Stage::Rekeying { ended: None })
        );
        for opened in [Opened::First, Opened::Next] {
            let rekeying = Some(State::Rekeying);
            let ended = Standing::Ended(opened);
            let step = ask_knowing(ended, rekeying, Other, true, Intent::Open);
            assert_eq!(
                step.unwrap(),
                Step::Keyed(Stage::Rekeying {
                    ended: Some(opened)
                })
            );
        }
        assert!(matches!(
            ask(Some(State::Ready), Other, true, Intent::Create),
            Err(EnvelopeError::AlreadyExists { .. })
        ));
    }

    const INTENTS: [Intent; 3] = [Intent::Open, Intent::Create, Intent::OpenOrCreate];

    #[test]
    fn makes_nothing_in_place_of_a_file_that_is_known() {
        for standing in [Standing::Known, Standing::Older] {
            for intent in INTENTS {
                for (manifest, file) in [
                    (None, Absent),
                    (Some(State::New), Absent),
                    (Some(State::New), Empty),
                ] {
                    assert!(matches!(
                        ask_knowing(standing, manifest, file, true, intent),
                        Err(EnvelopeError::Lost { .. })
                    ));
                }
                assert!(matches!(
                    ask_knowing(standing, Some(State::New), PlainSqlite, true, intent),
                    Err(EnvelopeError::NotEncrypted { .. })
                ));
            }
        }
    }

    #[test]
    fn opens_a_known_file_whose_creation_was_cut_short_and_sets_nothing_aside() {
        let finish = |intent| ask_knowing(Standing::Known, Some(State::New), Other, true, intent);
        assert_eq!(
            finish(Intent::Open).unwrap(),
            Step::Keyed(Stage::Initialised)
        );
        assert_eq!(
            finish(Intent::OpenOrCreate).unwrap(),
            Step::Keyed(Stage::Initialised)
        );
        assert!(matches!(
            finish(Intent::Create),
            Err(EnvelopeError::AlreadyExists { .. })
        ));
    }

    #[test]
    fn rejects_an_older_manifest() {
        for state in [State::New, State::Ready, State::Rekeying] {
            for intent in INTENTS {
                assert!(matches!(
                    ask_knowing(Standing::Older, Some(state), Other, true, intent),
                    Err(EnvelopeError::ManifestOlder { .. })
                ));
            }
        }
    }

    #[test]
    fn a_known_manifest_changes_nothing_else() {
        for state in [State::Ready, State::Rekeying] {
            for file in [Absent, Empty, Other, PlainSqlite, PlainRedb] {
                for intent in INTENTS {
                    let unknown = ask(Some(state), file, true, intent);
                    let known = ask_knowing(Standing::Known, Some(state), file, true, intent);
                    assert_eq!(format!("{unknown:?}"), format!("{known:?}"));
                }
            }
        }
    }

    #[test]
    fn does_not_open_what_is_not_a_file() {
        assert!(matches!(
            both(None, FileKind::NotAFile, true),
            Err(EnvelopeError::NotAFile { .. })
        ));
    }
}
