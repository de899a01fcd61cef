//! What the core does with the copies of manifests in the mirror.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use nimbus_manifests::{SealedManifest, Subject, TenantId};

use super::mirror::{ManifestMirror, Mirror};
use super::{Envelope, EnvelopeError, KeyedFile, manifest_path, rewrap, standing, store};
use crate::data_dir::parent;

impl Envelope {
    /// The mirror, where it has a copy of the manifest of `path` or is to have one: not of the
    /// control file, whose own copy would help nobody.
    pub(super) fn mirror_of(&self, path: &Path, subject: &Subject) -> Option<&dyn ManifestMirror> {
        let mirror = self.mirror.as_ref()?;
        let _tenant = subject.tenant()?;
        let same_name = path.file_name() == Some(subject.file_name().as_ref());
        let at_home = mirror.is_of(parent(path));
        (same_name && at_home).then_some(&*mirror.copies)
    }

    /// Whose manifests the mirror has copies of: these files exist, or are lost. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub fn mirrored(&self) -> Result<Vec<Subject>, EnvelopeError> {
        let Some(mirror) = &self.mirror else {
            return Ok(Vec::new());
        };
        let subjects = mirror.copies.subjects();
        subjects.map_err(|source| EnvelopeError::Mirror {
            path: mirror.home.clone(),
            source,
        })
    }

    /// Tenants whose deletion has begun and not ended, as the mirror knows. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub(crate) fn going(&self) -> Result<Vec<TenantId>, EnvelopeError> {
        let Some(mirror) = &self.mirror else {
            return Ok(Vec::new());
        };
        mirror
            .copies
            .going()
            .map_err(|source| EnvelopeError::Mirror {
                path: mirror.home.clone(),
                source,
            })
    }

    /// Makes `file`'s manifest, which has opened it, the mirror's one copy, unless another has
    /// taken its place meanwhile. Cheap when there is nothing to do. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub fn refresh_mirror(&self, file: &KeyedFile) -> Result<(), EnvelopeError> {
        let subject = file.manifest.subject();
        let Some(mirror) = self.mirror_of(&file.path, subject) else {
            return Ok(());
        };
        let failed = |source| EnvelopeError::Mirror {
            path: file.path.clone(),
            source,
        };
        let sealed = file.seal();
        let copies = mirror.get(subject).map_err(failed)?;
        if copies.all().eq([sealed.as_bytes()]) {
            return Ok(());
        }
        // Nobody publishes between the look and the copy.
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if rewrap::is_at_place(&file.path, &sealed) {
            let copies = [(subject, sealed.as_bytes())];
            mirror.put_many(&copies).map_err(failed)?;
        }
        Ok(())
    }

    /// Settles what a rotation that was cut short left announced in the mirror: of two copies of a
    /// manifest, the one that stands in `dir`, or that ends the creation of what stands there,
    /// stays. Where there is none such, both do. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`].
    pub fn settle_mirror(&self, dir: &Path) -> Result<(), EnvelopeError> {
        let Some(Mirror {
            copies: mirror,
            home,
            ..
        }) = &self.mirror
        else {
            return Ok(());
        };
        if !dir.canonicalize().is_ok_and(|dir| dir == *home) {
            return Ok(());
        }
        let failed = |source| EnvelopeError::Mirror {
            path: dir.to_owned(),
            source,
        };
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut settled = Vec::new();
        for subject in mirror.announced().map_err(failed)? {
            let there = store::read(&manifest_path(&dir.join(subject.file_name())));
            let Ok(Some(there)) = there else { continue };
            let copies = mirror.get(&subject).map_err(failed)?;
            // What is byte for byte a copy of ours needs no other proof.
            let stays = |copy: &&[u8]| *copy == there.as_bytes() || standing::ends(&there, copy);
            if let Some(copy) = copies.all().find(stays) {
                settled.push((subject, copy.to_owned()));
            }
        }
        let copies: Vec<_> = settled
            .iter()
            .map(|(subject, copy)| (subject, copy.as_slice()))
            .collect();
        mirror.put_many(&copies).map_err(failed)
    }

    /// Whether the mirror is there to be asked, and has no copy of the manifest of `path`. Blocks.
    pub(crate) fn lacks_copy(&self, path: &Path, subject: &Subject) -> bool {
        let copies = self
            .mirror_of(path, subject)
            .map(|mirror| mirror.get(subject));
        copies.is_some_and(|copies| copies.is_ok_and(|copies| copies.is_empty()))
    }

    /// The copies of the manifest of `path` that the mirror has and that can be read. Blocks.
    pub(crate) fn copies_of(&self, path: &Path, subject: &Subject) -> Vec<SealedManifest> {
        let mirror = self.mirror_of(path, subject);
        let copies = mirror.and_then(|mirror| mirror.get(subject).ok());
        let copies = copies.unwrap_or_default();
        let parsed = copies.all().map(|copy| SealedManifest::parse(copy).ok());
        parsed.flatten().collect()
    }

    /// The same core, which keeps a copy of the manifest of every tenant in the directory `home` in
    /// `mirror`, and goes by those copies.
    #[must_use]
    pub fn with_mirror(self, mirror: Arc<dyn ManifestMirror>, home: &Path) -> Self {
        Self {
            mirror: Some(Mirror::new(mirror, home)),
            ..self
        }
    }
}
