//! One tenant's storage, and a transaction on it.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use zeroize::Zeroizing;

use super::moved::MovedWrites;
use super::rows::{AnswerWrites, DeployWrites, DocumentWrites, JobWrites, Rows, SchemaWrites};
use crate::documents::{Mutation, Once};
use crate::tenants::error::NoRoom;
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

/// What a piece of work is about to touch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upcoming<'a> {
    /// Mutations that it applies.
    pub mutations: &'a [Mutation],
    /// The key under which it is done once.
    pub once: Option<&'a Once>,
}

/// What other servers have written to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OthersWrote {
    /// Nothing.
    #[default]
    Nothing,
    /// Rows.
    Rows,
    /// Tables, schemas or indexes, too.
    Structure,
}

/// A connection that writes to a tenant, one transaction after the other. There is one for each
/// tenant that is written to.
pub trait Transaction:
    DocumentWrites
    + AnswerWrites
    + JobWrites
    + SchemaWrites
    + DeployWrites
    + MovedWrites
    + Debug
    + Send
    + 'static
{
    /// What reads within the transaction.
    type Rows: Rows;

    /// Begins a transaction, and gives the number of the last write before it.
    fn begin(&mut self) -> Result<i64, StoreError>;

    /// What other servers have written between the last transaction and the open one.
    fn others_wrote(&self) -> OthersWrote {
        OthersWrote::Nothing
    }

    /// Says what the transaction is about to touch, all of it at once. An engine behind a network
    /// reads it here.
    fn announce<'a>(
        &mut self,
        _upcoming: impl Iterator<Item = Upcoming<'a>>,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Reads what is stored, with what this transaction has changed.
    fn rows(&mut self) -> Result<&mut Self::Rows, StoreError>;

    /// Whether the transaction is still open: some failures of an engine end it.
    fn is_open(&self) -> bool;

    /// Begins a savepoint. Savepoints nest.
    fn savepoint(&mut self) -> Result<(), StoreError>;

    /// Ends the last savepoint, and keeps what was done in it.
    fn release(&mut self) -> Result<(), StoreError>;

    /// Ends the last savepoint, and undoes what was done in it.
    fn undo(&mut self) -> Result<(), StoreError>;

    /// Why the tenant may not grow, if it may not, with what this transaction has added. Fails when
    /// the tenant may no longer be used.
    fn no_room(&mut self) -> Result<Option<NoRoom>, StoreError>;

    /// Makes the transaction durable. After an error nothing of it may be acknowledged.
    fn commit(&mut self) -> Result<(), StoreError>;

    /// Undoes a transaction that failed. After an error this connection is not used again.
    fn roll_back(&mut self) -> Result<(), StoreError>;

    /// Whether this connection must not be used again.
    fn is_broken(&self) -> bool;

    /// After a commit was answered: the time for what keeps the storage in order. A failure is the
    /// backend's to report.
    fn tidy(&mut self);

    /// Nothing was written for a while: gives back what is not needed. Whether the connection is
    /// not needed either.
    fn rest(&mut self) -> bool;

    /// Closes the connection.
    fn finish(self) -> Result<(), StoreError>;
}

/// Whether an open tenant may still be used under the key it was opened with.
#[derive(Debug)]
pub enum Standing {
    /// It may.
    Good,
    /// It may not.
    Refused(StoreError),
    /// Nobody knows any more: it must be closed and opened afresh.
    Unknown,
}

/// The storage of one open tenant.
pub trait Storage: Debug + Send + Sync + 'static {
    /// What reads it.
    type Rows: Rows;
    /// What writes to it.
    type Transaction: Transaction<Rows = Self::Rows>;

    /// A further connection that reads. Blocks.
    fn reader(&self) -> Result<Self::Rows, StoreError>;

    /// The connection that writes; `halted` fails its work once it is set. Blocks.
    fn writer(&self, halted: &Arc<AtomicBool>) -> Result<Self::Transaction, StoreError>;

    /// Whether the storage is another one than it was: the tenant must be opened afresh.
    fn is_lost(&self) -> bool;

    /// The tenant may not be used any more: what is cached of it is closed.
    fn halted(&self) {}

    /// All connections that read are closed: what is cached of it is wiped. The writer may go on
    /// for a moment. Blocks.
    fn closed(&self) {}

    /// Whether it may be used under the key it was opened with.
    fn standing(&self) -> Standing;

    /// Why the tenant's key is not available, if that is why it was closed.
    fn withheld(&self) -> Option<StoreError>;
}

/// What the opening of a tenant left open.
#[derive(Debug)]
pub enum OpenedConnection<S: Storage> {
    /// Nothing.
    None,
    /// A connection that reads.
    Reader(S::Rows),
    /// The connection that writes.
    Writer(S::Transaction),
}

/// A tenant that was opened just now.
pub struct Opened<S: Storage> {
    /// Its storage.
    pub storage: S,
    /// The connection that the opening left.
    pub connection: OpenedConnection<S>,
    /// Fails the work of its writer once it is set.
    pub halted: Arc<AtomicBool>,
    /// The key that seals its cursors.
    pub cursor_key: Zeroizing<[u8; CURSOR_KEY_BYTES]>,
    /// When its first job or cron is due.
    pub earliest_due: Option<i64>,
}

impl<S: Storage> fmt::Debug for Opened<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("storage", &self.storage)
            .field("connection", &self.connection)
            .field("cursor_key", &"[REDACTED]")
            .finish_non_exhaustive()
    }
}
