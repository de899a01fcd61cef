//! Files of other layouts.

use redb::{ReadableDatabase as _, TableDefinition, TableHandle as _};

use super::super::tables::{LAYOUT, META};
use super::*;

#[tokio::test]
async fn rejects_a_newer_layout() {
    let house = House::new();
    let control = house.open().await.unwrap();
    control
        .write(|transaction| {
            drop(transaction.open_table(META)?.insert(LAYOUT, 9)?);
            Ok(())
        })
        .unwrap();
    drop(control);
    let error = house.open().await.unwrap_err();
    assert!(
        matches!(error, ControlError::NewerLayout { found: 9, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn brings_a_file_of_the_first_layout_up_and_keeps_what_is_in_it() {
    const FIRST_USAGE: TableDefinition<'_, (&str, &[u8]), u64> = TableDefinition::new("usage");
    let house = House::new();
    let control = house.open().await.unwrap();
    control
        .put_many([(&tenant_subject("demo"), &b"text"[..])])
        .unwrap();
    control
        .write(|transaction| {
            for table in transaction.list_tables()? {
                if !["meta", "manifests", "deletions"].contains(&table.name()) {
                    transaction.delete_table(table)?;
                }
            }
            drop(transaction.open_table(FIRST_USAGE)?);
            drop(transaction.open_table(META)?.insert(LAYOUT, 1)?);
            Ok(())
        })
        .unwrap();
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.with(tables::layout).unwrap(), tables::KNOWN_LAYOUT);
    let copy = control.get(&tenant_subject("demo")).unwrap();
    assert!(copy.all().eq([b"text"]));
    let tables = control
        .with(|database| {
            let transaction = database.begin_read()?;
            drop(transaction.open_table(tables::ACCESS_KEYS)?);
            drop(transaction.open_table(tables::IDENTITIES)?);
            Ok(transaction.open_table(FIRST_USAGE).is_err())
        })
        .unwrap();
    assert!(tables, "what was only reserved is gone");
}
