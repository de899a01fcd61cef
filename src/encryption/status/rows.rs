//! Looks at the tenants in a database: the manifests of the sealed ones, and which are not sealed.

use std::path::Path;
use std::sync::Arc;

use nimbus_manifests::{SealedManifest, Subject, TenantId};

use super::finding::{Finding, named_key};
use super::{FileReport, Health, StatusReader, Verify};
use crate::config::TenantsIn;
use crate::envelope::{EnvelopeError, ManifestRows, manifest_path};
use crate::error_chain::error_chain;
use crate::runtime::blocking;

/// What is known of tenants in a database.
#[derive(Debug, Clone)]
pub struct InDatabase {
    /// Host and database.
    pub place: String,
    /// Whether the settings say that tenants are sealed.
    pub seal: bool,
    /// Their manifests, or why these cannot be had.
    pub rows: Result<Arc<dyn ManifestRows>, String>,
}

impl InDatabase {
    /// The database of the settings, for a command: nothing is made there.
    pub async fn of(tenants: &TenantsIn) -> Option<Self> {
        let TenantsIn::Database { options, seal } = tenants else {
            return None;
        };
        let (place, reading) = (options.place(), options.clone());
        let rows = blocking(move || reading.manifests()).await;
        Some(Self {
            place,
            seal: *seal,
            rows: rows.map_err(|error| error_chain(&error)),
        })
    }
}

/// What was found of them.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<FileReport>,
    pub(super) unsealed: Vec<String>,
    /// Whether all tenants are sealed, those that are made from now on among them.
    pub(super) all_sealed: bool,
}

impl StatusReader {
    /// The tenants of the database.
    pub(super) async fn look_at_rows(&self, verify: Verify) -> Found {
        let Some(database) = &self.database else {
            return Found::default();
        };
        let listed = match database.rows.clone() {
            Ok(rows) => {
                let listing = Arc::clone(&rows);
                let listed = blocking(move || listing.list()).await;
                let listed = listed.map_err(|error| error_chain(&*error));
                listed.map(|listed| (rows, listed))
            }
            Err(why) => Err(why),
        };
        let (rows, listed) = match listed {
            Ok(listed) => listed,
            Err(why) => {
                let finding = Finding::new(Health::DatabaseMissing, Some(why));
                let files = vec![self.report(Path::new(&database.place), None, finding)];
                return Found {
                    files,
                    ..Found::default()
                };
            }
        };
        let mut found = Found::default();
        for (tenant, manifest) in listed {
            let place = rows.place(&tenant);
            match manifest {
                Some(text) => {
                    let report = self.look_at_row(&place, &tenant, &text, verify).await;
                    found.files.push(report);
                }
                None => {
                    found.unsealed.push(tenant.to_string());
                    if database.seal {
                        let why = "it is not sealed, and a server with --encryption-seal-external does not serve it";
                        let finding = Finding::new(Health::Plaintext, Some(why.to_owned()));
                        found.files.push(self.report(&place, None, finding));
                    }
                }
            }
        }
        found.all_sealed = database.seal && found.unsealed.is_empty();
        found
    }

    async fn look_at_row(
        &self,
        place: &Path,
        tenant: &TenantId,
        text: &[u8],
        verify: Verify,
    ) -> FileReport {
        let subject = Subject::external_tenant(tenant);
        let sealed = match SealedManifest::parse(text) {
            Ok(sealed) => sealed,
            Err(source) => {
                let path = manifest_path(place);
                let error = EnvelopeError::ManifestUnparsable { path, source };
                return self.report(place, None, Finding::of(&error));
            }
        };
        let manifest = sealed.claims();
        let judged = self.judge_row(place, tenant, &subject, &sealed, verify);
        let finding = match judged.await {
            Ok(()) => Finding::new(Health::Ok, None),
            Err(finding) => finding,
        };
        self.report(place, Some(manifest), finding)
    }

    async fn judge_row(
        &self,
        place: &Path,
        tenant: &TenantId,
        subject: &Subject,
        sealed: &SealedManifest,
        verify: Verify,
    ) -> Result<(), Finding> {
        let manifest = sealed.claims();
        if manifest.subject() != subject {
            return Err(Finding::of(&EnvelopeError::SubjectMismatch {
                path: manifest_path(place),
                expected: subject.clone(),
                found: manifest.subject().clone(),
            }));
        }
        let Ok(envelope) = &self.envelope else {
            let why = "the key provider cannot be used".to_owned();
            return Err(Finding::new(Health::KeyUnavailable, Some(why)));
        };
        if verify == Verify::None || self.is_locked(manifest) {
            return named_key(envelope, place, manifest).await;
        }
        let opened = envelope.open_row(place, subject, sealed.as_bytes()).await;
        let file = opened.map_err(|error| Finding::of(&error))?;
        let database = self.database.as_ref();
        let Some(Ok(rows)) = database.map(|database| database.rows.clone()) else {
            return Ok(());
        };
        if verify < Verify::Pages {
            return Ok(());
        }
        let (envelope, tenant) = (envelope.clone(), tenant.clone());
        let proven = blocking(move || rows.prove(&envelope, &tenant, &file)).await;
        proven.map_err(|error| Finding::new(Health::PageCorrupt, Some(error_chain(&*error))))
    }
}
