//! An open tenant, as the core uses it.

use std::sync::{Arc, atomic::AtomicBool};

use super::{engine::Engine, reader::Reader, space::Space, transaction::RelationalTransaction};
use crate::tenants::StoreError;
use crate::tenants::backend::{Standing, Storage};

/// The storage of an open tenant.
#[derive(Debug)]
pub struct RelationalStorage<E>(pub(super) Arc<Space<E>>);

impl<E: Engine> Storage for RelationalStorage<E> {
    type Rows = Reader<E>;
    type Transaction = RelationalTransaction<E>;

    fn reader(&self) -> Result<Reader<E>, StoreError> {
        Ok(Reader::new(&self.0))
    }

    fn writer(&self, halted: &Arc<AtomicBool>) -> Result<RelationalTransaction<E>, StoreError> {
        Ok(RelationalTransaction::new(&self.0, halted))
    }

    fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    fn standing(&self) -> Standing {
        Standing::Good
    }

    fn withheld(&self) -> Option<StoreError> {
        None
    }
}
