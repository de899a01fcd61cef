//! Who wraps a data key.
//!
//! A [`Dek`] encrypts one file (through the keys derived from it); a [`KeyProvider`] wraps it so
//! that it can lie beside the file: under a key file ([`master_key_file`], [`key_dir`]), under a
//! key in AWS KMS ([`aws_kms`]), or for the owner of an age identity ([`recovery`]). What a wrap
//! looks like is fixed by `nimbus_manifests`; policy on when to rotate is not here.
//!
//! ```
//! use nimbus_keyproviders::{KeyProvider, MemoryProvider, Unwrapped, proof};
//! use nimbus_manifests::{Cipher, DekId, FileId, Subject, Timestamp, WrapContext};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = MemoryProvider::random()?;
//! let subject: Subject = "db:sqlite:tenant:demo:demo.sqlite3".parse()?;
//! let file_id: FileId = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse()?;
//! let dek_id: DekId = "4f1c0a9be2d35577".parse()?;
//! let context = WrapContext {
//!     subject: &subject,
//!     file_id,
//!     cipher: Cipher::Sqlcipher4,
//!     dek_id,
//! };
//!
//! let now = Timestamp::from_unix(0).ok_or("out of range")?;
//! let (dek, wrap) = proof::generate(&provider, &context, now).await?;
//! let Unwrapped::Key(again) = provider.unwrap(&wrap, &context).await? else {
//!     return Err("the provider did not know its own wrap".into());
//! };
//! assert_eq!(dek.cipher_key(&file_id).expose(), again.cipher_key(&file_id).expose());
//! # Ok(())
//! # }
//! ```

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests read files by hand")
)]

pub mod aws_kms;
mod config;
mod error;
mod failure_class;
pub mod identity;
pub mod key_dir;
pub mod keyfile;
mod keys;
mod local;
mod local_provider;
pub mod master_key_file;
#[expect(
    unsafe_code,
    reason = "key pages: allocation, mlock, madvise and a pool of slots that Drop wipes"
)]
mod memory;
mod memory_provider;
mod mounted;
mod path;
pub mod proof;
mod provider;
mod random;
pub mod recovery;

pub use aws_kms::same_key;
pub use config::ProviderConfig;
pub use error::{KeyFileError, ProviderError, Unproven};
pub use failure_class::FailureClass;
pub use keys::{ArchiveKey, AuditKey, BlindKey, CipherKey, Dek, PageMacKey, SealKey};
pub use local::{LocalAlgorithm, LocalKey};
pub use local_provider::{KeySource, LocalProvider};
pub use memory::{KEY_BYTES, LockedMemory, locked_memory};
pub use memory_provider::{MemoryKey, MemoryProvider};
pub use mounted::is_private;
pub use provider::{KeyProvider, OwnKeys, Unwrapped, Wrapped};
pub use random::{OsRandom, RandomError, SecureRandom};

/// Runs file work off the async workers.
async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ProviderError>
where
    T: Send + 'static,
    E: Send + 'static,
    ProviderError: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(ProviderError::ShuttingDown),
        },
    }
}
