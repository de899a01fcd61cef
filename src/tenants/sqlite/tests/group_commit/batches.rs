//! Batches, and work that takes long.

use super::*;

fn delete(id: DocumentId) -> Mutation {
    Mutation::Delete {
        table: table(),
        id,
        if_version: None,
    }
}

fn into(name: &str) -> Mutation {
    Mutation::Insert {
        table: name.parse().unwrap(),
        fields: Fields::from_json("{}").unwrap(),
        id: None,
    }
}

#[tokio::test]
async fn a_batch_is_applied_in_order_and_sees_its_own_changes() {
    let desk = desk(|_| ()).await;
    let there = desk.apply(insert(r#"{"n":0}"#)).await.unwrap().id();
    let id = DocumentId::generate();
    let patch = Mutation::Update {
        table: table(),
        id,
        patch: Fields::from_json(r#"{"n":1}"#).unwrap(),
        if_version: None,
    };
    let batch = vec![chosen(id), patch, delete(there), insert(r#"{"n":2}"#)];
    let outcomes = all_answered(desk.writer.submit(batch, None).unwrap())
        .await
        .unwrap();
    assert!(
        matches!(outcomes[..], [first, second, third, fourth]
            if first.id() == id && second.id() == id && third.id() == there && fourth.version() == Some(5)),
        "{outcomes:?}"
    );
    assert_eq!(desk.bodies().await, [r#"{"n":1}"#, r#"{"n":2}"#]);
    let empty = all_answered(desk.writer.submit(Vec::new(), None).unwrap()).await;
    assert_eq!(empty.unwrap(), []);
}

#[tokio::test]
async fn a_batch_with_one_bad_mutation_leaves_nothing_and_harms_no_neighbour() {
    let desk = desk(|_| ()).await;
    let kept = desk.apply(insert(r#"{"n":0}"#)).await.unwrap().id();
    hold("tenants::writer::batch-taken", 50);
    let absent = DocumentId::generate();
    let before = desk.submit(insert(r#"{"n":1}"#)).unwrap();
    let batch = vec![
        into("made"),
        insert(r#"{"n":2}"#),
        delete(kept),
        delete(absent),
        into("made"),
    ];
    let bad = desk.writer.submit(batch, None).unwrap();
    let after = desk.submit(insert(r#"{"n":3}"#)).unwrap();
    fail::remove("tenants::writer::batch-taken");
    let _outcome = answered(before).await.unwrap();
    let _outcome = answered(after).await.unwrap();
    let refused = all_answered(bad).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::InBatch { index: 3, source }
            if matches!(**source, StoreError::DocumentNotFound { id, .. } if id == absent)),
        "{refused:?}"
    );
    assert_eq!(
        desk.bodies().await,
        [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":3}"#]
    );
    // The table whose making went with the batch is made again.
    let again = all_answered(
        desk.writer
            .submit(vec![into("made"), into("made")], None)
            .unwrap(),
    )
    .await;
    assert_eq!(again.unwrap().len(), 2);
}

#[tokio::test]
async fn long_work_is_not_begun_when_nobody_waits_for_it_and_ends_once_begun() {
    let desk = desk(|_| {}).await;
    let ran = Arc::new(AtomicUsize::new(0));
    let count = |desk: &Desk| {
        let ran = Arc::clone(&ran);
        desk.writer.run_if_awaited(Size::SMALL, move |_| {
            ran.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    };
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (end, may_end) = std::sync::mpsc::channel::<()>();
    let counted = Arc::clone(&ran);
    let first = desk.writer.run_if_awaited(Size::SMALL, move |_| {
        begun.send(()).unwrap();
        may_end.recv().unwrap();
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    has_begun.recv().unwrap();
    // One whose caller goes once it has begun, one whose caller goes before, and one that is waited
    // for.
    drop(first.unwrap());
    drop(count(&desk).unwrap());
    let last = count(&desk).unwrap();
    end.send(()).unwrap();
    timeout(Duration::from_secs(30), last)
        .await
        .expect("stranded in the queue")
        .expect("answered")
        .unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 2);
}
