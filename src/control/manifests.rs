//! The mirror of all manifests.

use std::collections::BTreeMap;

use nimbus_manifests::Subject;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::tables::{ANNOUNCED, MANIFESTS};
use super::{Control, ControlError};
use crate::envelope::{ManifestMirror, MirrorError};

impl Control {
    /// The mirrored manifests of every subject, as they lay on the disk: one, or the one that was announced and the one before it.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn manifests(&self) -> Result<Vec<Vec<Vec<u8>>>, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let mut all: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
            for table in NEWEST_FIRST {
                for entry in transaction.open_table(table)?.iter()? {
                    let (subject, manifest) = entry?;
                    let copies = all.entry(subject.value().to_owned()).or_default();
                    copies.push(manifest.value().to_vec());
                }
            }
            Ok(all.into_values().collect())
        })
    }

    /// Mirrors many manifests in one commit; what was announced in their place is dropped.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn put_many<'a>(
        &self,
        manifests: impl IntoIterator<Item = (&'a Subject, &'a [u8])>,
    ) -> Result<(), ControlError> {
        let manifests: Vec<_> = manifests.into_iter().collect();
        if manifests.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(MANIFESTS)?;
            let mut announced = transaction.open_table(ANNOUNCED)?;
            for (subject, manifest) in &manifests {
                let _old = table.insert(subject.as_str(), *manifest)?;
                let _announced = announced.remove(subject.as_str())?;
            }
            Ok(())
        })
    }
}

impl ManifestMirror for Control {
    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        Self::put_many(self, manifests.iter().copied()).map_err(MirrorError::new)
    }

    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        self.write(|transaction| {
            let mut announced = transaction.open_table(ANNOUNCED)?;
            for (subject, manifest) in manifests {
                let _old = announced.insert(subject.as_str(), *manifest)?;
            }
            Ok(())
        })
        .map_err(MirrorError::new)
    }

    fn get(&self, subject: &Subject) -> Result<Vec<Vec<u8>>, MirrorError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let mut copies = Vec::with_capacity(1);
            for table in NEWEST_FIRST {
                let copy = transaction.open_table(table)?.get(subject.as_str())?;
                copies.extend(copy.map(|copy| copy.value().to_vec()));
            }
            Ok(copies)
        })
        .map_err(MirrorError::new)
    }

    fn announced(&self) -> Result<Vec<Subject>, MirrorError> {
        self.with(|database| {
            let mut subjects = Vec::new();
            for entry in database.begin_read()?.open_table(ANNOUNCED)?.iter()? {
                // Only this file's own writer put it there.
                subjects.extend(entry?.0.value().parse::<Subject>().ok());
            }
            Ok(subjects)
        })
        .map_err(MirrorError::new)
    }

    fn remove(&self, subject: &Subject) -> Result<(), MirrorError> {
        self.write(|transaction| {
            for table in NEWEST_FIRST {
                drop(transaction.open_table(table)?.remove(subject.as_str())?);
            }
            Ok(())
        })
        .map_err(MirrorError::new)
    }
}

const NEWEST_FIRST: [TableDefinition<'_, &str, &[u8]>; 2] = [ANNOUNCED, MANIFESTS];
