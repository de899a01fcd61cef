//! A tenant that comes from elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::TenantId;

use super::leaving::walk;
use super::{Arriving, Each, Item};
use crate::control::{AccessKeyId, KeyRecord};
use crate::documents::{Document, TableName};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::tenants::StoreError;
use crate::tenants::backend::{
    AnswerWrites as _, AnswersEnd, AnswersOf, Arrival, Backend, ChangedDocument, Conflict,
    DeployWrites as _, DocumentWrites as _, JobWrites as _, MovedWrites as _, NewDocument,
    SchemaWrites as _, Storage, TableNumber, Transaction,
};
use crate::tenants::mutations::conflicted;
use crate::tenants::shared::Shared;

type ArrivalAt<B> = Arrival<<B as Backend>::Storage, <B as Backend>::Arriving>;
type TransactionOf<B> = <<B as Backend>::Storage as Storage>::Transaction;

/// A tenant that comes from elsewhere, at a backend.
#[derive(Debug)]
pub(in crate::tenants) struct ArrivingTenant<B: Backend> {
    tenant: TenantId,
    shared: Arc<Shared<B>>,
    arrival: ArrivalAt<B>,
    transaction: TransactionOf<B>,
    names: HashMap<TableNumber, TableName>,
    /// When the last document of a table was created.
    created: HashMap<TableNumber, i64>,
}

impl<B: Backend> ArrivingTenant<B> {
    /// Begins to write to the place of an arrival. Blocks.
    pub(in crate::tenants) fn at(
        shared: Arc<Shared<B>>,
        tenant: TenantId,
        arrival: ArrivalAt<B>,
    ) -> Result<Self, StoreError> {
        let transaction = arrival.storage.writer(&Arc::default())?;
        Ok(Self {
            tenant,
            shared,
            arrival,
            transaction,
            names: HashMap::new(),
            created: HashMap::new(),
        })
    }

    fn store(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let _last = self.transaction.begin()?;
        if let Some(what) = self.transaction.no_room()? {
            let tenant = self.tenant.clone();
            return Err(StoreError::NoRoom { tenant, what });
        }
        items.into_iter().try_for_each(|item| self.store_one(item))
    }

    fn store_one(&mut self, item: Item) -> Result<(), StoreError> {
        let transaction = &mut self.transaction;
        match item {
            Item::Table { number, name } => {
                transaction.put_table(number, &name)?;
                let _new = self.names.insert(number, name);
                Ok(())
            }
            Item::Document {
                table,
                sequence,
                document,
            } => self.store_document(table, sequence, &document),
            Item::Schema { table, schema } => {
                for rule in schema.indexes() {
                    if let Err(conflict) = transaction.create_index(table, rule)? {
                        let name = schema.table();
                        return Err(match conflict {
                            Conflict::Index {
                                name: index,
                                fields,
                            } => StoreError::NotUnique {
                                table: name.clone(),
                                index,
                                fields,
                            },
                            Conflict::Id => StoreError::SchemaNotFound {
                                table: name.clone(),
                            },
                        });
                    }
                }
                transaction.put_schema(table, &schema)
            }
            Item::Journal { sequence, entry } => transaction.append_journal(sequence, &[entry]),
            Item::Generation { generation, deploy } => {
                transaction.put_generation(generation.generation, &deploy, generation.created_at)
            }
            Item::Active(generation) => transaction.set_active_generation(generation),
            Item::Answer(placed) => {
                let size = i64::try_from(placed.answer.answer.len()).unwrap_or(i64::MAX);
                // One that an earlier release answered counts for nobody.
                let credential = placed.answer.credential.filter(|of| *of != [0; 32]);
                if let Some(credential) = credential {
                    let _all = transaction.count_answers(AnswersOf {
                        credential,
                        count: 1,
                        bytes: size,
                    })?;
                }
                let end = AnswersEnd {
                    number: placed.number,
                    bytes: placed.bytes,
                    size,
                };
                transaction.put_answer(&placed.key, &placed.answer, end)
            }
            Item::Cron { state, reckoned_ms } => {
                transaction.put_cron(&state, reckoned_ms)?;
                match &state.last_run {
                    Some(run) => transaction.set_cron_last_run(&state.cron.name, run),
                    None => Ok(()),
                }
            }
            Item::Finished(ran) => transaction.insert_finished_job(&ran),
            Item::Job(job) => transaction.insert_job(&job),
            Item::Head {
                latest, cursor_key, ..
            } => transaction.put_start(latest, &cursor_key),
        }
    }

    fn store_document(
        &mut self,
        table: TableNumber,
        sequence: i64,
        document: &Document,
    ) -> Result<(), StoreError> {
        let transaction = &mut self.transaction;
        let Document {
            id,
            created_ms,
            updated_ms,
            version,
            fields,
        } = document;
        let (id, created_ms) = (*id, *created_ms);
        let before = self.created.insert(table, created_ms);
        if before.is_some_and(|before| created_ms < before) {
            transaction.created_out_of_order(table)?;
        }
        let mut stored = transaction.insert(
            table,
            NewDocument {
                sequence,
                id,
                // There is none that is not of the same source, where each id is one document's.
                is_drawn: true,
                created_ms,
                fields,
            },
        )?;
        if stored.is_ok() && (*version, *updated_ms) != (sequence, created_ms) {
            stored = transaction.update(
                table,
                ChangedDocument {
                    id,
                    sequence,
                    version: *version,
                    updated_ms: *updated_ms,
                    fields,
                },
            )?;
        }
        match (stored, self.names.get(&table)) {
            (Ok(()), _) => Ok(()),
            (Err(conflict), Some(name)) => Err(conflicted(conflict, name, id)),
            (Err(_), None) => Err(StoreError::Closed {
                tenant: self.tenant.clone(),
            }),
        }
    }
}

#[async_trait]
impl<B: Backend> Arriving for ArrivingTenant<B> {
    fn each(&self, each: Each<'_>) -> Result<(), StoreError> {
        walk(&mut self.arrival.storage.reader()?, each)
    }

    fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let stored = self.store(items).and_then(|()| self.transaction.commit());
        match stored {
            Ok(()) => self.transaction.tidy(),
            Err(_) if !self.transaction.is_open() => {}
            // What is wrong comes first; all of it is removed.
            Err(_) => drop(self.transaction.roll_back()),
        }
        stored
    }

    async fn arrived(
        self: Box<Self>,
        keys: Vec<(AccessKeyId, KeyRecord)>,
    ) -> Result<(), StoreError> {
        let Self {
            tenant,
            shared,
            arrival,
            transaction,
            ..
        } = *self;
        let Arrival { storage, arriving } = arrival;
        blocking(move || {
            // It writes to the storage, which goes after it.
            let finished = transaction.finish();
            drop(storage);
            finished
        })
        .await?;
        let (deletions, of, admitted) =
            (Arc::clone(&shared.deletions), tenant.clone(), keys.clone());
        blocking(move || deletions.admit(&of, &admitted)).await?;
        crash_point!("tenants::copy::admitted");
        shared.backend.arrived(&tenant, arriving, &keys).await?;
        shared.known().tenants.insert(tenant);
        Ok(())
    }

    async fn turn_away(self: Box<Self>) -> Result<(), StoreError> {
        let Self {
            tenant,
            shared,
            arrival,
            transaction,
            ..
        } = *self;
        let Arrival { storage, arriving } = arrival;
        blocking(move || drop((transaction, storage))).await;
        shared.backend.turn_away(&tenant, arriving).await
    }
}
