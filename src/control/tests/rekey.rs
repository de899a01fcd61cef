//! New data keys of the control file, and what a crash or a failure leaves of them.

use super::*;

/// Under a new data key, whatever happens to its opening after that.
#[tokio::test(flavor = "multi_thread")]
async fn goes_on_under_its_new_key_when_it_could_not_be_opened_again_at_once() {
    let _turn = fail::FailScenario::setup();
    let house = House::new();
    let _path = house.filled().await;
    let control = Arc::new(house.open().await.unwrap());
    fail::cfg("control::open-again", "1*return->off").unwrap();
    control.rotate_dek(&house.envelope).await.unwrap();
    let tenant: TenantId = "t1".parse().unwrap();
    let keeper = Arc::clone(&control);
    blocking(move || keeper.lock_tenant(&tenant).unwrap()).await;
    drop(control);
    let control = house.open().await.unwrap();
    assert_eq!(control.locked_tenants().unwrap().len(), 1);
}

/// As when it is not known whether the swap happened: the file is under the next key, its manifest
/// has both, and the key was let go.
#[tokio::test(flavor = "multi_thread")]
async fn finds_out_which_key_it_has_when_the_end_of_a_rekey_was_not_written() {
    let house = House::new();
    let path = house.filled().await;
    let control = Arc::new(house.open().await.unwrap());
    let prepared = house
        .envelope
        .prepare(&path, &subject(), Cipher::Blocks1, Intent::Open)
        .await
        .unwrap();
    let Prepared::Keyed(file) = prepared else {
        panic!("it is encrypted")
    };
    let file = house.envelope.begin_rekey(file).await.unwrap();
    let (keeper, next) = (Arc::clone(&control), file.share());
    blocking(move || {
        let mut open = keeper.changing();
        open.database = None;
        open.key = Key::Withheld;
        swap_to_next_key(&next, None).unwrap();
    })
    .await;
    let keeper = Arc::clone(&control);
    assert_eq!(blocking(move || keeper.locked_tenants()).await.unwrap(), []);
    let (_, sealer) = control.audit_sealer().unwrap();
    assert_eq!(sealer, file.manifest().deks()[1].id);
}

/// The line would be under a key that the next opening of the log does not have.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_data_key_waits_for_the_head_of_a_line_and_writes_one_that_was_not_written() {
    let house = House::new();
    let _path = house.filled().await;
    let control = Arc::new(house.open().await.unwrap());
    let before = control.audit_sealer().unwrap().1;
    let head = AuditHead {
        seq: 7,
        hash: [7; 32],
    };
    let rotating = {
        let mut unsettled = control.chaining();
        *unsettled = Some(head);
        let (control, envelope) = (Arc::clone(&control), house.envelope.clone());
        let rotating = tokio::spawn(async move { control.rotate_dek(&envelope).await });
        // Time enough for it to be done.
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!rotating.is_finished());
        rotating
    };
    rotating.await.unwrap().unwrap();
    assert_ne!(control.audit_sealer().unwrap().1, before);
    assert_eq!(control.audit_head().unwrap(), head);
}
