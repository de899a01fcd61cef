//! Which repository it is, and its snapshots.
//!
//! | objects | what | created |
//! | --- | --- | --- |
//! | `nimbus-repository` | format, id, the deployment's control file | first of all |
//! | `base/<file-id>/<sha256>` | pages of a file, named by their index | before a catalogue names them |
//! | `audit/<sha256>` | bytes of the audit log | the same |
//! | `keys/<file-id>/<dek-id>/<sha256>` | a manifest | the same |
//! | `snapshots/<number>` | a catalogue, or a removal (`removal`) | last; this is the commit |
//! | `epochs/<epoch>` | who ships, since when | by each server that begins to ship |
//! | `log/<epoch>/<number>` | a pack | after what it names; this is the commit |
//! | `log/<epoch>/<first>-<last>` | packs that were put together (`bundle`) | by `prune` |
//!
//! A kill between two of them leaves objects that no catalogue names: they cost their bytes, and
//! the next snapshot finds and uses those that it would write again. Of two that take the same
//! number one is first, and the other takes the next.

use std::str::FromStr as _;

use bytes::Bytes;
use uuid::Uuid;

use super::bundle::{self, Places};
use super::catalogue::{Catalogue, Extent, Piece, Run, SealedCatalogue};
use super::entries::snapshot_name;
use super::sealed::SealedError;
use super::store::{Created, Store};
use super::{BackupError, Location, S3Settings, limits, sha256};
use crate::clock;
use crate::control::{self, ArchiveSealer};
use crate::envelope::Envelope;
use crate::error_chain::error_chain;
use crate::runtime::blocking;

/// A repository of backups.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(super) store: Store,
    /// Its id.
    pub id: Uuid,
    /// The id of the control file of the deployment that it belongs to.
    pub deployment: String,
    /// Where packs are.
    pub(super) places: Places,
}

impl Repository {
    /// Opens a repository that there is.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn open(location: &Location, s3: &S3Settings) -> Result<Self, BackupError> {
        let store = Store::connect(location, s3, false).await?;
        let Some(beginning) = store.get(BEGINNING).await? else {
            let location = location.to_string();
            return Err(match store.list("snapshots").await?.is_empty() {
                true => BackupError::NoRepository { location },
                false => BackupError::HalfInitialised { location },
            });
        };
        Self::begun(store, &beginning)
    }

    /// Opens the repository of the deployment with this control file, or makes it in an empty
    /// place.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; of another deployment's, among others.
    pub async fn open_or_make(
        location: &Location,
        s3: &S3Settings,
        deployment: &str,
    ) -> Result<Self, BackupError> {
        let store = Store::connect(location, s3, true).await?;
        let beginning = match store.get(BEGINNING).await? {
            Some(beginning) => beginning,
            None => {
                let shown = location.to_string();
                if !store.list("snapshots").await?.is_empty() {
                    return Err(BackupError::HalfInitialised { location: shown });
                }
                if let Some(example) = store.anything().await? {
                    return Err(BackupError::NotEmpty {
                        location: shown,
                        example,
                    });
                }
                let (id, now) = (clock::uuid(), clock::stamp());
                let text =
                    format!("{FORMAT}\nid: {id}\ndeployment: {deployment}\ncreated: {now}\n");
                let text = Bytes::from(text);
                match store.create(BEGINNING, text.clone()).await? {
                    Created::Done => text,
                    // Somebody else made it just then.
                    Created::Other => store.get(BEGINNING).await?.unwrap_or_default(),
                }
            }
        };
        let found = Self::begun(store, &beginning)?;
        if found.deployment != deployment {
            return Err(BackupError::OtherDeployment {
                location: location.to_string(),
                theirs: found.deployment,
                ours: deployment.to_owned(),
            });
        }
        Ok(found)
    }

    fn begun(store: Store, beginning: &[u8]) -> Result<Self, BackupError> {
        let location = store.location().to_string();
        let text = String::from_utf8_lossy(beginning);
        let mut lines = text.lines();
        let format = lines.next().unwrap_or_default();
        if format != FORMAT && format.starts_with("nimbus-repository/") {
            return Err(BackupError::Newer {
                location,
                object: BEGINNING.to_owned(),
                found: format.to_owned(),
            });
        }
        let mut field = |name: &str| {
            lines
                .next()?
                .strip_prefix(name)?
                .strip_prefix(": ")
                .map(str::to_owned)
        };
        let (id, deployment) = (field("id"), field("deployment"));
        let id = id.and_then(|id| Uuid::from_str(&id).ok());
        match (format == FORMAT, id, deployment, field("created")) {
            (true, Some(id), Some(deployment), Some(_created)) => Ok(Self {
                store,
                id,
                deployment,
                places: Places::default(),
            }),
            _ => Err(BackupError::Damaged {
                location,
                object: BEGINNING.to_owned(),
                why: "it is not what every repository begins with; put it back from a copy"
                    .to_owned(),
            }),
        }
    }

    /// As an operator names it.
    #[must_use]
    pub fn shown(&self) -> String {
        self.store.location().to_string()
    }

    /// The numbers of the objects in a directory whose names are their numbers, in order.
    pub(super) async fn numbered(
        &self,
        dir: &str,
        name_of: impl Fn(u64) -> String,
    ) -> Result<Vec<u64>, BackupError> {
        let listed = self.store.list(dir).await?;
        let number = |name: &str| {
            let number = name.rsplit('/').next()?.parse().ok()?;
            (limits::is_number(number) && name_of(number) == name).then_some(number)
        };
        let mut numbers: Vec<u64> = listed.iter().filter_map(|(name, _)| number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The bytes that a catalogue names.
    ///
    /// # Errors
    ///
    /// [`BackupError::Damaged`] when they are not there, or not those.
    pub(super) async fn span(&self, span: &Piece) -> Result<Bytes, BackupError> {
        let sha256_of = span.sha256.clone();
        let is_it = move |found: &[u8]| sha256(found) == sha256_of;
        self.proven(&span.extent(), is_it).await
    }

    /// The pages that a catalogue names, with their index.
    ///
    /// # Errors
    ///
    /// As [`Repository::span`].
    pub(super) async fn run(&self, run: &Run) -> Result<Bytes, BackupError> {
        let of = run.clone();
        self.proven(&run.extent(), move |found| of.is(found)).await
    }

    /// Bytes of an object, which are those that `is_it` knows.
    async fn proven(
        &self,
        span: &Extent,
        is_it: impl FnOnce(&[u8]) -> bool + Send + 'static,
    ) -> Result<Bytes, BackupError> {
        if span.bytes > limits::OBJECT.min(limits::of(&span.object)) {
            return Err(self.damaged(&span.object, "more of it is named than any object has"));
        }
        let part = span.offset..span.offset + span.bytes;
        let pack = bundle::numbers_of(&span.object).filter(|(_, first, last)| first == last);
        let found = match pack {
            Some((epoch, number, _)) => self.pack_bytes(epoch, number, Some(part)).await,
            None => self.store.get_part(&span.object, part).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(error @ BackupError::Damaged { .. }) => return Err(error),
            // A part behind the end is refused, in the words of each store.
            Err(error) => match self.store.get(&span.object).await? {
                Some(whole) if (whole.len() as u64) < span.offset + span.bytes => {
                    Some(Bytes::new())
                }
                _ => return Err(error),
            },
        };
        let Some(found) = found else {
            return Err(self.damaged(&span.object, "it is missing"));
        };
        if found.len() as u64 != span.bytes {
            let why = format!("it ends before byte {}", span.offset + span.bytes);
            return Err(self.damaged(&span.object, why));
        }
        let check = move || {
            let is_it = is_it(&found);
            (found, is_it)
        };
        // What is long on a thread that may compute: others are read meanwhile.
        let (found, is_it) = match span.bytes {
            ..=SHORT => check(),
            _ => blocking(check).await,
        };
        if !is_it {
            return Err(self.damaged(
                &span.object,
                "its bytes are not those that the snapshot was made with",
            ));
        }
        Ok(found)
    }

    /// What seals under the control file's data key of a snapshot.
    pub(super) async fn sealer(
        &self,
        envelope: &Envelope,
        snapshot: &Catalogue,
    ) -> Result<ArchiveSealer, BackupError> {
        let keyed = self.keyed(envelope, &snapshot.control).await?;
        Ok(ArchiveSealer::of(&keyed))
    }

    /// Proves a catalogue by the control file's manifest of its moment.
    ///
    /// # Errors
    ///
    /// [`BackupError::Damaged`] when its MAC is wrong; whatever keeps the manifest from being
    /// opened.
    pub(super) async fn prove(
        &self,
        envelope: &Envelope,
        read: &SealedCatalogue,
    ) -> Result<(), BackupError> {
        let control = &read.claims.control;
        let object = snapshot_name(read.claims.number);
        if control.dek_id != read.dek_id.to_string() || control.file_id != self.deployment {
            return Err(self.damaged(&object, "its MAC names another key than its control file"));
        }
        let keyed = self.keyed(envelope, control).await?;
        if *keyed.manifest().subject() != control::subject() {
            return Err(self.damaged(&object, "its control file is none"));
        }
        match read.is_authentic(&keyed.archive_key()) {
            true => Ok(()),
            false => Err(self.damaged(
                &object,
                "its MAC is wrong: it was changed, or not written by this deployment",
            )),
        }
    }

    /// What was read of an object, if it can be read.
    pub(super) fn readable<T>(
        &self,
        object: &str,
        read: Result<T, SealedError>,
    ) -> Result<T, BackupError> {
        read.map_err(|error| match error {
            SealedError::Format(found) => BackupError::Newer {
                location: self.shown(),
                object: object.to_owned(),
                found,
            },
            SealedError::Malformed(why) => self.damaged(object, why),
        })
    }

    pub(super) fn damaged(&self, object: &str, why: impl Into<String>) -> BackupError {
        BackupError::Damaged {
            location: self.shown(),
            object: object.to_owned(),
            why: why.into(),
        }
    }

    /// Creates an object whose name tells its content; what is there already must be that.
    pub(super) async fn add(&self, name: &str, content: Bytes) -> Result<(), BackupError> {
        match self.store.create(name, content).await? {
            Created::Done => Ok(()),
            Created::Other => {
                let why = "something else stands under that name; move it away, and make the snapshot again";
                Err(self.damaged(name, why))
            }
        }
    }
}

/// An error in one line.
pub(super) fn said(error: &BackupError) -> String {
    error_chain(error)
}

/// What is hashed sooner than another thread is woken.
const SHORT: u64 = 16 << 10;
const BEGINNING: &str = "nimbus-repository";
const FORMAT: &str = "nimbus-repository/1";
