//! Checkpoints, and connections that are not in use.

use super::*;

#[tokio::test]
async fn the_wal_is_checkpointed_as_it_grows() {
    let desk = desk(|_| ()).await;
    let document = insert(&format!(r#"{{"x":"{}"}}"#, "y".repeat(100_000)));
    for _ in 0..40 {
        let answers: Vec<_> = (0..10)
            .map(|_| desk.submit(document.clone()).unwrap())
            .collect();
        for answer in answers {
            let _outcome = answered(answer).await.unwrap();
        }
    }
    // 40 MB were written; the WAL was begun afresh whenever it had passed 4 MiB.
    let wal = std::fs::metadata(desk.file.with_extension("sqlite3-wal"))
        .unwrap()
        .len();
    assert!(wal < 12 << 20, "{wal} bytes");
}

#[tokio::test]
async fn read_connections_are_closed_once_they_rest() {
    let desk = desk(|_| ()).await;
    assert_eq!(desk.readers.waiting(), 0);
    drop(desk.bodies().await);
    assert_eq!(desk.readers.waiting(), 1);
    desk.readers.shed_unused();
    assert_eq!(desk.readers.waiting(), 1, "it was used since");
    desk.readers.shed_unused();
    assert_eq!(desk.readers.waiting(), 0);
    drop(desk.bodies().await);
}

#[tokio::test]
async fn a_writer_that_rests_writes_again() {
    let desk = desk(|_| ()).await;
    let mut expected = Vec::new();
    for n in 0..4 {
        // Twice in a row, and before the first mutation: there is nothing to close then.
        desk.writer.rest();
        desk.writer.rest();
        let json = format!(r#"{{"n":{n}}}"#);
        let outcomes = (desk.submit(insert(&json)), desk.submit(insert(&json)));
        let first = answered(outcomes.0.unwrap()).await.unwrap();
        let second = answered(outcomes.1.unwrap()).await.unwrap();
        assert_ne!(first, second);
        expected.extend([json.clone(), json]);
        assert_eq!(desk.bodies().await, expected);
    }
    desk.writer.rest();
    let wal = desk.file.with_extension("sqlite3-wal");
    // The connection is closed, and the readers with it once they rest.
    desk.readers.shed();
    desk.writer.close().unwrap();
    assert!(!wal.exists());
    assert!(desk.writer.has_ended());
}

#[tokio::test]
async fn reads_go_on_while_the_writer_is_inside_a_transaction() {
    let desk = desk(|_| ()).await;
    let id = desk.apply(insert(r#"{"n":1}"#)).await.unwrap().id();
    hold("tenants::writer::applied", 200);
    let pending = desk
        .submit(Mutation::Update {
            table: table(),
            id,
            patch: Fields::from_json(r#"{"n":2}"#).unwrap(),
            if_version: None,
        })
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(desk.bodies().await, [r#"{"n":1}"#]);
    fail::remove("tenants::writer::applied");
    let _outcome = answered(pending).await.unwrap();
    assert_eq!(desk.bodies().await, [r#"{"n":2}"#]);
}

#[tokio::test]
async fn the_first_mutation_opens_the_connection_that_a_tenant_only_read_does_without() {
    let desk = desk(|_| ()).await;
    let _outcome = desk.apply(insert(r#"{"n":1}"#)).await.unwrap();
    desk.writer.close().unwrap();
    let tenant = &desk.writer.tenant;

    let writer = start(tenant, None, &desk.readers);
    assert_eq!(desk.bodies().await.len(), 1);
    let outcome = answered(writer.submit(vec![insert(r#"{"n":2}"#)], None).unwrap()).await;
    assert!(outcome.is_ok());
    assert_eq!(desk.bodies().await, [r#"{"n":1}"#, r#"{"n":2}"#]);
    writer.close().unwrap();

    let unused = start(tenant, None, &desk.readers);
    unused.close().unwrap();
    assert!(unused.has_ended());
}
