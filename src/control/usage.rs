//! Usage: how many identities each tenant had in a month.
//!
//! Two months are counted at a time: the last one begun and the one before it. Of those the
//! identities are kept, as keyed hashes, so that each counts once. When a third begins, the
//! identities of the first are removed and its counts stay. Months stand in the order in which they
//! began, not in the calendar's: a clock that jumps ahead and back again costs nothing.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::Ordering;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nimbus_keyproviders::{OsRandom, RandomError, SecureRandom as _};
use nimbus_manifests::TenantId;
use redb::{ReadableDatabase as _, ReadableTable as _, Table, WriteTransaction};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::access_key::AccessKeyId;
use super::tables::{ACCESS_KEYS, IDENTITIES, SECRETS, USAGE_COUNTS, USAGE_MONTHS};
use super::{Control, ControlError};
use crate::envelope::KeyedFile;
use crate::{metrics, schemas};

/// A calendar month (UTC), as `2026-11`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month(u32);

/// Text that is no month.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a month is written as in 2026-11")]
pub struct InvalidMonth;

/// Who a request came from, beyond its key.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// The key stands for one caller.
    Key(AccessKeyId),
    /// What the request said in `X-Nimbus-Identity`.
    Named(&'a [u8]),
}

/// An identity that was seen.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// When.
    pub month: Month,
    /// By a key of which tenant.
    pub tenant: TenantId,
    /// By which key. Where it is gone by the time of the commit, so is the tenant, and nothing is
    /// counted.
    pub key: AccessKeyId,
    /// Whom: a keyed hash.
    pub hash: u64,
}

/// How many identities there were, month by month.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Usage)]
pub struct UsageReport {
    /// The newest first.
    pub months: Vec<MonthUsage>,
    /// Requests since the server's start whose identity found no place in the queue. It counts
    /// with the identity's next request.
    pub not_counted: u64,
}

/// One month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MonthUsage {
    /// The month.
    #[schema(value_type = String)]
    pub month: Month,
    /// Identities of all tenants.
    pub identities: u64,
    /// Identities of tenants that were deleted since.
    pub deleted_tenants: u64,
    /// Whether some tenant had more than are counted.
    pub capped: bool,
    /// Each tenant that had any, sorted by its id.
    pub tenants: Vec<TenantUsage>,
}

/// One tenant in one month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantUsage {
    /// The tenant.
    #[schema(value_type = schemas::TenantId)]
    pub tenant: String,
    /// Its identities.
    pub identities: u64,
    /// Whether it reached the most that are counted.
    pub capped: bool,
}

/// Turns identities into hashes, under a key that lies in the control file and never leaves this
/// type.
pub(super) struct IdentityHasher(Hmac<Sha256>);

impl fmt::Debug for IdentityHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityHasher([REDACTED])")
    }
}

impl IdentityHasher {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    /// The month is in it, so that nobody is followed from one month to the next.
    fn hash(&self, month: Month, tenant: &TenantId, identity: Identity<'_>) -> u64 {
        let mut mac = self.0.clone();
        mac.update(&month.0.to_be_bytes());
        mac.update(tenant.as_str().as_bytes());
        // No tenant id has a zero in it.
        match identity {
            Identity::Key(id) => {
                mac.update(b"\0key\0");
                mac.update(id.to_string().as_bytes());
            }
            Identity::Named(name) => {
                mac.update(b"\0named\0");
                mac.update(name);
            }
        }
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(mac.finalize().into_bytes());
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl Control {
    /// The keyed hash of an identity. Reads nothing from the file.
    #[must_use]
    pub fn identity_hash(&self, month: Month, tenant: &TenantId, identity: Identity<'_>) -> u64 {
        self.identities.hash(month, tenant, identity)
    }

    /// Counts what was seen and not counted yet, in one commit.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; nothing was counted then.
    pub fn count_identities(&self, seen: &[Sighting]) -> Result<(), ControlError> {
        let not_kept = Cell::new(0);
        self.write(|transaction| {
            let mut beyond = 0;
            let keys = transaction.open_table(ACCESS_KEYS)?;
            let mut identities = transaction.open_table(IDENTITIES)?;
            let mut counts = transaction.open_table(USAGE_COUNTS)?;
            let mut months = transaction.open_table(USAGE_MONTHS)?;
            for one in seen {
                let known = self.keys_are_elsewhere.load(Ordering::Relaxed)
                    || keys.get(one.key.to_string().as_str())?.is_some();
                let (month, tenant) = (one.month.0, one.tenant.as_str());
                if !known || !begin(&mut months, &mut identities, month)? {
                    continue;
                }
                let count = counts
                    .get((month, tenant))?
                    .map_or(0, |count| count.value());
                if count >= MAX_IDENTITIES {
                    let known = identities.get((month, tenant, one.hash))?;
                    beyond += u64::from(known.is_none());
                } else if identities.insert((month, tenant, one.hash), ())?.is_none() {
                    counts.insert((month, tenant), count + 1)?;
                }
            }
            not_kept.set(beyond);
            drop_old(&mut months, &mut counts)
        })?;
        metrics::IDENTITIES_BEYOND.increment(not_kept.get());
        Ok(())
    }

    /// What was counted: of one month, or of all that are kept.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn usage(&self, month: Option<Month>) -> Result<Vec<MonthUsage>, ControlError> {
        self.with(|database| counted(database, month))
    }

    /// The same of a control file that is only looked at: a server may have it. Blocks.
    pub(crate) fn usage_seen(
        file: &KeyedFile,
        month: Option<Month>,
    ) -> Result<Vec<MonthUsage>, ControlError> {
        super::copy::look_into(file, |database| counted(database, month))
    }

    pub(super) fn has_usage(&self, tenant: &TenantId) -> Result<bool, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let counts = transaction.open_table(USAGE_COUNTS)?;
            for month in transaction.open_table(USAGE_MONTHS)?.iter()? {
                let month = month?.0.value();
                if counts.get((month, tenant.as_str()))?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// The key of this deployment's identity hashes, made when it is asked for first.
    pub(super) fn identity_key(&self) -> Result<Zeroizing<[u8; 32]>, ControlError> {
        let kept = self.with(|database| {
            let transaction = database.begin_read()?;
            let key = transaction.open_table(SECRETS)?.get(IDENTITY_KEY)?;
            Ok(key.map(|key| Zeroizing::new(key.value().to_vec())))
        })?;
        let mut key = Zeroizing::new([0; 32]);
        if let Some(kept) = kept {
            if kept.len() != key.len() {
                return Err(ControlError::Damaged {
                    path: self.path.clone(),
                    source: "the key of identity hashes has another length".into(),
                });
            }
            key.copy_from_slice(&kept);
            return Ok(key);
        }
        OsRandom
            .fill(&mut *key)
            .map_err(|error: RandomError| ControlError::Io {
                action: "draw a key for",
                path: self.path.clone(),
                source: std::io::Error::other(error),
            })?;
        self.write(|transaction| {
            let mut secrets = transaction.open_table(SECRETS)?;
            secrets.insert(IDENTITY_KEY, key.as_slice())?;
            Ok(())
        })?;
        Ok(key)
    }
}

fn counted(
    database: &impl redb::ReadableDatabase,
    month: Option<Month>,
) -> Result<Vec<MonthUsage>, redb::Error> {
    let transaction = database.begin_read()?;
    let mut counts: BTreeMap<u32, Vec<(String, u64)>> = BTreeMap::new();
    let (first, last) = month.map_or((0, u32::MAX), |month| (month.0, month.0));
    let table = transaction.open_table(USAGE_COUNTS)?;
    // No tenant's id lies beyond `~`.
    for entry in table.range((first, "")..=(last, "~"))? {
        let (key, count) = entry?;
        let (month, tenant) = key.value();
        let of_month = counts.entry(month).or_default();
        of_month.push((tenant.to_owned(), count.value()));
    }
    let months = counts.into_iter().rev();
    Ok(months
        .map(|(month, counts)| MonthUsage::of(Month(month), counts))
        .collect())
}

/// Whether `month` is counted; one that is not known begins here, and the one before the last then
/// ends.
fn begin(
    months: &mut Table<'_, u32, (u64, bool)>,
    identities: &mut Table<'_, (u32, &'static str, u64), ()>,
    month: u32,
) -> Result<bool, redb::Error> {
    if let Some(known) = months.get(month)? {
        let (_order, ended) = known.value();
        return Ok(!ended);
    }
    let mut all = in_order(months)?;
    let order = all.last().map_or(0, |(order, ..)| order + 1);
    drop(months.insert(month, (order, false))?);
    // The one just begun is not in the list.
    all.pop();
    for (order, month, ended) in all {
        if !ended {
            let whole = (month, "", 0)..(month + 1, "", 0);
            identities.retain_in::<(u32, &str, u64), _>(whole, |_, ()| false)?;
            drop(months.insert(month, (order, true))?);
        }
    }
    Ok(true)
}

/// Removes the months that began too long ago to be kept.
fn drop_old(
    months: &mut Table<'_, u32, (u64, bool)>,
    counts: &mut Table<'_, (u32, &'static str), u64>,
) -> Result<(), redb::Error> {
    let all = in_order(months)?;
    for (_, month, _) in &all[..all.len().saturating_sub(KEPT_MONTHS)] {
        let whole = (*month, "")..(month + 1, "");
        counts.retain_in::<(u32, &str), _>(whole, |_, _| false)?;
        drop(months.remove(month)?);
    }
    Ok(())
}

/// All months as (order, month, ended), in the order in which they began.
fn in_order(months: &Table<'_, u32, (u64, bool)>) -> Result<Vec<(u64, u32, bool)>, redb::Error> {
    let mut all = Vec::new();
    for entry in months.iter()? {
        let (month, state) = entry?;
        let (order, ended) = state.value();
        all.push((order, month.value(), ended));
    }
    all.sort_unstable();
    Ok(all)
}

/// Removes a tenant's identities; its counts go on without its name.
pub(super) fn forget(transaction: &WriteTransaction, tenant: &TenantId) -> Result<(), redb::Error> {
    let tenant = tenant.as_str();
    let mut identities = transaction.open_table(IDENTITIES)?;
    let mut counts = transaction.open_table(USAGE_COUNTS)?;
    let months = transaction.open_table(USAGE_MONTHS)?;
    for entry in months.iter()? {
        let month = entry?.0.value();
        let Some(count) = counts.remove((month, tenant))?.map(|count| count.value()) else {
            continue;
        };
        let deleted = counts
            .get((month, DELETED))?
            .map_or(0, |count| count.value());
        counts.insert((month, DELETED), deleted + count)?;
        let own = (month, tenant, 0)..=(month, tenant, u64::MAX);
        identities.retain_in::<(u32, &str, u64), _>(own, |_, ()| false)?;
    }
    Ok(())
}

impl UsageReport {
    /// What several servers counted. An identity that used two of them is in it twice.
    #[must_use]
    pub fn sum(reports: impl IntoIterator<Item = Self>) -> Self {
        let mut counts: BTreeMap<Month, BTreeMap<String, u64>> = BTreeMap::new();
        let (mut capped, mut not_counted) = (BTreeSet::new(), 0);
        for report in reports {
            not_counted += report.not_counted;
            for month in report.months {
                let of_month = counts.entry(month.month).or_default();
                if month.deleted_tenants > 0 {
                    *of_month.entry(DELETED.to_owned()).or_default() += month.deleted_tenants;
                }
                for one in month.tenants {
                    if one.capped {
                        capped.insert((month.month, one.tenant.clone()));
                    }
                    *of_month.entry(one.tenant).or_default() += one.identities;
                }
            }
        }
        let months = counts.into_iter().rev().map(|(month, counts)| {
            let mut sum = MonthUsage::of(month, counts.into_iter().collect());
            // A sum may be as large without that any server stopped counting.
            for one in &mut sum.tenants {
                one.capped = capped.contains(&(month, one.tenant.clone()));
            }
            sum.capped = sum.tenants.iter().any(|one| one.capped);
            sum
        });
        Self {
            months: months.collect(),
            not_counted,
        }
    }
}

impl MonthUsage {
    fn of(month: Month, counts: Vec<(String, u64)>) -> Self {
        let identities = counts.iter().map(|(_, count)| count).sum();
        let deleted = counts.iter().find(|(tenant, _)| tenant == DELETED);
        let deleted_tenants = deleted.map_or(0, |(_, count)| *count);
        let tenants: Vec<_> = counts
            .into_iter()
            .filter(|(tenant, _)| tenant != DELETED)
            .map(|(tenant, identities)| TenantUsage {
                tenant,
                identities,
                capped: identities >= MAX_IDENTITIES,
            })
            .collect();
        Self {
            month,
            identities,
            deleted_tenants,
            capped: tenants.iter().any(|one| one.capped),
            tenants,
        }
    }
}

impl Month {
    /// The month of a time.
    #[must_use]
    pub fn of(time: Timestamp) -> Self {
        let date = time.to_zoned(TimeZone::UTC).date();
        // No clock can be before the year 0.
        let year = u32::try_from(date.year()).unwrap_or(0);
        Self(year * 100 + u32::from(date.month().unsigned_abs()))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 100, self.0 % 100)
    }
}

impl FromStr for Month {
    type Err = InvalidMonth;

    fn from_str(text: &str) -> Result<Self, InvalidMonth> {
        let digits = |text: &str| {
            let all = text.bytes().all(|byte| byte.is_ascii_digit());
            all.then(|| text.parse::<u32>().ok()).flatten()
        };
        match text.split_once('-') {
            Some((year, month)) if year.len() == 4 && month.len() == 2 => {
                let (year, month) = (
                    digits(year).ok_or(InvalidMonth)?,
                    digits(month).ok_or(InvalidMonth)?,
                );
                if (1..=12).contains(&month) {
                    return Ok(Self(year * 100 + month));
                }
                Err(InvalidMonth)
            }
            _ => Err(InvalidMonth),
        }
    }
}

impl TryFrom<String> for Month {
    type Error = InvalidMonth;

    fn try_from(text: String) -> Result<Self, InvalidMonth> {
        text.parse()
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

/// The most identities of one tenant that are counted in one month: whoever has a key of it can
/// make them up, and each takes some forty bytes of the control file for two months.
pub const MAX_IDENTITIES: u64 = 100_000;
/// How many months are kept.
pub const KEPT_MONTHS: usize = 24;
/// Under which name the counts of deleted tenants go on: no tenant has it.
const DELETED: &str = "";
const IDENTITY_KEY: &str = "usage-identities";
