//! Conditions and ranges of a GET (RFC 9110, sections 13 and 14), on what has a strong validator
//! and no date.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderValue, header};
use http_range_header::{EndPosition, RangeUnsatisfiableError, StartPosition, parse_range_header};

/// What a request wants of the bytes there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of them.
    Whole,
    /// These, and there are some.
    Bytes(Range<u64>),
    /// Some that are not there.
    Unsatisfiable,
}

/// Whether `If-None-Match` says that the client has it already.
pub(super) fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    // Our tags have no comma in them, so those that do cannot be taken for one.
    let mut tags = values.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    tags.any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes()
    })
}

/// The part that `Range` asks for. One that cannot be read, in another unit, of several ranges, or
/// under an `If-Range` that does not hold, is as none: the whole is always a right answer.
pub(super) fn part(headers: &HeaderMap, etag: &HeaderValue, size: u64) -> Selection {
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Selection::Whole;
    };
    // A date matches nothing: there is none to compare with.
    if headers.get(header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Selection::Whole;
    }
    let ranges = match parse_range_header(range.to_str().unwrap_or_default()) {
        Ok(parsed) => parsed.ranges,
        Err(RangeUnsatisfiableError::ZeroSuffix) => return Selection::Unsatisfiable,
        Err(_unreadable) => return Selection::Whole,
    };
    let [range] = ranges[..] else {
        return Selection::Whole;
    };
    let (start, end) = match (range.start, range.end) {
        (StartPosition::Index(start), EndPosition::Index(last)) if last < start => {
            return Selection::Whole;
        }
        (StartPosition::Index(start), EndPosition::Index(last)) => {
            (start, last.saturating_add(1).min(size))
        }
        (StartPosition::Index(start), EndPosition::LastByte) => (start, size),
        (StartPosition::FromLast(length), _) => (size.saturating_sub(length), size),
    };
    if start < end {
        Selection::Bytes(start..end)
    } else {
        Selection::Unsatisfiable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: HeaderValue = HeaderValue::from_static("\"abc\"");

    fn headers(lines: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_single_range_is_cut_to_what_is_there() {
        let last = format!("bytes=0-{}", u64::MAX);
        for (range, expected) in [
            ("bytes=0-0", Selection::Bytes(0..1)),
            ("bytes=0-9", Selection::Bytes(0..10)),
            ("bytes=2-4", Selection::Bytes(2..5)),
            ("bytes=2-", Selection::Bytes(2..10)),
            ("bytes=9-100", Selection::Bytes(9..10)),
            ("bytes=-3", Selection::Bytes(7..10)),
            ("bytes=-100", Selection::Bytes(0..10)),
            (last.as_str(), Selection::Bytes(0..10)),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=10-20", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            // Not understood, or more than is served.
            ("bytes=4-2", Selection::Whole),
            ("bytes=0-1,3-4", Selection::Whole),
            ("bytes=99999999999999999999-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes", Selection::Whole),
            ("lines=0-1", Selection::Whole),
            ("", Selection::Whole),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            assert_eq!(part(&headers, &TAG, 10), expected, "{range}");
        }
        assert_eq!(part(&HeaderMap::new(), &TAG, 10), Selection::Whole);
        for range in ["bytes=0-", "bytes=-5", "bytes=0-0"] {
            let headers = headers(&[(header::RANGE, range)]);
            assert_eq!(part(&headers, &TAG, 0), Selection::Unsatisfiable, "{range}");
        }
    }

    #[test]
    fn a_range_holds_under_the_same_strong_tag_alone() {
        for (tag, expected) in [
            ("\"abc\"", Selection::Bytes(0..2)),
            ("W/\"abc\"", Selection::Whole),
            ("\"other\"", Selection::Whole),
            ("Tue, 24 Nov 2026 10:00:00 GMT", Selection::Whole),
        ] {
            let headers = headers(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, tag)]);
            assert_eq!(part(&headers, &TAG, 10), expected, "{tag}");
        }
        let twice = headers(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=3-4")]);
        assert_eq!(part(&twice, &TAG, 10), Selection::Whole);
    }

    #[test]
    fn a_tag_is_known_from_any_list_strong_or_weak() {
        for (tags, known) in [
            (&["\"abc\""][..], true),
            (&["W/\"abc\""], true),
            (&["*"], true),
            (&["\"x\", \"abc\" ,\"y\""], true),
            (&["\"x\"", "\"abc\""], true),
            (&["\"x\""], false),
            (&["abc"], false),
            (&["\"abcd\""], false),
            (&[""], false),
            (&[], false),
        ] {
            let lines: Vec<_> = tags
                .iter()
                .map(|&tag| (header::IF_NONE_MATCH, tag))
                .collect();
            assert_eq!(is_known(&headers(&lines), &TAG), known, "{tags:?}");
        }
    }
}
