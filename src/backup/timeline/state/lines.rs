//! From when to when packs have a tenant.

use std::collections::BTreeSet;

use super::State;
use crate::backup::catalogue::StoredFile;
use crate::clock;

/// Instants that follow each other, at each of which a tenant can be restored, with one file id.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::backup::timeline) struct Line {
    pub(in crate::backup::timeline) file_id: String,
    /// The first and the last, in milliseconds since 1970.
    pub(in crate::backup::timeline) from_ms: i64,
    pub(in crate::backup::timeline) to_ms: i64,
    /// How many instants there are at which it changed.
    pub(in crate::backup::timeline) changes: usize,
    /// How long its file is at the end.
    pub(in crate::backup::timeline) bytes: u64,
    /// Bytes in packs.
    pub(in crate::backup::timeline) shipped: u64,
}

impl State<'_> {
    /// The lines of a tenant in what was read, in their order. They say what a restoration does:
    /// each place at which that could have another answer is asked.
    pub(in crate::backup::timeline) fn lines(&self, subject: &str) -> Vec<Line> {
        let tenants = &self.catalogue.tenants;
        let before = tenants.iter().find(|file| file.subject == subject);
        let at = |ms: i64| -> Option<StoredFile> {
            let file = self.file(subject, before.cloned(), ms)?;
            file.missing.is_none().then_some(file)
        };
        let mut lines: Vec<Line> = Vec::new();
        let places = self.places(subject);
        let ends = places.iter().skip(1).map(|next| next - 1);
        for (&from_ms, to_ms) in places.iter().zip(ends.chain([self.end_ms])) {
            let Some(file) = at(from_ms) else { continue };
            match lines.last_mut() {
                Some(last) if last.to_ms + 1 == from_ms && last.file_id == file.file_id => {
                    last.to_ms = to_ms;
                }
                _ => lines.push(Line {
                    file_id: file.file_id,
                    from_ms,
                    to_ms,
                    changes: 0,
                    bytes: 0,
                    shipped: 0,
                }),
            }
        }
        for line in &mut lines {
            line.bytes = at(line.to_ms).map_or(0, |file| file.bytes);
            (line.changes, line.shipped) = self.shipped(subject, line.from_ms, line.to_ms);
        }
        lines
    }

    /// Where the tenant may begin, end or be another, within what was read.
    fn places(&self, subject: &str) -> BTreeSet<i64> {
        let begun = self.bases.iter().filter(|(of, _)| of.0 == subject);
        let begun = begun.filter_map(|(_, base)| clock::ms_of(&base.at));
        let gone = self.gone.iter().filter(|(gone, _)| gone.subject == subject);
        let gone = gone.map(|(_, end)| *end);
        // What was committed to a file whose pages are not there.
        let committed = self.frames.iter().filter(|(of, _)| of.0 == subject);
        let committed = committed.filter_map(|(_, segments)| {
            let mut commits = segments.iter().flat_map(|(_, one)| &one.commits);
            commits.next().map(|commit| commit.2)
        });
        let places = begun.chain(gone).chain(committed);
        let within = places.filter(|ms| (self.taken_ms..=self.end_ms).contains(ms));
        within.chain([self.taken_ms]).collect()
    }

    /// How many instants of a time there are at which the tenant changed, and the bytes of what was
    /// shipped of it.
    fn shipped(&self, subject: &str, from_ms: i64, to_ms: i64) -> (usize, u64) {
        let is_within = |ms: i64| (from_ms..=to_ms).contains(&ms);
        let of = self.frames.iter().filter(|(of, _)| of.0 == subject);
        let (mut changes, mut bytes) = (BTreeSet::new(), 0);
        for (piece, segment) in of.flat_map(|(_, segments)| segments) {
            let times = segment.commits.iter().map(|commit| commit.2);
            let before = changes.len();
            changes.extend(times.filter(|ms| is_within(*ms)));
            if changes.len() > before {
                bytes += piece.bytes;
            }
        }
        (changes.len(), bytes)
    }
}
