//! As much HTTP/1.1 as a test needs: one request or response with a Content-Length.

use std::io::{self, Read, Write};

/// A request or a response, its head as it came.
#[derive(Debug)]
pub(crate) struct Message {
    /// Start line and header lines, without the empty line after them.
    pub(crate) head: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Reads one message; `None` when the peer closed before it began.
    pub(crate) fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte)? {
                0 if head.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => head.push(byte[0]),
            }
        }
        let head: Vec<String> = String::from_utf8_lossy(&head)
            .trim_end()
            .lines()
            .map(str::to_owned)
            .collect();
        let mut message = Self {
            head,
            body: Vec::new(),
        };
        let length = message
            .header("content-length")
            .and_then(|text| text.parse().ok());
        message.body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut message.body)?;
        Ok(Some(message))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The KMS action that a request asks for: `Decrypt` of `X-Amz-Target: TrentService.Decrypt`.
    /// Without one, the method.
    pub(crate) fn action(&self) -> &str {
        match self.header("x-amz-target") {
            Some(target) => target.rsplit('.').next().unwrap_or_default(),
            None => self
                .head
                .first()
                .and_then(|line| line.split(' ').next())
                .unwrap_or_default(),
        }
    }

    /// The region of the signature: `us-east-1` of
    /// `Credential=<key>/<date>/us-east-1/kms/aws4_request`.
    pub(crate) fn region(&self) -> &str {
        let signature = self.header("authorization").unwrap_or_default();
        signature.split('/').nth(2).unwrap_or_default()
    }

    pub(crate) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in &self.head {
            bytes.extend_from_slice(line.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        stream.write_all(&bytes)
    }
}

/// `127.0.0.1:1234` of `http://127.0.0.1:1234`.
pub(crate) fn authority(url: &str) -> &str {
    url.strip_prefix("http://")
        .unwrap_or_else(|| panic!("{url} is not an http:// URL"))
        .trim_end_matches('/')
}
