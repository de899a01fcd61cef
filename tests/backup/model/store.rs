//! Where the repository is, and how its store fails.

use std::fmt;
use std::time::Duration;

use nimbus_test_support::{S3Fault, S3Proxy, Seaweed, make_bucket};

use super::Dice;
use crate::s3;

/// A directory, or a bucket behind a proxy.
pub(super) enum Place {
    Directory,
    Bucket { seaweed: Seaweed, proxy: S3Proxy },
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to())
    }
}

impl Place {
    pub(super) fn directory() -> Self {
        Self::Directory
    }

    pub(super) fn bucket() -> Self {
        let seaweed = Seaweed::start();
        make_bucket(seaweed.url(), "model");
        let proxy = S3Proxy::in_front_of(seaweed.url());
        Self::Bucket { seaweed, proxy }
    }

    pub(super) fn to(&self) -> &'static str {
        match self {
            Self::Directory => "repo",
            Self::Bucket { .. } => "s3://model/repo",
        }
    }

    /// How a server reaches it.
    pub(super) fn failing(&self) -> Vec<(String, String)> {
        match self {
            Self::Directory => Vec::new(),
            Self::Bucket { proxy, .. } => owned(&s3::settings(proxy.url())),
        }
    }

    /// How it is reached without faults.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        match self {
            Self::Directory => Vec::new(),
            Self::Bucket { seaweed, .. } => owned(&s3::settings(seaweed.url())),
        }
    }

    /// From here on some requests fail, each in a way of its own.
    pub(super) fn fails_now_and_then(&self, dice: &mut Dice) {
        let Self::Bucket { proxy, .. } = self else {
            return;
        };
        let mut dice = Dice(dice.roll(u64::MAX));
        proxy.plan(move |method, _path| {
            let fault = match dice.roll(40) {
                0 => S3Fault::Refuse(503),
                1 => S3Fault::Refuse(500),
                2 | 3 if method == "PUT" => S3Fault::Half,
                4..7 if method == "PUT" => S3Fault::LoseAnswer,
                7 => S3Fault::LoseAnswer,
                8..12 => S3Fault::Delay(Duration::from_millis(50 + dice.roll(700))),
                _ => return None,
            };
            Some(fault)
        });
    }

    /// Nothing is taken any more.
    pub(super) fn is_away(&self) {
        if let Self::Bucket { proxy, .. } = self {
            proxy.plan(|_, _| Some(S3Fault::Refuse(503)));
        }
    }

    /// Packs do not arrive before [`Place::arrives`].
    pub(super) fn holds_packs(&self) {
        if let Self::Bucket { proxy, .. } = self {
            proxy.plan(|method, path| {
                (method == "PUT" && path.contains("/log/")).then_some(S3Fault::Hold)
            });
        }
    }

    /// What was held goes on; who sent it may be gone.
    pub(super) fn arrives(&self) {
        if let Self::Bucket { proxy, .. } = self {
            proxy.clear();
            proxy.release();
        }
    }

    pub(super) fn works(&self) {
        if let Self::Bucket { proxy, .. } = self {
            proxy.clear();
        }
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    settings.iter().map(pair).collect()
}
