//! Versions of documents, and conditions on them.

use std::collections::HashMap;

use proptest::{prelude::*, test_runner::TestRunner};

use super::{Fixture, acme, add, bodies, fields, insert, table};
use crate::documents::query::{MAX_PAGE, Query};
use crate::documents::{Document, DocumentId, Expected, Mutation, MutationOutcome, TableName};
use crate::tenants::StoreError;
use crate::tenants::full_list::FullList as _;

fn check(id: DocumentId, expected: Expected) -> Mutation {
    Mutation::Check {
        table: table("t"),
        id,
        expected,
    }
}

pub(in crate::tenants) async fn a_version_is_the_number_of_the_last_write_in_every_answer<
    F: Fixture,
>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let first = add(&store, r#"{"n":1}"#).await;
    let second = add(&store, r#"{"n":2}"#).await;
    let update = Mutation::Update {
        table: table("t"),
        id: first,
        patch: fields(r#"{"n":3}"#),
        if_version: Some(1),
    };
    assert_eq!(store.apply(update).await.unwrap().version(), Some(3));
    assert_eq!(store.get(&table("t"), first).await.unwrap().version, 3);
    let versions = |documents: &[Document]| -> Vec<i64> {
        documents.iter().map(|document| document.version).collect()
    };
    assert_eq!(versions(&store.list(&table("t"), 9).await.unwrap()), [3, 2]);
    for (query, expected) in [
        (r#"{"table":"t"}"#, &[3, 2][..]),
        (r#"{"table":"t","order":{"field":"_version"}}"#, &[2, 3]),
        (
            r#"{"table":"t","filters":[{"field":"_version","op":"gt","value":2}]}"#,
            &[3],
        ),
        (
            r#"{"table":"t","filters":[{"field":"_version","op":"eq","value":2.0}]}"#,
            &[2],
        ),
        (
            r#"{"table":"t","filters":[{"field":"_version","op":"exists","value":false}]}"#,
            &[],
        ),
    ] {
        let asked = Query::from_json(query).unwrap();
        let page = store.query(asked, None, MAX_PAGE).await.unwrap();
        assert_eq!(versions(&page.documents), expected, "{query}");
    }
    // In pages, too.
    let asked = Query::from_json(r#"{"table":"t","order":{"field":"_version"}}"#).unwrap();
    let page = store.query(asked.clone(), None, 1).await.unwrap();
    let next = store.query(asked, page.next, 1).await.unwrap();
    assert_eq!(
        [versions(&page.documents), versions(&next.documents)],
        [[2], [3]]
    );
    // A check changes no version and leaves no record.
    let outcome = store.apply(check(second, Expected::Present)).await.unwrap();
    assert_eq!(outcome, MutationOutcome::new(second, Some(2)));
    assert_eq!(store.journal(None, 9).await.unwrap().latest, 3);
}

pub(in crate::tenants) async fn a_condition_that_fails_undoes_its_whole_batch_and_says_what_is_there<
    F: Fixture,
>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let there = add(&store, r#"{"n":1}"#).await;
    let absent = DocumentId::generate();
    let nowhere = Mutation::Check {
        table: table("nowhere"),
        id: absent,
        expected: Expected::Present,
    };
    let delete = |id, version| Mutation::Delete {
        table: table("t"),
        id,
        if_version: Some(version),
    };
    for (condition, version) in [
        (check(there, Expected::Absent), Some(1)),
        (check(there, Expected::OneOf(vec![2, 3])), Some(1)),
        (check(absent, Expected::OneOf(vec![1])), None),
        (check(absent, Expected::Present), None),
        (nowhere, None),
        (delete(there, 9), Some(1)),
        (delete(absent, 1), None),
    ] {
        let batch = vec![insert(r#"{"n":2}"#), condition.clone()];
        let refused = store.apply_all(batch).await.unwrap_err();
        let StoreError::InBatch { index: 1, source } = refused else {
            panic!("{refused:?}");
        };
        assert!(
            matches!(*source, StoreError::PreconditionFailed { version: found, .. } if found == version),
            "{condition:?}: {source:?}"
        );
        assert!(source.concerns_mutation());
    }
    let list = store.list(&table("t"), 9).await.unwrap();
    assert_eq!(bodies(&list), [r#"{"n":1}"#]);
    // A condition sees what stands before it in its batch.
    let batch = vec![
        check(there, Expected::OneOf(vec![7, 1])),
        insert(r#"{"n":2}"#),
        delete(there, 1),
        check(there, Expected::Absent),
    ];
    let versions: Vec<_> = store
        .apply_all(batch)
        .await
        .unwrap()
        .iter()
        .map(MutationOutcome::version)
        .collect();
    assert_eq!(versions, [Some(1), Some(2), Some(3), None]);
}

/// What one mutation of a made-up batch does.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Insert,
    Update(Aim),
    Delete(Aim),
    Check(Aim),
    CheckAbsent,
    CheckPresent,
}

/// Which version a condition names.
#[derive(Debug, Clone, Copy)]
enum Aim {
    None,
    Current,
    Wrong,
    /// Either of two, one of which is right.
    Either,
}

fn deed() -> impl Strategy<Value = Deed> {
    let aim = || {
        prop_oneof![
            2 => Just(Aim::None),
            3 => Just(Aim::Current),
            1 => Just(Aim::Wrong),
            1 => Just(Aim::Either),
        ]
    };
    prop_oneof![
        3 => Just(Deed::Insert),
        3 => aim().prop_map(Deed::Update),
        2 => aim().prop_map(Deed::Delete),
        2 => aim().prop_map(Deed::Check),
        1 => Just(Deed::CheckAbsent),
        1 => Just(Deed::CheckPresent),
    ]
}

/// Plain maps: the version of each document, and the number of the last write.
#[derive(Debug, Clone, Default)]
struct Model {
    versions: HashMap<(usize, usize), i64>,
    sequence: i64,
}

/// How a mutation ends, as the model has it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Version(Option<i64>),
    Exists,
    Missing,
    Failed(Option<i64>),
}

impl Model {
    /// The mutation that a deed is on a document now, and how it ends.
    fn make(
        &mut self,
        deed: Deed,
        place: (usize, usize),
        name: &str,
        id: DocumentId,
    ) -> (Mutation, End) {
        let table: TableName = name.parse().unwrap();
        let current = self.versions.get(&place).copied();
        let aimed = |aim| match aim {
            Aim::None => None,
            Aim::Current | Aim::Either => Some(current.unwrap_or(1)),
            Aim::Wrong => Some(current.unwrap_or(0) + 1000),
        };
        let holds = |version: Option<i64>| version.is_none() || version == current;
        let (mutation, end) = match deed {
            Deed::Insert => {
                let fields = fields("{}");
                let mutation = Mutation::Insert {
                    table,
                    fields,
                    id: Some(id),
                };
                let end = if current.is_some() {
                    End::Exists
                } else {
                    End::Version(None)
                };
                (mutation, end)
            }
            Deed::Update(aim) | Deed::Delete(aim) => {
                let if_version = aimed(aim);
                let end = match current {
                    _ if !holds(if_version) => End::Failed(current),
                    None => End::Missing,
                    Some(_) => End::Version(None),
                };
                let mutation = if matches!(deed, Deed::Update(_)) {
                    let patch = fields(r#"{"n":1}"#);
                    Mutation::Update {
                        table,
                        id,
                        patch,
                        if_version,
                    }
                } else {
                    Mutation::Delete {
                        table,
                        id,
                        if_version,
                    }
                };
                (mutation, end)
            }
            Deed::Check(_) | Deed::CheckAbsent | Deed::CheckPresent => {
                let expected = match deed {
                    Deed::CheckAbsent => Expected::Absent,
                    Deed::Check(Aim::Either) => Expected::OneOf(vec![5000, current.unwrap_or(1)]),
                    Deed::Check(aim @ (Aim::Current | Aim::Wrong)) => {
                        Expected::OneOf(aimed(aim).into_iter().collect())
                    }
                    _ => Expected::Present,
                };
                let right = match (&expected, current) {
                    (Expected::Absent, current) => current.is_none(),
                    (Expected::Present, current) => current.is_some(),
                    (Expected::OneOf(versions), Some(current)) => versions.contains(&current),
                    (Expected::OneOf(_), None) => false,
                };
                let mutation = Mutation::Check {
                    table,
                    id,
                    expected,
                };
                return (
                    mutation,
                    if right {
                        End::Version(current)
                    } else {
                        End::Failed(current)
                    },
                );
            }
        };
        if end != End::Version(None) {
            return (mutation, end);
        }
        self.sequence += 1;
        let _before = match deed {
            Deed::Delete(_) => self.versions.remove(&place),
            _ => self.versions.insert(place, self.sequence),
        };
        (mutation, End::Version(Some(self.sequence)))
    }
}

pub(in crate::tenants) fn batches_with_conditions_do_what_plain_maps_do<F: Fixture>() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let house = F::empty();
    let (_tenants, store) = runtime.block_on(acme(&house));
    let batch = prop::collection::vec((deed(), 0..2_usize, 0..3_usize), 1..5);
    let batches = prop::collection::vec(batch, 1..12);
    let case = std::cell::Cell::new(0);
    TestRunner::new(ProptestConfig::with_cases(128))
        .run(&batches, |batches| {
            case.set(case.get() + 1);
            let names = ["a", "b"].map(|name| format!("{name}{}", case.get()));
            let ids: Vec<DocumentId> = (0..3).map(|_| DocumentId::generate()).collect();
            let latest = runtime.block_on(store.journal(None, 1)).unwrap().latest;
            let mut model = Model {
                sequence: latest,
                ..Model::default()
            };
            for deeds in batches {
                let mut after = model.clone();
                let (mut batch, mut outcomes, mut fault) = (Vec::new(), Vec::new(), None);
                for (index, (deed, name, document)) in deeds.into_iter().enumerate() {
                    let id = ids[document];
                    let (mutation, end) = after.make(deed, (name, document), &names[name], id);
                    batch.push(mutation);
                    match end {
                        End::Version(version) => outcomes.push(MutationOutcome::new(id, version)),
                        end => {
                            fault = Some((index, end));
                            break;
                        }
                    }
                }
                match (runtime.block_on(store.apply_all(batch)), fault) {
                    (Ok(found), None) => {
                        prop_assert_eq!(found, outcomes);
                        model = after;
                    }
                    (Err(StoreError::InBatch { index, source }), Some((expected, end))) => {
                        prop_assert_eq!(index, expected);
                        let found = match *source {
                            StoreError::DocumentExists { .. } => End::Exists,
                            StoreError::DocumentNotFound { .. } => End::Missing,
                            StoreError::PreconditionFailed { version, .. } => End::Failed(version),
                            other => panic!("{other:?}"),
                        };
                        prop_assert_eq!(found, end);
                    }
                    (found, fault) => panic!("{found:?}, and not {fault:?}"),
                }
                for (name, text) in names.iter().enumerate() {
                    let list = runtime.block_on(store.list(&table(text), 9)).unwrap();
                    let found: HashMap<_, _> = list
                        .iter()
                        .map(|document| {
                            let place = ids.iter().position(|id| *id == document.id).unwrap();
                            ((name, place), document.version)
                        })
                        .collect();
                    let mut expected = model.versions.clone();
                    expected.retain(|(table, _), _| *table == name);
                    prop_assert_eq!(found, expected);
                }
            }
            Ok(())
        })
        .unwrap();
}
