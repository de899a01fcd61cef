//! What one client knows of its documents, and what may be there besides.

use std::collections::BTreeMap;

/// A document: its number names it for ever, its version changes with each update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// The id that the server gave it; none as long as nobody was told.
    pub(crate) id: Option<String>,
    pub(crate) version: u64,
    /// The number of the write that the server says wrote it last; none as long as nobody was
    /// told.
    pub(crate) written: Option<u64>,
}

pub(crate) type Documents = BTreeMap<u64, Document>;

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Insert(u64),
    Update(u64, u64),
    Delete(u64),
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) documents: Documents,
    /// What was asked for and not answered: it is there whole, or not at all.
    pub(crate) pending: Vec<Change>,
    /// How many changes were made.
    pub(crate) applied: u64,
}

impl Model {
    /// The changes that were pending are made; what the server answered to each, its id and the
    /// number of the write, in their order.
    pub(crate) fn acknowledge(&mut self, mut answers: impl Iterator<Item = (String, u64)>) {
        let pending = std::mem::take(&mut self.pending);
        self.applied += pending.len() as u64;
        apply(&mut self.documents, &pending);
        for change in pending {
            let (id, written) = answers.next().unzip();
            let (Change::Insert(number) | Change::Update(number, _)) = change else {
                continue;
            };
            if let Some(document) = self.documents.get_mut(&number) {
                document.written = written;
                if let Change::Insert(_) = change {
                    document.id = id;
                }
            }
        }
    }

    /// Takes what is there for what is known, if it can have come to be.
    ///
    /// # Errors
    /// How it differs from all that can have come to be.
    pub(crate) fn settle(&mut self, found: Documents) -> Result<(), String> {
        let pending = std::mem::take(&mut self.pending);
        let without = differences(&self.documents, &found);
        if without.is_empty() {
            self.documents = found;
            return Ok(());
        }
        let mut with = self.documents.clone();
        apply(&mut with, &pending);
        let with = differences(&with, &found);
        if !pending.is_empty() && with.is_empty() {
            self.applied += pending.len() as u64;
            self.documents = found;
            return Ok(());
        }
        let (without, with) = (without.join("; "), with.join("; "));
        Err(format!(
            "without what was under way: {without}\nwith {pending:?}: {with}"
        ))
    }
}

fn apply(documents: &mut Documents, changes: &[Change]) {
    for change in changes {
        match *change {
            Change::Insert(number) => {
                let document = Document {
                    id: None,
                    version: 0,
                    written: None,
                };
                assert_eq!(
                    documents.insert(number, document),
                    None,
                    "numbers are used once"
                );
            }
            Change::Update(number, version) => {
                let document = documents.get_mut(&number).expect("it is known");
                (document.version, document.written) = (version, None);
            }
            Change::Delete(number) => {
                documents.remove(&number).expect("it is known");
            }
        }
    }
}

/// How what is there differs from what should be.
fn differences(expected: &Documents, found: &Documents) -> Vec<String> {
    let mut differences = Vec::new();
    for (number, document) in expected {
        match found.get(number) {
            None => differences.push(format!("{number} is lost")),
            Some(there) if there.version != document.version => differences.push(format!(
                "{number} has version {}, not {}",
                there.version, document.version
            )),
            Some(there) if document.id.is_some() && there.id != document.id => {
                differences.push(format!("{number} is another document"));
            }
            Some(there) if document.written.is_some() && there.written != document.written => {
                differences.push(format!(
                    "{number} says it was written by {:?}, not {:?}",
                    there.written, document.written
                ));
            }
            Some(_) => {}
        }
    }
    let surplus = found.keys().filter(|number| !expected.contains_key(number));
    differences.extend(surplus.map(|number| format!("{number} should not be there")));
    differences
}

mod tests {
    use super::*;

    fn there(documents: &[(u64, u64)]) -> Documents {
        let document = |&(number, version)| {
            let id = Some(format!("id-{number}"));
            // Of those that the test makes: 1, 2 and 3 were inserted by these writes, and 2 was
            // updated by the fourth.
            let written = Some(if (number, version) == (2, 1) {
                4
            } else {
                number
            });
            (
                number,
                Document {
                    id,
                    version,
                    written,
                },
            )
        };
        documents.iter().map(document).collect()
    }

    fn model() -> Model {
        let mut model = Model {
            pending: vec![Change::Insert(1), Change::Insert(2), Change::Insert(3)],
            ..Model::default()
        };
        model.acknowledge((1..=3).map(|number| (format!("id-{number}"), number)));
        model.pending = vec![Change::Update(2, 1)];
        model.acknowledge([("id-2".to_owned(), 4)].into_iter());
        model
    }

    const ACKNOWLEDGED: [(u64, u64); 3] = [(1, 0), (2, 1), (3, 0)];

    #[test]
    fn what_was_acknowledged_is_what_must_be_there() {
        let mut model = model();
        assert_eq!(model.applied, 4);
        assert_eq!(model.settle(there(&ACKNOWLEDGED)), Ok(()));
        for (planted, says) in [
            (vec![(1, 0), (2, 1)], "3 is lost"),
            (vec![(1, 0), (2, 0), (3, 0)], "2 has version 0, not 1"),
            (
                vec![(1, 0), (2, 1), (3, 0), (4, 0)],
                "4 should not be there",
            ),
            (vec![], "1 is lost"),
        ] {
            let refused = model.settle(there(&planted)).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
        let mut other = there(&ACKNOWLEDGED);
        other.get_mut(&1).expect("it").id = Some("id-9".to_owned());
        assert!(
            model
                .settle(other)
                .unwrap_err()
                .contains("1 is another document")
        );
        let mut other = there(&ACKNOWLEDGED);
        other.get_mut(&1).expect("it").written = Some(9);
        let refused = model.settle(other).unwrap_err();
        assert!(refused.contains("1 says it was written by"), "{refused}");
        assert_eq!(model.applied, 4);
    }

    #[test]
    fn what_was_under_way_is_there_whole_or_not_at_all() {
        let batch = vec![Change::Insert(4), Change::Update(1, 7), Change::Delete(3)];
        for (found, writes) in [
            (Ok(ACKNOWLEDGED.to_vec()), 4),
            (Ok(vec![(1, 7), (2, 1), (4, 0)]), 7),
            (Err(vec![(1, 0), (2, 1), (3, 0), (4, 0)]), 4),
            (Err(vec![(1, 7), (2, 1), (3, 0), (4, 0)]), 4),
            (Err(vec![(1, 0), (2, 1)]), 4),
        ] {
            let mut model = model();
            model.pending.clone_from(&batch);
            let (found, expected) = match found {
                Ok(found) => (found, true),
                Err(found) => (found, false),
            };
            assert_eq!(model.settle(there(&found)).is_ok(), expected, "{found:?}");
            assert_eq!(model.applied, writes, "{found:?}");
        }
    }
}
