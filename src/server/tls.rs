//! TLS: a certificate and its key from two PEM files, and from the same files again when the operator says so.
#![expect(
    clippy::disallowed_methods,
    reason = "certificates and their keys are none of SQLite's files"
)]

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use zeroize::Zeroizing;

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
    /// Certificate and key do not go together, or are of a kind that cannot be used.
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
    let not_pem = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::NotPem { path, source }
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .map(|found| found.map(CertificateDer::into_owned))
        .collect::<Result<_, _>>()
        .map_err(not_pem(certificate))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate {
            path: certificate.to_owned(),
        });
    }
    let text = read_file(key, true)?;
    let private = match PrivateKeyDer::from_pem_slice(&text) {
        Ok(private) => private,
        Err(pem::Error::NoItemsFound) => {
            return Err(TlsError::NoKey {
                path: key.to_owned(),
            });
        }
        Err(source) => return Err(not_pem(key)(source)),
    };
    CertifiedKey::from_der(chain, private, provider).map_err(|source| TlsError::Unusable {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}

/// A file's content, wiped when dropped. A secret one is refused when others can read it.
fn read_file(path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if secret && about.mode() & 0o077 != 0 {
        return Err(TlsError::TooOpen {
            path: path.to_owned(),
        });
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
    let _bytes = file
        .take(MAX_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

/// A long chain of certificates has some ten KiB.
const MAX_BYTES: usize = 256 << 10;
