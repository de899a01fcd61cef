//! The journal against what was written.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::client::{Client, turned_away};

/// The journal of a tenant has each of its `writes` once and in a row, and what it says was
/// inserted and not deleted is what is there.
pub(crate) fn check(
    client: &mut Client,
    tenant: &str,
    tables: &BTreeMap<String, BTreeSet<String>>,
    writes: u64,
) {
    let (records, latest, floor) = read(client, tenant);
    assert_eq!(
        latest, writes,
        "{tenant}: the journal's last number, and the writes that were made"
    );
    if let Err(fault) = agree(&records, latest, floor, tables) {
        panic!("{tenant}: {fault}");
    }
}

fn read(client: &mut Client, tenant: &str) -> (Vec<Value>, u64, u64) {
    let mut records = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/api/tenants/{tenant}/journal?limit=1000{after}");
        let (status, page) = client.get(&path).expect("the server runs");
        if turned_away(status) {
            continue;
        }
        assert_eq!(status, 200, "{page}");
        records.extend_from_slice(page["records"].as_array().expect("records"));
        after = format!("&after={}", number(&page["next_cursor"]));
        if page["has_more"] == false {
            return (
                records,
                number(&page["latest_sequence"]),
                number(&page["cursor_floor"]),
            );
        }
    }
}

/// Whether the records are in a row and agree with the documents.
fn agree(
    records: &[Value],
    latest: u64,
    floor: u64,
    tables: &BTreeMap<String, BTreeSet<String>>,
) -> Result<(), String> {
    let mut expected = floor;
    let mut there: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for record in records {
        expected += 1;
        if number(&record["sequence"]) != expected {
            return Err(format!(
                "the journal has {record} in the place of {expected}"
            ));
        }
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let ids = there.entry(text("table")).or_default();
        let fits = match record["type"].as_str() {
            Some("insert") => ids.insert(text("id")),
            Some("delete") => ids.remove(&text("id")),
            _ => ids.contains(&text("id")),
        };
        // Its beginning may have been trimmed.
        if !fits && floor == 0 {
            return Err(format!("{record} cannot be"));
        }
    }
    if expected != latest {
        return Err(format!("the journal ends with {expected}, not {latest}"));
    }
    for (table, ids) in tables {
        let journal = there.remove(table).unwrap_or_default();
        if floor == 0 && journal != *ids {
            let lost: Vec<_> = journal.symmetric_difference(ids).collect();
            return Err(format!(
                "{table}: the journal and the documents disagree about {lost:?}"
            ));
        }
    }
    Ok(())
}

fn number(json: &Value) -> u64 {
    json.as_u64().expect("a number")
}

mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gap_a_double_and_a_loss_are_found() {
        let record = |sequence: u64, kind: &str, id: &str| json!({"sequence": sequence, "type": kind, "table": "t", "id": id});
        let records = vec![
            record(1, "insert", "a"),
            record(2, "insert", "b"),
            record(3, "update", "a"),
            record(4, "delete", "b"),
        ];
        let tables = |ids: &[&str]| {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            BTreeMap::from([("t".to_owned(), ids)])
        };
        assert_eq!(agree(&records, 4, 0, &tables(&["a"])), Ok(()));
        let mut gap = records.clone();
        gap.remove(1);
        let mut double = records.clone();
        double[1] = record(2, "insert", "a");
        for (records, latest, ids) in [
            (&gap, 4, vec!["a"]),
            (&double, 4, vec!["a"]),
            (&records, 5, vec!["a"]),
            (&records, 4, vec!["a", "b"]),
            (&records, 4, vec![]),
        ] {
            assert!(
                agree(records, latest, 0, &tables(&ids)).is_err(),
                "{latest} {ids:?}"
            );
        }
    }
}
