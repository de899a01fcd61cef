//! A new data key for a tenant that is in use.
//!
//! The copy under the next key is made and verified on a thread of its own, at the lowest priority,
//! while the tenant is read and written ([`Following`]). Only the swap needs the file alone:
//! queries under way are waited for while writing goes on, then the writer holds between two
//! commits, for a few pages and a rename. Requests that come meanwhile wait.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nimbus_manifests::{Cipher, TenantId};
use tokio::sync::oneshot;

use super::{SqliteFiles, error::opening, storage::SqliteStorage, subject};
use crate::data_dir::parent;
use crate::envelope::{Event, EventKind, EventOutcome, Intent, KeyedFile, Opened, Prepared, Stage};
use crate::process::free_bytes;
use crate::runtime::{Progress, blocking, panic_point, short_thread};
use crate::sqlcipher::{CopyError, Database, Following, NotSwapped, which_key};
use crate::tenants::StoreError;
use crate::tenants::group_commit::FileSwap;
use crate::tenants::open_tenant::OpenTenant;
use crate::tenants::readers::Readers;

impl SqliteFiles {
    /// Gives an open tenant's file a new data key.
    pub(super) async fn renew_key(
        &self,
        tenant: &TenantId,
        open: &OpenTenant<SqliteStorage>,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| StoreError::Rekey {
            tenant: tenant.clone(),
            source: error.into(),
        };
        // As it is on the disk now: the key-encryption key may have changed since the tenant was
        // opened.
        let file = self.settled(tenant).await?;
        let begun = Event::new(EventKind::Rekey, EventOutcome::Begun).of(file.manifest());
        let record = |event| self.envelope.record(event);
        record(begun.clone())
            .await
            .map_err(|error| failed(error.into()))?;
        let rekeyed = self.rekey_file(tenant, open, file, progress).await;
        let event = match &rekeyed {
            Ok(file) => Event::new(EventKind::Rekey, EventOutcome::Done).of(file.manifest()),
            Err(_) => begun.ended(&rekeyed),
        };
        record(event).await.map_err(|error| failed(error.into()))?;
        rekeyed.map(drop)
    }

    async fn rekey_file(
        &self,
        tenant: &TenantId,
        open: &OpenTenant<SqliteStorage>,
        file: KeyedFile,
        progress: Progress,
    ) -> Result<KeyedFile, StoreError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| StoreError::Rekey {
            tenant: tenant.clone(),
            source: error.into(),
        };
        let _followed = open.readers().storage().follow();
        let file = self
            .envelope
            .begin_rekey(file)
            .await
            .map_err(|error| failed(error.into()))?;
        let first = file.share();
        // A tenant that was closed, by a lock, by its key provider or with the server, keeps no key
        // because of a copy.
        let readers = Arc::clone(open.readers());
        let (full, path) = (Arc::new(AtomicBool::new(false)), first.path().to_owned());
        let (filling, dir) = (Arc::clone(&full), parent(&path).to_owned());
        let progress: Progress = Arc::new(move |done, total| {
            if !has_room(&dir, total.saturating_sub(done)) {
                filling.store(true, Ordering::Relaxed);
                return false;
            }
            progress(done, total) && !readers.is_closed()
        });
        let (file, opened, outcome) = match rekey(open, file, progress).await {
            Ok(file) => (file, Opened::Next, Ok(())),
            Err(Failed::AsItWas(_)) if full.load(Ordering::Relaxed) => {
                (first, Opened::First, Err(CopyError::NoRoom { path }))
            }
            Err(Failed::AsItWas(_)) if open.readers().is_closed() => {
                (first, Opened::First, Err(CopyError::Closed { path }))
            }
            Err(Failed::AsItWas(error)) => (first, Opened::First, Err(error)),
            // Which of the two files a power cut leaves is not known: the next opening finds out.
            Err(Failed::Renamed(error)) => return Err(failed(error.into())),
        };
        // It is settled by the next opening if this cannot be written.
        let settled = self.envelope.settle(file, opened).await;
        outcome.map_err(|error| failed(error.into()))?;
        let file = settled.map_err(|error| failed(error.into()))?;
        // By the new wrap from now on: that is what the key provider is asked about.
        let path = self.path(tenant);
        let again = self.envelope.prepare(
            &path,
            file.manifest().subject(),
            Cipher::Sqlcipher4,
            Intent::Open,
        );
        if let Ok(Prepared::Keyed(again)) = again.await {
            open.readers().storage().hold_by(Database::keyed(again));
        }
        Ok(file)
    }

    /// The tenant's file under one key. A rekey whose end could not be written is ended.
    async fn settled(&self, tenant: &TenantId) -> Result<KeyedFile, StoreError> {
        let subject = subject(tenant);
        let path = self.path(tenant);
        let envelope = |source| StoreError::Rekey {
            tenant: tenant.clone(),
            source: Arc::new(source),
        };
        let prepared = self
            .envelope
            .prepare(&path, &subject, Cipher::Sqlcipher4, Intent::Open)
            .await
            .map_err(envelope)?;
        match prepared {
            Prepared::Keyed(file) if matches!(file.stage(), Stage::Rekeying { .. }) => {
                let (file, opened) = blocking(move || which_key(file))
                    .await
                    .map_err(|error| opening(tenant, error))?;
                self.envelope.settle(file, opened).await.map_err(envelope)
            }
            Prepared::Keyed(file) => Ok(file),
            Prepared::Plain(file) => {
                let path = file.path().to_owned();
                Err(envelope(crate::envelope::EnvelopeError::EncryptionOff {
                    path,
                }))
            }
        }
    }
}

/// Why a tenant has no new key.
enum Failed {
    /// The file is the one it was.
    AsItWas(CopyError),
    /// The copy took the file's place, and it is not known whether a power cut undoes that.
    Renamed(CopyError),
}

impl From<CopyError> for Failed {
    fn from(error: CopyError) -> Self {
        Self::AsItWas(error)
    }
}

async fn rekey(
    open: &OpenTenant<SqliteStorage>,
    file: KeyedFile,
    progress: Progress,
) -> Result<KeyedFile, Failed> {
    let path = file.path().to_owned();
    let gone = || CopyError::Closed { path: path.clone() };
    let (size, go_on) = (size_of(&path), Arc::clone(&progress));
    let mut following = in_background(move || {
        let mut following = Following::begin(file, progress)?;
        // Each time less was written meanwhile than before, unless the writer is as fast as the
        // copy.
        let mut left = usize::MAX;
        loop {
            let changed = following.catch_up()?;
            if changed <= FEW_PAGES || changed >= left {
                return Ok(following);
            }
            left = changed;
        }
    })
    .await
    .unwrap_or_else(|| Err(gone()))?;
    let mut tries = 0..TRIES;
    loop {
        let held = open.readers().hold(READERS_PATIENCE).await;
        let held = held.map_err(|_closed| gone())?;
        following = blocking(move || following.catch_up().map(|_changed| following)).await?;
        let error = match held {
            None => CopyError::Busy { path: path.clone() },
            Some(held) => {
                let (answer, swapped) = oneshot::channel();
                let handover = Box::new(Handover {
                    following,
                    readers: Arc::clone(open.readers()),
                    failed: None,
                    held: Instant::now(),
                    answer,
                });
                let writer = Arc::clone(open.writer());
                blocking(move || writer.swap(handover))
                    .await
                    .map_err(|_closed| gone())?;
                match swapped.await.map_err(|_closed| gone())? {
                    Swapped::Done(file, before) => {
                        drop(held);
                        blocking(move || drop(before)).await;
                        return Ok(file);
                    }
                    Swapped::Failed(failed) => return Err(failed),
                    Swapped::Later(same, error) => {
                        following = same;
                        error
                    }
                }
            }
        };
        if tries.next().is_none() {
            return Err(error.into());
        }
        tracing::debug!(path = %path.display(), %error, "the file is not free yet for its new key");
        let again = Instant::now() + BETWEEN_TRIES;
        while Instant::now() < again {
            if !go_on(size, size) {
                return Err(error.into());
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}

/// Whether there is room for `left` bytes of the copy, and for what is written meanwhile: nothing
/// leaves the WAL before the copy is verified. A due time that cannot be noted is no reason to
/// stop.
fn has_room(dir: &Path, left: u64) -> bool {
    ::fail::fail_point!("rekey::room", |_| false);
    free_bytes(dir).map_or(true, |free| free >= left + RESERVE)
}

fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// The swap of the files, while the writer holds.
struct Handover {
    following: Following,
    readers: Arc<Readers<SqliteStorage>>,
    failed: Option<CopyError>,
    held: Instant,
    answer: oneshot::Sender<Swapped>,
}

/// How it ended.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one of them in a rotation"
)]
enum Swapped {
    /// With the database under the key before.
    Done(KeyedFile, Option<Arc<Database>>),
    /// Somebody else has the file open.
    Later(Following, CopyError),
    Failed(Failed),
}

impl FileSwap for Handover {
    fn before(&mut self) -> bool {
        self.held = Instant::now();
        // Their connections are idle: nobody reads.
        self.readers.shed();
        match self.following.finish() {
            Ok(()) => true,
            Err(error) => {
                self.failed = Some(error);
                false
            }
        }
    }

    fn gone_on(self: Box<Self>) {
        if let Some(error) = self.failed {
            drop(self.answer.send(Swapped::Failed(error.into())));
        }
    }

    fn closed(self: Box<Self>, closed: Result<(), StoreError>) -> bool {
        let Self {
            mut following,
            readers,
            held,
            answer,
            ..
        } = *self;
        if closed.is_err() {
            // The answer is dropped with the tenant, which is opened afresh.
            return false;
        }
        let (swapped, go_on) = match following.swap() {
            Ok(file) => match file.share().under(Opened::Next) {
                Ok(next) => {
                    readers.shed();
                    let before = readers.storage().reopen_as(Database::keyed(next).served());
                    tracing::info!(
                        path = %readers.storage().path().display(),
                        held_us = u64::try_from(held.elapsed().as_micros()).unwrap_or(u64::MAX),
                        "a tenant's file was exchanged for its copy under the next data key"
                    );
                    (Swapped::Done(file, Some(before)), true)
                }
                // Swapped all the same: the tenant is opened afresh.
                Err(_no_revision_left) => (Swapped::Done(file, None), false),
            },
            Err(NotSwapped {
                error,
                renamed: true,
            }) => (Swapped::Failed(Failed::Renamed(error)), false),
            Err(NotSwapped { error, .. }) => match following.resume() {
                Ok(()) => (Swapped::Later(following, error), true),
                Err(error) => (Swapped::Failed(error.into()), true),
            },
        };
        drop(answer.send(swapped));
        go_on
    }
}

/// Runs `work` on a thread of its own that has little of the processor while others want it, but
/// has some. `None` when it panicked.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, result) = oneshot::channel();
    let spawned = short_thread("tenant-rekey", move || {
        // Of this thread alone, and of those that it starts. Where it is refused, the work is
        // merely not as quiet.
        #[cfg(target_os = "linux")]
        let _refused = rustix::process::setpriority_process(None, NICENESS);
        panic_point!("rekey::copy");
        drop(answer.send(work()));
    });
    drop(spawned.ok()?);
    result.await.ok()
}

/// Against one thread that never rests it has a tenth of a core. At 19, the last there is, that
/// would be a seventieth, and a rotation on a busy machine would have no end.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
/// Bytes that stay free for those who write: 64 MiB.
const RESERVE: u64 = 64 << 20;
/// So few pages are brought over while the writer holds.
const FEW_PAGES: usize = 64;
/// How long queries under way are waited for, and those that come meanwhile wait.
const READERS_PATIENCE: Duration = Duration::from_secs(2);
const TRIES: u32 = 30;
const BETWEEN_TRIES: Duration = Duration::from_secs(2);
/// How soon a caller that waits for the next try sees that there is none.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
