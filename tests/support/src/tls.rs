//! A KMS behind TLS of a private authority, and a proxy that tunnels to it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::Authority;
use crate::http::{Message, authority};

/// TLS in front of a KMS, under a certificate of an authority that nobody else knows.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    authority: String,
}

impl TlsFront {
    /// In front of `upstream_url`, as each of the hosts `names`.
    ///
    /// # Panics
    /// When no port or no certificate can be had.
    #[must_use]
    pub fn in_front_of(upstream_url: &str, names: &[&str]) -> Self {
        let issuer = Authority::new();
        let (certificate, key) = issuer.signed(names, |_| {});
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a certificate and its key");
        let (config, upstream) = (Arc::new(config), authority(upstream_url).to_owned());
        let address = serve(move |stream| {
            let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            forward(StreamOwned::new(connection, stream), &upstream)
        });
        Self {
            address,
            authority: issuer.pem().to_owned(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of its authority, in PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// A proxy that knows CONNECT alone, and keeps what it sees.
#[derive(Debug)]
pub struct ConnectProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    asked: Vec<String>,
    passed: Vec<u8>,
}

impl ConnectProxy {
    /// A proxy whose tunnels all end at `target`, whatever host is asked for.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let kept = seen.clone();
        let address = serve(move |client| tunnel(client, target, &kept));
        Self { address, seen }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The heads of the requests that it got, each in one text.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.seen).asked.clone()
    }

    /// All that passed through its tunnels, both ways.
    #[must_use]
    pub fn passed(&self) -> Vec<u8> {
        lock(&self.seen).passed.clone()
    }
}

/// Has each connection to a free loopback port served by a thread of its own, for as long as the
/// process lives.
fn serve(handle: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    let address = listener
        .local_addr()
        .expect("a bound listener has an address");
    let _detached = thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            // A connection that breaks is the client's to notice.
            let _detached = thread::spawn(move || drop(handle(stream)));
        }
    });
    address
}

fn forward(mut client: impl Read + Write, upstream: &str) -> io::Result<()> {
    while let Some(mut request) = Message::read(&mut client)? {
        request.head.retain(|line| !is_connection(line));
        request.head.push("Connection: close".into());
        let mut upstream = TcpStream::connect(upstream)?;
        request.write(&mut upstream)?;
        let Some(mut response) = Message::read(&mut upstream)? else {
            break;
        };
        response.head.retain(|line| !is_connection(line));
        response.head[0] = response.head[0].replacen("HTTP/1.0", "HTTP/1.1", 1);
        response.write(&mut client)?;
        client.flush()?;
    }
    Ok(())
}

fn is_connection(line: &str) -> bool {
    line.to_ascii_lowercase().starts_with("connection:")
}

fn tunnel(mut client: TcpStream, target: SocketAddr, seen: &Arc<Mutex<Seen>>) -> io::Result<()> {
    let Some(request) = Message::read(&mut client)? else {
        return Ok(());
    };
    lock(seen).asked.push(request.head.join("\n"));
    if !request.head[0].starts_with("CONNECT ") {
        return client.write_all(b"HTTP/1.1 405 CONNECT alone\r\nContent-Length: 0\r\n\r\n");
    }
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let there = seen.clone();
    let _ends_with_the_connection = thread::spawn(move || {
        drop(copy(&mut from_client, &mut to_server, &there));
    });
    copy(&mut server, &mut client, seen)
}

fn copy(from: &mut TcpStream, to: &mut TcpStream, seen: &Mutex<Seen>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        lock(seen).passed.extend_from_slice(&buffer[..read]);
        to.write_all(&buffer[..read])?;
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
