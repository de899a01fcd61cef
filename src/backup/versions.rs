//! All versions of objects in a bucket, and their removal for good, by signed requests:
//! `object_store` itself knows the newest version alone.
//!
//! A bucket without versioning answers the same requests, with one version `null` of each object.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer as _};
use reqwest::{Client, Method, Response, StatusCode};

/// Asks for versions.
#[derive(Debug, Clone)]
pub(super) struct Versions {
    bucket: Arc<AmazonS3>,
    client: Client,
}

/// One version of an object, or the mark of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key: String,
    pub(super) id: String,
}

/// Why a request was not answered as it should be.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Versions {
    pub(super) fn of(bucket: Arc<AmazonS3>) -> Result<Self, Failure> {
        let client = Client::builder().timeout(PATIENCE).build()?;
        Ok(Self { bucket, client })
    }

    /// The versions of all objects whose keys begin with `prefix`.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Version>, Failure> {
        let mut found = Vec::new();
        let mut after: Option<(String, String)> = None;
        loop {
            let mut query = vec![("versions", String::new()), ("prefix", prefix.to_owned())];
            if let Some((key, id)) = after.take() {
                query.extend([("key-marker", key), ("version-id-marker", id)]);
            }
            let answer = self.send(Method::GET, &Path::default(), query).await?;
            let status = answer.status();
            let text = answer.text().await?;
            if !status.is_success() {
                return Err(said(status, &text));
            }
            for kind in ["Version", "DeleteMarker"] {
                found.extend(elements(&text, kind).filter_map(|entry| {
                    Some(Version {
                        key: element(entry, "Key")?,
                        id: element(entry, "VersionId")?,
                    })
                }));
            }
            if element(&text, "IsTruncated").as_deref() != Some("true") {
                return Ok(found);
            }
            let next = (
                element(&text, "NextKeyMarker"),
                element(&text, "NextVersionIdMarker"),
            );
            let (Some(key), Some(id)) = next else {
                return Err("the list of versions is cut off, and does not say where".into());
            };
            after = Some((key, id));
        }
    }

    /// Removes a version for good. `Some`: what keeps it.
    pub(super) async fn remove(&self, version: &Version) -> Result<Option<String>, Failure> {
        let path = Path::parse(&version.key)?;
        let query = vec![("versionId", version.id.clone())];
        let answer = self.send(Method::DELETE, &path, query.clone()).await?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let text = answer.text().await?;
        if status != StatusCode::FORBIDDEN {
            return Err(said(status, &text));
        }
        // An object lock, or no permission: the object itself says which.
        let asked = self.send(Method::HEAD, &path, query).await?;
        let header = |name: &str| {
            let value = asked.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let until = header("x-amz-object-lock-retain-until-date");
        let held = header("x-amz-object-lock-legal-hold").is_some_and(|hold| hold == "ON");
        match (until, held) {
            (Some(until), _) => Ok(Some(format!("an object lock until {until}"))),
            (None, true) => Ok(Some("a legal hold".to_owned())),
            (None, false) => Err(said(status, &text)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &Path,
        query: Vec<(&str, String)>,
    ) -> Result<Response, Failure> {
        let options = SignedUrlOptions::new().with_query(query);
        let signed = self
            .bucket
            .signed_url_opts(method.clone(), path, PATIENCE, &options);
        let request = self.client.request(method, signed.await?);
        Ok(request.send().await?)
    }
}

fn said(status: StatusCode, text: &str) -> Failure {
    let code = element(text, "Code").unwrap_or_default();
    let message = element(text, "Message").unwrap_or_default();
    format!("{status} {code} {message}")
        .trim()
        .to_owned()
        .into()
}

/// What stands in each element of this name.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, behind) = rest.split_once(&open)?;
        let (inside, after) = behind.split_once(&close)?;
        rest = after;
        Some(inside)
    })
}

/// The text of the first element of this name.
fn element(xml: &str, name: &str) -> Option<String> {
    let text = elements(xml, name).next()?;
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    Some(
        entities
            .iter()
            .fold(text.to_owned(), |text, (entity, character)| {
                text.replace(entity, character)
            }),
    )
}

/// For one request; so long its signature counts.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_elements_of_a_list() {
        let xml = "<R><IsTruncated>false</IsTruncated><Version><Key>a&amp;b</Key><VersionId>1</VersionId></Version>\
                   <DeleteMarker><Key>c</Key><VersionId>2</VersionId></DeleteMarker><Version><Key>d</Key></R>";
        let versions: Vec<_> = elements(xml, "Version").collect();
        assert_eq!(versions, ["<Key>a&amp;b</Key><VersionId>1</VersionId>"]);
        assert_eq!(element(versions[0], "Key").as_deref(), Some("a&b"));
        assert_eq!(element(xml, "IsTruncated").as_deref(), Some("false"));
        assert_eq!(element(xml, "NextKeyMarker"), None);
    }
}
