//! How AWS is reached: through the proxy and with the certificates that the environment names.
//!
//! `HTTPS_PROXY` (else `ALL_PROXY`) tunnels: the proxy is asked to CONNECT, TLS ends at AWS, and
//! the proxy sees no plaintext. What goes over `http://`, to loopback and to the instance metadata,
//! never goes to a proxy, so `HTTP_PROXY` has nothing to say. `AWS_CA_BUNDLE` takes the place of
//! the system's certificates.

#![expect(
    clippy::disallowed_methods,
    reason = "certificates are none of SQLite's"
)]

use std::env::{self, VarError};
use std::time::Duration;

use aws_sdk_kms::config::SharedHttpClient;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::error::KmsError;

/// The HTTP client of the SDK, for KMS and for where credentials come from.
pub(super) async fn client() -> Result<SharedHttpClient, KmsError> {
    let proxy = proxy()?;
    let tls = tls().await?;
    Ok(
        Builder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder();
            connector
                .set_connector_settings(settings.cloned())
                .set_sleep_impl(components.and_then(|components| components.sleep_impl()));
            connector
                .proxy_config(proxy.clone())
                // The buffers of a connection hold the last answer, and with it a data key, until
                // they are freed.
                .pool_idle_timeout(Duration::from_secs(1))
                .tls_provider(Provider::Rustls(CryptoMode::Ring))
                .tls_context(tls.clone())
                .build()
        }),
    )
}

/// The proxy for `https://`.
fn proxy() -> Result<ProxyConfig, KmsError> {
    let Some((setting, given)) =
        first_of(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])?
    else {
        return Ok(ProxyConfig::disabled());
    };
    // As curl has it, a proxy without a scheme is one that is spoken to over http.
    let url = match given.contains("://") {
        true => given,
        false => format!("http://{given}"),
    };
    // What is wrong with it is not repeated: there may be a password in it.
    let proxy = ProxyConfig::https(url).map_err(|_secret| KmsError::Proxy { setting })?;
    let direct = first_of(&["NO_PROXY", "no_proxy"])?.map_or_else(String::new, |(_, hosts)| hosts);
    Ok(proxy.no_proxy(format!("{direct},{NEVER}")))
}

/// The certificates to trust.
async fn tls() -> Result<TlsContext, KmsError> {
    let trusted = match first_of(&[BUNDLE])? {
        None => TrustStore::default(),
        Some((_, path)) => {
            let refused = |reason: String| KmsError::CaBundle {
                path: path.clone().into(),
                reason,
            };
            let read = tokio::fs::read(&path).await;
            let pem = read.map_err(|error| refused(error.to_string()))?;
            check(&pem).map_err(refused)?;
            TrustStore::empty().with_pem_certificate(pem)
        }
    };
    TlsContext::builder()
        .with_trust_store(trusted)
        .build()
        .map_err(|error| KmsError::CaBundle {
            path: BUNDLE.into(),
            reason: error.to_string(),
        })
}

/// Whether every certificate can be used; the SDK would panic at one that cannot.
fn check(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let number = index + 1;
        let broken = |error: &dyn std::fmt::Display| format!("certificate {number}: {error}");
        let certificate = certificate.map_err(|error| broken(&error))?;
        roots.add(certificate).map_err(|error| broken(&error))?;
    }
    if roots.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(())
}

/// The first of these variables that is set; one that is empty is not.
fn first_of(names: &[&'static str]) -> Result<Option<(&'static str, String)>, KmsError> {
    for setting in names {
        match env::var(setting) {
            Ok(value) if value.trim().is_empty() => {}
            Ok(value) => return Ok(Some((setting, value.trim().to_owned()))),
            Err(VarError::NotPresent) => {}
            Err(VarError::NotUnicode(_)) => return Err(KmsError::Proxy { setting }),
        }
    }
    Ok(None)
}

const BUNDLE: &str = "AWS_CA_BUNDLE";
/// What is on this machine is reached without anybody between.
const NEVER: &str = "localhost,127.0.0.0/8,::1";
