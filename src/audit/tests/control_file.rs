//! The log beside a control file that is older, lost or made anew.

use super::*;
use crate::envelope::{EventKind, EventOutcome};

#[tokio::test]
async fn a_control_file_that_is_older_than_the_log_is_found_out() {
    for full in [FULL, 700] {
        let house = House::new();
        let log = house.open_with(full).await;
        log.record(vec![event(0)]).await.unwrap();
        drop(log);
        let control = house.control_file();
        let log = house.open_with(full).await;
        for n in 1..6 {
            log.record(vec![event(n)]).await.unwrap();
        }
        drop(log);
        assert_eq!(house.problems().await, [""; 0]);
        house.put_back(&control);
        let opened = house.chain(full, false).await;
        let Err(LogError::RolledBack { found }) = opened.map(drop) else {
            panic!("it was not found out");
        };
        let said = found.to_string();
        assert!(said.contains("5 lines after number 2"), "{said}");
        assert!(
            said.contains("5 rewrap") && !said.contains("verified"),
            "{said}"
        );
        assert!(house.is_older().await);
        assert_eq!(house.problems().await, [""; 0], "the log is whole");
        // Without the lines right behind the head it is found out all the same.
        let text = house.text();
        let last = text.split_inclusive('\n').next_back().unwrap();
        fs::write(house.path(), last).unwrap();
        let opened = house.chain(full, false).await;
        assert!(matches!(opened.map(drop), Err(LogError::RolledBack { .. })));
        fs::write(house.path(), text).unwrap();

        drop(house.chain(full, true).await.unwrap());
        assert_eq!(house.problems().await, [""; 0]);
        assert_eq!(house.events().last().map(String::as_str), Some("restore"));
        drop(house.open().await);
    }
}

#[tokio::test]
async fn lines_under_a_later_key_of_the_control_file_stop_an_older_one() {
    let house = House::new();
    house.filled(1).await;
    let control = house.control_file();
    let path = Control::path_in(house.dir.path());
    let progress: crate::runtime::Progress = Arc::new(|_, _| true);
    let rotate = crate::encryption::rotate_dek::rotate_dek;
    drop(
        rotate(&house.envelope, &path, None, None, progress)
            .await
            .unwrap(),
    );
    house.filled(1).await;
    house.put_back(&control);
    let opened = house.chain(FULL, false).await;
    let Err(LogError::RolledBack { found }) = opened.map(drop) else {
        panic!("it was not found out");
    };
    assert!(
        found.to_string().contains("1 of them cannot be verified"),
        "{found}"
    );
    assert!(house.is_older().await);
}

#[tokio::test]
async fn a_control_file_that_was_made_anew_takes_the_locks_of_the_log_beside_it() {
    let house = House::new();
    let tenant = |name: &str| name.parse::<nimbus_manifests::TenantId>().unwrap();
    let about = |kind, outcome, name: &str| {
        Event::new(kind, outcome).about(&crate::data_dir::subject(&tenant(name)))
    };
    let done = |kind, name| about(kind, EventOutcome::Done, name);
    let log = house.open().await;
    log.record(vec![
        done(EventKind::Create, "stays"),
        done(EventKind::Lock, "locked"),
        done(EventKind::Lock, "unlocked"),
        done(EventKind::Unlock, "unlocked"),
        done(EventKind::Lock, "reborn"),
        about(EventKind::Delete, EventOutcome::Begun, "going"),
        done(EventKind::Delete, "gone"),
        done(EventKind::Delete, "reborn"),
        done(EventKind::Create, "reborn"),
    ])
    .await
    .unwrap();
    drop(log);
    // Its files are there, under no key that the log names after the deletion; of `gone` there are
    // none.
    for name in ["going", "stays"] {
        let path = house
            .dir
            .path()
            .join(crate::data_dir::database_name(&tenant(name)));
        fs::write(path, "encrypted").unwrap();
    }
    let locked = || async { house.control().await.locked_tenants().unwrap() };
    for (path, _) in house.control_file() {
        fs::remove_file(path).unwrap();
    }
    let lost = house.offline().verify().await;
    assert!(matches!(lost, Err(LogError::ControlLost(_))), "{lost:?}");
    for _start in 0..2 {
        drop(house.open().await);
        assert_eq!(locked().await, [tenant("going"), tenant("locked")]);
    }
    let events = house.events();
    assert_eq!(events[..4], ["log-broken", "lock", "lock", "restore"]);
    assert_eq!(house.problems().await, [""; 0]);
    let aside = house.dir.path().join(format!("{FILE_NAME}.set-aside-1"));
    assert!(fs::read_to_string(aside).unwrap().contains("\"delete\""));
}

#[tokio::test]
async fn lines_under_a_replaced_key_are_vouched_for_by_the_chain() {
    let house = House::new();
    house.filled(2).await;
    let path = Control::path_in(house.dir.path());
    let progress: crate::runtime::Progress = Arc::new(|_, _| true);
    let envelope = &house.envelope;
    drop(
        crate::encryption::rotate_dek::rotate_dek(envelope, &path, None, None, progress)
            .await
            .unwrap(),
    );
    house.filled(1).await;
    let found = house.verified().await;
    assert_eq!((found.lines, found.sealed, found.problems), (4, 1, vec![]));
    let text = house.text();
    fs::write(house.path(), text.replacen("number 0", "number 7", 1)).unwrap();
    assert_ne!(house.problems().await, Vec::<String>::new());
}
