//! The values of a tenant as the engine is to have them, and as it has them.

use super::{
    columns::Column,
    engine::{Malformed, Value},
    space::Space,
};
use crate::tenants::StoreError;

impl<E> Space<E> {
    /// A value as the engine is to have it, bound to the rest of its row.
    pub(super) fn seal(
        &self,
        column: Column,
        row: impl FnOnce() -> Vec<Value>,
        content: impl Into<Vec<u8>>,
    ) -> Result<Vec<u8>, StoreError> {
        match &self.seal {
            None => Ok(content.into()),
            Some(seal) => seal.seal(column, &row(), &content.into()),
        }
    }

    /// The same of one that may be absent.
    pub(super) fn seal_some(
        &self,
        column: Column,
        row: impl FnOnce() -> Vec<Value>,
        content: Option<&str>,
    ) -> Result<Value, StoreError> {
        let sealed = content.map(|content| self.seal(column, row, content));
        Ok(Value::Bytes(sealed.transpose()?))
    }

    /// A value as the engine has it, to be looked for.
    pub(super) fn findable(&self, column: Column, content: &[u8]) -> Vec<u8> {
        match &self.seal {
            None => content.to_vec(),
            Some(seal) => seal.findable(column, content),
        }
    }

    /// The MAC of a row; nothing where the tenant is not sealed.
    pub(super) fn mac(&self, column: Column, row: impl FnOnce() -> Vec<Value>) -> Vec<u8> {
        let seal = self.seal.as_ref();
        seal.map_or(Vec::new(), |seal| seal.mac(column, &row()).to_vec())
    }

    /// Whether a row is what was stored with its MAC.
    pub(super) fn check_mac(
        &self,
        column: Column,
        row: impl FnOnce() -> Vec<Value>,
        mac: &[u8],
    ) -> Result<(), Malformed> {
        match &self.seal {
            Some(seal) if !seal.is_mac(column, &row(), mac) => Err(Malformed::forged(column.0)),
            Some(_) | None => Ok(()),
        }
    }

    /// A value that the engine has.
    pub(super) fn open(
        &self,
        column: Column,
        row: impl FnOnce() -> Vec<Value>,
        stored: Vec<u8>,
    ) -> Result<Vec<u8>, Malformed> {
        match &self.seal {
            None => Ok(stored),
            Some(seal) => seal.open(column, &row(), stored),
        }
    }

    /// The same of a text.
    pub(super) fn open_text(
        &self,
        column: Column,
        row: impl FnOnce() -> Vec<Value>,
        stored: Vec<u8>,
    ) -> Result<String, Malformed> {
        let opened = self.open(column, row, stored)?;
        String::from_utf8(opened).map_err(|_| Malformed::of("a text"))
    }

    /// The same of `N` bytes.
    pub(super) fn open_array<const N: usize>(
        &self,
        column: Column,
        stored: Vec<u8>,
    ) -> Result<[u8; N], Malformed> {
        let opened = self.open(column, Vec::new, stored)?;
        opened.try_into().map_err(|_| Malformed::of("an id"))
    }
}
