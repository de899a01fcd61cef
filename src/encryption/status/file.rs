//! Looks at one file.

use std::path::Path;

use nimbus_manifests::{Manifest, State, Subject};

use super::finding::{Finding, UNSERVED, is_served, named_key};
use super::{FileReport, Health, LOOKS, StatusReader, Verify, WrapReport, owner_by_name};
use crate::audit::LogError;
use crate::config::ProviderChoice;
use crate::encryption::{is_overdue, pending, was_rewritten};
use crate::envelope::{
    Clock as _, EnvelopeError, FileKind, Intent, KeyedFile, Prepared, ReadError, SystemClock,
    classify, manifest_path, read_manifest,
};
use crate::error_chain::error_chain;
use crate::runtime::blocking;
use crate::{control, sqlcipher};

impl StatusReader {
    /// One file; `None` when it does not belong to the deployment. One that is given a new key
    /// meanwhile, so that manifest and file were not of one time, is looked at again.
    pub(crate) async fn look(&self, path: &Path, verify: Verify) -> Option<FileReport> {
        for _again in 0..LOOKS {
            let report = self.look_once(path, verify).await?;
            if report.health == Health::Ok || !was_rewritten(path, report.revision).await {
                return Some(report);
            }
        }
        self.look_once(path, verify).await
    }

    async fn look_once(&self, path: &Path, verify: Verify) -> Option<FileReport> {
        let ours = owner_by_name(path);
        if let Some(report) = self.deleting(path, ours.as_ref()).await {
            return Some(report);
        }
        let (seen, lacks_copy) = blocking({
            let (path, ours) = (path.to_owned(), ours.clone());
            let envelope = self.envelope.as_ref().ok().cloned();
            move || {
                let manifest = read_manifest(&manifest_path(&path));
                let lacks_copy = envelope
                    .zip(ours)
                    .is_some_and(|(core, ours)| core.lacks_copy(&path, &ours));
                ((manifest, classify(&path)), lacks_copy)
            }
        })
        .await;
        let report = |manifest: Option<&Manifest>, finding: Finding| {
            Some(self.report(path, manifest, finding.knowing(lacks_copy)))
        };
        let unreadable = |source| {
            Finding::of(&EnvelopeError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            })
        };
        let (manifest, kind) = match seen {
            (Ok(Some(sealed)), Ok(kind)) => (sealed.claims().clone(), kind),
            (Ok(None), Ok(FileKind::Absent)) => return self.lost(path, ours?).await,
            (Ok(None), Ok(kind)) => {
                return report(None, self.without_manifest(path, kind, ours.is_some())?);
            }
            (Ok(Some(sealed)), Err(error)) => {
                return report(Some(sealed.claims()), unreadable(error));
            }
            // What cannot be read may be a plaintext database under any name.
            (Ok(None), Err(error)) => return report(None, unreadable(error)),
            (Err(error), _) => {
                let error = match error {
                    ReadError::Parse(source) => EnvelopeError::ManifestUnparsable {
                        path: manifest_path(path),
                        source,
                    },
                    ReadError::Io(source) => EnvelopeError::Io {
                        action: "read",
                        path: manifest_path(path),
                        source,
                    },
                };
                let finding = Finding::new(Health::ManifestCorrupt, Some(error_chain(&error)));
                let without_copy = Some(error.without_copy());
                let finding = Finding {
                    without_copy,
                    ..finding
                };
                return report(None, finding);
            }
        };
        let is_control = *manifest.subject() == control::subject();
        let finding = match self.judge(path, &manifest, kind, ours, verify).await {
            Ok(()) if is_control && self.rolled_back.is_some() => {
                let found = self.rolled_back.clone().map(LogError::rolled_back);
                Finding::new(
                    Health::ManifestCorrupt,
                    found.map(|error| error.to_string()),
                )
            }
            Ok(()) if manifest.state() == State::Rekeying => Finding::new(
                Health::Rekeying,
                Some("a new data key is under way; the next opening settles it".to_owned()),
            ),
            Ok(()) => Finding::new(Health::Ok, None),
            Err(finding) => finding,
        };
        report(Some(&manifest), finding)
    }

    /// Neither a file nor a manifest: the control file may know of it, or be it.
    async fn lost(&self, path: &Path, subject: Subject) -> Option<FileReport> {
        let finding = if subject == control::subject() {
            let lost = self.control_lost()?;
            let said = match self.holds_control {
                true => format!(
                    "the control file {} and its manifest were removed or moved away while this server has them open: what is written there from \
                     now on (locks, access keys, deletions) is lost when it stops. Move both back if they were moved; otherwise put them back from the \
                     newest backup while the server is stopped (docs/runbook.md)",
                    path.display()
                ),
                false => lost.to_string(),
            };
            Finding::new(Health::DatabaseMissing, Some(said))
        } else {
            let envelope = self.envelope.as_ref().ok()?;
            let cipher = subject.cipher();
            match envelope.check(path, &subject, cipher).await {
                Err(EnvelopeError::Lost { .. }) if self.was_deleted(&subject) => Finding::new(
                    Health::DatabaseMissing,
                    Some(format!(
                        "the tenant was deleted, as the audit log says; the older control file does not know that yet. Restore nothing: see to {}",
                        control::FILE_NAME
                    )),
                ),
                Err(error @ EnvelopeError::Lost { .. }) => Finding::of(&error),
                _ => return None,
            }
        };
        let mut report = self.report(path, None, finding);
        report.subject = Some(subject.to_string());
        Some(report)
    }

    /// A file of a tenant whose deletion has begun: that alone is reported, whatever is left of
    /// it.
    async fn deleting(&self, path: &Path, ours: Option<&Subject>) -> Option<FileReport> {
        let (envelope, subject) = (self.envelope.as_ref().ok()?.clone(), ours?.clone());
        let tenant = subject.tenant()?.clone();
        let dirs = (self.control_dir.clone(), self.data_dir.clone());
        let told = blocking(move || {
            let going = envelope.going().ok()?.contains(&tenant);
            going.then(|| pending::describe(&dirs.0, &dirs.1, &tenant))
        });
        let finding = Finding::new(Health::Deleting, Some(told.await?));
        let mut report = self.report(path, None, finding);
        report.subject = Some(subject.to_string());
        Some(report)
    }

    fn without_manifest(&self, path: &Path, kind: FileKind, ours: bool) -> Option<Finding> {
        let path_owned = path.to_owned();
        let finding = match kind {
            FileKind::PlainSqlite | FileKind::PlainRedb if self.provider == ProviderChoice::Off => {
                Finding::new(Health::Plaintext, None)
            }
            FileKind::PlainSqlite | FileKind::PlainRedb if ours => {
                Finding::of(&EnvelopeError::Plaintext { path: path_owned })
            }
            FileKind::PlainSqlite | FileKind::PlainRedb => Finding::new(
                Health::Plaintext,
                Some(format!(
                    "{} is a plaintext database that Nimbus does not use; move it away or remove it",
                    path.display()
                )),
            ),
            FileKind::Absent => return None,
            FileKind::Empty | FileKind::Other if ours => {
                Finding::of(&EnvelopeError::ManifestMissing { path: path_owned })
            }
            FileKind::NotAFile if ours => Finding::new(
                Health::ManifestMissing,
                Some(EnvelopeError::NotAFile { path: path_owned }.to_string()),
            ),
            _ => return None,
        };
        Some(finding)
    }

    /// Everything that `verify` asks for; `Ok` when nothing is wrong.
    async fn judge(
        &self,
        path: &Path,
        manifest: &Manifest,
        kind: FileKind,
        ours: Option<Subject>,
        verify: Verify,
    ) -> Result<(), Finding> {
        let known_place = ours.is_some();
        if let Some(expected) = ours
            && expected != *manifest.subject()
        {
            return Err(Finding::of(&EnvelopeError::SubjectMismatch {
                path: manifest_path(path),
                expected,
                found: manifest.subject().clone(),
            }));
        }
        let path_owned = path.to_owned();
        match (manifest.state(), kind) {
            (State::New, _) => {}
            (_, FileKind::Absent) if !known_place => {
                let why = format!(
                    "no file stands beside {}; remove it, or restore its file",
                    manifest_path(path).display()
                );
                return Err(Finding::new(Health::OrphanManifest, Some(why)));
            }
            (_, FileKind::Absent) => {
                return Err(Finding::of(&EnvelopeError::DatabaseMissing {
                    path: path_owned,
                }));
            }
            (_, FileKind::Empty) => {
                let error = EnvelopeError::DatabaseEmpty { path: path_owned };
                return Err(Finding::new(Health::PageCorrupt, Some(error.to_string())));
            }
            (_, FileKind::PlainSqlite | FileKind::PlainRedb) => {
                return Err(Finding::of(&EnvelopeError::NotEncrypted {
                    path: path_owned,
                }));
            }
            (_, FileKind::NotAFile) => {
                return Err(Finding::of(&EnvelopeError::NotAFile { path: path_owned }));
            }
            (_, FileKind::Other) => {}
        }
        let envelope = match &self.envelope {
            Ok(envelope) => envelope,
            Err(_said_with_the_provider) => {
                let why = "the key provider cannot be used".to_owned();
                return Err(Finding::new(Health::KeyUnavailable, Some(why)));
            }
        };
        if known_place && envelope.keys().is_some() {
            let checked = envelope.check(path, manifest.subject(), manifest.cipher());
            checked.await.map_err(|error| Finding::of(&error))?;
        }
        // A lock holds for looking, too.
        if verify == Verify::None || self.is_locked(manifest) {
            return named_key(envelope, path, manifest).await;
        }
        let prepared = envelope
            .prepare(path, manifest.subject(), manifest.cipher(), Intent::Open)
            .await
            .map_err(|error| Finding::of(&error))?;
        let Prepared::Keyed(file) = prepared else {
            return Err(Finding::of(&EnvelopeError::EncryptionOff {
                path: path_owned,
            }));
        };
        if verify == Verify::Unwrap || manifest.state() == State::New {
            return Ok(());
        }
        self.open(file, verify).await
    }

    /// Opens the file, or reads all of it.
    async fn open(&self, file: KeyedFile, verify: Verify) -> Result<(), Finding> {
        let is_control = *file.manifest().subject() == control::subject();
        if is_control && self.holds_control {
            return Ok(());
        }
        blocking(move || {
            if is_control {
                return control::check(&file).map_err(|error| Finding::of_control(&error));
            }
            let proof = sqlcipher::open_as_it_is(file).and_then(|database| {
                if verify == Verify::Pages {
                    database.verify_pages()?;
                }
                Ok(is_served(&database))
            });
            match proof {
                Ok(true) => Ok(()),
                Ok(false) => Err(Finding::new(Health::Ok, Some(UNSERVED.to_owned()))),
                Err(error) => Err(Finding::of_open(&error)),
            }
        })
        .await
    }

    pub(super) fn report(
        &self,
        path: &Path,
        manifest: Option<&Manifest>,
        finding: Finding,
    ) -> FileReport {
        let shown = path.strip_prefix(&self.data_dir).unwrap_or(path);
        let dek = manifest.and_then(|manifest| manifest.deks().first());
        let wraps = dek.map(|dek| dek.wraps.as_slice()).unwrap_or_default();
        FileReport {
            path: shown.display().to_string(),
            subject: manifest.map(|manifest| manifest.subject().to_string()),
            cipher: manifest.map(|manifest| manifest.cipher().to_string()),
            state: manifest.map(|manifest| manifest.state().to_string()),
            revision: manifest.map(Manifest::revision),
            file_id: manifest.map(|manifest| manifest.file_id().to_string()),
            dek_id: dek.map(|dek| dek.id.to_string()),
            dek_created: dek.map(|dek| dek.created.to_string()),
            dek_overdue: dek
                .zip(self.dek_max_age)
                .is_some_and(|(dek, max_age)| is_overdue(dek.created, SystemClock.now(), max_age)),
            wraps: wraps
                .iter()
                .map(|wrap| WrapReport {
                    provider: wrap.provider.to_string(),
                    key_id: wrap.key_id.to_string(),
                    at: wrap.at.to_string(),
                })
                .collect(),
            locked: manifest.is_some_and(|manifest| self.is_locked(manifest)),
            health: finding.health,
            restored: None,
            detail: finding.detail,
        }
    }
}
