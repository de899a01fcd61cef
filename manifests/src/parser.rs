//! The strict parser: it accepts just what [`Manifest::covered_text`] writes.

use std::str::FromStr;

use data_encoding::BASE64;

use crate::error::{Field, ParseError, Problem};
use crate::kinds::{Cipher, ProviderKind, State, WrapAlgorithm};
use crate::manifest::{CONTINUATION_BYTES, DekEntry, Manifest, Wrap};
use crate::names::{DekId, FileId, InvalidName, KeyId, Subject};
use crate::time::Timestamp;
use crate::{
    MAX_DEKS, MAX_LINE_BYTES, MAX_MANIFEST_BYTES, MAX_WRAPPED_BYTES, MAX_WRAPS, VERSION_LINE,
};

/// Reads a manifest and its MAC.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Manifest, [u8; 32]), ParseError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(ParseError::TooLarge);
    }
    let mut lines = Lines {
        rest: bytes,
        number: 0,
    };
    let version = lines.take(Field::Version)?;
    if version != VERSION_LINE {
        let shown = version.chars().take(SHOWN_CHARS).collect();
        return Err(ParseError::UnknownVersion(shown));
    }
    let subject = lines.value(Field::Subject, name::<Subject>)?;
    let file_id = lines.value(Field::FileId, name::<FileId>)?;
    let cipher = lines.value(
        Field::Cipher,
        known(Cipher::from_word, Problem::UnknownCipher),
    )?;
    let state = lines.value(Field::State, known(State::from_word, Problem::UnknownState))?;
    let revision = lines.value(Field::Revision, number)?;
    let created = lines.value(Field::Created, Timestamp::from_str)?;
    let mut deks = Vec::new();
    while deks.is_empty() || lines.next_is(Field::Dek) {
        deks.push(dek(&mut lines, deks.len())?);
    }
    let mac = lines.value(Field::Mac, |text| {
        <[u8; 32]>::try_from(base64(text)?).map_err(|_other_length| Problem::Base64)
    })?;
    lines.end()?;
    let manifest = Manifest::new(subject, file_id, cipher, state, revision, created, deks)?;
    Ok((manifest, mac))
}

fn dek(lines: &mut Lines<'_>, before: usize) -> Result<DekEntry, ParseError> {
    let (id, created) = lines.value(Field::Dek, |text| {
        if before == MAX_DEKS {
            return Err(Problem::TooMany);
        }
        let [id, created] = fields(text)?;
        Ok((name::<DekId>(id)?, created.parse()?))
    })?;
    let mut wraps = Vec::new();
    while wraps.is_empty() || lines.next_is(Field::Wrap) {
        wraps.push(wrap(lines, wraps.len())?);
    }
    Ok(DekEntry { id, created, wraps })
}

fn wrap(lines: &mut Lines<'_>, before: usize) -> Result<Wrap, ParseError> {
    let (provider, key_id, algorithm, at) = lines.value(Field::Wrap, |text| {
        if before == MAX_WRAPS {
            return Err(Problem::TooMany);
        }
        let [provider, key_id, algorithm, at] = fields(text)?;
        Ok((
            known(ProviderKind::from_word, Problem::UnknownProvider)(provider)?,
            name::<KeyId>(key_id)?,
            known(WrapAlgorithm::from_word, Problem::UnknownAlgorithm)(algorithm)?,
            at.parse()?,
        ))
    })?;
    let mut blob = Vec::new();
    let mut full = true;
    while blob.is_empty() || lines.next_is_continuation() {
        let line = lines.take(Field::Wrap)?;
        let part = continuation(line, full, blob.len())
            .map_err(|problem| lines.problem(Field::Wrap, problem))?;
        full = part.len() == CONTINUATION_BYTES;
        blob.extend_from_slice(&part);
    }
    Ok(Wrap {
        provider,
        key_id,
        algorithm,
        at,
        blob,
    })
}

/// One line of a wrapped key. Every line but the last is full.
fn continuation(line: &str, previous_full: bool, so_far: usize) -> Result<Vec<u8>, Problem> {
    let Some(text) = line.strip_prefix(' ') else {
        return Err(Problem::Unexpected(shown(line)));
    };
    if !previous_full || text.is_empty() || text.len() > CONTINUATION_CHARS {
        return Err(Problem::Base64);
    }
    let part = base64(text)?;
    if so_far + part.len() > MAX_WRAPPED_BYTES {
        return Err(Problem::WrappedSize);
    }
    Ok(part)
}

/// The bytes whose one spelling is `text`. The library also reads padded texts one after the other;
/// this format does not.
fn base64(text: &str) -> Result<Vec<u8>, Problem> {
    BASE64
        .decode(text.as_bytes())
        .ok()
        .filter(|bytes| BASE64.encode(bytes) == text)
        .ok_or(Problem::Base64)
}

fn number(text: &str) -> Result<u64, Problem> {
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::Number);
    }
    text.parse().map_err(|_not_a_number| Problem::Number)
}

fn name<T: FromStr<Err = InvalidName>>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(Problem::Name)
}

/// Reads a word of a closed set; another one is `unknown`.
fn known<T>(
    from_word: impl Fn(&str) -> Option<T>,
    unknown: impl Fn(String) -> Problem,
) -> impl Fn(&str) -> Result<T, Problem> {
    move |word| from_word(word).ok_or_else(|| unknown(word.to_owned()))
}

/// Exactly `N` fields, separated by one space.
fn fields<const N: usize>(text: &str) -> Result<[&str; N], Problem> {
    let fields: Vec<&str> = text.split(' ').collect();
    <[&str; N]>::try_from(fields)
        .ok()
        .filter(|fields| fields.iter().all(|field| !field.is_empty()))
        .ok_or(Problem::Words)
}

fn shown(line: &str) -> String {
    let word = line.split_once(':').map_or(line, |(word, _value)| word);
    word.chars().take(SHOWN_CHARS).collect()
}

/// The lines not read yet.
struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Lines<'a> {
    /// The next line, whatever stands on it: ASCII, ended by `\n`.
    fn take(&mut self, field: Field) -> Result<&'a str, ParseError> {
        self.number += 1;
        let mut parts = self.rest.splitn(2, |byte| *byte == b'\n');
        let (Some(line), Some(rest)) = (parts.next(), parts.next()) else {
            return Err(self.problem(field, Problem::Missing));
        };
        self.rest = rest;
        if line.len() > MAX_LINE_BYTES {
            return Err(self.problem(field, Problem::LineTooLong));
        }
        match std::str::from_utf8(line) {
            Ok(line) if line.bytes().all(|byte| matches!(byte, b' '..=b'~')) => Ok(line),
            _ => Err(self.problem(field, Problem::NotAscii)),
        }
    }

    /// The value of the next line, which must be `field`'s.
    fn value<T>(
        &mut self,
        field: Field,
        read: impl FnOnce(&'a str) -> Result<T, Problem>,
    ) -> Result<T, ParseError> {
        let line = self.take(field)?;
        let value = line
            .strip_prefix(field.as_str())
            .and_then(|rest| rest.strip_prefix(": "));
        match value {
            Some(value) => read(value),
            None => Err(Problem::Unexpected(shown(line))),
        }
        .map_err(|problem| self.problem(field, problem))
    }

    /// Whether the next line begins as `field`'s does.
    fn next_is(&self, field: Field) -> bool {
        self.rest
            .strip_prefix(field.as_str().as_bytes())
            .is_some_and(|rest| rest.starts_with(b":"))
    }

    fn next_is_continuation(&self) -> bool {
        self.rest.starts_with(b" ")
    }

    fn end(&self) -> Result<(), ParseError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ParseError::Line {
                line: self.number + 1,
                field: Field::Mac,
                problem: Problem::Trailing,
            })
        }
    }

    fn problem(&self, field: Field, problem: Problem) -> ParseError {
        ParseError::Line {
            line: self.number,
            field,
            problem,
        }
    }
}

const CONTINUATION_CHARS: usize = 64;
/// How much of a foreign line an error repeats.
const SHOWN_CHARS: usize = 40;

#[cfg(test)]
mod tests;
