//! A tenant that is shredded goes from a repository, too: its manifests, so that nothing opens its
//! pages, and then the pages.
//!
//! The removal is recorded first (`removing`), so that `verify` tells a shred from damage. Of a
//! versioned bucket every version goes. What an object lock keeps is told with its date.

use std::collections::BTreeSet;

use nimbus_manifests::{SealedManifest, TenantId};
use serde::{Deserialize, Serialize};

use super::catalogue::SealedCatalogue;
use super::removing::{Removing, View, files_of};
use super::{BackupError, Location, Repository, S3Settings};
use crate::data_dir;
use crate::envelope::Envelope;

/// What was removed of a tenant from a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RepositoryShredded {
    /// The repository.
    pub repository: String,
    /// The files that it was, one after the other.
    pub files: Vec<String>,
    /// How many objects are removed.
    #[schema(value_type = u64)]
    pub objects: usize,
    /// What could not be removed, and until when.
    pub kept: Vec<String>,
    /// Snapshots whose control file has a copy of its wrapped key: they held it.
    pub snapshots: Vec<u64>,
    /// Whether packs of continuous shipping are there, which hold pages of all tenants.
    pub packs: bool,
}

impl RepositoryShredded {
    /// What is left, and what ends that: a sentence each.
    #[must_use]
    pub fn said(&self) -> Vec<String> {
        let Self {
            repository,
            files,
            objects,
            ..
        } = self;
        if files.is_empty() {
            return vec![format!("The repository {repository} holds nothing of it.")];
        }
        let mut said = vec![format!(
            "In the repository {repository} its manifests and pages are removed ({objects} objects)."
        )];
        said.extend(
            self.kept
                .iter()
                .map(|kept| format!("KEPT in {repository}: {kept}.")),
        );
        if let (Some(first), Some(last)) = (self.snapshots.first(), self.snapshots.last()) {
            said.push(format!(
                "The control files of snapshots {first} to {last} there still hold its wrapped key, which opens nothing in that repository any \
                 more{}. It opens copies of the repository that were made before, for who has the key that wraps it; `nimbus backup prune` removes \
                 those snapshots.",
                match (self.kept.is_empty(), self.packs) {
                    (true, false) => "",
                    (false, _) => " but what is kept",
                    (true, true) => " but pages of it in `log/`, which go with the packs that hold them",
                }
            ));
        }
        said
    }
}

/// Removes a tenant from the repository at `location`.
///
/// # Errors
///
/// [`BackupError`]; run it again.
pub async fn shred(
    envelope: &Envelope,
    location: &Location,
    s3: &S3Settings,
    tenant: &TenantId,
) -> Result<RepositoryShredded, BackupError> {
    let repository = Repository::open(location, s3).await?;
    let subject = data_dir::subject(tenant);
    let (mut removed, mut files, mut snapshots) = (0, BTreeSet::new(), Vec::new());
    loop {
        let view = repository.view(envelope).await?;
        removed += repository.finish_removals(&view).await?;
        files.extend(files_of(&view, &subject));
        files.extend(repository.orphans_of(subject.as_str(), &view).await?);
        if files.is_empty() {
            break;
        }
        let holds = |sealed: &SealedCatalogue| {
            let mut tenants = sealed.claims.tenants.iter();
            tenants.any(|file| file.subject == subject.as_str() && file.missing.is_none())
        };
        snapshots = view
            .standing()
            .filter(|(_, sealed)| holds(sealed))
            .map(|(number, _)| number)
            .collect();
        let mut objects = BTreeSet::new();
        for file in &files {
            for kind in KINDS {
                let found = repository.store.list(&format!("{kind}/{file}")).await?;
                objects.extend(found.into_iter().map(|(name, _)| name));
            }
        }
        let known = view.newest_removal();
        let is_known = |file| known.is_some_and(|removal| removal.shredded.contains(file));
        if objects.is_empty() && files.iter().all(is_known) {
            break;
        }
        let removing = Removing {
            shredded: files.clone(),
            objects,
            ..Removing::default()
        };
        if let Some(done) = repository.remove(envelope, &view, &removing).await? {
            removed += done;
            break;
        }
    }
    let mut kept = Vec::new();
    for kind in KINDS {
        for file in &files {
            kept.extend(repository.store.erase(&format!("{kind}/{file}")).await?);
        }
    }
    Ok(RepositoryShredded {
        repository: repository.shown(),
        files: files.into_iter().collect(),
        objects: removed,
        kept,
        snapshots,
        packs: !repository.store.list("log").await?.is_empty(),
    })
}

impl Repository {
    /// The files of `subject` that no catalogue names: a snapshot that was cut short left their
    /// manifests.
    async fn orphans_of(
        &self,
        subject: &str,
        view: &View,
    ) -> Result<BTreeSet<String>, BackupError> {
        let snapshots = view.snapshots.values();
        let named = snapshots.flat_map(|(sealed, _)| sealed.claims.files());
        let mut seen: BTreeSet<String> = named.map(|file| file.file_id.clone()).collect();
        let mut files = BTreeSet::new();
        for (name, _) in self.store.list("keys").await? {
            let Some(file) = name.split('/').nth(1).map(str::to_owned) else {
                continue;
            };
            if !seen.insert(file.clone()) {
                continue;
            }
            let manifest = match self.store.get(&name).await {
                Err(BackupError::Damaged { .. }) => None,
                read => read?,
            };
            let manifest = manifest.and_then(|text| SealedManifest::parse(&text).ok());
            if manifest.is_some_and(|sealed| sealed.claims().subject().as_str() == subject) {
                let _new = files.insert(file);
            }
        }
        Ok(files)
    }
}

/// What a repository holds of a file, its keys first.
const KINDS: [&str; 2] = ["keys", "base"];
