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
use crate::backup::timeline::Range;
use crate::backup::{Location, Repository};

/// List the snapshots and the restorable times of a repository; no key is needed, and nothing is
/// proven
#[derive(Debug, Args)]
#[command(after_help = "Example: nimbus backup list --from /mnt/backup/nimbus")]
pub(super) struct List {
    /// The repository
    #[arg(long, value_name = "R", value_parser = Location::from_flag)]
    from: Location,

    /// List those that hold this tenant, with its size in each
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
            let (snapshots, damage) = repository.snapshots(self.tenant_id.as_ref()).await?;
            Ok(Contents {
                snapshots,
                damage,
                ranges: repository.ranges().await?,
                proofs: repository.proofs().await?.tenants,
            })
        })?;
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(&listed).map_err(std::io::Error::from)?,
            Format::Text => {
                let only = self.tenant_id.as_ref();
                let proofs = listed.proofs.iter();
                let proofs =
                    proofs.filter(|(tenant, _)| only.is_none_or(|only| only.as_str() == *tenant));
                let damage = listed.damage.iter();
                let damage = damage.map(|one| format!("DAMAGED: {}\n", output::cell(one)));
                let damage: String = damage.collect();
                table(&listed.snapshots) + &instants(&listed) + &proven(proofs) + &damage
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
    ranges: Vec<Range>,
    /// What stands among the snapshots and is none.
    damage: Vec<String>,
    /// By the tenant, when it was last restored and proven.
    proofs: BTreeMap<String, Proof>,
}

fn proven<'a>(proofs: impl Iterator<Item = (&'a String, &'a Proof)>) -> String {
    let line = |(tenant, proof): (&String, &Proof)| {
        // Nobody proved what stands there.
        let [tenant, at, taken] = [tenant, &proof.at, &proof.taken].map(|text| output::cell(text));
        format!("Last proven restore of {tenant}: {at}, as it was at {taken}\n")
    };
    proofs.map(line).collect()
}

fn instants(listed: &Contents) -> String {
    let ranges = &listed.ranges;
    let mut text = String::new();
    // What is older is as fine as the snapshots.
    let first = ranges.iter().map(|range| &range.from).min();
    let is_older = |from: &&String| listed.snapshots.iter().any(|one| one.taken < **from);
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
            crate::pluralize::pluralize(usize::try_from(range.packs).unwrap_or(usize::MAX), "pack"),
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
            (None, None) => crate::pluralize::pluralize(one.tenants, "tenant"),
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
