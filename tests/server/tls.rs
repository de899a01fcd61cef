//! HTTPS: the certificate and its key, read again on SIGHUP, and the command line beside a server
//! that speaks TLS alone.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_test_support::{Machine, Server};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{machine, set_mode};
use nimbus_test_support::until;

/// A certificate for `localhost` that nobody vouches for, and where it lies with its key.
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
}

impl Identity {
    fn make(machine: &Machine, name: &str) -> Self {
        let (certificate, key) = (
            machine.path(&format!("{name}.pem")),
            machine.path(&format!("{name}.key")),
        );
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("one");
        fs::write(&certificate, made.cert.pem()).expect("the certificate");
        fs::write(&key, made.signing_key.serialize_pem()).expect("the key");
        set_mode(&key, 0o600);
        let der = made.cert.der().clone();
        Self {
            certificate,
            key,
            der,
        }
    }

    fn flags(&self) -> [&str; 4] {
        [
            "--tls-cert",
            self.certificate.to_str().expect("UTF-8"),
            "--tls-key",
            self.key.to_str().expect("UTF-8"),
        ]
    }

    /// What `GET /health` answers to a client that trusts this certificate alone.
    fn health(&self, server: &Server) -> Result<String, std::io::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let socket = TcpStream::connect(server.address()).expect("a connection");
        let mut stream = StreamOwned::new(client, socket);
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn wait_for(server: &Server, words: &str) {
    until(words, || server.log().contains(words));
}

#[test]
fn https_is_served_and_the_command_line_goes_through_it() {
    let machine = machine();
    let identity = Identity::make(&machine, "first");
    let server = machine.start(&identity.flags());
    let answer = identity.health(&server).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"ok":true}"#), "{answer}");
    // Who expects another certificate, or speaks plain HTTP, gets nothing.
    let other = Identity::make(&machine, "other");
    assert!(other.health(&server).is_err());
    assert!(
        server
            .raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            .is_none()
    );
    let status = machine.nimbus(&["encryption", "status"]);
    machine.run_to_end(status).expect(0, &["nimbus-control.db"]);
    let rotate = machine.nimbus(&["token", "rotate"]);
    machine.run_to_end(rotate).expect(0, &["replaced"]);
    server.stop();
}

#[test]
fn a_new_certificate_is_taken_on_hangup_and_a_bad_one_is_not() {
    let machine = machine();
    let old = Identity::make(&machine, "in-force");
    let server = machine.start(&old.flags());
    let new = Identity::make(&machine, "new");
    fs::rename(&new.certificate, &old.certificate).expect("renamed");
    // A certificate without its key: what was in force stays.
    server.hang_up();
    wait_for(&server, "the TLS certificate in force is kept");
    assert!(old.health(&server).is_ok());
    fs::rename(&new.key, &old.key).expect("renamed");
    server.hang_up();
    wait_for(&server, "the TLS certificate was read again");
    assert!(new.health(&server).is_ok());
    assert!(old.health(&server).is_err());
    let status = machine.nimbus(&["encryption", "status"]);
    machine.run_to_end(status).expect(0, &["nimbus-control.db"]);
    server.stop();
}

/// A key as `openssl ecparam -genkey` writes it, the curve before the key, and its certificate.
const EC_KEY: &str = include_str!("pem/ec-parameters.key");
const EC_CERTIFICATE: &str = include_str!("pem/ec-parameters.pem");
const P521_KEY: &str = include_str!("pem/p521.key");

#[test]
fn keys_of_every_form_work_or_are_refused_for_what_they_are() {
    let machine = machine();
    let (certificate, key) = (machine.path("server.pem"), machine.path("server.key"));
    let flags = ["--tls-cert", "server.pem", "--tls-key", "server.key"];
    let write = |text: &str| {
        fs::write(&key, text).expect("the key");
        set_mode(&key, 0o600);
    };
    // With the mark that some editors put before a text.
    fs::write(&certificate, format!("\u{feff}{EC_CERTIFICATE}")).expect("the certificate");
    write(&format!("\u{feff}{EC_KEY}"));
    machine.start(&flags).stop();
    let begins = |label: &str| EC_KEY.replace("EC PRIVATE KEY", label);
    for (text, words) in [
        (P521_KEY.to_owned(), "is of a kind that cannot be used; RSA"),
        (
            begins("DSA PRIVATE KEY"),
            "is of a kind that cannot be used",
        ),
        (
            begins("OPENSSH PRIVATE KEY"),
            "is of a kind that cannot be used",
        ),
        (begins("ENCRYPTED PRIVATE KEY"), "openssl pkey -in"),
        (
            EC_KEY.replace(
                "MHcC",
                "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMHcC",
            ),
            "openssl pkey -in",
        ),
        ("\0\x01binary".to_owned(), "holds no private key"),
    ] {
        write(&text);
        machine
            .start_that_ends(&flags)
            .expect(1, &["server.key", words]);
    }
}

#[test]
fn certificates_and_keys_that_cannot_be_used_are_refused_by_name() {
    let machine = machine();
    let good = Identity::make(&machine, "good");
    let other = Identity::make(&machine, "other");
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let start = |certificate: &str, key: &str| {
        machine.start_that_ends(&["--tls-cert", certificate, "--tls-key", key])
    };
    let (certificate, key) = (path(&good.certificate), path(&good.key));
    for flag in [["--tls-cert", &certificate], ["--tls-key", &key]] {
        machine.start_that_ends(&flag).expect(2, &["--tls-"]);
    }
    start("missing.pem", &key).expect(1, &["missing.pem", "--tls-cert"]);
    start(&certificate, "missing.key").expect(1, &["missing.key", "--tls-key"]);
    start(&key, &certificate).expect(1, &["good.key holds no certificate"]);
    set_mode(&good.certificate, 0o600);
    start(&certificate, &certificate).expect(1, &["good.pem holds no private key"]);
    start(&certificate, &path(&other.key)).expect(1, &["good.pem", "other.key", "together"]);
    set_mode(&good.key, 0o644);
    start(&certificate, &key).expect(1, &["good.key", "chmod 0600"]);
    assert!(
        !machine.data_dir().exists(),
        "refused before anything is made"
    );
}
