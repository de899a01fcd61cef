//! The mirror of all manifests.

use nimbus_manifests::Subject;
use redb::{ReadableDatabase as _, ReadableTable as _};

use super::tables::MANIFESTS;
use super::{Control, ControlError};
use crate::envelope::{ManifestMirror, MirrorError};

impl Control {
    /// Every mirrored manifest, as it lay on the disk.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn manifests(&self) -> Result<Vec<Vec<u8>>, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let manifests = transaction.open_table(MANIFESTS)?;
            let mut all = Vec::new();
            for entry in manifests.iter()? {
                all.push(entry?.1.value().to_vec());
            }
            Ok(all)
        })
    }

    /// Mirrors many manifests in one commit.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn put_many<'a>(
        &self,
        manifests: impl IntoIterator<Item = (&'a Subject, &'a [u8])>,
    ) -> Result<(), ControlError> {
        let manifests: Vec<_> = manifests.into_iter().collect();
        self.write(|transaction| {
            let mut table = transaction.open_table(MANIFESTS)?;
            for (subject, manifest) in &manifests {
                let _old = table.insert(subject.as_str(), *manifest)?;
            }
            Ok(())
        })
    }
}

impl ManifestMirror for Control {
    fn put(&self, subject: &Subject, manifest: &[u8]) -> Result<(), MirrorError> {
        Self::put_many(self, [(subject, manifest)]).map_err(MirrorError::new)
    }

    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        Self::put_many(self, manifests.iter().copied()).map_err(MirrorError::new)
    }

    fn get(&self, subject: &Subject) -> Result<Option<Vec<u8>>, MirrorError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let manifests = transaction.open_table(MANIFESTS)?;
            let copy = manifests.get(subject.as_str())?;
            Ok(copy.map(|copy| copy.value().to_vec()))
        })
        .map_err(MirrorError::new)
    }

    fn remove(&self, subject: &Subject) -> Result<(), MirrorError> {
        self.write(|transaction| {
            drop(
                transaction
                    .open_table(MANIFESTS)?
                    .remove(subject.as_str())?,
            );
            Ok(())
        })
        .map_err(MirrorError::new)
    }
}
