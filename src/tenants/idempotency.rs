//! Requests that were sent under a key and their answers, so that sending one again does nothing
//! again.
//!
//! An answer is written in the transaction of the effect: after a crash both are there or neither
//! is. Answers are removed in the order in which they came, in the writer's commits, once they are
//! old.

use super::StoreError;
use super::backend::{AnswerWrites, AnswersEnd, AnswersOf, StoredAnswer, Transaction};
use super::writing::Writing;
use crate::clock::now_ms;
use crate::documents::schedule::CLOCK_SLACK_MS;
use crate::documents::{
    CREDENTIAL_PART, MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Once, REMEMBERED_FOR,
};

/// Part of an answer: an id, and a number that goes with it. It is stored as 24 bytes, the number
/// big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnswerPart {
    pub(super) id: [u8; 16],
    pub(super) number: i64,
}

impl AnswerPart {
    fn to_bytes(self) -> [u8; PART_BYTES] {
        let mut bytes = [0; PART_BYTES];
        let (id, number) = bytes.split_at_mut(16);
        id.copy_from_slice(&self.id);
        number.copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; PART_BYTES]) -> Option<Self> {
        let (id, number) = bytes.split_first_chunk()?;
        Some(Self {
            id: *id,
            number: i64::from_be_bytes(number.try_into().ok()?),
        })
    }

    /// Reads the parts of an answer; `None` when these bytes are none.
    fn all_from_bytes(bytes: &[u8]) -> Option<Vec<Self>> {
        let (parts, rest) = bytes.as_chunks();
        rest.is_empty()
            .then(|| parts.iter().map(Self::from_bytes).collect())?
    }
}

/// When answers are old enough to be removed.
#[derive(Debug, Default)]
pub(super) struct AnswerExpiry {
    /// When to look next; nothing is known at first.
    next_ms: i64,
}

impl AnswerExpiry {
    /// Removes some of the old answers, if there are any.
    pub(super) fn remove_old(
        &mut self,
        transaction: &mut impl AnswerWrites,
    ) -> Result<(), StoreError> {
        let now = now_ms();
        if now < self.next_ms {
            return Ok(());
        }
        // What is far ahead was written by a clock that was wrong, and would stay for as long as it
        // was.
        let kept = now.saturating_sub(period_ms()).saturating_add(1)
            ..now.saturating_add(CLOCK_SLACK_MS).saturating_add(1);
        let removed = transaction.delete_answers_outside(MAX_REMOVED, kept)?;
        uncount(transaction, removed)?;
        let oldest = transaction.oldest_answer_ms()?;
        // What comes from here on is not old before that.
        self.next_ms = oldest.unwrap_or(now).saturating_add(period_ms());
        Ok(())
    }

    /// A commit failed: nothing is known.
    pub(super) fn unknown(&mut self) {
        *self = Self::default();
    }
}

impl<T: Transaction> Writing<'_, T> {
    /// Does some work unless it was done before under its key; whether it was. Call it within
    /// [`Writing::all_or_nothing`], so that the work and the memory of it are one.
    pub(super) fn once(
        &mut self,
        once: &Once,
        work: impl FnOnce(&mut Self) -> Result<Vec<AnswerPart>, StoreError>,
    ) -> Result<(Vec<AnswerPart>, bool), StoreError> {
        let now = now_ms();
        if let Some(found) = self.transaction.answer(once.key())? {
            let parts = AnswerPart::all_from_bytes(&found.answer);
            let parts = parts.ok_or_else(|| self.malformed("answer"))?;
            if found.at_ms > now.saturating_sub(period_ms()) {
                return if found.request == *once.request() {
                    Ok((parts, true))
                } else {
                    Err(StoreError::KeyReused)
                };
            }
            let removed = self.transaction.delete_answer(once.key())?;
            uncount(self.transaction, removed)?;
        }
        let before = self.applied.len();
        let answer = work(self)?;
        let wrote = self.applied.len() - before;
        // What deletes makes room for the memory of it; what checks alone, or does nothing, does
        // not.
        if wrote == 0 || answer.len() > 2 * wrote {
            self.may_grow()?;
        }
        self.remember(once, now, &answer)?;
        Ok((answer, false))
    }

    fn remember(&mut self, once: &Once, now: i64, answer: &[AnswerPart]) -> Result<(), StoreError> {
        let answer: Vec<u8> = answer.iter().flat_map(|part| part.to_bytes()).collect();
        let size = i64::try_from(answer.len()).unwrap_or(i64::MAX);
        let none = (
            AnswersEnd {
                number: 1,
                ..AnswersEnd::default()
            },
            AnswersEnd::default(),
        );
        let (first, last) = self.transaction.answers()?.unwrap_or(none);
        // Answers in between may be gone: these are the most that there can be.
        let held = last.bytes - first.bytes + first.size;
        if last.number - first.number + 1 >= MAX_REMEMBERED
            || held.saturating_add(size) > MAX_REMEMBERED_BYTES
        {
            return Err(StoreError::TooManyRemembered { own: false });
        }
        // Where it is rejected, the savepoint takes the count back.
        let own = self.transaction.count_answers(AnswersOf {
            credential: *once.credential(),
            count: 1,
            bytes: size,
        })?;
        if own.count > MAX_REMEMBERED / CREDENTIAL_PART
            || own.bytes > MAX_REMEMBERED_BYTES / CREDENTIAL_PART
        {
            return Err(StoreError::TooManyRemembered { own: true });
        }
        let answer = StoredAnswer {
            request: *once.request(),
            at_ms: now,
            answer,
            credential: Some(*once.credential()),
        };
        let end = AnswersEnd {
            number: last.number + 1,
            bytes: last.bytes + size,
            size,
        };
        self.transaction.put_answer(once.key(), &answer, end)
    }
}

/// Counts answers that were removed no more.
fn uncount(transaction: &mut impl AnswerWrites, removed: Vec<AnswersOf>) -> Result<(), StoreError> {
    for of in removed {
        let _left = transaction.count_answers(AnswersOf {
            count: -of.count,
            bytes: -of.bytes,
            ..of
        })?;
    }
    Ok(())
}

fn period_ms() -> i64 {
    i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX)
}

const PART_BYTES: usize = 24;
/// Answers that are removed in one commit.
const MAX_REMOVED: usize = 1000;
