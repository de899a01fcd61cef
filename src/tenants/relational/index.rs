//! An index of a table, and what entries documents have in it.

use super::keys::Cut;
use crate::documents::Fields;
use crate::documents::query::evaluate;
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
}

impl Index {
    /// The entry of a document with these fields, and whether it has a value in all of the index's:
    /// what has none is not compared.
    pub(super) fn entry(&self, fields: &Fields) -> (Vec<u8>, bool) {
        let cut = self.cut();
        let (mut key, mut valued) = (Vec::new(), true);
        for names in &self.fields {
            let found = evaluate::at_path(fields, names);
            valued &= found.rank.is_compared();
            cut.push(&mut key, &found);
        }
        (key, valued)
    }

    pub(super) fn cut(&self) -> Cut {
        Cut::for_fields(self.fields.len())
    }

    pub(super) fn conflict(&self) -> Conflict {
        let fields = self.fields.iter();
        Conflict::Index {
            name: self.name.clone(),
            fields: fields.map(|names| names.join(".")).collect(),
        }
    }
}
