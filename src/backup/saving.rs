//! Files that are added to a repository: of each the pages that it does not have, and the manifest.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use nimbus_manifests::{Cipher, SealedManifest, Subject, TenantId};
use tokio::sync::mpsc;

use super::catalogue::{Catalogue, Piece, Run, SealedCatalogue, StoredFile, StoredPart};
use super::changes::{Source, StoredPages, is_due, read_changes};
use super::room::Room;
use super::run::{FinishedRun, Index, RunBuilder};
use super::{BackupError, Repository, limits, printable, sha256};
use crate::audit::LogPart;
use crate::control::{AuditHead, Control, FrozenControl};
use crate::data_dir;
use crate::envelope::Copies;
use crate::failpoints::crash_point;
use crate::runtime::{Progress, blocking};
use crate::sqlcipher::UNIT;
use crate::tenants::sqlite::Capture;

/// The control file and the audit log, at a moment.
pub(super) type Frozen = FrozenControl<Vec<LogPart>>;

/// What is being added to a repository.
pub(super) struct Saving<'a> {
    repository: &'a Repository,
    /// The files of the snapshot before, by their ids.
    before: BTreeMap<String, StoredFile>,
    log_before: Vec<StoredPart>,
    /// The control file, and the copies of manifests in it at the moment.
    vouchers: Option<(Arc<Control>, BTreeMap<Subject, Copies>)>,
    progress: Progress,
    done: Arc<AtomicU64>,
    total: u64,
    pub(super) added: AtomicU64,
    /// Names that are being removed now.
    pub(super) condemned: BTreeMap<String, u64>,
    /// Whether every page is read and hashed, whatever is known of it.
    pub(super) read_all: bool,
    /// The number of the snapshot before: by it some pages are hashed although their tags are
    /// known.
    turn: u64,
    room: Room,
}

impl<'a> Saving<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        before: Option<&SealedCatalogue>,
        progress: Progress,
        capture: &Capture,
        due: &[TenantId],
        vouchers: (Arc<Control>, BTreeMap<Subject, Copies>),
    ) -> Self {
        let before = before.map(|sealed| &sealed.claims);
        let files = before.into_iter().flat_map(Catalogue::files);
        let files = files.filter(|file| file.missing.is_none());
        Self {
            repository,
            before: files
                .map(|file| (file.file_id.clone(), file.clone()))
                .collect(),
            log_before: before.map_or(Vec::new(), |before| before.audit.clone()),
            vouchers: Some(vouchers),
            progress,
            done: Arc::default(),
            total: due.iter().map(|tenant| capture.length(tenant)).sum(),
            added: AtomicU64::new(0),
            condemned: BTreeMap::new(),
            read_all: false,
            turn: before.map_or(0, |before| before.number),
            room: Room::default(),
        }
    }

    /// The name of an object that is added: another one where a removal takes what has it.
    fn name(&self, name: String) -> String {
        match self.condemned.get(&name) {
            Some(removal) => format!("{name}.{removal}"),
            None => name,
        }
    }

    /// Adds files of which the repository has nothing yet.
    pub(super) fn afresh(repository: &'a Repository) -> Self {
        Self {
            repository,
            before: BTreeMap::new(),
            log_before: Vec::new(),
            vouchers: None,
            progress: Arc::new(|_, _| true),
            done: Arc::default(),
            total: 0,
            added: AtomicU64::new(0),
            condemned: BTreeMap::new(),
            read_all: false,
            turn: 0,
            room: Room::default(),
        }
    }

    /// One tenant. Trouble with its files is part of the answer.
    pub(super) async fn tenant(
        &self,
        capture: &Arc<Capture>,
        tenant: TenantId,
    ) -> Result<StoredFile, BackupError> {
        let _room = self.room.take(capture.length(&tenant)).await;
        let (from, of) = (Arc::clone(capture), tenant.clone());
        let taken = blocking(move || {
            let captured = from.take(&of)?;
            let manifest = captured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .manifest
                .clone();
            Ok::<_, io::Error>((captured, manifest))
        })
        .await;
        let taken = taken.and_then(|(captured, manifest)| {
            let sealed = SealedManifest::parse(&manifest).map_err(io::Error::other)?;
            self.vouched(&tenant, &sealed)?;
            Ok((captured, sealed))
        });
        let stored = match taken {
            Ok((captured, manifest)) => self.file(&manifest, Source::Tenant(captured)).await,
            Err(error) => Err(BackupError::io("read", data_dir::database_name(&tenant))(
                error,
            )),
        };
        capture.done(&tenant);
        match stored {
            Err(error @ BackupError::Io { .. }) => {
                let why = printable(&crate::error_chain::error_chain(&error));
                tracing::error!(%tenant, why, "a tenant is not in the snapshot");
                Ok(StoredFile {
                    subject: data_dir::subject(&tenant).to_string(),
                    file_id: NOBODY.to_owned(),
                    dek_id: "0".repeat(16),
                    manifest: "0".repeat(64),
                    bytes: 0,
                    runs: Vec::new(),
                    missing: Some(why),
                    on_disk: None,
                    over: None,
                })
            }
            stored => stored,
        }
    }

    /// Refuses a manifest that is of another tenant, or none of those that the control file has
    /// copies of: now, or at the moment. Where there are no copies yet, nothing is known of it.
    /// May block for a moment.
    fn vouched(&self, tenant: &TenantId, manifest: &SealedManifest) -> io::Result<()> {
        let (subject, found) = (data_dir::subject(tenant), manifest.claims().subject());
        if *found != subject {
            return Err(io::Error::other(format!(
                "the manifest beside it is of {found}; `nimbus encryption repair` puts a copy back"
            )));
        }
        let Some((control, copies)) = &self.vouchers else {
            return Ok(());
        };
        let known = |copies: &Copies| copies.is_empty() || copies.vouch_for(manifest);
        if copies.get(&subject).is_none_or(known) {
            return Ok(());
        }
        // Rewrapped since the moment.
        let now = control.copies(&subject).map_err(io::Error::other)?;
        match now.vouch_for(manifest) {
            true => Ok(()),
            false => Err(io::Error::other(
                "the manifest beside it is not the one that the control file has a copy of; `nimbus encryption repair` puts the copy back",
            )),
        }
    }

    /// A protected file and its manifest.
    pub(super) async fn file(
        &self,
        manifest: &SealedManifest,
        source: Source,
    ) -> Result<StoredFile, BackupError> {
        let claims = manifest.claims();
        let (file_id, dek_id) = (
            claims.file_id().to_string(),
            claims.deks()[0].id.to_string(),
        );
        let on_disk = source.on_disk();
        let before = self.before.get(&file_id);
        let unchanged = before.filter(|before| {
            !self.read_all
                && on_disk.is_some()
                && before.on_disk == on_disk
                && (&before.dek_id, before.bytes) == (&dek_id, source.bytes())
        });
        let (bytes, runs) = match unchanged {
            Some(before) => self.tell()(before.bytes)
                .then_some((before.bytes, before.runs.clone()))
                .ok_or(BackupError::Stopped)?,
            None => self.pages(manifest, source.clone()).await?,
        };
        let name = sha256(manifest.as_bytes());
        if before.is_none_or(|before| (&before.dek_id, &before.manifest) != (&dek_id, &name)) {
            let object = self.name(format!("keys/{file_id}/{dek_id}/{name}"));
            self.repository
                .add(&object, Bytes::copy_from_slice(manifest.as_bytes()))
                .await?;
        }
        Ok(StoredFile {
            subject: claims.subject().to_string(),
            file_id,
            dek_id,
            manifest: name,
            bytes,
            runs,
            missing: None,
            // Of what was read while it stood so.
            on_disk: on_disk.filter(|then| source.on_disk().as_ref() == Some(then)),
            over: None,
        })
    }

    /// Is told of bytes that were read; answers whether to go on.
    fn tell(&self) -> impl Fn(u64) -> bool + use<> {
        let (progress, done) = (Arc::clone(&self.progress), Arc::clone(&self.done));
        let total = self.total;
        move |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total)
    }

    /// Reads a file, and adds the pages that are not known. Answers its length, and its runs.
    async fn pages(
        &self,
        manifest: &SealedManifest,
        source: Source,
    ) -> Result<(u64, Vec<Run>), BackupError> {
        let (claims, tell) = (manifest.claims(), self.tell());
        let (file_id, cipher) = (claims.file_id().to_string(), claims.cipher());
        let known = self.known(&file_id, cipher, source.bytes()).await?;
        let (sender, mut receiver) = mpsc::channel(1);
        let reading = blocking(move || read_changes(&source, cipher, known, &sender, &tell));
        let of = &file_id;
        // What failed takes the receiver with it, so that the reader ends.
        let adding = async move {
            let runs = stream::poll_fn(|context| receiver.poll_recv(context));
            let stored = runs.map(|run| self.run(of, run)).buffered(2);
            stored.try_collect::<Vec<Run>>().await
        };
        let (read, added) = tokio::join!(reading, adding);
        let added = added?;
        let (bytes, mut runs) = read.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => BackupError::Stopped,
            _ => BackupError::io("read", claims.subject().file_name())(error),
        })?;
        runs.extend(added);
        Ok((bytes, runs))
    }

    /// The pages of a file that the repository has from the snapshot before. Where many of them
    /// count no more, none: all are added anew.
    async fn known(
        &self,
        file_id: &str,
        cipher: Cipher,
        bytes: u64,
    ) -> Result<StoredPages, BackupError> {
        let Some(before) = self
            .before
            .get(file_id)
            .filter(|before| before.cipher() == cipher)
        else {
            return Ok(StoredPages::none());
        };
        let live = bytes.div_ceil(UNIT as u64);
        let kept: u64 = before.runs.iter().map(|run| u64::from(run.pages)).sum();
        let full = live / 4096 + MOST_RUNS;
        if kept * 2 > live * 3 + MOST_RUNS || before.runs.len() as u64 > full {
            return Ok(StoredPages::none());
        }
        let mut stored = StoredPages::of(&before.runs, before.bytes);
        let heads = before.runs.iter().map(|run| {
            async move {
                let head = run.head().ok_or_else(|| {
                    let why = "it is named as shorter than its pages";
                    self.repository.damaged(&run.object, why)
                })?;
                self.repository.span(&head).await
            }
            .boxed()
        });
        let heads: Vec<_> = heads.collect();
        let mut heads = stream::iter(heads).buffered(HEADS_AT_ONCE);
        for (place, run) in (0..).zip(&before.runs) {
            let Some(read) = heads.try_next().await? else {
                break;
            };
            let Some(index) = Index::of(&read) else {
                return Err(self.repository.damaged(&run.object, "its index is none"));
            };
            let by_tag = |number| !self.read_all && !is_due(number, self.turn);
            stored.take(place, &index, by_tag);
        }
        Ok(stored)
    }

    async fn run(&self, file_id: &str, run: RunBuilder) -> Result<Run, BackupError> {
        let FinishedRun {
            object,
            pages,
            index_sha256,
        } = blocking(move || run.finish()).await;
        let name = self.name(format!("base/{file_id}/{index_sha256}"));
        let stored = Run {
            object: name.clone(),
            offset: 0,
            bytes: object.len() as u64,
            sha256: None,
            pages,
            index_sha256,
        };
        let _before = self.added.fetch_add(stored.bytes, Ordering::Relaxed);
        self.repository.add(&name, object).await?;
        crash_point!("backup::run-stored");
        Ok(stored)
    }

    /// The audit log, which must end at `head`. Of a part that goes on where the snapshot before
    /// ended, only what is new is added.
    pub(super) async fn log(
        &self,
        parts: Vec<LogPart>,
        head: AuditHead,
    ) -> Result<Vec<StoredPart>, BackupError> {
        let mut stored = Vec::with_capacity(parts.len());
        let mut ends = AuditHead::START;
        for part in parts {
            let name = part.name.clone();
            let read = blocking(move || part.read()).await;
            let read = read.map_err(BackupError::io("read", &name))?;
            ends = read.head.unwrap_or(ends);
            let text = Bytes::from(read.text);
            let begins = |before: &&StoredPart| {
                let length = usize::try_from(before.bytes).unwrap_or(usize::MAX);
                text.get(..length)
                    .is_some_and(|begin| sha256(begin) == before.sha256)
            };
            let before = self
                .log_before
                .iter()
                .filter(|before| before.pieces.len() < MOST_PIECES);
            let before = before.filter(begins).max_by_key(|before| before.bytes);
            let mut pieces = before.map_or(Vec::new(), |before| before.pieces.clone());
            let new =
                text.slice(before.map_or(0, |before| usize::try_from(before.bytes).unwrap_or(0))..);
            for at in (0..new.len()).step_by(limits::PIECE) {
                let new = new.slice(at..new.len().min(at + limits::PIECE));
                let sha = sha256(&new);
                let object = self.name(format!("audit/{sha}"));
                pieces.push(Piece {
                    object: object.clone(),
                    offset: 0,
                    bytes: new.len() as u64,
                    sha256: sha,
                    skip: 0,
                });
                let _before = self.added.fetch_add(new.len() as u64, Ordering::Relaxed);
                self.repository.add(&object, new).await?;
            }
            stored.push(StoredPart {
                name,
                bytes: text.len() as u64,
                sha256: sha256(&text),
                pieces,
            });
        }
        if ends != head {
            return Err(BackupError::NotSaved(format!(
                "the audit log ends at line {}, and the control file says at line {}: one of the two was changed or put back; `nimbus encryption audit --verify` says more",
                ends.seq, head.seq
            )));
        }
        Ok(stored)
    }
}

/// Heads of objects that are read at a time.
const HEADS_AT_ONCE: usize = 8;
/// From how many objects on a file is stored anew, beyond one for each 16 MiB of it.
const MOST_RUNS: u64 = 64;
/// The same of a part of the audit log.
const MOST_PIECES: usize = 64;
/// The file id of what could not be read.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
