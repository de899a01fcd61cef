//! A stand-in for KMS over the wire, fast enough for a thousand keys: what is measured is Nimbus,
//! not the emulator. It speaks the protocol and keeps no secret: what it calls ciphertext is the
//! plaintext.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

/// One that listens until the process ends.
pub(crate) struct Kms {
    pub(crate) url: String,
    decrypted: Arc<AtomicUsize>,
}

impl Kms {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let decrypted = Arc::new(AtomicUsize::new(0));
        let counted = decrypted.clone();
        let _listening = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = counted.clone();
                let _serving = thread::spawn(move || drop(serve(stream, &counted)));
            }
        });
        Self {
            url: format!("http://{address}"),
            decrypted,
        }
    }

    /// How often it was asked for a `Decrypt`.
    pub(crate) fn decrypted(&self) -> usize {
        self.decrypted.load(Ordering::Relaxed)
    }
}

/// The ARN of a key; each that is asked for is there.
pub(crate) fn arn(number: usize) -> String {
    format!("arn:aws:kms:us-east-1:000000000000:key/00000000-0000-4000-8000-{number:012}")
}

fn serve(stream: TcpStream, decrypted: &AtomicUsize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    while let Some((action, body)) = request(&mut requests)? {
        decrypted.fetch_add(usize::from(action == "Decrypt"), Ordering::Relaxed);
        let body = answer(&action, &body).to_string();
        let length = body.len();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1";
        answers
            .write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())?;
    }
    Ok(())
}

/// The next action and its input; `None` at the end.
fn request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Value)>> {
    let (mut action, mut length) = (String::new(), 0);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        let field = line.trim_end();
        if field.is_empty() {
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            return Ok(Some((action, serde_json::from_slice(&body)?)));
        }
        match field
            .split_once(": ")
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
        {
            Some((name, value)) if name == "content-length" => length = value.parse().unwrap_or(0),
            Some((name, value)) if name == "x-amz-target" => {
                action = value.rsplit('.').next().unwrap_or_default().to_owned();
            }
            _ => {}
        }
        line.clear();
    }
    Ok(None)
}

fn answer(action: &str, input: &Value) -> Value {
    let key = &input["KeyId"];
    match action {
        "DescribeKey" => json!({"KeyMetadata": {
            "KeyId": key, "Arn": key, "KeyState": "Enabled", "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT"
        }}),
        // Never the same, and no secret.
        "GenerateDataKey" => {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            let plaintext = data_encoding::BASE64.encode(&number.repeat(4));
            json!({"KeyId": key, "Plaintext": plaintext, "CiphertextBlob": plaintext})
        }
        "Encrypt" => json!({
            "KeyId": key, "CiphertextBlob": input["Plaintext"], "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"
        }),
        _ => json!({
            "KeyId": key, "Plaintext": input["CiphertextBlob"], "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"
        }),
    }
}
