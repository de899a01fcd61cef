//! An index of a table, and what entries documents have in it.
//!
//! Where the tenant is sealed, an entry is an HMAC of each field's value under a key of that field:
//! it is equal where the values are, and has no order.

use std::sync::Arc;

use nimbus_manifests::on_wiped_stack;
use nimbus_sealing::value::{BLIND, FieldKey};

use super::keys::Cut;
use super::space::Space;
use crate::documents::query::evaluate::{self, Found};
use crate::documents::{Fields, TableName};
use crate::tenants::backend::Conflict;

/// An index of a table.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) slot: i64,
    /// As its schema calls it.
    pub(super) name: String,
    /// The names on the way to each field.
    pub(super) fields: Vec<Vec<String>>,
    pub(super) unique: bool,
    /// The keys of its fields, if it is blind.
    blind: Option<Arc<[FieldKey]>>,
}

impl Index {
    /// An index of a table, whose name is needed where the tenant is sealed.
    pub(super) fn new<E>(
        space: &Space<E>,
        table: Option<&TableName>,
        slot: i64,
        name: String,
        fields: Vec<Vec<String>>,
        unique: bool,
    ) -> Self {
        let blind = space.seal.as_ref().zip(table).map(|(seal, table)| {
            let keys = fields
                .iter()
                .map(|path| seal.field_key(table.as_str(), path));
            keys.collect()
        });
        Self {
            slot,
            name,
            fields,
            unique,
            blind,
        }
    }

    /// The entry of a document with these fields, and whether it has a value in all of the index's:
    /// what has none is not compared.
    pub(super) fn entry(&self, fields: &Fields) -> (Vec<u8>, bool) {
        let (mut key, mut valued) = (Vec::new(), true);
        for (place, names) in self.fields.iter().enumerate() {
            let found = evaluate::at_path(fields, names);
            valued &= found.rank.is_compared();
            self.push(&mut key, place, &found);
        }
        (key, valued)
    }

    /// Appends the value of the field at a place.
    pub(super) fn push(&self, key: &mut Vec<u8>, place: usize, found: &Found) {
        match self.blind.as_deref().and_then(|keys| keys.get(place)) {
            None => self.cut().push(key, found),
            Some(field) => {
                let mut value = Vec::new();
                self.cut().push(&mut value, found);
                key.extend(on_wiped_stack(|| field.blind(&value)));
            }
        }
    }

    /// All entries that begin so.
    pub(super) fn through(&self, prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut end = prefix.to_vec();
        // No rank is 255, and no entry of a blind index as long.
        let beyond = match self.blind {
            None => 1,
            Some(_) => BLIND * self.fields.len() + 1,
        };
        end.resize(prefix.len() + beyond, u8::MAX);
        (prefix.to_vec(), end)
    }

    /// Whether its entries have no order.
    pub(super) fn is_blind(&self) -> bool {
        self.blind.is_some()
    }

    /// The same index with entries in order, as far as a plan goes.
    pub(super) fn in_the_clear(&self) -> Self {
        Self {
            blind: None,
            ..self.clone()
        }
    }

    /// How much of a text is kept: all of it, where an HMAC is made of it.
    pub(super) fn cut(&self) -> Cut {
        match self.blind {
            None => Cut::for_fields(self.fields.len()),
            Some(_) => Cut::NOTHING,
        }
    }

    pub(super) fn conflict(&self) -> Conflict {
        let fields = self.fields.iter();
        Conflict::Index {
            name: self.name.clone(),
            fields: fields.map(|names| names.join(".")).collect(),
        }
    }
}
