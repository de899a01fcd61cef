//! Events that repeat themselves, and those that nobody waits for.

use super::*;
use crate::envelope::{EventKind, EventOutcome};

#[tokio::test]
async fn what_nobody_waits_for_is_written_with_the_next_line_or_by_itself() {
    let house = House::new();
    let log = house.open().await;
    log.note(Event::new(EventKind::Open, EventOutcome::Done));
    log.record(vec![event(1)]).await.unwrap();
    assert_eq!(house.events(), ["log-begun", "open", "rewrap"]);
    log.note(Event::new(EventKind::Open, EventOutcome::Done));
    assert_eq!(log.verify().await.unwrap().lines, 4);
    log.note(Event::new(EventKind::Open, EventOutcome::Done));
    drop(log);
    assert_eq!(house.verified().await.lines, 5);
}

#[tokio::test]
async fn an_opening_that_repeats_itself_is_told_once_and_counted_to_the_end() {
    let house = House::new();
    let log = house.open().await;
    let subject = |tenant: &str| {
        let file = format!("{tenant}.sqlite3");
        Subject::sqlite_tenant(&tenant.parse().unwrap(), &file).unwrap()
    };
    let of = |kind, tenant: &str| Event::new(kind, EventOutcome::Done).about(&subject(tenant));
    for _ in 0..5000 {
        log.note(of(EventKind::Open, "a"));
    }
    log.note(of(EventKind::Open, "b"));
    assert_eq!(log.verify().await.unwrap().lines, 3);
    // What else happens to a file comes after the count, and the next opening is recorded.
    log.record(vec![of(EventKind::Lock, "a")]).await.unwrap();
    log.note(of(EventKind::Open, "a"));
    log.note(of(EventKind::Open, "a"));
    drop(log);
    let told = ["log-begun", "open", "open", "open", "lock", "open", "open"];
    assert_eq!(house.events(), told);
    let text = house.text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[3].contains("opened again 4999 times since "),
        "{}",
        lines[3]
    );
    assert!(
        lines[6].contains("opened again once since "),
        "{}",
        lines[6]
    );
    assert_eq!(house.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn openings_that_were_counted_and_could_not_be_written_are_a_gap() {
    let house = House::new();
    let log = house.open_with(1).await;
    let subject = Subject::sqlite_tenant(&"a".parse().unwrap(), "a.sqlite3").unwrap();
    let opened = || Event::new(EventKind::Open, EventOutcome::Done).about(&subject);
    let next = house.dir.path().join("nimbus-audit.000000000001.log");
    fs::create_dir(&next).unwrap();
    for _ in 0..7 {
        log.note(opened());
    }
    assert!(log.record(vec![event(1)]).await.is_err());
    fs::remove_dir(&next).unwrap();
    log.note(opened());
    log.record(vec![event(2)]).await.unwrap();
    drop(log);
    assert_eq!(house.events(), ["log-begun", "log-gap", "open", "rewrap"]);
    assert!(house.text().contains("7 events could not be written"));
}

#[tokio::test]
async fn a_failure_that_repeats_itself_is_told_once_a_minute() {
    let house = House::new();
    let log = house.open().await;
    for _ in 0..1000 {
        log.note(Event::new(EventKind::UnwrapFailed, EventOutcome::Failed).saying("denied"));
    }
    drop(log);
    assert_eq!(house.events(), ["log-begun", "unwrap-failed"]);
}
