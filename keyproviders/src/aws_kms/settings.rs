//! The settings of `aws-kms` and their check, before anything is asked.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Which KMS key, where, and how patiently.
#[derive(Clone, PartialEq, Eq)]
pub struct KmsConfig {
    /// Key id, alias (`alias/name`), or the ARN of either.
    pub key_id: String,
    /// The region; without it the one in the key's ARN, else the standard chain's.
    pub region: Option<String>,
    /// The endpoint; without it AWS's own for the region.
    pub endpoint_url: Option<String>,
    /// How long one operation may take, waiting for its turn and retries included.
    pub deadline: Duration,
    /// How long one try may take.
    pub attempt_timeout: Duration,
    /// How often a call that throttling or the network broke is tried, the first time included.
    pub max_attempts: u32,
    /// How many calls may be under way at once.
    pub max_concurrency: usize,
}

impl KmsConfig {
    /// The defaults: 15 s a call, 5 s a try, five tries, 32 calls at once.
    #[must_use]
    pub fn new(key_id: impl Into<String>) -> Self {
        Self {
            key_id: key_id.into(),
            region: None,
            endpoint_url: None,
            deadline: Duration::from_secs(15),
            attempt_timeout: Duration::from_secs(5),
            max_attempts: 5,
            max_concurrency: 32,
        }
    }
}

impl fmt::Debug for KmsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsConfig")
            .field("key_id", &self.key_id)
            .field("region", &self.region)
            .field("endpoint_url", &self.endpoint_url)
            .finish_non_exhaustive()
    }
}

/// One of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The key.
    KeyId,
    /// The region.
    Region,
    /// The endpoint.
    EndpointUrl,
    /// The profile of the standard chain.
    Profile,
}

/// A setting that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} {fault}")]
pub struct InvalidSetting {
    /// Which one.
    pub field: Field,
    /// What was given.
    pub given: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is the empty text.
    #[error("is empty: leave the setting out, or give it a value")]
    Empty,
    /// White space or a control character, perhaps at the end of a line that was read from a file.
    #[error("holds a space, a line end or a control character")]
    Space,
    /// It is longer than AWS allows.
    #[error("is longer than the 2048 characters that AWS allows")]
    Long,
    /// It begins like an ARN and is none of a KMS key.
    #[error(
        "is not the ARN of a KMS key or alias: arn:aws:kms:<region>:<account>:key/<id> or …:alias/<name>"
    )]
    Arn,
    /// Something else than lower-case letters, digits and hyphens.
    #[error("is not a region: lower-case letters, digits and hyphens, as in eu-central-1")]
    Region,
    /// There is no `https://` before it.
    #[error("has no scheme: begin it with https://")]
    Scheme,
    /// No host, or more than scheme, host, port and path.
    #[error("is not https://<host>, with a port and a path if need be")]
    Url,
    /// `http://` to another machine.
    #[error(
        "is http:// to another machine, and data keys would pass the network in the clear: use https://; \
         http:// is for loopback addresses alone"
    )]
    InTheClear,
}

impl KmsConfig {
    /// Looks at the settings by themselves; asks nobody.
    ///
    /// # Errors
    /// The first that cannot be right.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        check(Field::KeyId, &self.key_id)?;
        if let Some(region) = &self.region {
            check(Field::Region, region)?;
        }
        if let Some(endpoint) = &self.endpoint_url {
            check(Field::EndpointUrl, endpoint)?;
        }
        Ok(())
    }
}

/// Looks at one setting.
///
/// # Errors
/// What is wrong with it.
pub fn check(field: Field, given: &str) -> Result<(), InvalidSetting> {
    let blank = |c: char| c.is_whitespace() || c.is_control();
    let fault = if given.is_empty() {
        Some(Fault::Empty)
    } else if given.contains(blank) {
        Some(Fault::Space)
    } else if given.len() > MAX_BYTES {
        Some(Fault::Long)
    } else {
        match field {
            Field::KeyId if given.starts_with("arn:") && !is_kms_arn(given) => Some(Fault::Arn),
            Field::Region if !given.bytes().all(of_region) => Some(Fault::Region),
            Field::EndpointUrl => endpoint_fault(given),
            Field::KeyId | Field::Region | Field::Profile => None,
        }
    };
    match fault {
        None => Ok(()),
        Some(fault) => Err(InvalidSetting {
            field,
            given: given.to_owned(),
            fault,
        }),
    }
}

fn of_region(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn is_kms_arn(text: &str) -> bool {
    let fields: Vec<&str> = text.splitn(6, ':').collect();
    let [_arn, partition, "kms", region, account, resource] = fields.as_slice() else {
        return false;
    };
    let named = ["key/", "alias/"]
        .iter()
        .any(|kind| resource.len() > kind.len() && resource.starts_with(kind));
    !partition.is_empty()
        && !region.is_empty()
        && region.bytes().all(of_region)
        && !account.is_empty()
        && named
}

fn endpoint_fault(url: &str) -> Option<Fault> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Some(Fault::Scheme);
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let Some(host) = host(authority) else {
        return Some(Fault::Url);
    };
    if rest.contains(['?', '#', '@', '\\']) {
        return Some(Fault::Url);
    }
    match scheme.to_ascii_lowercase().as_str() {
        "https" => None,
        "http" if is_loopback(host) => None,
        "http" => Some(Fault::InTheClear),
        _ => Some(Fault::Scheme),
    }
}

/// The host of `host`, `host:port` or `[address]:port`.
fn host(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let _address: std::net::Ipv6Addr = host.parse().ok()?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':')?)),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port_is_right = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    (!host.is_empty() && port_is_right).then_some(host)
}

/// Whether a host is this machine, whatever the network says.
pub(super) fn is_loopback(host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    address.is_some_and(|address| address.to_canonical().is_loopback())
        || host.eq_ignore_ascii_case("localhost")
}

/// As long as an ARN may be.
const MAX_BYTES: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(field: Field, given: &str) -> Option<Fault> {
        check(field, given).err().map(|invalid| invalid.fault)
    }

    #[test]
    fn names_what_is_wrong_with_a_setting() {
        use Field::{EndpointUrl, KeyId, Profile, Region};
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555";
        let long = "k".repeat(MAX_BYTES + 1);
        for (field, given, expected) in [
            (KeyId, "alias/nimbus", None),
            (KeyId, "mrk-0f5e", None),
            (KeyId, arn, None),
            (
                KeyId,
                "arn:aws-cn:kms:cn-north-1:111122223333:alias/nimbus",
                None,
            ),
            (KeyId, "", Some(Fault::Empty)),
            (KeyId, "alias/nimbus\n", Some(Fault::Space)),
            (KeyId, " alias/nimbus", Some(Fault::Space)),
            (KeyId, "alias/nim bus", Some(Fault::Space)),
            (KeyId, "alias/nimbus\u{7f}", Some(Fault::Space)),
            (KeyId, "alias/nimbus\u{a0}", Some(Fault::Space)),
            (KeyId, &long, Some(Fault::Long)),
            (KeyId, "arn:aws:s3:::bucket", Some(Fault::Arn)),
            (
                KeyId,
                "arn:aws:kms:eu-central-1:111122223333:key/",
                Some(Fault::Arn),
            ),
            (KeyId, "arn:aws:kms::111122223333:key/1", Some(Fault::Arn)),
            (Region, "eu-central-1", None),
            (Region, "", Some(Fault::Empty)),
            (Region, "eu-central-1 ", Some(Fault::Space)),
            (Region, "EU", Some(Fault::Region)),
            (Region, "https://kms", Some(Fault::Region)),
            (Profile, "team.prod", None),
            (Profile, "team prod", Some(Fault::Space)),
            (Profile, "prod\r\n", Some(Fault::Space)),
            (
                EndpointUrl,
                "https://vpce-1.kms.eu-central-1.vpce.amazonaws.com",
                None,
            ),
            (EndpointUrl, "https://kms.example:8443/path", None),
            (EndpointUrl, "HTTPS://kms.example", None),
            (EndpointUrl, "http://127.0.0.1:5000", None),
            (EndpointUrl, "http://127.8.9.1", None),
            (EndpointUrl, "http://[::1]:5000/", None),
            (EndpointUrl, "http://[::ffff:127.0.0.1]:5000/", None),
            (EndpointUrl, "http://localhost:4566", None),
            (
                EndpointUrl,
                "http://localhost.evil.example",
                Some(Fault::InTheClear),
            ),
            (
                EndpointUrl,
                "http://127.0.0.1.evil.example",
                Some(Fault::InTheClear),
            ),
            (EndpointUrl, "http://10.0.0.1:5000", Some(Fault::InTheClear)),
            (EndpointUrl, "http://[fd00::1]", Some(Fault::InTheClear)),
            (EndpointUrl, "http://0.0.0.0:5000", Some(Fault::InTheClear)),
            (EndpointUrl, "kms.example:8443", Some(Fault::Scheme)),
            (EndpointUrl, "ftp://kms.example", Some(Fault::Scheme)),
            (EndpointUrl, "https://", Some(Fault::Url)),
            (EndpointUrl, "https://kms.example:port", Some(Fault::Url)),
            (
                EndpointUrl,
                "https://user:secret@kms.example",
                Some(Fault::Url),
            ),
            (
                EndpointUrl,
                "http://127.0.0.1@evil.example",
                Some(Fault::Url),
            ),
            (
                EndpointUrl,
                "http://127.0.0.1\\@evil.example",
                Some(Fault::Url),
            ),
            (EndpointUrl, "https://kms.example/?x", Some(Fault::Url)),
            (EndpointUrl, "https://kms. example", Some(Fault::Space)),
            (EndpointUrl, "https://[kms]:1", Some(Fault::Url)),
        ] {
            assert_eq!(fault(field, given), expected, "{field:?} {given:?}");
        }
    }
}
