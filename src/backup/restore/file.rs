//! One protected file of a snapshot, written to a path.
#![expect(
    clippy::disallowed_methods,
    reason = "nobody has a file open that is being restored: its directory was empty, and is locked, or its name is nobody else's"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _, stream};

use crate::backup::catalogue::{FramesOver, StoredFile};
use crate::backup::pack::frames;
use crate::backup::run::stretches;
use crate::backup::{BackupError, Repository};
use crate::envelope::{Copies, Envelope, manifest_path};
use crate::runtime::blocking;
use crate::sqlcipher::UNIT;

/// Is told how many bytes of the repository were read; says when to stop.
pub(in crate::backup) type Tell<'a> = &'a (dyn Fn(u64) -> Result<(), BackupError> + Sync);

impl Repository {
    /// Writes a protected file to `path`, where nothing is, and its manifest beside it. Both are
    /// flushed; their directory is not.
    pub(super) async fn restore_file(
        &self,
        envelope: Option<&Envelope>,
        file: &StoredFile,
        copies: &Copies,
        path: &Path,
        tell: Tell<'_>,
    ) -> Result<(), BackupError> {
        let manifest = self.manifest_beside(envelope, file, path, copies).await?;
        let Some(manifest) = manifest else {
            let why = "there is no manifest but older ones than the control file has copies of";
            return Err(self.damaged(&file.manifests(), why));
        };
        self.restore_pages(file, path, tell).await?;
        let sidecar = manifest_path(path);
        blocking(move || write_new(&sidecar, manifest.as_bytes())).await
    }

    /// Writes a protected file to `path`, where nothing is, as it was stored, and flushes it.
    pub(in crate::backup) async fn restore_pages(
        &self,
        file: &StoredFile,
        path: &Path,
        tell: Tell<'_>,
    ) -> Result<(), BackupError> {
        let bytes = file.over.as_ref().map_or(file.bytes, |over| over.bytes);
        let target = Arc::new(Target::create(path, bytes)?);
        let spans = file
            .runs
            .iter()
            .map(|run| async move { self.run(run).await.map(|found| (run, found)) }.boxed());
        let spans: Vec<_> = spans.collect();
        let mut there = vec![false; usize::try_from(target.count).unwrap_or(0) + 1];
        let mut reading = stream::iter(spans).buffered(AHEAD);
        while let Some(found) = reading.next().await {
            let (run, object) = found?;
            let target = Arc::clone(&target);
            let written = blocking(move || target.write(&object)).await;
            let written = written.map_err(BackupError::io("write", path))?;
            let Some(numbers) = written else {
                return Err(self.damaged(&run.object, "it does not hold pages"));
            };
            for number in numbers {
                if let Some(page) = there.get_mut(number as usize) {
                    *page = true;
                }
            }
            tell(run.bytes)?;
        }
        if let Some(hole) = there.iter().skip(1).position(|there| !there) {
            let why = format!("no object holds page {} of {}", hole + 1, file.subject);
            return Err(self.damaged("the snapshot", why));
        }
        if let Some(over) = &file.over {
            self.restore_frames(over, &target, path, tell).await?;
        }
        let length = file.bytes;
        let flushed = blocking(move || {
            target.file.set_len(length)?;
            target.file.sync_all()
        })
        .await;
        flushed.map_err(BackupError::io("flush", path))
    }
}

impl Repository {
    /// Writes what was committed to a file since its pages were stored, in order. A page by which
    /// it grew and that was never written is all zeros, as in the file that SQLite leaves.
    async fn restore_frames(
        &self,
        over: &FramesOver,
        target: &Arc<Target>,
        path: &Path,
        tell: Tell<'_>,
    ) -> Result<(), BackupError> {
        let spans = over.segments.iter().map(|(piece, count)| {
            let span = self.span(piece);
            async move { span.await.map(|found| (piece, *count as usize, found)) }.boxed()
        });
        let spans: Vec<_> = spans.collect();
        let mut reading = stream::iter(spans).buffered(AHEAD);
        while let Some(found) = reading.next().await {
            let (piece, count, segment) = found?;
            let target = Arc::clone(target);
            let written = blocking(move || target.write_frames(&segment, count)).await;
            if !written.map_err(BackupError::io("write", path))? {
                return Err(self.damaged(&piece.object, "it does not hold frames there"));
            }
            tell(piece.bytes)?;
        }
        Ok(())
    }
}

/// A file that is being restored.
#[derive(Debug)]
struct Target {
    file: File,
    bytes: u64,
    count: u64,
}

impl Target {
    fn create(path: &Path, bytes: u64) -> Result<Self, BackupError> {
        let file = new_file(path).and_then(|file| file.set_len(bytes).map(|()| file));
        Ok(Self {
            file: file.map_err(BackupError::io("create", path))?,
            bytes,
            count: bytes.div_ceil(UNIT as u64),
        })
    }

    /// Writes the pages of an object, but for those behind the end; which they are, or `None` when
    /// it holds none.
    fn write(&self, object: &[u8]) -> io::Result<Option<Vec<u32>>> {
        let Some(stretches) = stretches(object) else {
            return Ok(None);
        };
        let mut numbers = Vec::new();
        for (first, pages) in stretches {
            let at = (u64::from(first) - 1) * UNIT as u64;
            let room = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
            let pages = &pages[..pages.len().min(room)];
            self.file.write_all_at(pages, at)?;
            let more = u32::try_from(pages.len().div_ceil(UNIT)).unwrap_or(0);
            if let Some(more) = more.checked_sub(1) {
                numbers.extend(first..=first + more);
            }
        }
        Ok(Some(numbers))
    }

    /// Writes the first `count` frames of a segment; `false` when it holds none, or fewer.
    fn write_frames(&self, segment: &[u8], count: usize) -> io::Result<bool> {
        let Some(frames) = frames(segment) else {
            return Ok(false);
        };
        let mut written = 0;
        for (number, page) in frames.take(count) {
            let at = (u64::from(number) - 1) * UNIT as u64;
            self.file.write_all_at(page, at)?;
            written += 1;
        }
        Ok(written == count)
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// What stands in a small file that is no database.
pub(super) fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

pub(super) fn write_new(path: &Path, content: &[u8]) -> Result<(), BackupError> {
    let written = new_file(path).and_then(|file| {
        file.write_all_at(content, 0)?;
        file.sync_all()
    });
    written.map_err(BackupError::io("create", path))
}

/// Objects that are fetched ahead of what is written.
const AHEAD: usize = 2;
