//! Packs, put together and stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nimbus_manifests::TenantId;

use super::super::catalogue::StoredFile;
use super::super::pack::{
    Data, Frame, Pack, PackedGone, PackedManifest, Segment, frames_bytes, segment,
};
use super::super::prover::Prover;
use super::super::repository::said;
use super::super::saving::Frozen;
use super::super::sealing_keys::sealed_by_old_key;
use super::super::store::Created;
use super::super::{BackupError, Repository, limits, sha256};
use super::session::{Failed, Session};
use super::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::clock;
use crate::control::ArchiveSealer;
use crate::data_dir;
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::metrics;
use crate::runtime::blocking;
use crate::sqlcipher::wal_frames;
use crate::tenants::sqlite::{self, Boundary, Frames};

impl Session {
    /// The packs up to a boundary: more than one where much was committed.
    pub(super) async fn packs(
        &mut self,
        log: &Arc<sqlite::CommitLog>,
        boundary: Boundary,
        frozen: Option<Frozen>,
        manifests: Vec<PackedManifest>,
    ) -> Result<(), Failed> {
        let mut rest = Some((frozen, manifests));
        while rest.is_some() {
            let (from, upto) = (Arc::clone(log), boundary.upto);
            let frames = blocking(move || from.take(upto, PACK_BYTES)).await?;
            let taken: u64 = frames.iter().map(|one| one.bytes.len() as u64).sum();
            self.number += 1;
            log.formed(self.number);
            let last_ms = frames.last().map(|one| one.at_ms);
            let (segments, mut data) = blocking(move || segments_of(&frames)).await;
            let mut pack = self.begin_pack(segments);
            let mut at_ms = last_ms.unwrap_or(self.after_ms).max(self.after_ms);
            if taken < PACK_BYTES
                && let Some((frozen, manifests)) = rest.take()
            {
                at_ms = boundary.at_ms;
                pack.manifests = manifests;
                pack.bases = std::mem::take(&mut self.next.bases);
                pack.gone = boundary.gone.iter().map(gone).collect();
                if let Some(frozen) = frozen {
                    (pack, data) = self.add_control(pack, data, frozen).await?;
                }
            }
            pack.at = clock::stamp_of(at_ms);
            self.put(pack, data).await?;
            self.after_ms = at_ms;
            self.context.report.shipped(at_ms);
        }
        Ok(())
    }

    fn begin_pack(&self, segments: Vec<Segment>) -> Pack {
        Pack {
            epoch: self.epoch,
            number: self.number,
            repository: self.repository.id,
            previous: self.previous.clone(),
            anchor: self.anchor,
            after: clock::stamp_of(self.after_ms),
            at: String::new(),
            control: None,
            audit: None,
            manifests: Vec::new(),
            bases: Vec::new(),
            gone: Vec::new(),
            frames: segments,
        }
    }

    async fn add_control(
        &mut self,
        mut pack: Pack,
        mut data: Data,
        frozen: Frozen,
    ) -> Result<(Pack, Data), BackupError> {
        let Some(mut kept) = self.kept.take() else {
            return Err(BackupError::Stopped);
        };
        let place = (self.epoch, self.number);
        let (pack, data, kept) = blocking(move || {
            let claims = frozen.manifest.claims();
            pack.control = Some(StoredFile {
                subject: claims.subject().to_string(),
                file_id: claims.file_id().to_string(),
                dek_id: claims.deks()[0].id.to_string(),
                manifest: sha256(frozen.manifest.as_bytes()),
                bytes: frozen.bytes.len() as u64,
                runs: kept.control(&frozen.bytes, place, &mut data),
                missing: None,
                on_disk: None,
                over: None,
            });
            let log = kept.log(frozen.log, &mut data);
            pack.audit = log.map_err(BackupError::io("read", crate::audit::FILE_NAME))?;
            Ok::<_, BackupError>((pack, data, kept))
        })
        .await?;
        self.kept = Some(kept);
        Ok((pack, data))
    }

    /// Stores a pack, however often that takes.
    async fn put(&mut self, pack: Pack, data: Data) -> Result<(), BackupError> {
        let Some(sealer) = self.sealer.clone() else {
            return Err(BackupError::Stopped);
        };
        let name = Pack::name(pack.epoch, pack.number);
        let seals = sealer.clone();
        let (object, hash) = blocking(move || {
            let object = pack.object(&seals, data);
            let hash = sha256(&object);
            (object, hash)
        })
        .await;
        crash_point!("ship::formed");
        if object.len() as u64 > limits::PACK {
            self.number -= 1;
            self.log()?.formed(self.number);
            return Err(BackupError::GivenUp(format!(
                "{name} would have {} bytes, and no pack has more than {}",
                object.len(),
                limits::PACK
            )));
        }
        let stored = object.clone();
        let created = self.insist(move |repository| {
            let (name, object) = (name.clone(), stored.clone());
            async move { repository.store.create(&name, object).await }.boxed()
        });
        let created = created.await?;
        crash_point!("ship::stored");
        if let Created::Other = created {
            return Err(self.in_the_way(&sealer).await);
        }
        metrics::PACKS_SHIPPED.increment(1);
        self.since.packs += 1;
        self.since.bytes += object.len() as u64;
        self.previous = hash;
        self.anchor = None;
        let envelope = self.context.deployment.envelope.clone();
        let mut prover = Prover::knowing(&self.repository, &envelope, &sealer);
        let replaced =
            self.repository
                .is_replaced(&mut prover, &mut self.next_epoch, &self.replaced);
        match replaced.await {
            Ok(true) => Err(self.repository.replaced(self.epoch)),
            Ok(false) => Ok(()),
            // The next pack asks again.
            Err(error) => {
                metrics::SHIPPING_FAILED.increment(1);
                tracing::warn!(
                    why = error_chain(&error),
                    "whether another server ships is not known"
                );
                Ok(())
            }
        }
    }

    /// Something else stands where a pack is to be: that of a server which ships in the same epoch,
    /// or what proves nothing. Then shipping goes on behind that, from a snapshot.
    async fn in_the_way(&mut self, sealer: &ArchiveSealer) -> BackupError {
        let name = Pack::name(self.epoch, self.number);
        let envelope = self.context.deployment.envelope.clone();
        let mut prover = Prover::knowing(&self.repository, &envelope, sealer);
        let found = match self.repository.pack(self.epoch, self.number, false).await {
            Ok(Some((read, _))) => prover.prove(&name, &read).await.map(|()| read.dek_id),
            Ok(None) => Err(self.repository.damaged(&name, "it comes and goes")),
            Err(error) => Err(error),
        };
        let error = match found {
            Ok(key) if !self.replaced.contains(&key.to_string()) => {
                return self.repository.replaced(self.epoch);
            }
            Ok(key) => self
                .repository
                .damaged(&name, sealed_by_old_key(&key.to_string())),
            Err(error) if error.proves_nothing() => error,
            Err(error) => return error,
        };
        let taken = self.repository.packs(self.epoch).await.unwrap_or_default();
        while taken.binary_search(&(self.number + 1)).is_ok() {
            self.number += 1;
        }
        BackupError::GivenUp(format!("{}; it was put there: move it away", said(&error)))
    }

    /// Stores something that the next packs name, or a pack: again and again until it is there, or
    /// the server ends.
    pub(super) async fn insist<T>(
        &mut self,
        mut work: impl FnMut(Repository) -> BoxFuture<'static, Result<T, BackupError>> + Send,
    ) -> Result<T, BackupError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match work(self.repository.clone()).await {
                Err(error @ BackupError::Store { .. }) => error,
                done => return done,
            };
            metrics::SHIPPING_FAILED.increment(1);
            let why = error_chain(&error);
            tracing::warn!(
                why,
                "the repository does not take what is shipped; it is tried again"
            );
            self.context.report.fails(why.clone());
            self.hold_no_longer(&why)?;
            let late = (clock::now_ms() - self.after_ms).max(0);
            metrics::BACKUP_LATE.set(late as f64 / 1000.0);
            if *self.context.stop.borrow() || self.context.wait(pause).await {
                return Err(error);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

/// Frames by their files, each copied once on its way into a pack. Blocks: what hashes tens of MiB
/// keeps no request waiting.
fn segments_of(all: &[Frames]) -> (Vec<Segment>, Data) {
    let mut files: BTreeMap<(&TenantId, u32), Vec<Frame<'_>>> = BTreeMap::new();
    for one in all {
        let frames = wal_frames(&one.bytes).map(|(number, pages, page)| Frame {
            number,
            pages,
            page,
            at_ms: one.at_ms,
        });
        files
            .entry((&one.tenant, one.base))
            .or_default()
            .extend(frames);
    }
    let lengths = files.values().map(|frames| {
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        usize::try_from(frames_bytes(count)).unwrap_or(0)
    });
    let head = HEAD + files.len() * HEAD_OF_FILE + all.len() * HEAD_OF_COMMIT;
    let mut data = Data::new(head, lengths.sum::<usize>() + REST);
    let segments = files.into_iter().map(|((tenant, base), frames)| {
        let subject = data_dir::subject(tenant).to_string();
        segment(subject, base, &frames, &mut data)
    });
    let segments = segments.collect();
    (segments, data)
}

impl Session {
    /// Gives up what holds the WAL of a tenant for longer than it may.
    fn hold_no_longer(&self, why: &str) -> Result<(), BackupError> {
        let waiting = self.log()?.held_since();
        let since = self.holding.into_iter().chain(waiting).min();
        held_no_longer(since, why)
    }
}

/// Refuses to hold the WAL of a tenant for longer than it may be.
pub(super) fn held_no_longer(since: Option<Instant>, why: &str) -> Result<(), BackupError> {
    let most = held_most();
    match since.is_some_and(|since| since.elapsed() >= most) {
        false => Ok(()),
        true => Err(BackupError::GivenUp(format!(
            "the pages of a new file could not be stored within {} s, and its WAL is held no longer: {why}",
            most.as_secs()
        ))),
    }
}

/// How long the WAL of a tenant is held for pages that are to be stored.
fn held_most() -> Duration {
    ::fail::fail_point!("ship::held-most", |_| Duration::from_secs(1));
    Duration::from_secs(600)
}

fn gone(gone: &sqlite::Gone) -> PackedGone {
    PackedGone {
        subject: data_dir::subject(&gone.tenant).to_string(),
        at: clock::stamp_of(gone.at_ms),
        before: gone.before,
    }
}

pub(super) fn unreadable(error: &nimbus_manifests::ParseError) -> BackupError {
    BackupError::io("read", "a manifest")(std::io::Error::other(error.to_string()))
}

/// Frames of a pack, about: 24 MiB.
const PACK_BYTES: u64 = 24 << 20;
/// About as long a head is, with what it says of each file, and of each commit; one that is longer
/// costs a copy.
const HEAD: usize = 16 << 10;
const HEAD_OF_FILE: usize = 384;
const HEAD_OF_COMMIT: usize = 32;
/// Room for the control file and the audit log.
const REST: usize = 1 << 20;
