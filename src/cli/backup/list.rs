//! `nimbus backup list`: the snapshots of a repository, and the instants between them.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use nimbus_manifests::TenantId;
use serde::Serialize;

use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome, block_on, settings};
use super::shown;
use crate::backup::list::Listed;
use crate::backup::proofs::Proof;
use crate::backup::timeline::{Granularity, Range, TenantRange};
use crate::backup::{Location, Repository};
use crate::pluralize::pluralize;

/// List the snapshots and the restorable times of a repository; no key is needed, and nothing is
/// proven
#[derive(Debug, Args)]
#[command(after_help = "Example: nimbus backup list --from /mnt/backup/nimbus")]
pub(super) struct List {
    /// The repository
    #[arg(long, value_name = "R", value_parser = Location::from_flag)]
    from: Location,

    /// List those that hold this tenant, with its size in each, and the times of the tenant
    #[arg(long, value_name = "TENANT")]
    tenant_id: Option<TenantId>,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl List {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let listed = block_on(async {
            let repository = Repository::open(&self.from, &settings.backup_s3).await?;
            let only = self.tenant_id.as_ref();
            let (snapshots, damage) = repository.snapshots(only).await?;
            let ranges = match only {
                None => Ranges::All(repository.ranges().await?),
                Some(tenant) => {
                    Ranges::OfTenant(repository.tenant_ranges(tenant, &snapshots).await?)
                }
            };
            let mut proofs = repository.proofs().await?.tenants;
            proofs.retain(|tenant, _| only.is_none_or(|only| only.as_str() == tenant));
            Ok(Contents {
                snapshots,
                damage,
                ranges,
                proofs,
            })
        })?;
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(&listed).map_err(std::io::Error::from)?,
            Format::Text => {
                let damage = listed.damage.iter();
                let damage = damage.map(|one| format!("DAMAGED: {}\n", output::cell(one)));
                let damage: String = damage.collect();
                let times = match &listed.ranges {
                    Ranges::All(ranges) => instants(&listed.snapshots, ranges),
                    Ranges::OfTenant(ranges) => ranges.iter().map(times_of).collect(),
                };
                table(&listed.snapshots) + &times + &proven(listed.proofs.iter()) + &damage
            }
        };
        output::answer(&text)?;
        Ok(match listed.damage.is_empty() {
            true => CommandOutcome::Done,
            false => CommandOutcome::Problems,
        })
    }
}

/// What there is.
#[derive(Debug, Serialize)]
struct Contents {
    snapshots: Vec<Listed>,
    ranges: Ranges,
    /// What stands among the snapshots and is none.
    damage: Vec<String>,
    /// By the tenant, when it was last restored and proven.
    proofs: BTreeMap<String, Proof>,
}

/// Which times there are.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Ranges {
    All(Vec<Range>),
    OfTenant(Vec<TenantRange>),
}

/// A range of a tenant, for people.
fn times_of(range: &TenantRange) -> String {
    let (file, from, to) = (&range.file_id, &range.from, &range.to);
    let [file, from, to] = [file, from, to].map(|text| output::cell(text));
    let which = match (range.granularity, from == to) {
        (Granularity::Commit, _) => format!("any commit from {from} to {to}"),
        (Granularity::Snapshot, true) => format!("the snapshot alone, of {from}"),
        (Granularity::Snapshot, false) => format!("the snapshots alone, from {from} to {to}"),
    };
    let of = match range.granularity {
        Granularity::Commit => {
            let changes = pluralize(range.changes.unwrap_or(0), "change");
            format!("{changes}, {} shipped", shown(range.stored))
        }
        Granularity::Snapshot => {
            let numbers = range.snapshots.iter().map(u64::to_string);
            format!("snapshot {}", numbers.collect::<Vec<_>>().join(", "))
        }
    };
    format!(
        "File {file}: {which}: {of}, {} at the end\n",
        shown(range.bytes)
    )
}

fn proven<'a>(proofs: impl Iterator<Item = (&'a String, &'a Proof)>) -> String {
    let line = |(tenant, proof): (&String, &Proof)| {
        // Nobody proved what stands there.
        let [tenant, at, taken] = [tenant, &proof.at, &proof.taken].map(|text| output::cell(text));
        format!("Last proven restore of {tenant}: {at}, as it was at {taken}\n")
    };
    proofs.map(line).collect()
}

fn instants(snapshots: &[Listed], ranges: &[Range]) -> String {
    let mut text = String::new();
    // What is older is as fine as the snapshots.
    let first = ranges.iter().map(|range| &range.from).min();
    let is_older = |from: &&String| snapshots.iter().any(|one| one.taken < **from);
    if let Some(from) = first.filter(is_older) {
        text.push_str(&format!("Before {from}: the snapshots alone\n"));
    }
    let line = |range: &Range| {
        format!(
            "Any commit from {} to {}: epoch {}, snapshot {} and {}\n",
            range.from,
            range.to,
            range.epoch,
            range.snapshot,
            pluralize(usize::try_from(range.packs).unwrap_or(usize::MAX), "pack"),
        )
    };
    text.extend(ranges.iter().map(line));
    text
}

fn table(listed: &[Listed]) -> String {
    let head = ["SNAPSHOT", "TAKEN", "HOLDS", "SIZE", "ADDED"].map(str::to_owned);
    let rows = listed.iter().map(|one| {
        let mut holds = match (&one.file_id, &one.tenant) {
            (Some(file_id), _) => format!("file {file_id}"),
            (None, Some(tenant)) => format!("tenant {tenant}"),
            (None, None) => pluralize(one.tenants, "tenant"),
        };
        if !one.missing.is_empty() && one.file_id.is_none() {
            holds.push_str(&format!(", without {}", one.missing.join(", ")));
        }
        [
            one.snapshot.to_string(),
            output::cell(&one.taken).into_owned(),
            output::cell(&holds).into_owned(),
            shown(one.bytes),
            shown(one.added),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}
