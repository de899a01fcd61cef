//! The directory or the bucket: objects, each created once and never changed.
//!
//! The one protocol is create-if-absent: a hard link in a directory, `If-None-Match: *` on S3. What
//! came of a write whose answer was lost, or was refused because the object is there, is found out
//! by reading the object back: it holds what was to be written, or something else.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use nimbus_keyproviders::aws_kms::AwsChain;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ClientOptions, CredentialProvider, Error, GetOptions, GetRange, GetResult, GetResultPayload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
};

use super::versions::Versions;
use super::{BackupError, Location, S3Settings, limits};
use crate::clock;
use crate::data_dir::sync_dir;
use crate::error_chain::error_chain;
use crate::runtime::blocking;

/// A directory or a bucket.
#[derive(Clone)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Of a bucket.
    versions: Option<Versions>,
    location: Location,
}

/// What came of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Created {
    /// The object holds what was to be written.
    Done,
    /// Something else was there before.
    Other,
}

impl Store {
    /// Connects. A directory that is not there is made if it is to be written to.
    pub(super) async fn connect(
        location: &Location,
        s3: &S3Settings,
        to_write: bool,
    ) -> Result<Self, BackupError> {
        let mut versions = None;
        let objects: Arc<dyn ObjectStore> = match location {
            Location::Dir(dir) => Arc::new(local(dir.clone(), to_write, location).await?),
            Location::S3 { bucket, .. } => {
                let bucket = Arc::new(bucket_of(bucket, s3, location).await?);
                let found = Versions::of(Arc::clone(&bucket));
                versions = Some(found.map_err(|source| BackupError::Aws {
                    location: location.to_string(),
                    why: "no client can be made".to_owned(),
                    source: Some(source),
                })?);
                bucket
            }
        };
        Ok(Self {
            objects,
            versions,
            location: location.clone(),
        })
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// The object, whole; `None` when there is none. One that is longer than any of its kind is
    /// damage, and not read.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, BackupError> {
        let most = limits::of(name);
        self.fetch(name, GetOptions::default(), most, most).await
    }

    /// A part of the object; `None` when there is none.
    pub(super) async fn get_part(
        &self,
        name: &str,
        part: Range<u64>,
    ) -> Result<Option<Bytes>, BackupError> {
        let most = part.end.saturating_sub(part.start);
        let options = GetOptions {
            range: Some(GetRange::Bounded(part)),
            ..GetOptions::default()
        };
        self.fetch(name, options, limits::of(name), most).await
    }

    /// Reads at most `part` bytes of an object that has at most `most`.
    async fn fetch(
        &self,
        name: &str,
        options: GetOptions,
        most: u64,
        part: u64,
    ) -> Result<Option<Bytes>, BackupError> {
        let path = self.path(name)?;
        let failed = |error| self.explain(&format!("read {name}"), error);
        let reading = async {
            if self.is_something_else(name).await {
                return Ok(Err("it is no file".to_owned()));
            }
            let found = self.objects.get_opts(&path, options).await?;
            let (bytes, length) = (found.meta.size, found.range.end - found.range.start);
            if bytes > most || length > part {
                return Ok(Err(format!(
                    "it has {bytes} bytes, and nothing of its kind has more than {most}"
                )));
            }
            bounded(found, length).await.map(Ok)
        };
        match within(part, reading).await {
            Ok(Ok(found)) => Ok(Some(found)),
            Ok(Err(why)) => Err(BackupError::Damaged {
                location: self.location.to_string(),
                object: name.to_owned(),
                why,
            }),
            Err(error @ Error::NotFound { .. }) if no_bucket(&error) => Err(failed(error)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether a directory holds a pipe, a device or a socket under that name: to open one can take
    /// for ever.
    async fn is_something_else(&self, name: &str) -> bool {
        let Location::Dir(dir) = &self.location else {
            return false;
        };
        let path = dir.join(name);
        let found = blocking(move || std::fs::metadata(path)).await;
        found.is_ok_and(|found| !found.is_file() && !found.is_dir())
    }

    /// Creates an object where there is none, durably. Tried again a few times where the store
    /// fails.
    pub(super) async fn create(&self, name: &str, content: Bytes) -> Result<Created, BackupError> {
        let path = self.path(name)?;
        let bytes = content.len() as u64;
        let began = Instant::now();
        let mut tries = 0;
        loop {
            let payload = PutPayload::from_bytes(content.clone());
            let put = self
                .objects
                .put_opts(&path, payload, PutMode::Create.into());
            let failure = match lost_answer(within(bytes, put).await) {
                Ok(_created) => return Ok(Created::Done),
                Err(error) => error,
            };
            // Whatever was said, the object itself says what is there.
            let again = tries < TRIES && may_pass(&failure) && began.elapsed() < patience(bytes);
            match self.get(name).await {
                Ok(Some(found)) if found == content => return Ok(Created::Done),
                Ok(Some(_)) | Err(BackupError::Damaged { .. }) => return Ok(Created::Other),
                Ok(None) | Err(_) if again => {}
                Ok(None) | Err(_) => {
                    return Err(self.explain(&format!("create {name}"), failure));
                }
            }
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
            tries += 1;
        }
    }

    /// The names and lengths of all objects whose names begin with `prefix` and a slash, in order.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackupError> {
        let objects = self.listed(prefix).await?.into_iter();
        Ok(objects.map(|(name, object)| (name, object.size)).collect())
    }

    async fn listed(&self, prefix: &str) -> Result<Vec<(String, ObjectMeta)>, BackupError> {
        let path = self.path(prefix)?;
        let root = self.path("")?;
        let mut found = Vec::new();
        let failed = |error| self.explain(&format!("list {prefix}/"), error);
        let mut listing = self.objects.list(Some(&path));
        loop {
            let next = within(0, listing.next().map(Ok)).await;
            let Some(object) = next.map_err(failed)? else {
                break;
            };
            let object = object.map_err(failed)?;
            let name = object.location.as_ref();
            let name = name.strip_prefix(root.as_ref()).unwrap_or(name);
            found.push((name.trim_start_matches('/').to_owned(), object));
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// As [`Store::list`], with how long ago each was written, by the store's clock and ours.
    pub(super) async fn list_aged(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, Duration, u64)>, BackupError> {
        let now = clock::now().as_second();
        let objects = self.listed(prefix).await?.into_iter();
        let aged = objects.map(|(name, object)| {
            let age = now.saturating_sub(object.last_modified.timestamp());
            let age = Duration::from_secs(u64::try_from(age).unwrap_or(0));
            (name, age, object.size)
        });
        Ok(aged.collect())
    }

    /// Removes an object, durably; of a versioned bucket, its newest version is hidden. Answers
    /// whether it was there, where the store says so.
    pub(super) async fn remove(&self, name: &str) -> Result<bool, BackupError> {
        let path = self.path(name)?;
        match within(0, self.objects.delete(&path)).await {
            Ok(()) => {}
            Err(Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(self.explain(&format!("remove {name}"), error)),
        }
        if let Location::Dir(dir) = &self.location {
            let of = crate::data_dir::parent(&dir.join(name)).to_owned();
            let flushed = blocking({
                let of = of.clone();
                move || sync_dir(&of)
            });
            flushed.await.map_err(BackupError::io("flush", of))?;
        }
        Ok(true)
    }

    /// Removes all objects whose names begin with `prefix` and a slash, and every version of them.
    /// Answers what is kept, and why.
    pub(super) async fn erase(&self, prefix: &str) -> Result<Vec<String>, BackupError> {
        let Some(versions) = &self.versions else {
            for (name, _) in self.list(prefix).await? {
                let _was_there = self.remove(&name).await?;
            }
            return Ok(Vec::new());
        };
        let failed = |action: &str, source| BackupError::Store {
            action: format!("{action} {prefix}/"),
            location: self.location.to_string(),
            hint: VERSIONS_NEED.to_owned(),
            source,
        };
        let path = format!("{}/", self.path(prefix)?);
        let found = answered(versions.list(&path)).await;
        let mut kept = Vec::new();
        for version in found.map_err(|source| failed("list the versions of", source))? {
            let removed = answered(versions.remove(&version)).await;
            let keeps = removed.map_err(|source| failed("remove a version in", source))?;
            kept.extend(keeps.map(|why| format!("{} ({}), by {why}", version.key, version.id)));
        }
        Ok(kept)
    }

    /// Something that is there, if there is anything.
    pub(super) async fn anything(&self) -> Result<Option<String>, BackupError> {
        let root = self.path("")?;
        let root = (!root.as_ref().is_empty()).then_some(root);
        let mut listing = self.objects.list(root.as_ref());
        let first = within(0, listing.next().map(Option::transpose)).await;
        match first {
            Ok(found) => Ok(found.map(|object| object.location.to_string())),
            Err(error) => Err(self.explain("list objects", error)),
        }
    }

    fn path(&self, name: &str) -> Result<Path, BackupError> {
        let whole = match &self.location {
            Location::Dir(_) => name.to_owned(),
            Location::S3 { prefix, .. } => format!("{prefix}/{name}"),
        };
        Path::parse(&whole).map_err(|error| self.explain(&format!("name {name}"), error.into()))
    }

    fn explain(&self, action: &str, error: Error) -> BackupError {
        let said = error_chain(&error);
        let mut hints = HINTS.iter().chain([&STALLED]);
        let hint = hints.find(|(sign, _)| said.contains(sign));
        BackupError::Store {
            action: action.to_owned(),
            location: self.location.to_string(),
            hint: hint.map_or(String::new(), |(_, hint)| format!(": {hint}")),
            source: error.into(),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.location).finish()
    }
}

/// What the answers of stores mean for an operator, by what they contain; the first that fits.
const HINTS: [(&str, &str); 16] = [
    (
        "NoSuchBucket",
        "there is no such bucket; make it, or name another",
    ),
    ("PermanentRedirect", WRONG_REGION),
    ("AuthorizationHeaderMalformed", WRONG_REGION),
    ("301 Moved", WRONG_REGION),
    ("redirect without LOCATION", WRONG_REGION),
    (
        "RequestTimeTooSkewed",
        "the clock of this machine is wrong; set it",
    ),
    (
        "InvalidAccessKeyId",
        "S3 does not know the access key; see the credentials of the AWS chain",
    ),
    (
        "SignatureDoesNotMatch",
        "the secret key is not that of the access key; see the credentials of the AWS chain",
    ),
    (
        "AccessDenied",
        "the credentials do not allow it; a repository needs s3:GetObject, s3:PutObject and s3:ListBucket",
    ),
    (
        "403 Forbidden",
        "the credentials do not allow it; a repository needs s3:GetObject, s3:PutObject and s3:ListBucket",
    ),
    ("No space left", FULL),
    ("quota exceeded", FULL),
    ("507 Insufficient Storage", FULL),
    ("StorageFull", FULL),
    (
        "Read-only file system",
        "it is mounted read-only; mount it for writing, or name another repository",
    ),
    (
        "Permission denied",
        "this user may not do that there; see the owner and the mode of the directory",
    ),
];
const FULL: &str = "it is full, and what is there already stays as it is; make room (`nimbus backup prune`), and try again";
const NO_ANSWER: &str = "no answer within";
const STALLED: (&str, &str) = (
    NO_ANSWER,
    "it does not answer; see whether the server, the mount or the network is well",
);
const VERSIONS_NEED: &str = ": to remove every version takes s3:ListBucketVersions, s3:DeleteObjectVersion, s3:GetObjectVersion and s3:GetObjectRetention";
const WRONG_REGION: &str = "the bucket is in another region; name it with --backup-s3-region";

fn no_bucket(error: &Error) -> bool {
    error_chain(error).contains("NoSuchBucket")
}

/// Whether the same request may succeed a moment later.
fn may_pass(error: &Error) -> bool {
    matches!(
        error,
        Error::Generic { .. } | Error::AlreadyExists { .. } | Error::Precondition { .. }
    ) && HINTS
        .iter()
        .all(|(sign, _)| !error_chain(error).contains(sign))
}

/// The bytes of an object, of which the store said how many there are.
async fn bounded(found: GetResult, length: u64) -> Result<Bytes, Error> {
    if let GetResultPayload::File(..) = found.payload {
        return found.bytes().await;
    }
    let mut read = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
    let mut rest = found.into_stream();
    while let Some(piece) = rest.try_next().await? {
        if (read.len() + piece.len()) as u64 > length {
            return Err(Error::Generic {
                store: "nimbus",
                source: "more bytes come than were announced".into(),
            });
        }
        read.extend_from_slice(&piece);
    }
    Ok(read.freeze())
}

/// What a store answers, unless it takes longer than a request of so many bytes may.
async fn within<T>(bytes: u64, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let patience = patience(bytes);
    match tokio::time::timeout(patience, work).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(Error::Generic {
            store: "nimbus",
            source: format!("{NO_ANSWER} {} s", patience.as_secs()).into(),
        }),
    }
}

/// The same of what is asked without `object_store`.
async fn answered<T>(
    work: impl Future<Output = Result<T, Box<dyn std::error::Error + Send + Sync>>>,
) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    let work = work.map_err(|source| Error::Generic {
        store: "versions",
        source,
    });
    Ok(within(0, work).await?)
}

/// How long a request that moves so many bytes may take: whoever waits may hold the WAL of a
/// tenant.
fn patience(bytes: u64) -> Duration {
    ::fail::fail_point!("backup::patience", |seconds| {
        let seconds = seconds.and_then(|seconds| seconds.parse().ok());
        Duration::from_secs(seconds.unwrap_or(5))
    });
    FIRST_BYTE + Duration::from_secs(bytes / SLOWEST)
}

/// For tests: the store did what it was asked, and its answer does not arrive.
fn lost_answer<T>(answer: Result<T, Error>) -> Result<T, Error> {
    let lost = || {
        ::fail::fail_point!("backup::answer-lost", |_| true);
        false
    };
    match lost() {
        true => Err(Error::Generic {
            store: "test",
            source: "the answer is lost".into(),
        }),
        false => answer,
    }
}

async fn local(
    dir: PathBuf,
    to_write: bool,
    location: &Location,
) -> Result<LocalFileSystem, BackupError> {
    let failed = |source: io::Error| BackupError::Io {
        action: match to_write {
            true => "make the directory",
            false => "look into",
        },
        path: dir.clone(),
        source,
    };
    let made = dir.clone();
    let ready = blocking(move || match (to_write, std::fs::metadata(&made)) {
        (true, Err(_)) => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&made),
        (_, found) => found.and_then(|found| match found.is_dir() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }),
    });
    ready.await.map_err(failed)?;
    let opened = LocalFileSystem::new_with_prefix(&dir).map_err(|error| BackupError::Store {
        action: "begin".to_owned(),
        location: location.to_string(),
        hint: String::new(),
        source: error.into(),
    })?;
    Ok(opened.with_fsync(true))
}

async fn bucket_of(
    bucket: &str,
    s3: &S3Settings,
    location: &Location,
) -> Result<AmazonS3, BackupError> {
    let aws = |why: &str, source| BackupError::Aws {
        location: location.to_string(),
        why: why.to_owned(),
        source,
    };
    let chain = AwsChain::look(s3.region.clone())
        .await
        .map_err(|error| aws("the AWS chain has no credentials", Some(error.into())))?;
    let Some(region) = chain.region else {
        return Err(aws(
            "no region is known; name it with --backup-s3-region or AWS_REGION",
            None,
        ));
    };
    // Whoever was first has installed the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_credentials(Arc::new(Chain(chain.credentials)))
        // `within` says how long a request may take, by its bytes.
        .with_client_options(ClientOptions::new().with_timeout_disabled())
        .with_retry(RetryConfig {
            max_retries: 5,
            retry_timeout: Duration::from_secs(60),
            ..RetryConfig::default()
        });
    if let Some(endpoint) = &s3.endpoint_url {
        builder = builder
            .with_endpoint(endpoint)
            .with_allow_http(endpoint.starts_with("http://"));
    }
    builder
        .build()
        .map_err(|error| aws("its settings are refused", Some(error.into())))
}

/// Credentials of the AWS chain, which renews them.
#[derive(Debug)]
struct Chain(SharedCredentialsProvider);

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>, Error> {
        let found = self.0.provide_credentials().await;
        let found = found.map_err(|error| Error::Generic {
            store: "the AWS chain",
            source: error.into(),
        })?;
        Ok(Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        }))
    }
}

/// How long nothing may come, and how many bytes a second are the least.
const FIRST_BYTE: Duration = Duration::from_secs(30);
const SLOWEST: u64 = 64 << 10;
/// How often a creation is tried again.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
