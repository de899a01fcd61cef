//! The mirror of all manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nimbus_manifests::{Subject, TenantId};
use redb::{ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::tables::{ANNOUNCED, MANIFESTS};
use super::{Control, ControlError, deletions};
use crate::envelope::{Copies, KeyedFile, ManifestMirror, MirrorError};
use crate::together::Together;

/// Manifests whose copies must be kept.
pub(super) type Mirroring = Together<(Subject, Box<[u8]>), Result<(), Arc<ControlError>>>;

impl Control {
    /// The mirrored manifests of every subject, as they lay on the disk.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn manifests(&self) -> Result<BTreeMap<Subject, Copies>, ControlError> {
        self.with(|database| copies(&database.begin_read()?))
    }

    /// The mirrored manifests of one subject.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn copies(&self, subject: &Subject) -> Result<Copies, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let copy = |table: TableDefinition<'_, &str, &[u8]>| -> Result<_, redb::Error> {
                let copy = transaction.open_table(table)?.get(subject.as_str())?;
                Ok(copy.map(|copy| copy.value().to_vec()))
            };
            Ok(Copies {
                announced: copy(ANNOUNCED)?,
                settled: copy(MANIFESTS)?,
            })
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
                table.insert(subject.as_str(), *manifest)?;
                announced.remove(subject.as_str())?;
            }
            Ok(())
        })
    }
}

impl ManifestMirror for Control {
    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        // Those of a rotation are many already.
        let &[(subject, manifest)] = manifests else {
            return Self::put_many(self, manifests.iter().copied()).map_err(MirrorError::new);
        };
        let kept = self
            .mirroring
            .ask((subject.clone(), manifest.into()), |all| {
                let all = all.iter().map(|(subject, manifest)| (subject, &**manifest));
                Self::put_many(self, all).map_err(Arc::new)
            });
        kept.map_err(MirrorError::new)
    }

    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        self.write(|transaction| {
            let mut announced = transaction.open_table(ANNOUNCED)?;
            for (subject, manifest) in manifests {
                announced.insert(subject.as_str(), *manifest)?;
            }
            Ok(())
        })
        .map_err(MirrorError::new)
    }

    fn get(&self, subject: &Subject) -> Result<Copies, MirrorError> {
        self.copies(subject).map_err(MirrorError::new)
    }

    fn subjects(&self) -> Result<Vec<Subject>, MirrorError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let going = deletions::pending(&transaction)?;
            let mut subjects = BTreeSet::new();
            for table in [ANNOUNCED, MANIFESTS] {
                for entry in transaction.open_table(table)?.iter()? {
                    // Only this file's own writer put it there.
                    subjects.extend(entry?.0.value().parse::<Subject>().ok());
                }
            }
            Ok(staying(subjects, &going))
        })
        .map_err(MirrorError::new)
    }

    fn going(&self) -> Result<Vec<TenantId>, MirrorError> {
        self.pending_deletes().map_err(MirrorError::new)
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
            for table in [ANNOUNCED, MANIFESTS] {
                drop(transaction.open_table(table)?.remove(subject.as_str())?);
            }
            Ok(())
        })
        .map_err(MirrorError::new)
    }
}

/// The subjects but those of tenants that are being deleted.
fn staying(subjects: impl IntoIterator<Item = Subject>, going: &[TenantId]) -> Vec<Subject> {
    let stays = |subject: &Subject| subject.tenant().is_none_or(|one| !going.contains(one));
    subjects.into_iter().filter(stays).collect()
}

/// Every copy that there is.
pub(super) fn copies(
    transaction: &ReadTransaction,
) -> Result<BTreeMap<Subject, Copies>, redb::Error> {
    let mut all: BTreeMap<Subject, Copies> = BTreeMap::new();
    for (table, announced) in [(ANNOUNCED, true), (MANIFESTS, false)] {
        for entry in transaction.open_table(table)?.iter()? {
            let (subject, manifest) = entry?;
            // Only this file's own writer put it there.
            let Ok(subject) = subject.value().parse::<Subject>() else {
                continue;
            };
            let copies = all.entry(subject).or_default();
            let copy = Some(manifest.value().to_vec());
            match announced {
                true => copies.announced = copy,
                false => copies.settled = copy,
            }
        }
    }
    Ok(all)
}

/// The copies as they were when the file was looked at, for who looks without a server and changes
/// nothing.
#[derive(Debug)]
pub(crate) struct MirrorSeen {
    copies: BTreeMap<Subject, Copies>,
    going: Vec<TenantId>,
}

impl MirrorSeen {
    /// The copies of one manifest.
    pub(crate) fn of_subject(&self, subject: &Subject) -> Copies {
        self.copies.get(subject).cloned().unwrap_or_default()
    }

    /// Reads them from the control file of `file`, which nobody else writes meanwhile; nothing is
    /// written. Blocks.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub(crate) fn of(file: &KeyedFile) -> Result<Self, ControlError> {
        super::copy::look_into(file, |database| {
            let transaction = database.begin_read()?;
            Ok(Self {
                copies: copies(&transaction)?,
                going: deletions::pending(&transaction)?,
            })
        })
    }
}

impl ManifestMirror for MirrorSeen {
    fn put_many(&self, _manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        Err(MirrorError::new("the control file is only looked at"))
    }

    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        self.put_many(manifests)
    }

    fn get(&self, subject: &Subject) -> Result<Copies, MirrorError> {
        Ok(self.of_subject(subject))
    }

    fn subjects(&self) -> Result<Vec<Subject>, MirrorError> {
        Ok(staying(self.copies.keys().cloned(), &self.going))
    }

    fn going(&self) -> Result<Vec<TenantId>, MirrorError> {
        Ok(self.going.clone())
    }

    fn announced(&self) -> Result<Vec<Subject>, MirrorError> {
        Ok(Vec::new())
    }

    fn remove(&self, _subject: &Subject) -> Result<(), MirrorError> {
        self.put_many(&[])
    }
}
