//! `nimbus backup prune`: retention.

use std::path::Path;

use clap::{ArgGroup, Args};

use super::super::encryption::{audited_deployment, stop_on_signals};
use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome, block_on, settings};
use super::shown;
use crate::backup::keep::Keep;
use crate::backup::prune::Pruned;
use crate::backup::{Location, Repository};
use crate::config::Time;
use crate::config::keys::{self, Purpose};
use crate::pluralize::pluralize;

/// Remove the snapshots that no rule keeps, and what nothing names any more
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("rules").required(true).multiple(true)
    .args(["keep_within", "keep_daily", "keep_weekly", "keep_monthly", "keep_commits"])))]
#[command(after_help = "\
Examples:
  nimbus backup prune --from /mnt/backup/nimbus --keep-within 7d --keep-daily 30 --dry-run
  nimbus backup prune --from s3://bucket/nimbus --keep-commits 72h --keep-daily 30 --keep-monthly 12

A snapshot is kept if any rule keeps it. The newest is always kept, and so is the
newest of each tenant that was saved alone. Days, weeks and months are those of UTC.")]
pub(super) struct Prune {
    /// The repository
    #[arg(long, value_name = "R", value_parser = Location::from_flag)]
    from: Location,

    /// Keep all that were taken within this time before the newest
    #[arg(long, value_name = "TIME")]
    keep_within: Option<Time>,

    /// Keep the last of each day, for this many days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,

    /// Keep the last of each week, for this many weeks that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,

    /// Keep the last of each month, for this many months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,

    /// Keep each commit that was shipped within this time before the newest; of what is older only
    /// snapshots stay. Without it all are kept
    #[arg(long, value_name = "TIME")]
    keep_commits: Option<Time>,

    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Prune {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, None)?;
        let keep = Keep {
            within: self.keep_within.map(|within| within.duration().as_secs()),
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            commits: self.keep_commits.map(|within| within.duration().as_secs()),
        };
        let pruned = block_on(async {
            stop_on_signals()?;
            let envelope = keys::connect(&settings, Purpose::Inspect).await?.envelope;
            let envelope = audited_deployment(envelope, &settings)?;
            let repository = Repository::open(&self.from, &settings.backup_s3).await?;
            Ok(repository.prune(&envelope, keep, self.dry_run).await?)
        })?;
        let answer = match self.format {
            Format::Json => serde_json::to_string_pretty(&pruned).map_err(std::io::Error::from)?,
            Format::Text => text(&pruned, self.dry_run),
        };
        output::answer(&answer)?;
        Ok(match pruned.damage.is_empty() {
            true => CommandOutcome::Done,
            false => CommandOutcome::Problems,
        })
    }
}

fn text(pruned: &Pruned, dry_run: bool) -> String {
    let numbers = |numbers: &[u64]| match numbers {
        [] => "none".to_owned(),
        numbers => {
            let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
            numbers.join(", ")
        }
    };
    let packs = match pruned.packs {
        0 => String::new(),
        packs => format!("; {}", pluralize(packs, "pack")),
    };
    let together = match pruned.put_together {
        0 => String::new(),
        objects => format!("Put together: packs in {}.\n", pluralize(objects, "object")),
    };
    let damage = pruned.damage.iter();
    let damage: String = damage.map(|one| format!("DAMAGED: {one}\n")).collect();
    format!(
        "{} from {}: snapshots {}{packs}; and {}, {}.\nKept: snapshots {}.\n{together}{damage}",
        if dry_run { "Would remove" } else { "Removed" },
        pruned.repository,
        numbers(&pruned.removed),
        pluralize(pruned.objects, "other object"),
        shown(pruned.bytes),
        numbers(&pruned.kept),
    )
}
