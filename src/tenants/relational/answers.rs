//! Answers to requests that were sent under a key.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    columns::{ANSWER, ANSWER_NAME},
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
    space::Space,
    transaction::RelationalTransaction,
    writes::Ends,
};
use crate::documents::Once;
use crate::tenants::StoreError;
use crate::tenants::backend::{AnswerWrites, AnswersEnd, AnswersOf, StoredAnswer};

impl<E: Engine> AnswerWrites for RelationalTransaction<E> {
    fn answer(&mut self, key: &[u8; 32]) -> Result<Option<StoredAnswer>, StoreError> {
        let known = self.known_answer(key)?;
        Ok(known.map(|(_number, answer)| answer))
    }

    fn answers(&mut self) -> Result<Ends, StoreError> {
        if let Some(ends) = self.reader.writes.ends {
            return Ok(ends);
        }
        let space = Arc::clone(&self.reader.space);
        let end = |row: Option<Row>| {
            row.map(|mut row| {
                let stored = Stored::read(&space, &mut row)?;
                Ok(AnswersEnd {
                    number: stored.number,
                    bytes: stored.total,
                    size: length(&stored.answer.answer),
                })
            })
            .transpose()
        };
        let sql = |order| format!("SELECT {ANSWERS} FROM @answers ORDER BY number {order} LIMIT 1");
        let first = self.reader.ask_one(&sql("ASC"), Vec::new())?;
        let last = self.reader.ask_one(&sql("DESC"), Vec::new())?;
        let ends = self
            .reader
            .sound(end(first))?
            .zip(self.reader.sound(end(last))?);
        self.reader.writes.ends = Some(ends);
        Ok(ends)
    }

    fn put_answer(
        &mut self,
        key: &[u8; 32],
        answer: &StoredAnswer,
        end: AnswersEnd,
    ) -> Result<(), StoreError> {
        let credential = answer.credential.unwrap_or_default();
        let space = &self.reader.space;
        let sealed_with = || answer_row(end.number, key, answer.at_ms, end.bytes, &credential);
        // What the request was is sealed with its answer: its digest would confirm a guess.
        let (request, content) = match space.seal {
            None => (answer.request.to_vec(), answer.answer.clone()),
            Some(_) => (Vec::new(), [&answer.request[..], &answer.answer].concat()),
        };
        let row = values![
            space.findable(ANSWER_NAME, key),
            request,
            answer.at_ms,
            end.bytes,
            space.seal(ANSWER, sealed_with, content)?,
            &credential
        ];
        self.put_new(Table::Answers, values![end.number], row);
        let writes = &mut self.reader.writes;
        writes.answers.set(*key, Some((end.number, answer.clone())));
        if let Some(ends) = &mut writes.ends {
            *ends = Some((ends.map_or(end, |(first, _)| first), end));
        }
        Ok(())
    }

    fn delete_answer(&mut self, key: &[u8; 32]) -> Result<Vec<AnswersOf>, StoreError> {
        let Some((number, answer)) = self.known_answer(key)? else {
            return Ok(Vec::new());
        };
        self.put(Table::Answers, values![number], None);
        self.reader.writes.answers.set(*key, None);
        self.reader.writes.ends = None;
        let of = answer.credential.map(|credential| AnswersOf {
            credential,
            count: 1,
            bytes: length(&answer.answer),
        });
        Ok(of.into_iter().collect())
    }

    fn delete_answers_outside(
        &mut self,
        most: usize,
        kept_ms: Range<i64>,
    ) -> Result<Vec<AnswersOf>, StoreError> {
        let rows = self.reader.ask(
            &format!("SELECT {ANSWERS} FROM @answers ORDER BY number LIMIT ?"),
            values![most],
        )?;
        let space = Arc::clone(&self.reader.space);
        let mut gone: BTreeMap<[u8; 32], (i64, i64)> = BTreeMap::new();
        for mut row in rows {
            let Stored {
                number,
                key,
                answer,
                ..
            } = self.reader.sound(Stored::read(&space, &mut row))?;
            if kept_ms.contains(&answer.at_ms) {
                continue;
            }
            self.put(Table::Answers, values![number], None);
            self.reader.writes.answers.set(key, None);
            self.reader.writes.ends = None;
            let credential = answer.credential.unwrap_or_default();
            let (count, bytes) = gone.entry(credential).or_default();
            *count += 1;
            *bytes += length(&answer.answer);
        }
        let of = |(credential, (count, bytes))| AnswersOf {
            credential,
            count,
            bytes,
        };
        Ok(gone.into_iter().map(of).collect())
    }

    fn count_answers(&mut self, more: AnswersOf) -> Result<AnswersOf, StoreError> {
        let AnswersOf {
            credential,
            count,
            bytes,
        } = more;
        if self.reader.writes.counts.get(&credential).is_none() {
            self.learn_counts(&[credential])?;
        }
        let known = self.reader.writes.counts.get(&credential);
        let (had, had_bytes) = known.copied().unwrap_or_default();
        let has = (had + count, had_bytes + bytes);
        self.reader.writes.counts.set(credential, has);
        let row = (has.0 > 0).then(|| values![has.0, has.1]);
        self.put(Table::AnswersOf, values![&credential], row);
        // What is left of one that has none is forgotten with its row.
        if has.0 <= 0 {
            self.reader.writes.counts.set(credential, (0, 0));
        }
        Ok(AnswersOf {
            credential,
            count: has.0,
            bytes: has.1,
        })
    }

    fn oldest_answer_ms(&mut self) -> Result<Option<i64>, StoreError> {
        let row = self.reader.ask_one(
            "SELECT at_ms FROM @answers ORDER BY number LIMIT 1",
            Vec::new(),
        )?;
        let oldest = row.map(|row| row.integer(0)).transpose();
        self.reader.sound(oldest)
    }
}

impl<E: Engine> RelationalTransaction<E> {
    /// Reads at once what requests under keys are about to ask.
    pub(super) fn expect_answers(&mut self, once: &[&Once]) -> Result<(), StoreError> {
        if once.is_empty() {
            return Ok(());
        }
        let mut credentials: Vec<[u8; 32]> = once.iter().map(|once| *once.credential()).collect();
        credentials.sort_unstable();
        credentials.dedup();
        let keys: Vec<[u8; 32]> = once.iter().map(|once| *once.key()).collect();
        self.learn_answers(&keys)?;
        self.learn_counts(&credentials)?;
        self.answers().map(drop)
    }

    fn known_answer(&mut self, key: &[u8; 32]) -> Result<Option<(i64, StoredAnswer)>, StoreError> {
        if self.reader.writes.answers.get(key).is_none() {
            self.learn_answers(std::slice::from_ref(key))?;
        }
        Ok(self.reader.writes.answers.get(key).cloned().flatten())
    }

    fn learn_answers(&mut self, keys: &[[u8; 32]]) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT {ANSWERS} FROM @answers WHERE name IN ({})",
            vec!["?"; keys.len()].join(", ")
        );
        let space = Arc::clone(&self.reader.space);
        let names = keys.iter().map(|key| space.findable(ANSWER_NAME, key));
        let names = names.map(Value::from).collect();
        for mut row in self.reader.ask_structure(&sql, names)? {
            let Stored {
                number,
                key,
                answer,
                ..
            } = self.reader.sound(Stored::read(&space, &mut row))?;
            self.reader
                .writes
                .answers
                .learn(key, Some((number, answer)));
        }
        for key in keys {
            self.reader.writes.answers.learn(*key, None);
        }
        Ok(())
    }

    fn learn_counts(&mut self, credentials: &[[u8; 32]]) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT credential, answers, total FROM @answers_of WHERE credential IN ({})",
            vec!["?"; credentials.len()].join(", ")
        );
        let values = credentials.iter().map(Value::from).collect();
        for mut row in self.reader.ask_structure(&sql, values)? {
            let mut read = || Ok((row.array(0)?, (row.integer(1)?, row.integer(2)?)));
            let (credential, counted) = self.reader.sound(read())?;
            self.reader.writes.counts.learn(credential, counted);
        }
        for credential in credentials {
            self.reader.writes.counts.learn(*credential, (0, 0));
        }
        Ok(())
    }
}

/// An answer as it is stored.
pub(super) struct Stored {
    pub(super) number: i64,
    pub(super) total: i64,
    pub(super) key: [u8; 32],
    pub(super) answer: StoredAnswer,
}

/// The columns that [`Stored::read`] reads.
pub(super) const ANSWERS: &str = "number, name, request, at_ms, total, answer, credential";

impl Stored {
    pub(super) fn read<E>(space: &Space<E>, row: &mut Row) -> Result<Self, Malformed> {
        let (number, at_ms, total) = (row.integer(0)?, row.integer(3)?, row.integer(4)?);
        let (name, request, credential) = (row.bytes(1)?, row.bytes(2)?, row.array(6)?);
        let key = space.open_array(ANSWER_NAME, name)?;
        let sealed_with = || answer_row(number, &key, at_ms, total, &credential);
        let mut answer = space.open(ANSWER, sealed_with, row.bytes(5)?)?;
        let request = match space.seal {
            None => request,
            Some(_) if answer.len() < 32 => return Err(Malformed::of("an answer")),
            Some(_) => answer.drain(..32).collect(),
        };
        Ok(Self {
            number,
            total,
            key,
            answer: StoredAnswer {
                request: request.try_into().map_err(|_| Malformed::of("an id"))?,
                at_ms,
                answer,
                credential: Some(credential),
            },
        })
    }
}

/// The rest of its row, to which a sealed answer is bound.
fn answer_row(
    number: i64,
    key: &[u8; 32],
    at_ms: i64,
    total: i64,
    credential: &[u8; 32],
) -> Vec<Value> {
    values![number, key, at_ms, total, credential]
}

fn length(answer: &[u8]) -> i64 {
    i64::try_from(answer.len()).unwrap_or(i64::MAX)
}
