//! Deploys: the state of an app as data, checked whole before any store sees it.

mod content;
mod diff;
mod error;
mod generation;
mod path;
mod resources;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

pub use content::{Content, ContentHash, NotAHash};
pub use diff::{Changes, Diff, MAX_DIFF_NAMES, Names, Plan};
pub use error::{DeployError, PathFault};
pub use generation::{AppFile, Deployed, GENERATIONS_KEPT, Generation, Generations};
pub use path::AppPath;
pub use resources::Resources;

pub use super::limits::{MAX_PATH_BYTES, MAX_PATH_NAME_BYTES};

use super::{Bounded, error::excerpt, json_object, schedule::MAX_CRONS};

/// The most files in a deploy.
pub const MAX_DEPLOY_FILES: usize = 10_000;

/// The most schemas in a deploy.
pub const MAX_DEPLOY_SCHEMAS: usize = 1000;

/// The longest name of a deploy, in characters.
pub const MAX_DEPLOY_NAME_CHARS: usize = 200;

/// The state of an app: what its tables look like, what runs by itself, and the files that are
/// served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploy {
    /// What it is called by those who made it. Not unique.
    pub name: String,
    /// What stands in the tenant beside its documents.
    pub resources: Resources,
    /// The files, by path.
    pub files: BTreeMap<AppPath, Content>,
    /// Whether it is only to be tried: checked as any other, and nothing stored.
    pub dry_run: bool,
}

impl Deploy {
    /// Reads a deploy as clients write it:
    ///
    /// ```json
    /// {"name": "v7", "schemas": [], "crons": [], "dry_run": false,
    ///  "files": [{"path": "index.html", "sha256": "…", "content_base64": "…"}]}
    /// ```
    ///
    /// `dry_run` may be left out. The lists may be empty but not left out: a deploy is the whole
    /// state, and what it does not have is taken away.
    ///
    /// # Errors
    ///
    /// The first thing that is not right with it. Takes as long as hashing all of the files does.
    pub fn from_json(text: &str) -> Result<Self, DeployError> {
        Self::from_json_while(text, &|| true)
    }

    /// The same, given up between two schemas once nobody waits for it.
    ///
    /// # Errors
    ///
    /// Besides, [`DeployError::Abandoned`].
    pub fn from_json_while(text: &str, awaited: &dyn Fn() -> bool) -> Result<Self, DeployError> {
        let written: Written<'_> =
            json_object::object(text).map_err(|reason| DeployError::Shape { reason })?;
        let Written {
            name,
            schemas,
            crons,
            files,
            dry_run,
        } = written;
        let length = name.chars().count();
        if !(1..=MAX_DEPLOY_NAME_CHARS).contains(&length) || name.contains(char::is_control) {
            return Err(DeployError::Name);
        }
        Ok(Self {
            name,
            resources: Resources::read(&schemas.0, &crons.0, awaited)?,
            files: read_files(&files.0)?,
            dry_run,
        })
    }

    /// About how many bytes it occupies while it waits to be stored.
    #[must_use]
    pub fn weight(&self) -> usize {
        let file = |(path, content): (&AppPath, &Content)| {
            size_of::<(AppPath, Content)>() + path.as_str().len() + content.bytes().len()
        };
        size_of::<Self>() + self.resources.weight() + self.files.iter().map(file).sum::<usize>()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    name: String,
    #[serde(borrow)]
    schemas: Bounded<&'a RawValue, MAX_DEPLOY_SCHEMAS>,
    #[serde(borrow)]
    crons: Bounded<&'a RawValue, MAX_CRONS>,
    #[serde(borrow)]
    files: Bounded<&'a RawValue, MAX_DEPLOY_FILES>,
    #[serde(default)]
    dry_run: bool,
}

/// Most texts hold no escape and are not copied.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow)]
    sha256: Cow<'a, str>,
    #[serde(borrow)]
    content_base64: Cow<'a, str>,
}

fn read_files(files: &[&RawValue]) -> Result<BTreeMap<AppPath, Content>, DeployError> {
    let mut read = BTreeMap::new();
    for (index, json) in files.iter().enumerate() {
        let file: WrittenFile<'_> = json_object::object(json.get()).map_err(|reason| {
            let reason = format!("file {index}: {reason}");
            DeployError::Shape { reason }
        })?;
        let (path, content) = file.read()?;
        let shown = excerpt(path.as_str());
        if read.insert(path, content).is_some() {
            return Err(DeployError::SamePath { path: shown });
        }
    }
    let both = read.keys().find(|path| {
        let below = format!("{path}/");
        let from = (Bound::Included(below.as_str()), Bound::Unbounded);
        let next = read.range::<str, _>(from).next();
        next.is_some_and(|(next, _)| next.as_str().starts_with(&below))
    });
    if let Some(path) = both {
        return Err(DeployError::FileAndDirectory {
            path: excerpt(path.as_str()),
        });
    }
    Ok(read)
}

impl WrittenFile<'_> {
    fn read(&self) -> Result<(AppPath, Content), DeployError> {
        let path: AppPath = self.path.parse()?;
        let shown = || excerpt(path.as_str());
        let said: ContentHash = self
            .sha256
            .parse()
            .map_err(|_| DeployError::Hash { path: shown() })?;
        // Strict: whatever it takes encodes back to the same text.
        let bytes = BASE64
            .decode(self.content_base64.as_bytes())
            .map_err(|error| DeployError::Base64 {
                path: shown(),
                reason: error.to_string(),
            })?;
        let content = Content::new(bytes);
        if content.hash() != said {
            return Err(DeployError::Mismatch {
                path: shown(),
                said,
                found: content.hash(),
            });
        }
        Ok((path, content))
    }
}

#[cfg(test)]
mod tests;
