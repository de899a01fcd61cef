//! Why a backup was not made, verified or restored.

use std::io;
use std::path::PathBuf;

use nimbus_manifests::TenantId;

use crate::audit::LogError;
use crate::control::ControlError;
use crate::envelope::{EnvelopeError, Trouble};
use crate::process::LockError;
use crate::tenants::StoreError;

/// Why a backup was not made, verified or restored. What was in the repository before is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// What was named is no place for a repository.
    #[error("{given:?} names no repository: {why}; name a directory, or s3://bucket/prefix")]
    Location {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A repository must not be there.
    #[error("the repository {location} {why}")]
    Placement {
        /// The repository.
        location: String,
        /// What is wrong with the place, and what to do.
        why: String,
    },
    /// The directory or the bucket does not do what it is asked.
    #[error("cannot {action} in the repository {location}{hint}")]
    Store {
        /// What was being done.
        action: String,
        /// The repository.
        location: String,
        /// What that most often means, and what to do; may be empty.
        hint: String,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// AWS has no credentials or no region for this.
    #[error("the repository {location} cannot be reached: {why}")]
    Aws {
        /// The repository.
        location: String,
        /// What is missing.
        why: String,
        /// What the chain said.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// There is no repository.
    #[error(
        "{location} is no repository: it has no object `nimbus-repository`. `nimbus backup create --to {location}` makes one"
    )]
    NoRepository {
        /// Where.
        location: String,
    },
    /// There is something else.
    #[error(
        "{location} is no repository, and is not empty ({example}, …): a new repository needs a directory or prefix of its own"
    )]
    NotEmpty {
        /// Where.
        location: String,
        /// What is there.
        example: String,
    },
    /// A repository without its beginning.
    #[error(
        "{location} holds snapshots, and its object `nimbus-repository` is missing: put that back from a copy; without it nothing is \
         restored from here, and nothing added"
    )]
    HalfInitialised {
        /// Where.
        location: String,
    },
    /// Something is not what it must be.
    #[error("{object} in the repository {location} is damaged: {why}")]
    Damaged {
        /// The repository.
        location: String,
        /// The object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// A later release wrote it.
    #[error(
        "{object} in the repository {location} was written by a newer nimbus ({found}); use that release"
    )]
    Newer {
        /// The repository.
        location: String,
        /// The object.
        object: String,
        /// Its format.
        found: String,
    },
    /// It is the repository of another deployment.
    #[error(
        "the repository {location} belongs to another deployment: its control file is {theirs}, and this one's is {ours}; \
         give each deployment a repository of its own"
    )]
    OtherDeployment {
        /// The repository.
        location: String,
        /// Whose it is.
        theirs: String,
        /// Who asks.
        ours: String,
    },
    /// What was read is not what a snapshot may hold.
    #[error("nothing was saved: {0}")]
    NotSaved(String),
    /// What was committed is not shipped one by one: a snapshot has it.
    #[error("{0}")]
    GivenUp(String),
    /// There is no such snapshot, or no such instant.
    #[error("{0}")]
    NoSnapshot(String),
    /// What may be the newest entry is under a key that is not at hand.
    #[error(
        "{object} in the repository {location} may be the newest that there is, and its key is not at hand. If it is yours, name the key and run \
         this again; if none of yours made it, {next}"
    )]
    Withheld {
        /// The repository.
        location: String,
        /// The entry.
        object: String,
        /// What to do where somebody put it there.
        next: String,
        /// Which key it is.
        source: Box<BackupError>,
    },
    /// Its control file has a data key that another one replaced.
    #[error(
        "the repository {location} has snapshots under newer data keys of the control file than {key}, which is in use: this deployment was \
         restored from before them, or another copy of it makes snapshots there, too. Give it a key of its own with `nimbus encryption \
         rotate-dek --provider redb --path <data-dir>/nimbus-control.db`, and run this again; let no other copy of it use this repository"
    )]
    OlderKey {
        /// The repository.
        location: String,
        /// The key.
        key: String,
    },
    /// Another line of the deployment goes on there.
    #[error(
        "snapshot {snapshot} of {taken} in the repository {location} was made by another line of this deployment: one of the two was restored \
         from a backup of the other. Nothing of this one is stored beside it. If the other one is gone for good, run `nimbus backup create --to \
         {location} --take-over`; if it is not, give this one a repository of its own"
    )]
    OtherLine {
        /// The repository.
        location: String,
        /// The newest snapshot there.
        snapshot: u64,
        /// When it was made.
        taken: String,
    },
    /// Another server ships into the same repository.
    #[error(
        "another server ships into the repository {location} since epoch {epoch} ended there: this one ships nothing more. One deployment runs \
         once; if the other one is to go, stop it, and restart this one"
    )]
    Replaced {
        /// The repository.
        location: String,
        /// The epoch of this server.
        epoch: u64,
    },
    /// Encryption is off.
    #[error(
        "backups are of encrypted deployments, and this one is in plaintext: stop the server and copy its directories, or copy each tenant \
         with `sqlite3 <tenant>.sqlite3 '.backup <copy>'` (docs/backup.md)"
    )]
    Plaintext,
    /// Tenants that are no files of Nimbus.
    #[error(
        "the tenants of this deployment are not files of Nimbus: back them up with the tools of their database"
    )]
    NoFiles,
    /// There is no such tenant.
    #[error("there is no tenant {0}")]
    NoTenant(String),
    /// No snapshot holds the tenant.
    #[error(
        "{among} in the repository {location} holds the tenant {tenant}; `nimbus backup list --from {location}` lists what there is"
    )]
    NotHeld {
        /// The tenant.
        tenant: TenantId,
        /// Which snapshots were looked at.
        among: String,
        /// The repository.
        location: String,
    },
    /// A tenant has the name already.
    #[error(
        "tenant {tenant} exists: restore it beside that under another id with `--as <new id>`, or delete the one that is there first"
    )]
    TenantExists {
        /// The tenant.
        tenant: TenantId,
    },
    /// The tenant is locked.
    #[error(
        "tenant {0} is locked, and what a backup holds of it is not restored past that; `nimbus encryption unlock --tenant-id {0}` ends the lock"
    )]
    TenantLocked(TenantId),
    /// The tenant was shredded after the snapshot.
    #[error(
        "tenant {tenant} was shredded at {time} by {actor}, after the snapshot: it is not brought back, but with --as-it-was"
    )]
    Shredded {
        /// The tenant.
        tenant: TenantId,
        /// When.
        time: String,
        /// By whom.
        actor: String,
    },
    /// What a snapshot builds on was removed while it was made.
    #[error(
        "the repository {location} lost what the snapshot builds on while it was made: a removal took it; make the snapshot again"
    )]
    RemovedMeanwhile {
        /// The repository.
        location: String,
    },
    /// The keys of the tenant are not in the repository any more.
    #[error(
        "the repository {location} has no manifest of tenant {tenant} as of snapshot {snapshot}: it was shredded, or the repository is          damaged; without one nothing opens its pages"
    )]
    WithoutKeys {
        /// The repository.
        location: String,
        /// The tenant.
        tenant: TenantId,
        /// The snapshot.
        snapshot: u64,
    },
    /// The disk has no room for a restoration.
    #[error(
        "{} has {free} bytes free, and the restoration takes about {needed}; make room and run it again",
        .dir.display()
    )]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// Something is in the way of a restoration.
    #[error(
        "{} is not empty ({example}, …): a deployment is restored into an empty or a new directory",
        .dir.display()
    )]
    TargetNotEmpty {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        example: String,
    },
    /// What was restored does not prove to be what it must be; it was removed.
    #[error("what was restored does not pass verification, and was removed: {0}")]
    Unproven(String),
    /// The disk refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It was told to stop.
    #[error("stopped; what was restored until then was removed, or is known to be unfinished")]
    Stopped,
    /// The data directory is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Keys.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The control file.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The audit log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The tenant was not restored.
    #[error(transparent)]
    Tenants(#[from] StoreError),
}

impl BackupError {
    /// Whether an object is not what it must be, and the rest of the repository may be.
    #[must_use]
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Newer { .. })
    }

    /// Whether an object proves nothing of this deployment: it is damaged, or no key at hand ever
    /// opened what it is sealed with. A key provider that does not answer is another matter.
    pub(super) fn proves_nothing(&self) -> bool {
        let is_foreign = |error: &EnvelopeError| {
            let trouble = error.trouble();
            matches!(trouble, Trouble::KeyMismatch | Trouble::ManifestCorrupt)
                || matches!(error, EnvelopeError::NoMatchingKey { .. })
        };
        self.is_damage() || matches!(self, Self::Envelope(error) if is_foreign(error))
    }

    /// That something is not there, and what was passed over on the way to that.
    pub(super) fn besides(self, damage: &[String]) -> Self {
        match self {
            error @ (Self::NoSnapshot(_) | Self::NotHeld { .. }) if !damage.is_empty() => {
                Self::NoSnapshot(format!("{error}; passed over: {}", damage.join("; ")))
            }
            error => error,
        }
    }

    /// For `map_err`.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
