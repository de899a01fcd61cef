//! A tenant that is read as it is stored.

use std::collections::{BTreeMap, HashMap};

use super::{Each, Item, Leaving};
use crate::documents::deploy::{Content, Deploy, Generation};
use crate::documents::schedule::JobPlace;
use crate::documents::{JournalRecord, TableName};
use crate::tenants::StoreError;
use crate::tenants::backend::{Backend, JournalEntry, MOVED_ROWS, Rows, Storage as _, TableNumber};
use crate::tenants::open_tenant::OpenTenant;
use crate::tenants::registry::TenantHandle;

/// An open tenant that is copied elsewhere.
#[derive(Debug)]
pub(in crate::tenants) struct LeavingTenant<B: Backend>(
    pub(in crate::tenants) TenantHandle<OpenTenant<B::Storage>>,
);

impl<B: Backend> Leaving for LeavingTenant<B> {
    fn each(&self, each: Each<'_>) -> Result<(), StoreError> {
        let mut rows = self.0.readers().storage().reader()?;
        walk(&mut rows, each)
    }
}

/// Hands out what a tenant has, as one state of it.
pub(super) fn walk<R: Rows>(rows: &mut R, each: Each<'_>) -> Result<(), StoreError> {
    rows.snapshot(|rows| {
        let tables = rows.tables()?;
        documents(rows, &tables, each)?;
        journal(rows, &tables, each)?;
        deploys(rows, each)?;
        scheduled(rows, each)?;
        let mut after = i64::MIN;
        while let Some(last) = {
            let answers = rows.answers_after(after)?;
            let last = answers.last().map(|placed| placed.number);
            for mut placed in answers {
                // One that an earlier release answered has none.
                let _known = placed.answer.credential.get_or_insert_default();
                each(Item::Answer(placed))?;
            }
            last
        } {
            after = last;
        }
        let bounds = rows.journal_bounds()?;
        each(Item::Head {
            latest: bounds.latest,
            floor: bounds.floor,
            cursor_key: rows.cursor_key()?,
        })
    })?;
    rows.confirm()
}

fn documents<R: Rows>(
    rows: &mut R,
    tables: &[(TableNumber, TableName)],
    each: Each<'_>,
) -> Result<(), StoreError> {
    for (number, name) in tables {
        each(Item::Table {
            number: *number,
            name: name.clone(),
        })?;
    }
    for (table, _name) in tables {
        let mut after = i64::MIN;
        loop {
            let documents = rows.documents_after(*table, after)?;
            let Some((last, _)) = documents.last() else {
                break;
            };
            after = *last;
            for (sequence, document) in documents {
                each(Item::Document {
                    table: *table,
                    sequence,
                    document,
                })?;
            }
        }
    }
    // After the documents: an index is made over all of them at once.
    for (table, _name) in tables {
        if let Some(schema) = rows.schema(*table)? {
            let table = *table;
            each(Item::Schema { table, schema })?;
        }
    }
    Ok(())
}

fn journal<R: Rows>(
    rows: &mut R,
    tables: &[(TableNumber, TableName)],
    each: Each<'_>,
) -> Result<(), StoreError> {
    let numbers: HashMap<&TableName, TableNumber> = tables
        .iter()
        .map(|(number, name)| (name, *number))
        .collect();
    let mut after = rows.journal_bounds()?.floor;
    loop {
        let records = rows.journal(after, MOVED_ROWS)?;
        let Some(last) = records.last() else {
            return Ok(());
        };
        after = last.sequence;
        for record in records {
            let JournalRecord {
                sequence,
                change,
                table,
                id,
                at_ms,
            } = record;
            let table = numbers[&table];
            let entry = JournalEntry {
                change,
                table,
                id,
                at_ms,
            };
            each(Item::Journal { sequence, entry })?;
        }
    }
}

fn deploys<R: Rows>(rows: &mut R, each: Each<'_>) -> Result<(), StoreError> {
    for generation in rows.generations()?.into_iter().rev() {
        let deploy = deploy(rows, &generation)?;
        each(Item::Generation { generation, deploy })?;
    }
    match rows.active_generation()? {
        Some(active) => each(Item::Active(active)),
        None => Ok(()),
    }
}

/// A generation as it was deployed. It came in one body, and so fits memory.
fn deploy<R: Rows>(rows: &mut R, generation: &Generation) -> Result<Deploy, StoreError> {
    let number = generation.generation;
    let lost = || StoreError::GenerationNotFound { generation: number };
    let resources = rows.resources(number)?.ok_or_else(lost)?;
    let mut files = BTreeMap::new();
    for (path, hash) in rows.files(number)? {
        let content = Content::new(rows.app_content(hash, 0..i64::MAX as u64)?);
        if content.hash() != hash {
            return Err(StoreError::ContentGone { hash });
        }
        let path = path.parse().map_err(|_malformed| lost())?;
        let _new = files.insert(path, content);
    }
    Ok(Deploy {
        name: generation.name.clone(),
        resources,
        files,
        dry_run: false,
    })
}

fn scheduled<R: Rows>(rows: &mut R, each: Each<'_>) -> Result<(), StoreError> {
    for (state, reckoned_ms) in rows.reckoned_crons()? {
        each(Item::Cron { state, reckoned_ms })?;
    }
    let mut after = i64::MIN;
    loop {
        let history = rows.finished_jobs_after(after)?;
        let Some((last, _)) = history.last() else {
            break;
        };
        after = *last;
        for (_number, ran) in history {
            each(Item::Finished(ran))?;
        }
    }
    let mut place = None;
    loop {
        let jobs = rows.jobs(place, MOVED_ROWS)?;
        place = jobs.items.last().map(JobPlace::of);
        for job in jobs.items {
            each(Item::Job(job))?;
        }
        if !jobs.more {
            return Ok(());
        }
    }
}
