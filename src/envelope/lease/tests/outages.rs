//! Providers that do not answer, and machines that sleep.

use super::*;

#[tokio::test]
async fn a_machine_that_slept_asks_before_it_serves() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.core.enforce();
    house.create("one").await;
    house.pass(30).await;
    // The clock of leases goes on while the machine sleeps.
    house.clock.move_by(1800);
    assert_ne!(house.standing("one"), LeaseStanding::Good);
    remote.be(Mood::Silent);
    house.renew().await;
    assert_eq!(
        house.standing("one"),
        LeaseStanding::Good,
        "within the grace"
    );
    house.clock.move_by(3600);
    house.renew().await;
    assert!(!house.is_open("one"), "beyond it");
}

#[tokio::test]
async fn an_outage_is_ridden_out_for_the_grace_and_ends_what_is_open_after_it() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    house.create("closed").await;
    house
        .table
        .revoke(Some(&"closed".parse().unwrap()), &Revocation::Locked)
        .await;
    house.pass(100).await;
    remote.be(Mood::Silent);
    house.pass(3600).await;
    assert!(house.is_open("one"));
    let report = house.core.leases();
    assert_eq!(report.troubles[0].class, FailureClass::Unavailable);
    assert_eq!(report.troubles[0].files, 1);
    assert!(report.troubles[0].left.unwrap() <= Duration::from_secs(60));
    let error = house.open("closed").await.unwrap_err();
    assert_eq!(error.trouble(), Meaning::KeyUnavailable);
    house.pass(61).await;
    assert!(!house.is_open("one"));
    assert_eq!(
        house.open("one").await.unwrap_err().trouble(),
        Meaning::KeyUnavailable
    );
    remote.be(Mood::Yes);
    house.clock.move_by(2);
    house.open("one").await.unwrap();
}

#[tokio::test]
async fn an_outage_that_ends_within_the_grace_leaves_no_trace() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    remote.be(Mood::Silent);
    house.pass(3000).await;
    remote.be(Mood::Yes);
    house.pass(60).await;
    remote.be(Mood::Silent);
    house.pass(3000).await;
    assert!(house.is_open("one"), "the grace began anew");
}

#[tokio::test]
async fn a_no_during_an_outage_ends_it_at_once() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    remote.be(Mood::Silent);
    house.pass(600).await;
    remote.be(Mood::Disabled);
    house.pass(10).await;
    assert!(!house.is_open("one"));
    remote.be(Mood::Silent);
    house.clock.move_by(2);
    let error = house.open("one").await.unwrap_err();
    assert_eq!(
        error.trouble(),
        Meaning::KeyUnavailable,
        "who asks hears what there was"
    );
    let error = house.open("one").await.unwrap_err();
    assert_eq!(
        error.trouble(),
        Meaning::KeyRevoked,
        "silence lifts no denial"
    );
}

#[tokio::test]
async fn however_many_want_a_refused_key_it_is_asked_once_a_second() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    for tenant in ["one", "two", "three"] {
        house.create(tenant).await;
    }
    for mood in [Mood::Disabled, Mood::Silent] {
        remote.be(mood);
        house.table.0.lock().unwrap().clear();
        house.clock.move_by(1);
        let _before = remote.asked();
        for _again in 0..100 {
            for tenant in ["one", "two", "three"] {
                assert!(house.open(tenant).await.is_err());
            }
        }
        assert_eq!(remote.asked(), 1, "{mood:?}");
        house.clock.move_by(1);
        assert!(house.open("two").await.is_err());
        assert!(house.open("three").await.is_err());
        assert_eq!(remote.asked(), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn a_key_that_does_not_answer_is_asked_for_one_file_until_it_does() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    for number in 0..60 {
        house.create(&format!("t{number}")).await;
    }
    remote.be(Mood::Silent);
    house.pass(45).await;
    let _first = remote.asked();
    house.pass(60).await;
    let asked = remote.asked();
    assert!((5..=20).contains(&asked), "{asked} in a minute");
    remote.be(Mood::Yes);
    house.pass(10).await;
    assert_eq!(remote.asked(), 60, "all of them at once");
    assert_eq!(house.core.leases().troubles, []);
}

#[tokio::test]
async fn a_fault_while_renewing_closes_what_it_does_not_renew_and_goes_on() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.core.enforce();
    house.create("one").await;
    remote.be(Mood::Panics);
    house.pass(64).await;
    assert!(remote.asked() > 5, "it is tried again");
    assert!(house.is_open("one"));
    assert_eq!(house.standing("one"), LeaseStanding::Good);
    house.pass(2).await;
    assert!(!house.is_open("one"));
    remote.be(Mood::Yes);
    house.clock.move_by(2);
    house.open("one").await.unwrap();
    house.pass(120).await;
    assert!(house.is_open("one"));
}
