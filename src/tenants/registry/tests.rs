use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::time::sleep;

use super::*;

/// Counts what is open, and notices a second opening of the same tenant.
#[derive(Debug, Default)]
struct World {
    open: Mutex<BTreeMap<TenantId, usize>>,
    most: AtomicUsize,
    openings: AtomicUsize,
    failing: AtomicBool,
    /// How many the process can have open.
    room: AtomicUsize,
}

#[derive(Debug)]
struct Thing {
    tenant: TenantId,
    world: Arc<World>,
    broken: AtomicBool,
    closed: AtomicBool,
    halted: AtomicBool,
}

#[async_trait]
impl Resource for Thing {
    async fn close(&self) -> Result<(), StoreError> {
        sleep(Duration::from_millis(1)).await;
        self.closed.store(true, Ordering::SeqCst);
        self.world
            .open
            .lock()
            .unwrap()
            .remove(&self.tenant)
            .unwrap();
        Ok(())
    }

    fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }
}

impl World {
    fn open(
        self: &Arc<Self>,
        tenant: &TenantId,
    ) -> impl Fn() -> BoxFuture<'static, Result<Thing, StoreError>> + Send + use<> {
        let (world, tenant) = (Arc::clone(self), tenant.clone());
        move || Arc::clone(&world).opened(tenant.clone()).boxed()
    }

    async fn opened(self: Arc<Self>, tenant: TenantId) -> Result<Thing, StoreError> {
        let world = self;
        world.openings.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(1)).await;
        if world.failing.load(Ordering::SeqCst) {
            return Err(StoreError::StorageFull { tenant });
        }
        let mut open = world.open.lock().unwrap();
        if open.len() >= world.room.load(Ordering::SeqCst) {
            return Err(StoreError::Io {
                action: "open",
                path: "file".into(),
                source: Arc::new(std::io::Error::from_raw_os_error(EMFILE)),
            });
        }
        assert_eq!(
            open.insert(tenant.clone(), 1),
            None,
            "{tenant} was opened twice"
        );
        world.most.fetch_max(open.len(), Ordering::SeqCst);
        drop(open);
        Ok(Thing {
            tenant,
            world,
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            halted: AtomicBool::new(false),
        })
    }
}

const EMFILE: i32 = 24;

fn tenant(number: usize) -> TenantId {
    format!("t{number}").parse().unwrap()
}

fn setting(max_open: usize, patience_ms: u64) -> (Arc<Registry<Thing>>, Arc<World>) {
    (
        Registry::new(max_open, Duration::from_millis(patience_ms)),
        Arc::new(World {
            room: AtomicUsize::new(usize::MAX),
            ..World::default()
        }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tenants_share_few_places_and_none_is_closed_in_use() {
    let (registry, world) = setting(3, 30_000);
    let tasks: Vec<_> = (0..16)
        .map(|worker| {
            let (registry, world) = (Arc::clone(&registry), Arc::clone(&world));
            tokio::spawn(async move {
                for step in 0..100 {
                    let tenant = tenant((worker * 7 + step * 13) % 50);
                    let handle = registry.open(&tenant, world.open(&tenant)).await.unwrap();
                    assert_eq!(handle.tenant, tenant);
                    tokio::task::yield_now().await;
                    assert!(
                        !handle.closed.load(Ordering::SeqCst),
                        "closed under a handle"
                    );
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(world.most.load(Ordering::SeqCst) <= 3);
    registry.shut_down().await.unwrap();
    assert!(world.open.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_ask_at_once_share_one_opening() {
    let (registry, world) = setting(2, 1000);
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (registry, world) = (Arc::clone(&registry), Arc::clone(&world));
            tokio::spawn(async move {
                registry
                    .open(&tenant(1), world.open(&tenant(1)))
                    .await
                    .map(drop)
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(world.openings.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failed_opening_is_reported_and_tried_again() {
    let (registry, world) = setting(1, 1000);
    world.failing.store(true, Ordering::SeqCst);
    let one = tenant(1);
    let (first, second) = tokio::join!(
        registry.open(&one, world.open(&one)),
        registry.open(&one, world.open(&one))
    );
    assert!(matches!(first, Err(StoreError::StorageFull { .. })));
    assert!(matches!(second, Err(StoreError::StorageFull { .. })));
    assert_eq!(world.openings.load(Ordering::SeqCst), 1);
    assert_eq!(registry.occupied(), 0);
    world.failing.store(false, Ordering::SeqCst);
    drop(
        registry
            .open(&tenant(2), world.open(&tenant(2)))
            .await
            .unwrap(),
    );
}

#[tokio::test]
async fn an_opening_that_panics_gives_its_place_back() {
    let (registry, world) = setting(1, 1000);
    let handle = registry
        .open(&tenant(1), || async { panic!("on purpose") })
        .await;
    assert!(matches!(handle, Err(StoreError::Closed { .. })));
    drop(
        registry
            .open(&tenant(2), world.open(&tenant(2)))
            .await
            .unwrap(),
    );
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let (registry, world) = setting(2, 1000);
    for number in [1, 2, 1, 3] {
        drop(
            registry
                .open(&tenant(number), world.open(&tenant(number)))
                .await
                .unwrap(),
        );
    }
    let open: Vec<_> = world.open.lock().unwrap().keys().cloned().collect();
    assert_eq!(open, [tenant(1), tenant(3)]);
}

#[tokio::test]
async fn rejects_when_all_are_in_use_and_serves_once_one_is_free() {
    let (registry, world) = setting(1, 50);
    let held = registry
        .open(&tenant(1), world.open(&tenant(1)))
        .await
        .unwrap();
    let refused = registry.open(&tenant(2), world.open(&tenant(2))).await;
    assert!(matches!(
        refused,
        Err(StoreError::Busy {
            what: Limit::OpenTenants,
            ..
        })
    ));
    let other = tenant(2);
    let (second, ()) = tokio::join!(registry.open(&other, world.open(&other)), async {
        sleep(Duration::from_millis(10)).await;
        drop(held);
    });
    assert_eq!(second.unwrap().tenant, tenant(2));
}

#[tokio::test]
async fn a_broken_tenant_is_opened_afresh() {
    let (registry, world) = setting(2, 1000);
    let handle = registry
        .open(&tenant(1), world.open(&tenant(1)))
        .await
        .unwrap();
    handle.broken.store(true, Ordering::SeqCst);
    let again = registry
        .open(&tenant(1), world.open(&tenant(1)))
        .await
        .unwrap();
    assert!(handle.closed.load(Ordering::SeqCst));
    assert!(!again.is_broken());
}

#[tokio::test]
async fn a_barred_tenant_is_not_found() {
    let (registry, world) = setting(2, 1000);
    drop(
        registry
            .open(&tenant(1), world.open(&tenant(1)))
            .await
            .unwrap(),
    );
    let barred = registry.bar(&tenant(1));
    let refused = registry.open(&tenant(1), world.open(&tenant(1))).await;
    assert!(matches!(refused, Err(StoreError::TenantNotFound { .. })));
    registry.close(&tenant(1)).await.unwrap();
    assert_eq!(registry.occupied(), 0);
    drop(barred);
    drop(
        registry
            .open(&tenant(1), world.open(&tenant(1)))
            .await
            .unwrap(),
    );
}

#[tokio::test]
async fn what_is_cut_off_is_halted_also_when_it_is_being_closed_already_and_what_is_closed_is_not()
{
    let (registry, world) = setting(3, 1000);
    let mut handles = Vec::new();
    for tenant in (1..=3).map(tenant) {
        handles.push(registry.open(&tenant, world.open(&tenant)).await.unwrap());
    }
    let halted = |number: usize| handles[number - 1].halted.load(Ordering::SeqCst);
    registry.close(&tenant(1)).await.unwrap();
    registry.cut_off(&tenant(2)).await.unwrap();
    assert!(!halted(1) && halted(2));

    // Each begins with its first poll: the closing is under way when the tenant is cut off.
    let third = tenant(3);
    let (closed, cut) = tokio::join!(registry.close(&third), registry.cut_off(&third));
    closed.and(cut).unwrap();
    assert!(halted(3) && handles[2].closed.load(Ordering::SeqCst));
}

#[tokio::test]
async fn after_the_end_nothing_is_opened() {
    let (registry, world) = setting(2, 1000);
    let held = registry
        .open(&tenant(1), world.open(&tenant(1)))
        .await
        .unwrap();
    registry.shut_down().await.unwrap();
    assert!(held.closed.load(Ordering::SeqCst));
    let refused = registry.open(&tenant(2), world.open(&tenant(2))).await;
    assert!(matches!(refused, Err(StoreError::Closed { .. })));
}

#[tokio::test]
async fn without_files_the_one_idle_longest_makes_way_and_without_an_idle_one_it_is_refused() {
    let (registry, world) = setting(100, 30_000);
    world.room.store(3, Ordering::SeqCst);
    let mut held = Vec::new();
    for number in 0..10 {
        let tenant = tenant(number);
        let handle = registry.open(&tenant, world.open(&tenant)).await.unwrap();
        assert_eq!(handle.tenant, tenant);
        if number < 2 {
            held.push(handle);
        }
    }
    // Those in use are there still, beside the last one.
    assert_eq!(registry.occupied(), 3);
    assert!(
        held.iter()
            .all(|handle| !handle.closed.load(Ordering::SeqCst))
    );
    held.push(registry.ready(&tenant(9)).unwrap());
    let refused = registry.open(&tenant(10), world.open(&tenant(10))).await;
    assert!(matches!(refused, Err(StoreError::Io { .. })), "{refused:?}");
    drop(held.pop());
    let handle = registry.open(&tenant(10), world.open(&tenant(10))).await;
    assert_eq!(handle.unwrap().tenant, tenant(10));
}
