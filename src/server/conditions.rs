//! Conditions on the version of a document (RFC 9110, section 13): `If-Match` on writes,
//! `If-None-Match: *` on inserts.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::error::{ApiError, Code};
use crate::documents::Expected;

/// The strong validator of a document of this version.
pub(super) fn etag(version: i64) -> HeaderValue {
    let text = format!("\"{version}\"");
    HeaderValue::try_from(text).expect("digits in quotes")
}

/// How `If-Match` wants the document to be. What cannot be read as our tags is refused: passing
/// over it would lose an update.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<Expected>, ApiError> {
    let refused = || {
        ApiError::new(
            Code::InvalidInput,
            "`If-Match` takes `*` or the strong tags that `ETag` gave, such as `\"7\"`, with commas between them",
        )
    };
    let Some(tags) = elements(headers, header::IF_MATCH) else {
        return Ok(None);
    };
    if tags == [b"*"] {
        return Ok(Some(Expected::Present));
    }
    let versions: Option<Vec<i64>> = tags.into_iter().map(version).collect();
    match versions {
        Some(versions) if !versions.is_empty() => Ok(Some(Expected::OneOf(versions))),
        _ => Err(refused()),
    }
}

/// Whether `If-None-Match` says that there must be no such document yet.
pub(super) fn must_be_new(headers: &HeaderMap) -> Result<bool, ApiError> {
    match elements(headers, header::IF_NONE_MATCH) {
        None => Ok(false),
        Some(tags) if tags == [b"*"] => Ok(true),
        Some(_) => Err(ApiError::new(
            Code::InvalidInput,
            "`If-None-Match` takes `*` on an insert: there must be no document of this id",
        )),
    }
}

/// The elements of a list that may stand in several lines; an empty one counts for nothing.
fn elements(headers: &HeaderMap, name: HeaderName) -> Option<Vec<&[u8]>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    // Tags of Nimbus have no comma, so those that do are not its own.
    let elements = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let elements = elements.map(<[u8]>::trim_ascii);
    Some(elements.filter(|element| !element.is_empty()).collect())
}

/// The version in a tag of Nimbus, in its one spelling.
fn version(tag: &[u8]) -> Option<i64> {
    let digits = tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let version: i64 = str::from_utf8(digits).ok()?.parse().ok()?;
    (version >= 1 && version.to_string().as_bytes() == digits).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&name, HeaderValue::from_static(line));
        }
        headers
    }

    #[test]
    fn if_match_reads_tags_of_ours_and_nothing_else() {
        let read = |lines: &[&'static str]| if_match(&headers(header::IF_MATCH, lines));
        let versions = |versions: &[i64]| Some(Expected::OneOf(versions.to_vec()));
        for (lines, expected) in [
            (&[][..], None),
            (&["*"], Some(Expected::Present)),
            (&[" * "], Some(Expected::Present)),
            (&["\"7\""], versions(&[7])),
            (&["\"7\", \"8\" ,\"9\""], versions(&[7, 8, 9])),
            (&["\"7\"", "\"8\""], versions(&[7, 8])),
            (&["\"7\",,"], versions(&[7])),
            (&["\"9223372036854775807\""], versions(&[i64::MAX])),
        ] {
            assert_eq!(read(lines).ok(), Some(expected), "{lines:?}");
        }
        for lines in [
            &["\"nonsense\""][..],
            &["W/\"7\""],
            &["\"7\", W/\"8\""],
            &["7"],
            &["\"7"],
            &["7\""],
            &["\"\""],
            &[""],
            &[","],
            &["\"0\""],
            &["\"-1\""],
            &["\"+7\""],
            &["\"07\""],
            &["\" 7\""],
            &["\"9223372036854775808\""],
            &["\"7\", nonsense"],
            &["*, \"7\""],
            &["\"7\"", "*"],
            &["\"*\""],
        ] {
            assert!(read(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn an_insert_may_ask_to_be_the_first_and_nothing_else() {
        let read = |lines: &[&'static str]| must_be_new(&headers(header::IF_NONE_MATCH, lines));
        assert_eq!(read(&[]).ok(), Some(false));
        assert_eq!(read(&["*"]).ok(), Some(true));
        for lines in [
            &["\"7\""][..],
            &["W/\"7\""],
            &[""],
            &["*, *"],
            &["nonsense"],
        ] {
            assert!(read(lines).is_err(), "{lines:?}");
        }
    }
}
