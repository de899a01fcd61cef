//! Jobs and crons of one tenant, by a clock that the test holds.

use proptest::prelude::*;

use super::*;
use crate::documents::InputError;
use crate::documents::schedule::{
    Cron, CronState, DueWork, JOB_HISTORY, Job, JobId, LastRun, MAX_CRONS, MAX_JOBS, NewJob,
    Origin, Outcome, Ran,
};
use crate::tenants::sqlite::writer::Size;

/// When the tests begin: 2027-01-15, 08:00 UTC.
const NOW: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;

async fn acme(house: &House) -> (SqliteTenants, Arc<dyn TenantStore>) {
    let tenants = house.open().await;
    tenants.create_tenant(&id("acme")).await.unwrap();
    let store = tenants.open(&id("acme")).await.unwrap();
    (tenants, store)
}

fn after(ms: u64, mutation: Mutation) -> NewJob {
    let delay = Duration::from_millis(ms);
    NewJob { delay, mutation }
}

fn numbered(n: usize) -> Mutation {
    insert(&format!(r#"{{"n":{n}}}"#))
}

fn impossible() -> Mutation {
    let (table, id) = (table("t"), DocumentId::generate());
    Mutation::Delete {
        table,
        id,
        if_version: None,
    }
}

fn cron(name: &str, schedule: &str, mutation: &Mutation) -> Cron {
    let mutation = mutation.to_json();
    let json = format!(r#"{{"name":"{name}","schedule":{schedule},"mutation":{mutation}}}"#);
    Cron::from_json(&json).unwrap()
}

fn every(seconds: u64) -> String {
    format!(r#"{{"type":"interval","seconds":{seconds}}}"#)
}

/// Everything that is in the table, in the order in which it was put there.
async fn texts(store: &Arc<dyn TenantStore>) -> Vec<String> {
    let documents = store.list(&table("t"), usize::MAX).await.unwrap();
    bodies(&documents).into_iter().map(str::to_owned).collect()
}

fn ran(ran: usize, next_due_ms: Option<i64>) -> Ran {
    Ran { ran, next_due_ms }
}

/// Replaces the crons of a deploy, as a deploy does.
async fn deploy(tenants: &SqliteTenants, crons: Vec<Cron>, now_ms: i64) -> Result<(), StoreError> {
    let opener = tenants.0.opener(&id("acme"), Intent::Open);
    let lease = tenants.0.registry.lease(&id("acme"), opener).await.unwrap();
    let work =
        move |writing: &mut super::super::apply::Writing<'_>| writing.replace_crons(&crons, now_ms);
    lease
        .writer()
        .run(Size::SMALL, work)
        .unwrap()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_job_runs_when_it_is_due_and_not_before_and_once() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    let job = store.schedule(after(1000, numbered(1)), NOW).await.unwrap();
    assert_eq!(job.run_at_ms, NOW + 1000);
    assert_eq!(house.due.told(), [Told::Expect(id("acme"), NOW + 1000)]);
    assert_eq!(store.jobs().await.unwrap(), std::slice::from_ref(&job));
    assert!(matches!(
        store.job_history(job.id).await,
        Err(StoreError::JobNotFound { .. })
    ));

    assert_eq!(
        store.run_due(NOW + 999, 10, None).await.unwrap(),
        ran(0, Some(NOW + 1000))
    );
    assert_eq!(texts(&store).await, [""; 0]);
    assert_eq!(
        store.run_due(NOW + 1000, 10, None).await.unwrap(),
        ran(1, None)
    );
    assert_eq!(
        store.run_due(NOW + 2000, 10, None).await.unwrap(),
        ran(0, None)
    );
    assert_eq!(texts(&store).await, [r#"{"n":1}"#]);
    assert_eq!(store.jobs().await.unwrap(), []);

    // All of it outlives a restart, and the effect is in the journal like any other write.
    tenants.close().await.unwrap();
    let store = house.open().await.open(&id("acme")).await.unwrap();
    let finished = store.job_history(job.id).await.unwrap();
    assert_eq!((&finished.job, finished.finished_at_ms), (&job, NOW + 1000));
    assert_eq!(finished.outcome, Outcome::Succeeded);
    assert_eq!(store.journal(None, 10).await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn a_job_that_cannot_be_done_has_failed_alone() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let taken = DocumentId::generate();
    let chosen = Mutation::Insert {
        table: table("t"),
        fields: fields("{}"),
        id: Some(taken),
    };
    let mut jobs = Vec::new();
    for mutation in [
        numbered(1),
        impossible(),
        chosen.clone(),
        chosen,
        numbered(2),
    ] {
        jobs.push(store.schedule(after(0, mutation), NOW).await.unwrap().id);
    }
    assert_eq!(store.run_due(NOW, 10, None).await.unwrap(), ran(5, None));
    assert_eq!(texts(&store).await, [r#"{"n":1}"#, "{}", r#"{"n":2}"#]);
    let mut errors = Vec::new();
    for job in &jobs {
        let finished = store.job_history(*job).await.unwrap();
        errors.push(finished.outcome.error().unwrap_or_default().to_owned());
    }
    assert!(errors[1].contains("there is no document"), "{errors:?}");
    assert!(errors[3].contains(&taken.to_string()), "{errors:?}");
    assert_eq!([&errors[0], &errors[2], &errors[4]], ["", "", ""]);
    // What was undone left no number behind.
    assert_eq!(store.journal(None, 10).await.unwrap().latest, 3);
}

/// The engine fails at `{"n":1}`, as it would at what it has a fault with: an overflow is no refusal of ours.
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
async fn cancelling_tells_what_waits_from_what_ran_and_what_never_was() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let cancelled = store.schedule(after(0, numbered(1)), NOW).await.unwrap().id;
    let other = store.schedule(after(0, numbered(2)), NOW).await.unwrap().id;
    store.cancel_job(cancelled).await.unwrap();
    assert_eq!(store.run_due(NOW, 10, None).await.unwrap().ran, 1);
    assert_eq!(texts(&store).await, [r#"{"n":2}"#]);
    for (job, ran) in [
        (cancelled, false),
        (other, true),
        (JobId::generate(), false),
    ] {
        let error = store.cancel_job(job).await.unwrap_err();
        assert_eq!(matches!(error, StoreError::JobRan { .. }), ran, "{error}");
        assert_eq!(
            matches!(error, StoreError::JobNotFound { .. }),
            !ran,
            "{error}"
        );
    }
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
async fn a_cron_runs_again_and_again_and_says_how_it_went() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let tick = cron("tick", &every(60), &numbered(1));
    let state = store.put_cron(tick.clone(), NOW).await.unwrap();
    assert_eq!(
        (state.next_due_ms, state.origin),
        (NOW + 60_000, Origin::Api)
    );
    assert_eq!(house.due.told(), [Told::Expect(id("acme"), NOW + 60_000)]);
    assert_eq!(store.crons().await.unwrap(), [state]);
    for n in 1..=3 {
        let at = NOW + n * 60_000;
        assert_eq!(
            store.run_due(at + 5, 10, None).await.unwrap(),
            ran(1, Some(at + 60_000))
        );
    }
    assert_eq!(texts(&store).await.len(), 3);
    let fails = cron("tick", &every(60), &impossible());
    let state = store.put_cron(fails, NOW + 200_000).await.unwrap();
    assert_eq!(
        state.next_due_ms,
        NOW + 240_000,
        "the same schedule keeps its beat"
    );
    assert_eq!(store.run_due(NOW + 240_000, 10, None).await.unwrap().ran, 1);
    let last_run = store.crons().await.unwrap()[0].last_run.clone().unwrap();
    let LastRun {
        run_at_ms,
        finished_at_ms,
        outcome,
    } = last_run;
    assert_eq!((run_at_ms, finished_at_ms), (NOW + 240_000, NOW + 240_000));
    assert!(outcome.error().unwrap().contains("there is no document"));

    let other = store
        .put_cron(cron("tick", &every(10), &numbered(2)), NOW)
        .await
        .unwrap();
    assert_eq!((other.next_due_ms, other.last_run), (NOW + 10_000, None));
    store.delete_cron("tick".parse().unwrap()).await.unwrap();
    assert_eq!(
        store.run_due(NOW + HOUR, 10, None).await.unwrap(),
        ran(0, None)
    );
    let gone = store.delete_cron("tick".parse().unwrap()).await;
    assert!(matches!(gone, Err(StoreError::CronNotFound { .. })));
}

#[tokio::test]
async fn a_cron_that_missed_its_times_runs_once_and_goes_on() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let daily = r#"{"type":"cron","expression":"0 9 * * *","timezone":"UTC"}"#;
    let _state = store
        .put_cron(cron("daily", daily, &numbered(1)), NOW)
        .await
        .unwrap();
    let _state = store
        .put_cron(cron("tick", &every(60), &numbered(2)), NOW)
        .await
        .unwrap();
    // Down from 08:00 to 20:00 three days later.
    let later = NOW + (3 * 24 + 12) * HOUR;
    assert_eq!(
        store.run_due(later, 10, None).await.unwrap(),
        ran(2, Some(later + 60_000))
    );
    assert_eq!(texts(&store).await, [r#"{"n":2}"#, r#"{"n":1}"#]);
    let crons = store.crons().await.unwrap();
    assert_eq!(crons[0].next_due_ms, NOW + (4 * 24 + 1) * HOUR);
    assert_eq!(crons[0].last_run.as_ref().unwrap().run_at_ms, NOW + HOUR);
}

#[tokio::test]
async fn a_clock_that_is_set_back_a_little_repeats_nothing_and_one_set_back_far_starts_again() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let daily = r#"{"type":"cron","expression":"0 9 * * *","timezone":"UTC"}"#;
    let _state = store
        .put_cron(cron("daily", daily, &numbered(1)), NOW)
        .await
        .unwrap();
    let nine = NOW + HOUR;
    assert_eq!(
        store.run_due(nine, 10, None).await.unwrap(),
        ran(1, Some(nine + 24 * HOUR))
    );
    // By a minute, then nine o'clock comes again.
    assert_eq!(store.run_due(nine - 60_000, 10, None).await.unwrap().ran, 0);
    assert_eq!(
        store.run_due(nine, 10, None).await.unwrap(),
        ran(0, Some(nine + 24 * HOUR))
    );
    // The clock was a year ahead for a while.
    let ahead = nine + 365 * 24 * HOUR;
    assert_eq!(
        store.run_due(ahead, 10, None).await.unwrap(),
        ran(1, Some(ahead + 24 * HOUR))
    );
    let back = nine + HOUR;
    assert_eq!(
        store.run_due(back, 10, None).await.unwrap(),
        ran(0, Some(nine + 24 * HOUR))
    );
    assert_eq!(
        store.run_due(nine + 24 * HOUR, 10, None).await.unwrap().ran,
        1
    );
    // A job is for a time of its own, which a wrong clock does not change.
    let job = store
        .schedule(after(1000, numbered(2)), ahead)
        .await
        .unwrap();
    assert_eq!(
        store.run_due(nine + 25 * HOUR, 10, None).await.unwrap().ran,
        0
    );
    assert_eq!(store.jobs().await.unwrap(), [job]);
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

#[tokio::test]
async fn nothing_is_scheduled_that_nobody_would_be_told_of() {
    let house = House::new(encryption());
    let (tenants, store) = acme(&house).await;
    house.due.failing.store(true, Ordering::SeqCst);
    let refused = store.schedule(after(0, numbered(1)), NOW).await;
    assert!(
        matches!(refused, Err(StoreError::Control { .. })),
        "{refused:?}"
    );
    let refused = store
        .put_cron(cron("c", &every(1), &numbered(1)), NOW)
        .await;
    assert!(
        matches!(refused, Err(StoreError::Control { .. })),
        "{refused:?}"
    );
    // Others in the same commit are not harmed, and nothing is left of it.
    let _id = add(&store, "{}").await;
    assert_eq!(
        store.run_due(NOW + HOUR, 10, None).await.unwrap(),
        ran(0, None)
    );
    house.due.failing.store(false, Ordering::SeqCst);

    let _job = store.schedule(after(0, numbered(1)), NOW).await.unwrap();
    let _told = house.due.told();
    tenants.close().await.unwrap();
    let tenants = house.open().await;
    assert_eq!(house.due.told(), [], "a start opens nothing");
    let _store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(house.due.told(), [Told::Found(id("acme"), NOW)]);
    tenants.delete_tenant(&id("acme")).await.unwrap();
    assert_eq!(house.due.told(), [Told::Forget(id("acme"))]);
}

#[tokio::test]
async fn an_interval_that_ends_after_time_itself_is_refused() {
    let house = House::new(encryption());
    let (_tenants, store) = acme(&house).await;
    let refused = store
        .put_cron(cron("c", &every(60), &numbered(1)), i64::MAX - 5)
        .await;
    assert!(matches!(
        refused,
        Err(StoreError::Input(InputError::Cron { .. }))
    ));
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
