//! Jobs and crons of one tenant, by a clock that the test holds.

use proptest::prelude::*;

use super::*;
use crate::documents::schedule::{
    Cron, CronState, DueWork, JOB_HISTORY, Job, MAX_CRONS, MAX_JOBS, Origin, Ran,
};
use crate::tenants::conformance::jobs::{NOW, after, cron, every, numbered, ran, texts};
use crate::tenants::group_commit::Size;

/// Replaces the crons of a deploy, as a deploy does.
async fn deploy(tenants: &SqliteTenants, crons: Vec<Cron>, now_ms: i64) -> Result<(), StoreError> {
    let handle = tenants.0.open_handle(&id("acme")).await.unwrap();
    let work =
        move |writing: &mut Writing<'_, SqliteTransaction>| writing.replace_crons(&crons, now_ms);
    handle
        .writer()
        .run(Size::SMALL, work)
        .unwrap()
        .await
        .unwrap()
}

/// The engine fails at `{"n":1}`, as it would at what it has a fault with: an overflow is no
/// rejection by Nimbus.
const FAULT: &str =
    "CREATE TRIGGER fault BEFORE INSERT ON documents_1 WHEN json_extract(new.fields, '$.n') = 1
     BEGIN SELECT abs(-9223372036854775807 - 1); END";

#[tokio::test]
async fn work_at_which_the_engine_fails_waits_alone_until_it_is_given_up() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let first = store.schedule(after(0, numbered(0)), NOW).await.unwrap().id;
    let _ran = store.run_due(NOW, 10, None).await.unwrap();
    tenants.execute(&id("acme"), FAULT).await;
    let mut jobs = Vec::new();
    for n in [2, 1, 3] {
        jobs.push(store.schedule(after(0, numbered(n)), NOW).await.unwrap().id);
    }
    // What comes before it is done and stays so; what comes after it waits.
    assert_eq!(
        store.run_due(NOW, 10, None).await.unwrap(),
        ran(1, Some(NOW))
    );
    for give_up in [None, Some(DueWork::Job(first)), Some(DueWork::Job(jobs[2]))] {
        let error = store.run_due(NOW, 10, give_up).await.unwrap_err();
        let StoreError::Unrunnable { work, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*work, DueWork::Job(jobs[1]));
        assert!(error.to_string().contains("integer overflow"), "{error}");
        assert_eq!(store.jobs().await.unwrap().len(), 2);
    }
    let give_up = Some(DueWork::Job(jobs[1]));
    assert_eq!(
        store.run_due(NOW + 5, 10, give_up).await.unwrap(),
        ran(2, None)
    );
    let finished = store.job_history(jobs[1]).await.unwrap();
    let error = finished.outcome.error().unwrap();
    assert!(
        error.contains("given up") && !error.contains("integer overflow"),
        "{error}"
    );
    assert_eq!(
        texts(&store).await,
        [r#"{"n":0}"#, r#"{"n":2}"#, r#"{"n":3}"#]
    );
}

#[tokio::test]
async fn a_cron_at_which_the_engine_fails_is_given_up_for_this_run_alone() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let cron = cron("often", &every(60), &numbered(1));
    drop(store.put_cron(cron, NOW).await.unwrap());
    assert_eq!(store.run_due(NOW + 60_000, 10, None).await.unwrap().ran, 1);
    tenants.execute(&id("acme"), FAULT).await;
    let late = NOW + 120_000;
    let error = store.run_due(late, 10, None).await.unwrap_err();
    let StoreError::Unrunnable { work, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(
        store.run_due(late, 10, Some(work)).await.unwrap(),
        ran(1, Some(NOW + 180_000))
    );
    let [state] = &store.crons().await.unwrap()[..] else {
        panic!("one cron");
    };
    let last = state.last_run.clone().unwrap();
    assert!(last.outcome.error().unwrap().contains("given up"));
    // The next run is a new one.
    tenants.execute(&id("acme"), "DROP TRIGGER fault").await;
    assert_eq!(store.run_due(NOW + 180_000, 10, None).await.unwrap().ran, 1);
    assert_eq!(texts(&store).await, [r#"{"n":1}"#, r#"{"n":1}"#]);
}

#[tokio::test]
async fn limits_are_exact() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let mut waiting = JoinSet::new();
    for n in 0..=MAX_JOBS {
        let store = Arc::clone(&store);
        let job = after(n as u64 % 7, numbered(n));
        let _handle = waiting.spawn(async move {
            while let Err(error) = store.schedule(job.clone(), NOW).await {
                match error {
                    StoreError::Busy { .. } => tokio::task::yield_now().await,
                    StoreError::TooManyJobs => return 1,
                    error => panic!("{error}"),
                }
            }
            0
        });
    }
    let refused: u32 = waiting.join_all().await.into_iter().sum();
    assert_eq!(refused, 1);
    // The history keeps the last ones.
    let listed = store.jobs().await.unwrap();
    let first = listed[0].id;
    let mut left = MAX_JOBS;
    while left > 0 {
        let Ran { ran, .. } = store.run_due(NOW + 7, 500, None).await.unwrap();
        assert!(ran > 0 && ran <= 500);
        left -= ran;
    }
    assert!(matches!(
        store.job_history(first).await,
        Err(StoreError::JobNotFound { .. })
    ));
    let count = |sql: &'static str| async {
        let connection = house.connection("acme").await;
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(
        count("SELECT count(*) FROM nimbus_job_history").await,
        JOB_HISTORY as i64
    );

    for n in 0..MAX_CRONS {
        let cron = cron(&format!("c{n}"), &every(60), &numbered(n));
        let _state = store.put_cron(cron, NOW).await.unwrap();
    }
    let more = cron("more", &every(60), &numbered(0));
    assert!(matches!(
        store.put_cron(more, NOW).await,
        Err(StoreError::TooManyCrons)
    ));
    let there = cron("c7", &every(61), &numbered(0));
    assert!(store.put_cron(there, NOW).await.is_ok());
}

#[tokio::test]
async fn a_deploy_owns_its_crons_and_no_others() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let own = store
        .put_cron(cron("own", &every(60), &numbered(0)), NOW)
        .await
        .unwrap();
    let (a, b) = (
        cron("a", &every(60), &numbered(1)),
        cron("b", &every(60), &numbered(2)),
    );
    deploy(&tenants, vec![a.clone(), b.clone()], NOW)
        .await
        .unwrap();
    let names = |crons: Vec<CronState>| -> Vec<(String, Origin)> {
        let crons = crons.into_iter();
        crons
            .map(|state| (state.cron.name.to_string(), state.origin))
            .collect()
    };
    let all = store.crons().await.unwrap();
    let expected = [
        ("a", Origin::Deploy),
        ("b", Origin::Deploy),
        ("own", Origin::Api),
    ];
    assert_eq!(
        names(all.clone()),
        expected.map(|(name, origin)| (name.to_owned(), origin))
    );

    // What stays keeps its beat, what is new begins, what is left out is gone.
    let c = cron("c", &every(60), &numbered(3));
    deploy(&tenants, vec![b.clone(), c], NOW + 30_000)
        .await
        .unwrap();
    let crons = store.crons().await.unwrap();
    let dues: Vec<_> = crons
        .iter()
        .map(|state| (state.cron.name.as_str(), state.next_due_ms))
        .collect();
    assert_eq!(
        dues,
        [
            ("b", NOW + 60_000),
            ("c", NOW + 90_000),
            ("own", NOW + 60_000)
        ]
    );

    // Neither touches the other's.
    let taken = deploy(&tenants, vec![cron("own", &every(5), &numbered(1))], NOW).await;
    assert!(
        matches!(
            taken,
            Err(StoreError::CronOwned {
                origin: Origin::Api,
                ..
            })
        ),
        "{taken:?}"
    );
    assert_eq!(store.crons().await.unwrap(), crons, "all or nothing");
    let taken = store.put_cron(b, NOW).await;
    assert!(matches!(
        taken,
        Err(StoreError::CronOwned {
            origin: Origin::Deploy,
            ..
        })
    ));
    let taken = store.delete_cron("c".parse().unwrap()).await;
    assert!(matches!(taken, Err(StoreError::CronOwned { .. })));
    deploy(&tenants, Vec::new(), NOW).await.unwrap();
    assert_eq!(store.crons().await.unwrap(), [own]);
}

/// What the model says of jobs and crons: the order in which they run.
fn model(jobs: &[(u64, usize)]) -> Vec<usize> {
    let mut order = jobs.to_vec();
    // A stable sort: ties as they were scheduled.
    order.sort_by_key(|(delay, _)| *delay);
    order.into_iter().map(|(_, n)| n).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn jobs_run_in_the_order_of_their_time(
        delays in prop::collection::vec(0u64..20, 1..60),
        limits in prop::collection::vec(1usize..9, 1..20),
    ) {
        let jobs: Vec<(u64, usize)> = delays.into_iter().zip(0..).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (run, finished) = runtime.block_on(async {
            let house = House::new(Envelope::plaintext());
            let (_tenants, store) = acme(&house).await;
            let mut scheduled: Vec<Job> = Vec::new();
            for (delay, n) in &jobs {
                scheduled.push(store.schedule(after(*delay, numbered(*n)), NOW).await.unwrap());
            }
            let listed = store.jobs().await.unwrap();
            assert!(listed.is_sorted_by_key(|job| (job.run_at_ms, job.id)));
            // Time passes in steps, each with a limit of its own; then to the end.
            for (step, limit) in limits.iter().enumerate() {
                let now = NOW + step as i64;
                let Ran { ran, next_due_ms } = store.run_due(now, *limit, None).await.unwrap();
                assert!(ran <= *limit);
                assert!(ran == *limit || next_due_ms.is_none_or(|due| due > now));
            }
            while store.run_due(NOW + 20, 7, None).await.unwrap().ran > 0 {}
            let mut finished = 0;
            for job in scheduled {
                let _done = store.job_history(job.id).await.unwrap();
                finished += 1;
            }
            (texts(&store).await, finished)
        });
        prop_assert_eq!(finished, jobs.len());
        let expected: Vec<String> = model(&jobs).into_iter().map(|n| format!(r#"{{"n":{n}}}"#)).collect();
        prop_assert_eq!(run, expected);
    }
}
