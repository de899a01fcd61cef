//! Errors of a deploy.

use thiserror::Error;

use super::{ContentHash, MAX_DEPLOY_NAME_CHARS};
use crate::documents::limits::{MAX_PATH_BYTES, MAX_PATH_NAME_BYTES};
use crate::documents::{InputError, TableName, schedule::CronName};

/// A deploy that is refused before any store sees it. Names and paths are as given, cut to a
/// printable length.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeployError {
    /// It is not written as one.
    #[error("the deploy is not right: {reason}")]
    Shape {
        /// What is wrong with it.
        reason: String,
    },
    /// A name that is empty, too long, or holds control characters.
    #[error(
        "the deploy's name is not valid: use 1 to {MAX_DEPLOY_NAME_CHARS} characters, no control characters among them"
    )]
    Name,
    /// A path that no file of an app can have.
    #[error("path {path:?} is not valid: {fault}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// Two files of one path.
    #[error(
        "two files have the path {path:?}: keep one; paths that differ in their Unicode normalisation alone are the same"
    )]
    SamePath {
        /// The path, in its normal form.
        path: String,
    },
    /// A file in the place of a directory.
    #[error("{path:?} is a file, and another file lies in a directory of that path: rename one")]
    FileAndDirectory {
        /// The path.
        path: String,
    },
    /// A hash that is not written as one.
    #[error("the sha256 of {path:?} is not valid: use 64 hexadecimal digits in lower case")]
    Hash {
        /// The file.
        path: String,
    },
    /// Content that is no canonical base64.
    #[error(
        "the content of {path:?} is not base64 (RFC 4648, with padding, nothing between): {reason}"
    )]
    Base64 {
        /// The file.
        path: String,
        /// What the decoder found.
        reason: String,
    },
    /// Content that is not what its hash says.
    #[error(
        "the content of {path:?} has the sha256 {found}, and the deploy says {said}: it was changed or cut on its way; send it again"
    )]
    Mismatch {
        /// The file.
        path: String,
        /// The hash in the deploy.
        said: ContentHash,
        /// That of the content.
        found: ContentHash,
    },
    /// Whoever sent it has gone.
    #[error("the caller of the deploy is gone: it was not read to its end")]
    Abandoned,
    /// One of the schemas is not right.
    #[error("schema {index} of the deploy: {source}")]
    Schema {
        /// Its place, the first being 0.
        index: usize,
        /// What is wrong with it.
        source: Box<InputError>,
    },
    /// Two schemas of one table.
    #[error("two schemas are for table {table}: keep one")]
    SameSchema {
        /// The table.
        table: TableName,
    },
    /// One of the crons is not right.
    #[error("cron {index} of the deploy: {source}")]
    Cron {
        /// Its place, the first being 0.
        index: usize,
        /// What is wrong with it.
        source: Box<InputError>,
    },
    /// Two crons of one name.
    #[error("two crons have the name {name}: keep one")]
    SameCron {
        /// The name.
        name: CronName,
    },
}

/// What keeps a text from being an [`AppPath`](super::AppPath).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PathFault {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// Over [`MAX_PATH_BYTES`].
    #[error("it has more than {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// A name over [`MAX_PATH_NAME_BYTES`].
    #[error("a name in it has more than {MAX_PATH_NAME_BYTES} bytes")]
    LongName,
    /// `/` at the beginning or the end, or twice in a row.
    #[error(
        "it has an empty name: write names joined by single '/', none before the first or after the last"
    )]
    EmptyName,
    /// `.` or `..`.
    #[error(
        "it has \".\" or \"..\" as a name: paths begin at the app's own root and do not leave it"
    )]
    Dots,
    /// A backslash, or a control character.
    #[error("it has a backslash or a control character")]
    Character,
}
