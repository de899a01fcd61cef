//! TLS: a certificate and its key from two PEM files, and from the same files again when the
//! operator says so.
#![expect(
    clippy::disallowed_methods,
    reason = "certificates and their keys are none of SQLite's files"
)]

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use nimbus_keyproviders::is_private;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};
use zeroize::Zeroizing;

use crate::config::without_mark;

/// Why TLS cannot be had with what the operator named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}; check --tls-cert and --tls-key", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others can read the key.
    #[error("the TLS key {} can be read by others; run `chmod 0600 {}`", .path.display(), .path.display())]
    TooOpen {
        /// The key file.
        path: PathBuf,
    },
    /// The certificate file holds none.
    #[error(
        "{} holds no certificate; --tls-cert takes a PEM file with the server's certificate first, then those of its issuers", .path.display()
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file is not PEM, or is damaged.
    #[error("{} is not a PEM file that can be read", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: pem::Error,
    },
    /// The key file holds no key.
    #[error(
        "{} holds no private key; --tls-key takes a PEM file with one key (PKCS #8, PKCS #1 or SEC 1) and no passphrase", .path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key needs a passphrase.
    #[error(
        "the TLS key {} is encrypted with a passphrase; write it without one with `(umask 077; openssl pkey -in {} -out …)` and name that file", .path.display(), .path.display()
    )]
    Passphrase {
        /// The key file.
        path: PathBuf,
    },
    /// The key is of a kind that TLS does not use here.
    #[error(
        "the TLS key {} is of a kind that cannot be used; RSA keys of 2048 to 4096 bits, ECDSA keys on P-256 or P-384 and Ed25519 keys can, in PEM form (PKCS #8, PKCS #1 or SEC 1)", .path.display()
    )]
    KeyKind {
        /// The key file.
        path: PathBuf,
    },
    /// Certificate and key do not go together.
    #[error("the certificate {} and the key {} cannot be used together", .certificate.display(), .key.display())]
    Unusable {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// The certificate in force, and where it came from.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads certificate and key. Blocks.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let current = Arc::new(Current(ArcSwap::from_pointee(read(
            &certificate,
            &key,
            &provider,
        )?)));
        let unusable = |source| TlsError::Unusable {
            certificate: certificate.clone(),
            key: key.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            certificate,
            key,
            current,
            config: Arc::new(config),
        })
    }

    /// Reads both files again; connections from now on see what is in them. Blocks.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; what was in force stays so.
    pub fn reload(&self) -> Result<(), TlsError> {
        let provider = self.config.crypto_provider();
        let fresh = read(&self.certificate, &self.key, provider)?;
        self.current.0.store(Arc::new(fresh));
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }
}

/// Answers every handshake with the certificate in force.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn read(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let text = read_file(certificate, false)?;
    let not_pem = |source| TlsError::NotPem {
        path: certificate.to_owned(),
        source,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(without_mark(&text))
        .map(|found| found.map(CertificateDer::into_owned))
        .collect::<Result<_, _>>()
        .map_err(not_pem)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate {
            path: certificate.to_owned(),
        });
    }
    let text = read_file(key, true)?;
    let private = private_key(without_mark(&text), key)?;
    let signing = provider.key_provider.load_private_key(private);
    let signing = signing.map_err(|_as_no_kind_it_knows| TlsError::KeyKind {
        path: key.to_owned(),
    })?;
    let pair = CertifiedKey::new(chain, signing);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
        Err(source) => Err(TlsError::Unusable {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        }),
    }
}

/// The first private key of a PEM file; what stands before it (`EC PARAMETERS`, certificates) is
/// passed over.
fn private_key(text: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let has = |words: &str| {
        text.windows(words.len())
            .any(|part| part == words.as_bytes())
    };
    let path = path.to_owned();
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::Passphrase { path });
    }
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(private) => Ok(private),
        // Of DSA, or in the form of OpenSSH.
        Err(pem::Error::NoItemsFound) if has("PRIVATE KEY-----") => Err(TlsError::KeyKind { path }),
        Err(pem::Error::NoItemsFound) => Err(TlsError::NoKey { path }),
        Err(source) => Err(TlsError::NotPem { path, source }),
    }
}

/// A file's content, wiped when dropped. A secret one is refused when others can read it.
fn read_file(path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    if secret && !is_private(path, &file).map_err(failed)? {
        return Err(TlsError::TooOpen {
            path: path.to_owned(),
        });
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
    file.take(MAX_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

/// A long chain of certificates has some ten KiB.
const MAX_BYTES: usize = 256 << 10;
