//! Jobs and crons of one tenant, by a clock that the test holds.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Fixture, Noted, acme, add, bodies, fields, id, insert, table};
use crate::documents::schedule::{Cron, JobId, LastRun, NewJob, Origin, Outcome, Ran};
use crate::documents::{DocumentId, InputError, Mutation};
use crate::tenants::full_list::FullList as _;
use crate::tenants::{StoreError, TenantProvider as _, TenantStore};

/// When the tests begin: 2027-01-15, 08:00 UTC.
pub(in crate::tenants) const NOW: i64 = 1_800_000_000_000;

pub(in crate::tenants) const HOUR: i64 = 3_600_000;

pub(in crate::tenants) fn after(ms: u64, mutation: Mutation) -> NewJob {
    let delay = Duration::from_millis(ms);
    NewJob { delay, mutation }
}

pub(in crate::tenants) fn numbered(n: usize) -> Mutation {
    insert(&format!(r#"{{"n":{n}}}"#))
}

pub(in crate::tenants) fn impossible() -> Mutation {
    let (table, id) = (table("t"), DocumentId::generate());
    Mutation::Delete {
        table,
        id,
        if_version: None,
    }
}

pub(in crate::tenants) fn cron(name: &str, schedule: &str, mutation: &Mutation) -> Cron {
    let mutation = mutation.to_json();
    let json = format!(r#"{{"name":"{name}","schedule":{schedule},"mutation":{mutation}}}"#);
    Cron::from_json(&json).unwrap()
}

pub(in crate::tenants) fn every(seconds: u64) -> String {
    format!(r#"{{"type":"interval","seconds":{seconds}}}"#)
}

/// Everything that is in the table, in the order in which it was put there.
pub(in crate::tenants) async fn texts(store: &Arc<dyn TenantStore>) -> Vec<String> {
    let documents = store.list(&table("t"), usize::MAX).await.unwrap();
    bodies(&documents).into_iter().map(str::to_owned).collect()
}

pub(in crate::tenants) fn ran(ran: usize, next_due_ms: Option<i64>) -> Ran {
    Ran { ran, next_due_ms }
}

pub(in crate::tenants) async fn a_job_runs_when_it_is_due_and_not_before_and_once<F: Fixture>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    let job = store.schedule(after(1000, numbered(1)), NOW).await.unwrap();
    assert_eq!(job.run_at_ms, NOW + 1000);
    assert_eq!(house.due().take(), [Noted::Expect(id("acme"), NOW + 1000)]);
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

pub(in crate::tenants) async fn a_job_that_cannot_be_done_has_failed_alone<F: Fixture>() {
    let house = F::empty();
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

pub(in crate::tenants) async fn cancelling_tells_what_waits_from_what_ran_and_what_never_was<
    F: Fixture,
>() {
    let house = F::empty();
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

pub(in crate::tenants) async fn a_cron_runs_again_and_again_and_says_how_it_went<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let tick = cron("tick", &every(60), &numbered(1));
    let state = store.put_cron(tick.clone(), NOW).await.unwrap();
    assert_eq!(
        (state.next_due_ms, state.origin),
        (NOW + 60_000, Origin::Api)
    );
    assert_eq!(
        house.due().take(),
        [Noted::Expect(id("acme"), NOW + 60_000)]
    );
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

pub(in crate::tenants) async fn a_cron_that_missed_its_times_runs_once_and_goes_on<F: Fixture>() {
    let house = F::empty();
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

pub(in crate::tenants) async fn a_clock_that_is_set_back_a_little_repeats_nothing_and_one_set_back_far_starts_again<
    F: Fixture,
>() {
    let house = F::empty();
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

pub(in crate::tenants) async fn nothing_is_scheduled_that_nobody_would_be_told_of<F: Fixture>() {
    let house = F::empty();
    let (tenants, store) = acme(&house).await;
    house.due().failing.store(true, Ordering::SeqCst);
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
    house.due().failing.store(false, Ordering::SeqCst);

    store.schedule(after(0, numbered(1)), NOW).await.unwrap();
    let _noted = house.due().take();
    tenants.close().await.unwrap();
    let tenants = house.open().await;
    assert_eq!(house.due().take(), [], "a start opens nothing");
    let _store = tenants.open(&id("acme")).await.unwrap();
    assert_eq!(house.due().take(), [Noted::Found(id("acme"), NOW)]);
    tenants.delete_tenant(&id("acme")).await.unwrap();
    assert_eq!(house.due().take(), [Noted::Forget(id("acme"))]);
}

pub(in crate::tenants) async fn an_interval_that_ends_after_time_itself_is_refused<F: Fixture>() {
    let house = F::empty();
    let (_tenants, store) = acme(&house).await;
    let refused = store
        .put_cron(cron("c", &every(60), &numbered(1)), i64::MAX - 5)
        .await;
    assert!(matches!(
        refused,
        Err(StoreError::Input(InputError::Cron { .. }))
    ));
}
