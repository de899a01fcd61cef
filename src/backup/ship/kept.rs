//! What the repository has of the control file and the audit log, and what a pack adds to it.

use std::io;

use super::super::catalogue::{Run, StoredPart};
use super::super::pack::{Data, Pack, PackedLog, PackedPart};
use super::super::run::{RunBuilder, Version, version};
use super::super::sha256;
use crate::audit::LogPart;
use crate::sqlcipher::UNIT;

/// What the repository has.
#[derive(Debug)]
pub(super) struct Kept {
    /// The versions of the control file's pages.
    pages: Vec<Version>,
    /// The parts of the audit log: name, length, SHA-256.
    parts: Vec<(String, u64, String)>,
}

impl Kept {
    /// What a snapshot has.
    pub(super) fn of(control: &[u8], parts: &[StoredPart]) -> Self {
        let part = |part: &StoredPart| (part.name.clone(), part.bytes, part.sha256.clone());
        Self {
            pages: units(control).map(|page| version(&page)).collect(),
            parts: parts.iter().map(part).collect(),
        }
    }

    /// The pages of the control file that changed, for a pack that is put together.
    pub(super) fn control(&mut self, bytes: &[u8], pack: (u64, u64), data: &mut Data) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut builder = RunBuilder::default();
        let mut put = |builder: &mut RunBuilder| {
            let finished = std::mem::take(builder).finish();
            runs.push(Run {
                object: Pack::name(pack.0, pack.1),
                offset: data.append(&finished.object),
                bytes: finished.object.len() as u64,
                sha256: None,
                pages: finished.pages,
                index_sha256: finished.index_sha256,
            });
        };
        let mut pages = Vec::with_capacity(self.pages.len());
        for (number, page) in (1..).zip(units(bytes)) {
            let now = version(&page);
            if self.pages.get(pages.len()) != Some(&now) {
                builder.push(number, &now, &page, 1);
            }
            pages.push(now);
            if builder.is_full() {
                put(&mut builder);
            }
        }
        if builder.count() > 0 {
            put(&mut builder);
        }
        self.pages = pages;
        runs
    }

    /// What is new in the audit log; `None` when it is as it was. Blocks.
    pub(super) fn log(
        &mut self,
        parts: Vec<LogPart>,
        data: &mut Data,
    ) -> io::Result<Option<PackedLog>> {
        let mut now = Vec::with_capacity(parts.len());
        let mut changed = Vec::new();
        for part in parts {
            let (name, bytes) = (part.name.clone(), part.bytes());
            // A full part never changes, and one that grows has another length.
            let same = self
                .parts
                .iter()
                .find(|had| (&had.0, had.1) == (&name, bytes));
            if let Some(same) = same {
                now.push(same.clone());
                continue;
            }
            let text = part.read()?.text;
            let begins = |had: &&(String, u64, String)| {
                let length = usize::try_from(had.1).unwrap_or(usize::MAX);
                let begin = text.get(..length);
                had.1 > 0 && begin.is_some_and(|begin| sha256(begin) == had.2)
            };
            let of = self.parts.iter().filter(begins).max_by_key(|had| had.1);
            let kept = of.map_or(0, |had| usize::try_from(had.1).unwrap_or(0));
            let added = &text[kept..];
            let whole = sha256(&text);
            changed.push(PackedPart {
                name: name.clone(),
                of: of.map(|had| had.0.clone()),
                bytes: text.len() as u64,
                sha256: whole.clone(),
                added: (!added.is_empty()).then(|| data.put(added)),
            });
            now.push((name, text.len() as u64, whole));
        }
        let names = |parts: &[(String, u64, String)]| -> Vec<String> {
            parts.iter().map(|part| part.0.clone()).collect()
        };
        let same = changed.is_empty() && names(&now) == names(&self.parts);
        let log = PackedLog {
            parts: names(&now),
            changed,
        };
        self.parts = now;
        Ok((!same).then_some(log))
    }
}

/// The pages of a file, the last one filled up with zeros.
fn units(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    bytes.chunks(UNIT).map(|chunk| {
        let mut page = chunk.to_vec();
        page.resize(UNIT, 0);
        page
    })
}
