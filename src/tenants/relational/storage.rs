//! An open tenant, as the core uses it.

use std::sync::{Arc, atomic::AtomicBool};

use super::{engine::Engine, reader::Reader, space::Space, transaction::RelationalTransaction};
use crate::tenants::StoreError;
use crate::tenants::backend::{Standing, Storage};

/// The storage of an open tenant.
#[derive(Debug)]
pub struct RelationalStorage<E> {
    space: Arc<Space<E>>,
    /// Whether it is no tenant yet.
    arriving: bool,
}

impl<E> RelationalStorage<E> {
    pub(super) fn new(space: Arc<Space<E>>) -> Self {
        Self {
            space,
            arriving: false,
        }
    }

    /// That of a tenant that is none yet.
    pub(super) fn arriving(space: Space<E>) -> Self {
        Self {
            space: Arc::new(space),
            arriving: true,
        }
    }
}

impl<E: Engine> Storage for RelationalStorage<E> {
    type Rows = Reader<E>;
    type Transaction = RelationalTransaction<E>;

    fn reader(&self) -> Result<Reader<E>, StoreError> {
        Ok(Reader::new(&self.space))
    }

    fn writer(&self, halted: &Arc<AtomicBool>) -> Result<RelationalTransaction<E>, StoreError> {
        let mut transaction = RelationalTransaction::new(&self.space, halted);
        transaction.arriving = self.arriving;
        Ok(transaction)
    }

    fn is_lost(&self) -> bool {
        self.space.is_lost()
    }

    fn standing(&self) -> Standing {
        let seal = self.space.seal.as_ref();
        seal.map_or(Standing::Good, |seal| seal.standing(&self.space.tenant))
    }

    fn withheld(&self) -> Option<StoreError> {
        self.space.seal.as_ref()?.withheld(&self.space.tenant)
    }
}
