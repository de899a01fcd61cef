//! What an operator calls a repository, and where none may be.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::BackupError;

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Dir(PathBuf),
    /// A prefix in an S3 bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// What the names of all objects begin with; may be empty.
        prefix: String,
    },
}

/// What a repository must lie apart from.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Directories of data.
    pub dirs: Vec<PathBuf>,
    /// Keys that lie on this machine, each with the directory that keys lie in.
    pub keys: Vec<(PathBuf, PathBuf)>,
}

/// How S3 is reached, where that is not AWS's own for the region of the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Settings {
    /// The region; without it the standard chain's.
    pub region: Option<String>,
    /// The endpoint; without it AWS's for the region.
    pub endpoint_url: Option<String>,
}

impl FromStr for Location {
    type Err = BackupError;

    fn from_str(given: &str) -> Result<Self, BackupError> {
        let refused = |why| {
            Err(BackupError::Location {
                given: given.to_owned(),
                why,
            })
        };
        let Some(rest) = given.strip_prefix("s3://") else {
            return match given {
                "" => refused("it is empty"),
                _ if given.contains("://") => refused("only s3:// is known"),
                _ => Ok(Self::Dir(given.into())),
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
        };
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_name) {
            return refused("a bucket's name is 3 to 63 of a-z, 0-9, - and .");
        }
        let prefix = prefix.trim_end_matches('/');
        let parts = || prefix.split('/');
        if !prefix.is_empty() && parts().any(|part| matches!(part, "" | "." | "..")) {
            return refused("its prefix has an empty part, . or ..");
        }
        Ok(Self::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl Location {
    /// What a flag names.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn from_flag(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: BackupError| error.to_string())
    }

    /// The same with a directory named from the root, for another process.
    ///
    /// # Errors
    ///
    /// [`BackupError::Io`] when there is no working directory.
    pub fn absolute(self) -> Result<Self, BackupError> {
        match self {
            Self::Dir(path) => match std::path::absolute(&path) {
                Ok(path) => Ok(Self::Dir(path)),
                Err(source) => Err(BackupError::io("name", path)(source)),
            },
            bucket @ Self::S3 { .. } => Ok(bucket),
        }
    }

    /// Refuses a directory that would be lost with the data, or that would put data and keys into
    /// one place.
    ///
    /// # Errors
    ///
    /// [`BackupError::Placement`].
    pub fn check_place(&self, places: &Places) -> Result<(), BackupError> {
        let Self::Dir(dir) = self else { return Ok(()) };
        let refused = |why: String| {
            Err(BackupError::Placement {
                location: self.to_string(),
                why,
            })
        };
        let place = real(dir);
        for data in &places.dirs {
            let data = real(data);
            if place.starts_with(&data) || data.starts_with(&place) {
                return refused(format!(
                    "and the data directory {} lie one in the other: what takes one takes both; name another directory",
                    data.display()
                ));
            }
        }
        for (home, key) in &places.keys {
            let (home, key) = (real(home), real(key));
            // Beside it, below the directory of the key, or around the key.
            if place.starts_with(&home) || key.starts_with(&place) {
                return refused(format!(
                    "lies beside the key {}, or below its directory, or around it: who takes the one takes the other; name another directory",
                    key.display()
                ));
            }
        }
        Ok(())
    }
}

/// The path without links, of what is there of it.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut there = path.as_path();
    let mut rest = Vec::new();
    loop {
        if let Ok(real) = there.canonicalize() {
            return rest.iter().rev().fold(real, |path, part| path.join(part));
        }
        match (there.file_name(), there.ancestors().nth(1)) {
            (Some(name), Some(above)) => {
                rest.push(name.to_owned());
                there = above;
            }
            _ => return path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_directories_and_buckets() {
        let read = |text: &str| text.parse::<Location>().ok().map(|read| read.to_string());
        for (text, shown) in [
            ("backup", "backup"),
            ("/srv/backup", "/srv/backup"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
        ] {
            assert_eq!(read(text).as_deref(), Some(shown), "{text}");
        }
        for text in [
            "",
            "gs://b",
            "s3://",
            "s3://Bucket",
            "s3://ab",
            "s3://bucket/a//b",
            "s3://bucket/../b",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
