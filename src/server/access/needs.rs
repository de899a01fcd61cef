//! What a route needs of its callers, and which headers it honours.

use axum::http::Method;

/// What a route needs of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Needs {
    /// Nothing: anybody may call it.
    Nothing,
    /// Any credential at all.
    Credential,
    /// A key of the tenant in the path, of either scope, or the admin token.
    Reading,
    /// A key of the tenant in the path with scope `write`, or the admin token.
    Writing,
    /// The admin token.
    Administration,
}

/// A header that makes a request conditional, partial or repeatable. A route that does not honour
/// one refuses it: passing over it would do something else than what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Only if the document has one of these versions.
    IfMatch,
    /// Only if it has none of these, or is not there.
    IfNoneMatch,
    /// Only if it was changed after a time.
    IfModifiedSince,
    /// Only if it was not changed after a time.
    IfUnmodifiedSince,
    /// Only some of the bytes.
    Range,
    /// Only some of the bytes, if they are still the same.
    IfRange,
    /// Once, however often it is sent.
    IdempotencyKey,
}

impl Special {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::IfMatch,
        Self::IfNoneMatch,
        Self::IfModifiedSince,
        Self::IfUnmodifiedSince,
        Self::Range,
        Self::IfRange,
        Self::IdempotencyKey,
    ];

    /// The header's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IfMatch => "If-Match",
            Self::IfNoneMatch => "If-None-Match",
            Self::IfModifiedSince => "If-Modified-Since",
            Self::IfUnmodifiedSince => "If-Unmodified-Since",
            Self::Range => "Range",
            Self::IfRange => "If-Range",
            Self::IdempotencyKey => "Idempotency-Key",
        }
    }
}

/// One route, as the table of all of them lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The method; a `GET` route answers `HEAD` too.
    pub method: Method,
    /// The path's pattern.
    pub path: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Which of these headers it honours.
    pub honours: &'static [Special],
}
