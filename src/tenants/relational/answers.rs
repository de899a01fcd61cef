//! Answers to requests that were sent under a key.

use std::{collections::BTreeMap, ops::Range};

use super::{
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
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
        let end = |row: Option<Row>| {
            row.map(|mut row| {
                Ok(AnswersEnd {
                    number: row.integer(0)?,
                    bytes: row.integer(1)?,
                    size: length(&row.bytes(2)?),
                })
            })
            .transpose()
        };
        let sql = |order| {
            format!("SELECT number, total, answer FROM @answers ORDER BY number {order} LIMIT 1")
        };
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
        let row = values![
            key,
            &answer.request,
            answer.at_ms,
            end.bytes,
            &answer.answer[..],
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
            "SELECT number, name, at_ms, credential, answer FROM @answers ORDER BY number LIMIT ?",
            values![most],
        )?;
        let mut gone: BTreeMap<[u8; 32], (i64, i64)> = BTreeMap::new();
        for mut row in rows {
            let mut read = || {
                let (number, at_ms) = (row.integer(0)?, row.integer(2)?);
                Ok((number, at_ms, row.array(1)?, row.array(3)?, row.bytes(4)?))
            };
            let (number, at_ms, key, credential, answer) = self.reader.sound(read())?;
            if kept_ms.contains(&at_ms) {
                continue;
            }
            self.put(Table::Answers, values![number], None);
            self.reader.writes.answers.set(key, None);
            self.reader.writes.ends = None;
            let (count, bytes) = gone.entry(credential).or_default();
            *count += 1;
            *bytes += length(&answer);
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
            "SELECT name, number, request, at_ms, answer, credential FROM @answers WHERE name IN ({})",
            vec!["?"; keys.len()].join(", ")
        );
        let rows = self
            .reader
            .ask_structure(&sql, keys.iter().map(Value::from).collect())?;
        for mut row in rows {
            let mut read = || {
                let answer = StoredAnswer {
                    request: row.array(2)?,
                    at_ms: row.integer(3)?,
                    answer: row.bytes(4)?,
                    credential: Some(row.array(5)?),
                };
                Ok::<_, Malformed>((row.array(0)?, (row.integer(1)?, answer)))
            };
            let (key, answer) = self.reader.sound(read())?;
            self.reader.writes.answers.learn(key, Some(answer));
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

fn length(answer: &[u8]) -> i64 {
    i64::try_from(answer.len()).unwrap_or(i64::MAX)
}
