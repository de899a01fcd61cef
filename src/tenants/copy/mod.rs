//! A tenant is copied to another backend, or to another deployment, with its numbers, ids and
//! times.
//!
//! The source is at rest. It is read as one state and written to a place that is no tenant; both
//! are read again and compared, item by item; only then the place becomes a tenant, with its access
//! keys. What a kill leaves is removed by the next copy, creation or deletion of the name at the
//! target:
//!
//! | step | crash point after it | at the target |
//! | --- | --- | --- |
//! | 1. a place for it | `tenants::copy::begun` | no tenant |
//! | 2. part of what it has stored, one transaction after another | `tenants::copy::put` | no tenant |
//! | 3. all of it, read again and compared | `tenants::copy::compared` | no tenant |
//! | 4. access keys in the control file (a target in files) | `tenants::copy::admitted` | no tenant |
//! | 5. it is a tenant | `tenants::copy::arrived` | the tenant, whole |
//!
//! The places are described in `src/sqlcipher/arrive.rs` and `src/tenants/relational/arrivals.rs`.

mod arriving;
mod item;
mod leaving;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use serde::Serialize;
use tokio::time::sleep;

use super::{StoreError, TenantProvider};
use crate::control::{AccessKeyId, AccessKeys, KeyError, KeyRecord};
use crate::envelope::EnvelopeError;
use crate::failpoints::crash_point;
use crate::runtime::{Progress, blocking};
use crate::tenants::relational::SEEN_WITHIN;

pub use item::Item;
pub(super) use {arriving::ArrivingTenant, leaving::LeavingTenant};

/// Takes items of a tenant.
pub type Each<'a> = &'a mut dyn FnMut(Item) -> Result<(), StoreError>;

/// A tenant that is read as it is stored.
pub trait Leaving: Debug + Send + Sync {
    /// Hands out all that it has, as one state of it, in an order that does not depend on where it
    /// is stored. Blocks.
    fn each(&self, each: Each<'_>) -> Result<(), StoreError>;
}

/// A tenant that comes from elsewhere, and is none yet.
#[async_trait]
pub trait Arriving: Debug + Send {
    /// Hands out all that has arrived, as [`Leaving::each`] does. Blocks.
    fn each(&self, each: Each<'_>) -> Result<(), StoreError>;

    /// Stores items, in one transaction. Blocks.
    fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError>;

    /// Makes it a tenant, with these access keys.
    async fn arrived(
        self: Box<Self>,
        keys: Vec<(AccessKeyId, KeyRecord)>,
    ) -> Result<(), StoreError>;

    /// Removes what has arrived.
    async fn turn_away(self: Box<Self>) -> Result<(), StoreError>;
}

/// Why a tenant was not copied. There is none at the target then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyTenantError {
    /// The source, or the target.
    #[error("the {end}: {source}")]
    Store {
        /// Which of them.
        end: &'static str,
        /// What is wrong.
        source: StoreError,
    },
    /// Access keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The audit log of the source.
    #[error(transparent)]
    Audit(#[from] EnvelopeError),
    /// Servers may write to it.
    #[error(
        "tenant {tenant} is served while it would be copied: lock it first (`nimbus encryption lock --tenant-id {tenant}`), and unlock it afterwards if both are to be used"
    )]
    Served {
        /// The tenant.
        tenant: TenantId,
    },
    /// What was read at the target is not what was read at the source.
    #[error(
        "the copy of tenant {tenant} is not what was copied, and was removed: {what}; somebody wrote to the tenant meanwhile, or one of the two is damaged"
    )]
    Differs {
        /// The tenant.
        tenant: TenantId,
        /// What differs.
        what: String,
    },
    /// Nobody waits for it any more.
    #[error("copying tenant {tenant} was stopped; there is nothing of it at the target")]
    Stopped {
        /// The tenant.
        tenant: TenantId,
    },
}

/// What was copied, and compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Tables of documents.
    pub tables: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Schemas of tables.
    pub schemas: u64,
    /// Records of the journal.
    pub journal_records: u64,
    /// The number of the last write.
    pub latest_sequence: i64,
    /// Generations of what is deployed.
    pub generations: u64,
    /// Jobs that wait.
    pub jobs: u64,
    /// Jobs of the history.
    pub finished_jobs: u64,
    /// Crons.
    pub crons: u64,
    /// Answers to requests with an `Idempotency-Key`.
    pub answers: u64,
    /// Access keys that count.
    pub access_keys: u64,
}

/// Where a tenant is copied from.
#[derive(Debug)]
pub struct Source<'a> {
    /// The tenants there.
    pub tenants: &'a dyn TenantProvider,
    /// Their access keys.
    pub keys: Arc<dyn AccessKeys>,
    /// Whether other servers may use the tenants: the tenant must be locked then.
    pub shared: bool,
}

/// Copies a tenant. `progress` is told of documents, twice: stored, and compared.
///
/// # Errors
///
/// [`CopyTenantError`]; there is no tenant at the target then.
pub async fn copy(
    from: Source<'_>,
    to: &dyn TenantProvider,
    tenant: &TenantId,
    progress: Progress,
) -> Result<Copied, CopyTenantError> {
    require_rest(&from, tenant).await?;
    if from.shared {
        // Servers that have not seen the lock yet go by what they know.
        sleep(SEEN_WITHIN).await;
    }
    let source = of_source(from.tenants.leave(tenant).await)?;
    let target = to.arrive(tenant).await.map_err(at_target)?;
    crash_point!("tenants::copy::begun");
    let (target, mut copied) = fill_and_compare(source, target, tenant, progress).await;
    if copied.is_ok()
        && let Err(error) = require_rest(&from, tenant).await
    {
        copied = Err(error);
    }
    let (keys, of) = (Arc::clone(&from.keys), tenant.clone());
    let with_keys = match copied {
        Ok(copied) => {
            let keys = blocking(move || keys.records(&of)).await;
            keys.map(|keys| (keys, copied)).map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    let (keys, mut copied) = match with_keys {
        Ok(copied) => copied,
        Err(error) => {
            if let Err(left) = target.turn_away().await {
                tracing::error!(%tenant, error = %left, "what was copied could not be removed; the next copy or creation of the tenant does so");
            }
            return Err(error);
        }
    };
    copied.access_keys = keys.iter().filter(|(_, record)| record.is_live()).count() as u64;
    target.arrived(keys).await.map_err(at_target)?;
    crash_point!("tenants::copy::arrived");
    Ok(copied)
}

/// Refuses a tenant that other servers may write to.
async fn require_rest(from: &Source<'_>, tenant: &TenantId) -> Result<(), CopyTenantError> {
    if from.shared && !of_source(from.tenants.is_locked(tenant).await)? {
        let tenant = tenant.clone();
        return Err(CopyTenantError::Served { tenant });
    }
    Ok(())
}

fn of_source<T>(result: Result<T, StoreError>) -> Result<T, CopyTenantError> {
    result.map_err(|source| CopyTenantError::Store {
        end: "source",
        source,
    })
}

fn at_target(source: StoreError) -> CopyTenantError {
    CopyTenantError::Store {
        end: "target",
        source,
    }
}

/// Steps 2 and 3. The target is given back, whatever comes of them.
async fn fill_and_compare(
    source: Arc<dyn Leaving>,
    target: Box<dyn Arriving>,
    tenant: &TenantId,
    progress: Progress,
) -> (Box<dyn Arriving>, Result<Copied, CopyTenantError>) {
    let (read, of, told) = (Arc::clone(&source), tenant.clone(), Arc::clone(&progress));
    let (target, filled) = blocking(move || {
        let mut target = target;
        let filled = fill(&*read, &mut *target, &of, &told);
        (target, filled)
    })
    .await;
    let copied = match filled {
        Ok(copied) => copied,
        Err(error) => return (target, Err(error)),
    };
    let (send, receive) = mpsc::sync_channel(READ_AHEAD);
    let (of, sent) = (tenant.clone(), tenant.clone());
    // Two threads: each reads one state, item by item.
    let reading = blocking(move || {
        source.each(&mut |item| {
            send.send(item).map_err(|_gone| StoreError::Closed {
                tenant: sent.clone(),
            })
        })
    });
    let comparing = blocking(move || {
        let compared = compare(&receive, &*target, &of, copied.documents, &progress);
        (target, compared)
    });
    let (read, (target, compared)) = tokio::join!(reading, comparing);
    // What is wrong with the source shows at the target as an end that comes too early, and what
    // is wrong at the target as a source that nobody reads any more.
    let compared = match (read, compared) {
        (Ok(()), compared) => compared,
        (
            Err(_),
            Err(error @ (CopyTenantError::Stopped { .. } | CopyTenantError::Store { .. })),
        )
        | (Err(StoreError::Closed { .. }), Err(error)) => Err(error),
        (Err(source), _) => of_source(Err(source)),
    };
    crash_point!("tenants::copy::compared");
    (target, compared.map(|()| copied))
}

/// Stores at the target what the source has.
fn fill(
    source: &dyn Leaving,
    target: &mut dyn Arriving,
    tenant: &TenantId,
    progress: &Progress,
) -> Result<Copied, CopyTenantError> {
    let (mut copied, mut failed) = (Copied::default(), None);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut put = |batch: &mut Vec<Item>, documents| {
        let goes_on = progress(documents, documents);
        if !goes_on {
            return Err(CopyTenantError::Stopped {
                tenant: tenant.clone(),
            });
        }
        target.put(std::mem::take(batch)).map_err(at_target)?;
        crash_point!("tenants::copy::put");
        Ok(())
    };
    let read = source.each(&mut |item| {
        item.count(&mut copied);
        bytes += item.weight();
        batch.push(item);
        if batch.len() >= BATCH_ITEMS || bytes >= BATCH_BYTES {
            bytes = 0;
            put(&mut batch, copied.documents).map_err(|error| {
                failed = Some(error);
                StoreError::Closed {
                    tenant: tenant.clone(),
                }
            })?;
        }
        Ok(())
    });
    if let Some(failed) = failed {
        return Err(failed);
    }
    of_source(read)?;
    put(&mut batch, copied.documents)?;
    Ok(copied)
}

/// Holds what the target has against what is read of the source.
fn compare(
    source: &Receiver<Item>,
    target: &dyn Arriving,
    tenant: &TenantId,
    documents: u64,
    progress: &Progress,
) -> Result<(), CopyTenantError> {
    let (mut failed, mut compared) = (None, 0);
    let differs = |what: String| CopyTenantError::Differs {
        tenant: tenant.clone(),
        what,
    };
    let read = target.each(&mut |ours| {
        let theirs = source.recv().ok();
        if theirs.as_ref() != Some(&ours) {
            let theirs = theirs.map_or_else(|| "the end".to_owned(), |item| item.to_string());
            failed = Some(differs(format!(
                "{theirs} at the source, {ours} at the target"
            )));
        } else if matches!(ours, Item::Document { .. }) {
            compared += 1;
            if compared % 1000 == 0 && !progress(compared, documents) {
                failed = Some(CopyTenantError::Stopped {
                    tenant: tenant.clone(),
                });
            }
        }
        match &failed {
            None => Ok(()),
            Some(_) => Err(StoreError::Closed {
                tenant: tenant.clone(),
            }),
        }
    });
    if let Some(failed) = failed {
        return Err(failed);
    }
    read.map_err(at_target)?;
    match source.recv() {
        Ok(more) => Err(differs(format!("{more} is at the source alone"))),
        Err(_end) => Ok(()),
    }
}

const BATCH_ITEMS: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;
/// Items that are read of the source while the target is behind. A generation is one of them.
const READ_AHEAD: usize = 64;
