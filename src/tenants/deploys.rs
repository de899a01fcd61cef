//! Deploys: what they make of schemas, crons and files, which generation is active, and how many
//! are kept.
//!
//! Storing and activating are one caller's work in the writer's transaction: after a crash, as to
//! every reader, schemas, indexes, crons and files are those of one generation.

use std::{collections::BTreeMap, ops::Range};

use super::backend::{DeployRows as _, JobRows as _, Rows, SchemaRows as _, Transaction};
use super::schemas::Scans;
use super::writing::Writing;
use super::{StoreError, Unscheduled};
use crate::clock::now_ms;
use crate::documents::TableName;
use crate::documents::deploy::{
    AppFile, AppPath, Changes, ContentHash, Deploy, Deployed, Diff, GENERATIONS_KEPT, Generations,
    Plan, Resources,
};
use crate::documents::schedule::{Cron, CronName, Origin};
use crate::documents::schema::TableSchema;

/// The generations that are kept.
pub(super) fn generations(rows: &mut impl Rows) -> Result<Generations, StoreError> {
    rows.snapshot(|rows| {
        Ok(Generations {
            active: rows.active_generation()?,
            generations: rows.generations()?,
        })
    })
}

/// A file of the active generation.
pub(super) fn app_file(rows: &mut impl Rows, path: &AppPath) -> Result<AppFile, StoreError> {
    let file = rows.app_file(path)?;
    file.ok_or_else(|| StoreError::FileNotFound { path: path.clone() })
}

/// Part of a file's content.
pub(super) fn app_content(
    rows: &mut impl Rows,
    hash: ContentHash,
    range: Range<u64>,
) -> Result<Vec<u8>, StoreError> {
    let length = range.end.saturating_sub(range.start);
    let bytes = rows.app_content(hash, range)?;
    if bytes.len() as u64 == length {
        Ok(bytes)
    } else {
        Err(StoreError::ContentGone { hash })
    }
}

/// The schemas and crons of a generation that is kept.
pub(super) fn resources(rows: &mut impl Rows, generation: i64) -> Result<Resources, StoreError> {
    let resources = rows.resources(generation)?;
    resources.ok_or(StoreError::GenerationNotFound { generation })
}

impl<T: Transaction> Writing<'_, T> {
    /// Stores a deploy as the newest generation and activates it; a dry run comes as far as what
    /// would be different.
    pub(super) fn deploy(
        &mut self,
        deploy: &Deploy,
        scans: &Scans,
    ) -> Result<Deployed, StoreError> {
        self.may_grow()?;
        let previous = self.transaction.rows()?.active_generation()?;
        let before = self.files(previous)?;
        let after = deploy.files.iter();
        let after = after.map(|(path, content)| (path.as_str(), content.hash()));
        let files = Changes::between(&by_path(&before), &after.collect());
        if deploy.dry_run {
            // Nobody is to expect work of crons that do not come to be.
            let due = std::mem::replace(&mut self.due, &Unscheduled);
            let resources =
                self.rehearse(|writing| writing.establish(previous, &deploy.resources, scans));
            self.due = due;
            let (schemas, crons) = resources??;
            return Ok(Deployed {
                generation: None,
                previous_generation: previous,
                activated: false,
                diff: Diff {
                    files,
                    schemas,
                    crons,
                },
            });
        }
        let (schemas, crons) = self.establish(previous, &deploy.resources, scans)?;
        let generation = self.transaction.store_generation(deploy, now_ms())?;
        self.transaction.set_active_generation(generation)?;
        // The newest has just been activated, so none of the old ones is the active one.
        for old in self.transaction.old_generations(GENERATIONS_KEPT)? {
            self.transaction.delete_generation(old)?;
        }
        Ok(Deployed {
            generation: Some(generation),
            previous_generation: previous,
            activated: true,
            diff: Diff {
                files,
                schemas,
                crons,
            },
        })
    }

    /// Activates a generation that is kept, the active one too: what was changed by hand since is
    /// as it has it again.
    pub(super) fn activate(
        &mut self,
        generation: i64,
        scans: &Scans,
    ) -> Result<Deployed, StoreError> {
        self.may_grow()?;
        let rows = self.transaction.rows()?;
        let previous = rows.active_generation()?;
        let wanted = resources(rows, generation)?;
        let before = self.files(previous)?;
        let after = self.files(Some(generation))?;
        let files = Changes::between(&by_path(&before), &by_path(&after));
        let (schemas, crons) = self.establish(previous, &wanted, scans)?;
        self.transaction.set_active_generation(generation)?;
        Ok(Deployed {
            generation: Some(generation),
            previous_generation: previous,
            activated: true,
            diff: Diff {
                files,
                schemas,
                crons,
            },
        })
    }

    /// The files of a generation, by path.
    fn files(&mut self, generation: Option<i64>) -> Result<Vec<(String, ContentHash)>, StoreError> {
        match generation {
            Some(generation) => self.transaction.rows()?.files(generation),
            None => Ok(Vec::new()),
        }
    }

    /// Makes the schemas and crons those of a deploy that takes the place of the generation
    /// `previous`; what is different then.
    fn establish(
        &mut self,
        previous: Option<i64>,
        wanted: &Resources,
        scans: &Scans,
    ) -> Result<(Changes, Changes), StoreError> {
        let last = match previous {
            Some(previous) => self.transaction.rows()?.resources(previous)?,
            None => None,
        };
        let last = last.unwrap_or_default();
        let schemas = self.establish_schemas(&last.schemas, &wanted.schemas, scans)?;
        let crons = self.establish_crons(&wanted.crons)?;
        Ok((schemas, crons))
    }

    fn establish_schemas(
        &mut self,
        last: &BTreeMap<TableName, TableSchema>,
        wanted: &BTreeMap<TableName, TableSchema>,
        scans: &Scans,
    ) -> Result<Changes, StoreError> {
        let standing = self.transaction.rows()?.all_schemas()?;
        let standing = standing
            .into_iter()
            .map(|schema| (schema.table().clone(), schema))
            .collect();
        let plan = Plan::new(&standing, last, wanted);
        for table in &plan.delete {
            self.delete_schema(table)?;
        }
        for schema in &plan.put {
            self.put_schema(schema, scans.get(schema.table()).copied())?;
        }
        Ok(plan.changes)
    }

    /// Crons know themselves whether they are of a deploy.
    fn establish_crons(
        &mut self,
        wanted: &BTreeMap<CronName, Cron>,
    ) -> Result<Changes, StoreError> {
        let standing = self.transaction.rows()?.all_crons()?;
        let ours = standing
            .into_iter()
            .filter(|state| state.origin == Origin::Deploy)
            .map(|state| (state.cron.name.clone(), state.cron));
        let changes = Changes::between(&ours.collect(), wanted);
        let crons: Vec<Cron> = wanted.values().cloned().collect();
        self.replace_crons(&crons, now_ms())?;
        Ok(changes)
    }
}

fn by_path(listing: &[(String, ContentHash)]) -> BTreeMap<&str, ContentHash> {
    let files = listing.iter();
    files.map(|(path, hash)| (path.as_str(), *hash)).collect()
}
