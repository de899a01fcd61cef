//! The scheduler over real tenants, by a clock that the test holds.

mod due_index;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use async_trait::async_trait;
use nimbus_keyproviders::MemoryProvider;
use tempfile::TempDir;

use super::*;
use crate::control::Control;
use crate::documents::schedule::{Cron, CronState, Job, NewJob, Outcome};
use crate::documents::{Fields, Mutation, TableName};
use crate::envelope::{Envelope, KeyRing, manifest_path};
use crate::tenants::TenantStore;
use crate::tenants::copy::{Arriving, Leaving};
use crate::tenants::full_list::FullList as _;
use crate::tenants::sqlite::{SqliteOptions, SqliteTenants};

/// When the tests begin: 2027-01-15, 08:00 UTC.
pub(super) const NOW: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

#[derive(Debug)]
pub(super) struct TestClock(AtomicI64);

impl TestClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(NOW)))
    }

    pub(super) fn set(&self, now_ms: i64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A data directory and a clock, which outlive the servers on them.
struct House {
    dir: TempDir,
    envelope: Envelope,
    clock: Arc<TestClock>,
}

/// One server.
struct Open {
    control: Arc<Control>,
    tenants: Arc<SqliteTenants>,
    due_index: Arc<DueIndex>,
    scheduler: Scheduler,
    clock: Arc<TestClock>,
}

impl House {
    fn new() -> Self {
        let key = Arc::new(MemoryProvider::random().unwrap());
        Self {
            dir: tempfile::tempdir().unwrap(),
            envelope: Envelope::new(KeyRing::new(key, Vec::new(), Vec::new())),
            clock: TestClock::new(),
        }
    }

    async fn open(&self, max_open_tenants: usize) -> Open {
        let control = Control::open(&self.envelope, self.dir.path()).await;
        let control = Arc::new(control.unwrap());
        let due_index = DueIndex::load(control.clone(), self.clock.clone()).unwrap();
        let due_index = Arc::new(due_index);
        let options = SqliteOptions {
            max_open_tenants,
            due: due_index.clone(),
            ..SqliteOptions::default()
        };
        let (envelope, dir) = (self.envelope.clone(), self.dir.path().to_owned());
        let tenants = SqliteTenants::open(envelope, control.clone(), dir, options).await;
        let tenants = Arc::new(tenants.unwrap());
        let scheduler = Scheduler::start(tenants.clone(), due_index.clone(), self.clock.clone());
        Open {
            control,
            tenants,
            due_index,
            scheduler,
            clock: self.clock.clone(),
        }
    }

    fn file(&self, tenant: &str) -> PathBuf {
        self.dir.path().join(format!("{tenant}.sqlite3"))
    }
}

impl Open {
    async fn create(&self, tenant: &str) -> Arc<dyn TenantStore> {
        self.tenants.create_tenant(&id(tenant)).await.unwrap();
        self.store(tenant).await
    }

    async fn store(&self, tenant: &str) -> Arc<dyn TenantStore> {
        self.tenants.open(&id(tenant)).await.unwrap()
    }

    async fn schedule(&self, tenant: &str, after_ms: u64, n: i64) -> Job {
        let job = NewJob {
            delay: Duration::from_millis(after_ms),
            mutation: numbered(n),
        };
        let store = self.store(tenant).await;
        store.schedule(job, self.clock.now_ms()).await.unwrap()
    }

    /// Sets the clock, and waits until all that is due by then was run, or was tried.
    async fn at(&self, now_ms: i64) {
        self.clock.set(now_ms);
        self.due_index.wake();
        // The scheduler may be about to begin.
        self.quiet().await;
    }

    async fn quiet(&self) {
        until(|| self.due_index.is_quiet(self.clock.now_ms())).await;
    }

    async fn numbers(&self, tenant: &str) -> Vec<i64> {
        let store = self.store(tenant).await;
        let documents = store.list(&table(), usize::MAX).await.unwrap();
        let number = |json: &str| -> i64 {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            value["n"].as_i64().unwrap()
        };
        documents
            .iter()
            .map(|document| number(document.fields.as_json()))
            .collect()
    }

    /// Ends as a server does.
    async fn stop(self) {
        self.scheduler.stop().await;
        self.tenants.close().await.unwrap();
    }

    /// Ends as a server that is killed: the control file is left as it is.
    async fn crash(self) {
        if let Some(task) = self.scheduler.task.lock().await.take() {
            task.abort().await;
        }
        self.tenants.close().await.unwrap();
    }
}

async fn until(condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.expect("it comes about");
}

pub(super) fn id(tenant: &str) -> TenantId {
    tenant.parse().unwrap()
}

fn table() -> TableName {
    "t".parse().unwrap()
}

fn numbered(n: i64) -> Mutation {
    Mutation::Insert {
        table: table(),
        fields: Fields::from_json(&format!(r#"{{"n":{n}}}"#)).unwrap(),
        id: None,
    }
}

fn cron(name: &str, schedule: &str, n: i64) -> Cron {
    let mutation = numbered(n).to_json();
    let json = format!(r#"{{"name":"{name}","schedule":{schedule},"mutation":{mutation}}}"#);
    Cron::from_json(&json).unwrap()
}

fn daily_at_nine() -> &'static str {
    r#"{"type":"cron","expression":"0 9 * * *","timezone":"UTC"}"#
}

#[tokio::test]
async fn a_tenant_that_was_closed_is_opened_for_its_work_and_let_go_again() {
    let house = House::new();
    let open = house.open(1).await;
    drop(open.create("a").await);
    let job = open.schedule("a", 5000, 1).await;
    // One may be open: this one now, and `a` is closed for it.
    drop(open.create("b").await);
    open.at(NOW + 4999).await;
    let waiting = open.store("a").await.jobs().await.unwrap();
    assert_eq!(waiting, std::slice::from_ref(&job));
    drop(open.store("b").await);
    open.at(NOW + 5000).await;
    // Were it held, `b` could not be opened.
    drop(open.store("b").await);
    assert_eq!(open.numbers("a").await, [1]);
    let finished = open.store("a").await.job_history(job.id).await.unwrap();
    assert_eq!(finished.outcome, Outcome::Succeeded);
    assert_eq!(finished.finished_at_ms, NOW + 5000);
    open.stop().await;
}

#[tokio::test]
async fn what_was_scheduled_runs_after_a_restart_though_nobody_asks_for_the_tenant() {
    for crash in [false, true] {
        let house = House::new();
        let open = house.open(8).await;
        for tenant in ["a", "b", "c"] {
            drop(open.create(tenant).await);
        }
        let _later = open.schedule("a", 2 * HOUR as u64, 2).await;
        let _sooner = open.schedule("a", HOUR as u64, 1).await;
        let _tick = open
            .store("b")
            .await
            .put_cron(cron("tick", daily_at_nine(), 7), NOW)
            .await;
        if crash {
            open.crash().await;
        } else {
            open.stop().await;
        }
        // Over the days that it is down, a cron comes up more than once.
        house.clock.set(NOW + 3 * DAY);
        let open = house.open(8).await;
        open.quiet().await;
        assert_eq!(open.numbers("a").await, [1, 2]);
        assert_eq!(open.numbers("b").await, [7], "once for what was missed");
        let CronState { next_due_ms, .. } = open.store("b").await.crons().await.unwrap()[0].clone();
        assert_eq!(next_due_ms, NOW + 3 * DAY + HOUR);
        open.at(next_due_ms).await;
        assert_eq!(open.numbers("b").await, [7, 7]);
        open.stop().await;
        // Nothing is left to be looked at but the cron, and nothing runs twice.
        let open = house.open(8).await;
        let entries = open.control.due().unwrap().entries;
        assert_eq!(entries, [(id("b"), NOW + 4 * DAY + HOUR)]);
        open.quiet().await;
        assert_eq!(open.numbers("a").await, [1, 2]);
        open.stop().await;
    }
}

#[tokio::test]
async fn an_announcement_without_its_work_costs_one_look() {
    let house = House::new();
    let open = house.open(8).await;
    drop(open.create("a").await);
    // Killed between the control file and the tenant's.
    crate::tenants::DueLog::expect(&*open.due_index, &id("a"), NOW + 1000).unwrap();
    open.crash().await;
    house.clock.set(NOW + HOUR);
    let open = house.open(8).await;
    open.quiet().await;
    assert_eq!(open.numbers("a").await, [0; 0]);
    open.stop().await;
    let open = house.open(8).await;
    assert_eq!(open.control.due().unwrap().entries, []);
    open.stop().await;
}

#[tokio::test]
async fn a_flood_runs_in_order_while_others_have_their_turn() {
    let house = House::new();
    let open = house.open(8).await;
    let (flooded, other) = (open.create("flooded").await, open.create("other").await);
    const FLOOD: i64 = 2500;
    for n in 0..FLOOD {
        let job = NewJob {
            delay: Duration::from_secs(1),
            mutation: numbered(n),
        };
        let _job = flooded.schedule(job, NOW).await.unwrap();
    }
    let _job = open.schedule("other", 1000, 1).await;
    open.clock.set(NOW + 1000);
    open.due_index.wake();
    // A write of the flooded tenant is answered before the flood is over, or after; it does come
    // through.
    let written = flooded.apply(numbered(-1)).await.unwrap();
    open.quiet().await;
    assert_eq!(other.list(&table(), 10).await.unwrap().len(), 1);
    let journal = flooded.journal(None, 1000).await.unwrap();
    assert_eq!(journal.latest, FLOOD + 1);
    let ran: Vec<i64> = open.numbers("flooded").await;
    assert_eq!(ran.len() as i64, FLOOD + 1);
    let in_order: Vec<i64> = ran.iter().copied().filter(|n| *n >= 0).collect();
    assert!(in_order.is_sorted() && in_order[0] == 0);
    let _document = flooded.get(&table(), written.id()).await.unwrap();
    drop((flooded, other));
    open.stop().await;
}

#[tokio::test]
async fn a_tenant_that_does_not_open_blocks_nobody_and_catches_up_when_it_does() {
    let house = House::new();
    let open = house.open(2).await;
    let healthy: Vec<String> = (0..6).map(|n| format!("healthy{n}")).collect();
    for tenant in ["sick1", "sick2", "sick3"]
        .into_iter()
        .chain(healthy.iter().map(String::as_str))
    {
        drop(open.create(tenant).await);
        let _job = open.schedule(tenant, 1000, 1).await;
        let _job = open.schedule(tenant, 60_000, 2).await;
    }
    // Their keys are gone.
    let hidden = |tenant: &str| house.dir.path().join(format!("hidden-{tenant}"));
    for tenant in ["sick1", "sick2", "sick3"] {
        open.tenants
            .open(&id(tenant))
            .await
            .unwrap()
            .close()
            .await
            .unwrap();
        std::fs::rename(manifest_path(&house.file(tenant)), hidden(tenant)).unwrap();
    }
    open.at(NOW + 1000).await;
    for tenant in &healthy {
        assert_eq!(open.numbers(tenant).await, [1], "{tenant}");
    }
    // Again and again, later and later.
    open.at(NOW + 60_000).await;
    for tenant in &healthy {
        assert_eq!(open.numbers(tenant).await, [1, 2], "{tenant}");
    }
    for tenant in ["sick1", "sick2", "sick3"] {
        std::fs::rename(hidden(tenant), manifest_path(&house.file(tenant))).unwrap();
    }
    open.at(NOW + 60_000 + 5 * 60_000).await;
    for tenant in ["sick1", "sick2", "sick3"] {
        assert_eq!(open.numbers(tenant).await, [1, 2], "{tenant}");
    }
    open.stop().await;
}

/// The engine fails at what is numbered 1.
const FAULT: &str =
    "CREATE TRIGGER fault BEFORE INSERT ON documents_1 WHEN json_extract(new.fields, '$.n') = 1
     BEGIN SELECT abs(-9223372036854775807 - 1); END";

#[tokio::test]
async fn a_job_at_which_the_engine_fails_is_tried_eight_times_and_then_others_go_on() {
    let house = House::new();
    let open = house.open(8).await;
    drop(open.create("a").await);
    let _job = open.schedule("a", 0, 0).await;
    until(|| open.due_index.next_look(NOW).is_none()).await;
    open.quiet().await;
    open.tenants.execute(&id("a"), FAULT).await;
    let bad = open.schedule("a", 1000, 1).await;
    let _good = open.schedule("a", 2000, 2).await;
    // After one, two, four, … seconds; as often before a restart says nothing against the job.
    let mut now = NOW + 2000;
    for _again in 0..7 {
        open.at(now).await;
        now = open.due_index.next_look(now).unwrap();
    }
    assert_eq!(now, NOW + 2000 + 127_000);
    open.crash().await;
    house.clock.set(now);
    let open = house.open(8).await;
    for _again in 0..7 {
        open.at(now).await;
        assert_eq!(open.numbers("a").await, [0]);
        assert_eq!(open.store("a").await.jobs().await.unwrap().len(), 2);
        // After a restart it goes by the control file's full minute.
        let late = open.due_index.late_ms(now) - (now - bad.run_at_ms);
        assert!((0..60_000).contains(&late), "{late}");
        now = open.due_index.next_look(now).unwrap();
    }
    open.at(now).await;
    assert_eq!(open.numbers("a").await, [0, 2]);
    let finished = open.store("a").await.job_history(bad.id).await.unwrap();
    let error = finished.outcome.error().unwrap();
    assert!(error.contains("given up"), "{error}");
    assert_eq!(open.due_index.late_ms(now), 0);
    // One that the engine can do in the end is done.
    let late = open.schedule("a", 0, 1).await;
    open.at(now).await;
    open.tenants.execute(&id("a"), "DROP TRIGGER fault").await;
    open.at(open.due_index.next_look(now).unwrap()).await;
    assert_eq!(open.numbers("a").await, [0, 2, 1]);
    let finished = open.store("a").await.job_history(late.id).await.unwrap();
    assert_eq!(finished.outcome, Outcome::Succeeded);
    open.stop().await;
}

#[tokio::test]
async fn a_tenant_that_is_deleted_takes_its_work_with_it() {
    let house = House::new();
    let open = house.open(8).await;
    drop(open.create("a").await);
    let _job = open.schedule("a", 1000, 1).await;
    assert_eq!(open.control.due().unwrap().entries.len(), 1);
    open.tenants.delete_tenant(&id("a")).await.unwrap();
    assert_eq!(open.control.due().unwrap().entries, []);
    // One of the same name has nothing of it, and is served like any other.
    drop(open.create("a").await);
    open.at(NOW + HOUR).await;
    assert_eq!(open.numbers("a").await, [0; 0]);
    let _job = open.schedule("a", 1000, 2).await;
    assert_eq!(open.control.due().unwrap().entries.len(), 1);
    open.crash().await;
    house.clock.set(NOW + 2 * HOUR);
    let open = house.open(8).await;
    open.quiet().await;
    assert_eq!(open.numbers("a").await, [2]);
    open.stop().await;
}

#[tokio::test]
async fn a_file_from_elsewhere_is_found_when_it_is_opened() {
    let house = House::new();
    let open = house.open(8).await;
    drop(open.create("a").await);
    let _job = open.schedule("a", 1000, 1).await;
    open.crash().await;
    // The control file knows nothing of it: an older one was put back.
    let control = Control::open(&house.envelope, house.dir.path())
        .await
        .unwrap();
    control.set_due([(&id("a"), None)], NOW).unwrap();
    drop(control);
    house.clock.set(NOW + HOUR);
    let open = house.open(8).await;
    open.quiet().await;
    drop(open.store("a").await);
    open.quiet().await;
    assert_eq!(open.numbers("a").await, [1]);
    open.stop().await;
}

#[tokio::test]
async fn a_control_file_that_was_made_anew_has_every_tenant_looked_at_once() {
    let house = House::new();
    let open = house.open(8).await;
    for tenant in ["a", "b"] {
        drop(open.create(tenant).await);
    }
    let _job = open.schedule("a", 1000, 1).await;
    open.stop().await;
    let control = Control::path_in(house.dir.path());
    std::fs::remove_file(manifest_path(&control)).unwrap();
    std::fs::remove_file(control).unwrap();
    house.clock.set(NOW + HOUR);
    let open = house.open(8).await;
    until(|| !open.due_index.is_incomplete()).await;
    open.quiet().await;
    assert_eq!(open.numbers("a").await, [1]);
    open.stop().await;
    let open = house.open(8).await;
    assert!(!open.due_index.is_incomplete());
    assert_eq!(open.control.due().unwrap().entries, []);
    open.stop().await;
}

#[tokio::test]
async fn clocks_that_jump() {
    let house = House::new();
    let open = house.open(8).await;
    let store = open.create("a").await;
    let _daily = store
        .put_cron(cron("daily", daily_at_nine(), 1), NOW)
        .await
        .unwrap();
    let _job = open.schedule("a", 2 * HOUR as u64, 2).await;
    // A year forward: the cron once, the job, in the order of their times.
    open.at(NOW + 365 * DAY).await;
    assert_eq!(open.numbers("a").await, [1, 2]);
    // And back, as soon as someone has noticed: nine o'clock comes again, not a year later.
    open.at(NOW).await;
    until(|| open.due_index.next_look(NOW) == Some(NOW + HOUR)).await;
    open.at(NOW + HOUR).await;
    assert_eq!(open.numbers("a").await, [1, 2, 1]);
    // A little back: nothing comes twice.
    open.at(NOW + HOUR - 1000).await;
    open.at(NOW + HOUR).await;
    assert_eq!(open.numbers("a").await, [1, 2, 1]);
    // Set back while the server is down.
    open.at(NOW + 400 * DAY).await;
    assert_eq!(open.numbers("a").await, [1, 2, 1, 1]);
    drop(store);
    open.stop().await;
    house.clock.set(NOW + 2 * DAY);
    let open = house.open(8).await;
    until(|| open.due_index.next_look(NOW + 2 * DAY) == Some(NOW + 2 * DAY + HOUR)).await;
    open.stop().await;
}

/// Ten thousand tenants, and how often one of them was asked for.
#[derive(Debug)]
struct Many {
    tenants: Vec<TenantId>,
    touched: AtomicUsize,
}

impl Many {
    fn touch(&self, tenant: &TenantId) -> StoreError {
        self.touched.fetch_add(1, Ordering::SeqCst);
        StoreError::Closed {
            tenant: tenant.clone(),
        }
    }
}

#[async_trait]
impl TenantProvider for Many {
    async fn create_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Err(self.touch(tenant))
    }

    async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Err(self.touch(tenant))
    }

    async fn erase_leftovers(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Err(self.touch(tenant))
    }

    async fn leave(&self, tenant: &TenantId) -> Result<Arc<dyn Leaving>, StoreError> {
        Err(self.touch(tenant))
    }

    async fn arrive(&self, tenant: &TenantId) -> Result<Box<dyn Arriving>, StoreError> {
        Err(self.touch(tenant))
    }

    async fn is_locked(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        Err(self.touch(tenant))
    }

    async fn list_tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.touched.fetch_add(1, Ordering::SeqCst);
        Ok(self.tenants.clone())
    }

    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, StoreError> {
        Err(self.touch(tenant))
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn ten_thousand_idle_tenants_are_never_asked_for_and_no_file_is_written() {
    let house = House::new();
    let control = Control::open(&house.envelope, house.dir.path()).await;
    let control = Arc::new(control.unwrap());
    control.complete_due(&[], NOW).unwrap();
    let due_index = Arc::new(DueIndex::load(control.clone(), house.clock.clone()).unwrap());
    let many = Arc::new(Many {
        tenants: (0..10_000).map(|n| id(&format!("tenant{n}"))).collect(),
        touched: AtomicUsize::new(0),
    });
    let file = std::fs::read(Control::path_in(house.dir.path())).unwrap();
    let scheduler = Scheduler::start(many.clone(), due_index.clone(), house.clock.clone());
    for day in 0..365 {
        house.clock.set(NOW + day * DAY);
        due_index.wake();
        tokio::task::yield_now().await;
    }
    assert!(
        due_index.is_empty(),
        "it holds nothing for them and sleeps without end"
    );
    scheduler.stop().await;
    assert_eq!(many.touched.load(Ordering::SeqCst), 0);
    assert_eq!(
        std::fs::read(Control::path_in(house.dir.path())).unwrap(),
        file
    );
}
