//! Leases on a clock that stands still unless it is moved, from a provider that answers as it is
//! told.

mod outages;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use nimbus_keyproviders::aws_kms::KmsError;
use nimbus_keyproviders::{Dek, KeyProvider, MemoryProvider, OsRandom, Unwrapped, Wrapped};
use nimbus_manifests::{Cipher, ProviderKind, TenantId, Timestamp};
use tokio::task::JoinSet;

use super::*;
use crate::envelope::{
    Clock, EnvelopeError, Holder, Intent, KeyedFile, Prepared, Revocation, Trouble as Meaning,
};

#[derive(Debug)]
struct Hands {
    start: Moment,
    moved: Mutex<Duration>,
}

impl Hands {
    fn move_by(&self, seconds: u64) {
        *self.moved.lock().unwrap() += Duration::from_secs(seconds);
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(1_800_000_000).unwrap()
    }

    fn moment(&self) -> Moment {
        self.start + *self.moved.lock().unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Yes,
    Disabled,
    Denied,
    Silent,
    /// It never answers.
    Hangs,
    /// A fault of the server's own.
    Panics,
}

/// A key in memory that pretends to be far away.
#[derive(Debug)]
struct Remote {
    key: MemoryProvider,
    mood: Mutex<Mood>,
    /// Subjects that the key's policy denies.
    denied: Mutex<Vec<String>>,
    asked: AtomicUsize,
}

impl Remote {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            key: MemoryProvider::random().unwrap(),
            mood: Mutex::new(Mood::Yes),
            denied: Mutex::default(),
            asked: AtomicUsize::new(0),
        })
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// How often it was asked since this was last called.
    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }

    async fn answer(&self, subject: &Subject) -> Result<(), ProviderError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let key = "the key".to_owned();
        let mut mood = *self.mood.lock().unwrap();
        if self.denied.lock().unwrap().contains(&subject.to_string()) {
            mood = Mood::Denied;
        }
        Err(match mood {
            Mood::Yes => return Ok(()),
            Mood::Hangs => return std::future::pending().await,
            Mood::Panics => panic!("as told"),
            Mood::Disabled => KmsError::Disabled { key },
            Mood::Denied => KmsError::Denied {
                action: "Decrypt",
                key,
                message: "by the policy".into(),
            },
            Mood::Silent => KmsError::TimedOut {
                action: "Decrypt",
                endpoint: "far away".into(),
                deadline: Duration::from_secs(15),
            },
        }
        .into())
    }
}

#[async_trait]
impl KeyProvider for Remote {
    fn kind(&self) -> ProviderKind {
        self.key.kind()
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn key_id(&self, subject: &Subject) -> Result<KeyId, ProviderError> {
        self.key.key_id(subject).await
    }

    async fn generate(&self, context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError> {
        self.answer(context.subject).await?;
        self.key.generate(context).await
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        self.answer(context.subject).await?;
        self.key.wrap(dek, context).await
    }

    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        if wrap.key_id != self.key.key_id(context.subject).await? {
            return Ok(Unwrapped::NotMine);
        }
        self.answer(context.subject).await?;
        self.key.unwrap(wrap, context).await
    }

    async fn check(&self) -> Result<(), ProviderError> {
        Ok(())
    }
}

/// Files that are open, by tenant.
#[derive(Debug, Default)]
struct Table(Mutex<HashMap<TenantId, KeyedFile>>);

#[async_trait]
impl Holder for Table {
    async fn revoke(&self, tenant: Option<&TenantId>, _why: &Revocation) {
        drop(self.0.lock().unwrap().remove(tenant.unwrap()));
    }
}

struct House {
    dir: tempfile::TempDir,
    core: Envelope,
    clock: Arc<Hands>,
    table: Arc<Table>,
}

impl House {
    fn new(provider: Arc<dyn KeyProvider>) -> Self {
        let clock = Arc::new(Hands {
            start: Moment::now(),
            moved: Mutex::default(),
        });
        let keys = KeyRing::new(provider, vec![], vec![]);
        let core = Envelope::with(Some(keys), clock.clone(), Arc::new(OsRandom));
        let table = Arc::new(Table::default());
        let holder: Weak<dyn Holder> = Arc::<Table>::downgrade(&table);
        core.held_by(holder);
        Self {
            dir: tempfile::tempdir().unwrap(),
            core,
            clock,
            table,
        }
    }

    fn path(&self, tenant: &str) -> PathBuf {
        self.dir.path().join(format!("{tenant}.sqlite3"))
    }

    /// Creates a tenant and keeps it open.
    async fn create(&self, tenant: &str) {
        let path = self.path(tenant);
        let file = self.prepare(tenant, Intent::Create).await.unwrap();
        std::fs::write(&path, b"ciphertext").unwrap();
        let file = self.core.publish_ready(file).await.unwrap();
        self.keep(tenant, file);
    }

    async fn open(&self, tenant: &str) -> Result<(), EnvelopeError> {
        let file = self.prepare(tenant, Intent::Open).await?;
        self.keep(tenant, file);
        Ok(())
    }

    async fn prepare(&self, tenant: &str, intent: Intent) -> Result<KeyedFile, EnvelopeError> {
        let (path, subject) = (self.path(tenant), subject(tenant));
        let prepared = self
            .core
            .prepare(&path, &subject, Cipher::Sqlcipher4, intent);
        match prepared.await? {
            Prepared::Keyed(file) => Ok(file),
            Prepared::Plain(_) => panic!("encryption is on"),
        }
    }

    fn keep(&self, tenant: &str, file: KeyedFile) {
        let mut table = self.table.0.lock().unwrap();
        drop(table.insert(tenant.parse().unwrap(), file));
    }

    fn is_open(&self, tenant: &str) -> bool {
        let tenant: TenantId = tenant.parse().unwrap();
        self.table.0.lock().unwrap().contains_key(&tenant)
    }

    /// Lets `seconds` pass, looking each second at what is due, as the server's own loop would.
    async fn pass(&self, seconds: u64) {
        for _second in 0..seconds {
            self.clock.move_by(1);
            self.renew().await;
        }
    }

    /// Asks for what is due, until nothing is.
    async fn renew(&self) {
        loop {
            let mut rounds = JoinSet::new();
            self.core.begin_rounds(&mut rounds);
            if rounds.is_empty() {
                return;
            }
            while rounds.join_next().await.is_some() {}
        }
    }

    fn standing(&self, tenant: &str) -> LeaseStanding {
        let tenant: TenantId = tenant.parse().unwrap();
        self.table.0.lock().unwrap()[&tenant].standing()
    }
}

fn subject(tenant: &str) -> Subject {
    let id: TenantId = tenant.parse().unwrap();
    Subject::sqlite_tenant(&id, &format!("{tenant}.sqlite3")).unwrap()
}

#[tokio::test]
async fn a_disabled_key_closes_its_files_within_one_lease_and_gives_them_back_when_enabled() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    for tenant in ["one", "two"] {
        house.create(tenant).await;
    }
    house.pass(300).await;
    assert!(house.is_open("one") && house.is_open("two"));
    remote.be(Mood::Disabled);
    house.pass(60).await;
    assert!(!house.is_open("one") && !house.is_open("two"));
    let error = house.open("one").await.unwrap_err();
    assert_eq!(error.trouble(), Meaning::KeyRevoked);
    remote.be(Mood::Yes);
    house.clock.move_by(1);
    for tenant in ["one", "two"] {
        house.open(tenant).await.unwrap();
    }
    assert_eq!(house.core.leases().troubles, []);
}

#[tokio::test]
async fn a_lease_is_renewed_ahead_of_its_end_and_not_much_oftener() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    let _creation = remote.asked();
    house.pass(29).await;
    assert_eq!(remote.asked(), 0, "before half of it");
    house.pass(12).await;
    assert_eq!(remote.asked(), 1, "at two thirds of it");
    house.pass(3600).await;
    let asked = remote.asked();
    assert!((3600 / 42..=3600 / 29).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_denial_of_one_file_closes_that_one_alone_and_asks_for_all_others_at_once() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    for number in 0..120 {
        house.create(&format!("t{number}")).await;
    }
    // Two under the same condition, one of which would not have its turn for a while.
    *remote.denied.lock().unwrap() = vec![subject("t0").to_string(), subject("t119").to_string()];
    house.pass(45).await;
    assert!(!house.is_open("t0") && !house.is_open("t119"));
    assert_eq!(house.table.0.lock().unwrap().len(), 118);
    let error = house.open("t0").await.unwrap_err();
    assert_eq!(error.trouble(), Meaning::KeyRevoked);
    house.open("t1").await.unwrap();
}

#[tokio::test]
async fn each_of_many_files_is_asked_for_within_its_lease() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    for number in 0..120 {
        house.create(&format!("t{number}")).await;
    }
    let _creations = remote.asked();
    house.pass(42).await;
    assert_eq!(remote.asked(), 120, "each once");
    // The last of them, which alone is denied, is no later than the first.
    *remote.denied.lock().unwrap() = vec![subject("t119").to_string()];
    house.pass(42).await;
    assert!(!house.is_open("t119") && house.is_open("t0"));
}

#[tokio::test]
async fn a_question_without_an_answer_ends_in_time() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.core.leases.table().agree(Terms {
        lease: Duration::from_secs(4),
        grace: Duration::ZERO,
    });
    house.create("one").await;
    remote.be(Mood::Hangs);
    house.pass(5).await;
    assert!(!house.is_open("one"));
    let report = house.core.leases();
    assert_eq!(report.troubles[0].class, FailureClass::Unavailable);
}

#[tokio::test]
async fn nothing_is_used_beyond_its_lease_when_nobody_renews() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    house.clock.move_by(1000);
    assert_eq!(
        house.standing("one"),
        LeaseStanding::Good,
        "a command's is its own"
    );
    house.core.enforce();
    assert_eq!(house.standing("one"), LeaseStanding::Abandoned);
    house.renew().await;
    assert_eq!(
        house.standing("one"),
        LeaseStanding::Good,
        "asked, and said yes"
    );
    house.clock.move_by(64);
    assert_eq!(house.standing("one"), LeaseStanding::Good);
    house.clock.move_by(1);
    assert_eq!(house.standing("one"), LeaseStanding::RanOut);
    house.clock.move_by(10);
    assert_eq!(house.standing("one"), LeaseStanding::Abandoned);
}

#[tokio::test]
async fn a_closed_file_is_not_asked_for() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    assert_eq!(house.core.leases().files, 1);
    house.table.0.lock().unwrap().clear();
    assert_eq!(house.core.leases(), LeaseReport::default());
    let _creation = remote.asked();
    house.pass(600).await;
    assert_eq!(remote.asked(), 0);
}

#[tokio::test]
async fn a_local_key_has_no_lease() {
    let house = House::new(Arc::new(MemoryProvider::random().unwrap()));
    house.create("one").await;
    assert_eq!(house.core.leases(), LeaseReport::default());
}

#[tokio::test]
async fn after_a_rotation_the_new_key_is_asked_and_the_old_one_may_go() {
    let (old, new) = (Remote::new(), Remote::new());
    let house = House::new(old.clone());
    house.create("one").await;
    let keys = house.core.keys().unwrap();
    let moved = || keys.moved_to(new.clone(), crate::envelope::Mapped::Stay);
    house.core.use_keys(moved());
    let rewrapped = house
        .core
        .rewrap(
            &house.path("one"),
            &moved(),
            &crate::envelope::Recipients::default(),
        )
        .await
        .unwrap()
        .change
        .unwrap();
    let core = house.core.clone();
    let changed = tokio::task::spawn_blocking(move || core.publish_rewrapped(vec![rewrapped]));
    assert!(changed.await.unwrap().unwrap().is_empty());
    old.be(Mood::Disabled);
    house.pass(120).await;
    assert!(house.is_open("one"));
    new.be(Mood::Disabled);
    house.pass(60).await;
    assert!(!house.is_open("one"));
}

#[tokio::test]
async fn a_yes_from_before_a_no_is_not_believed() {
    let remote = Remote::new();
    let house = House::new(remote.clone());
    house.create("one").await;
    let (key, subject) = (
        remote.key_id(&subject("one")).await.unwrap(),
        subject("one"),
    );
    let early = house.core.admit(&key, &subject).unwrap();
    house.clock.move_by(1);
    let late = house.core.admit(&key, &subject).unwrap();
    let no = Arc::new(ProviderError::from(KmsError::Disabled { key: "k".into() }));
    house.core.refused(&late, &no);
    early.confirm();
    assert_eq!(house.core.leases().troubles.len(), 1);
    let manifest = std::fs::read(crate::envelope::manifest_path(&house.path("one"))).unwrap();
    let sealed = SealedManifest::parse(&manifest).unwrap();
    let entry = &sealed.claims().deks()[0];
    let context = WrapContext {
        subject: &subject,
        file_id: sealed.claims().file_id(),
        cipher: Cipher::Sqlcipher4,
        dek_id: entry.id,
    };
    assert!(
        house
            .core
            .leased(&context, &entry.wraps[0], &early)
            .is_err()
    );
}

#[tokio::test]
async fn a_locked_tenant_is_closed_and_refused_until_it_is_unlocked() {
    let house = House::new(Arc::new(MemoryProvider::random().unwrap()));
    house.create("one").await;
    house.create("two").await;
    house.core.lock(&"one".parse().unwrap()).await;
    assert!(!house.is_open("one") && house.is_open("two"));
    let error = house.open("one").await.unwrap_err();
    assert!(matches!(error, EnvelopeError::Locked { .. }), "{error}");
    assert_eq!(error.trouble(), Meaning::Locked);
    assert!(house.core.unlock(&"one".parse().unwrap()));
    house.open("one").await.unwrap();
}
