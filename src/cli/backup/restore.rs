//! `nimbus backup restore`: a snapshot becomes a deployment again.

use std::path::{Path, PathBuf};

use clap::Args;
use nimbus_manifests::TenantId;

use super::super::encryption::{progress_bar, stop_on_signals};
use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome, block_on, settings};
use super::{restore_tenant, shown};
use crate::backup::restore::{Dirs, Plan, Proof, Restore, RestoreTenant};
use crate::backup::{Location, Places, Repository};
use crate::clock;
use crate::config::keys::{self, Purpose};
use crate::pluralize::pluralize;

/// Restore a deployment into an empty directory, or one tenant beside those of a deployment
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus backup restore --from /mnt/backup/nimbus --data-dir data --dry-run
  nimbus backup restore --from s3://bucket/nimbus --data-dir data
  nimbus backup restore --from s3://bucket/nimbus --data-dir data --at 2026-11-30T14:03:07Z
  nimbus backup restore --from s3://bucket/nimbus --data-dir data --tenant-id demo --as demo-2

One tenant is restored through the running server when there is one. It gets a
new data key, and every page of it is proven.

What was revoked, locked, deleted or shredded after the snapshot, by the newest
audit log in the repository, is so again, unless --as-it-was says otherwise.")]
pub(super) struct RestoreBackup {
    /// The repository
    #[arg(long, value_name = "R", value_parser = Location::from_flag)]
    from: Location,

    /// The directory to restore into: new, or empty; for one tenant, that of the deployment
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,

    /// The snapshot, by its number in `nimbus backup list`
    #[arg(long, value_name = "ID", conflicts_with = "latest")]
    snapshot: Option<u64>,

    /// The instant, as 2026-11-30T14:03:07Z: every commit up to it, and none after
    #[arg(long, value_name = "TIME", value_parser = instant, conflicts_with_all = ["snapshot", "latest"])]
    at: Option<i64>,

    /// The newest instant that there is of the whole deployment, or of the tenant, which is the
    /// default
    #[arg(long)]
    latest: bool,

    /// Restore this tenant alone, beside those that are there
    #[arg(long, value_name = "TENANT", conflicts_with = "verify")]
    tenant_id: Option<TenantId>,

    /// What the tenant is called from then on [default: as it was]
    #[arg(long = "as", value_name = "NEW", requires = "tenant_id")]
    new_id: Option<TenantId>,

    /// How much is proven before it counts
    #[arg(long, value_enum, default_value_t = Proof::Pages)]
    verify: Proof,

    /// Leave out what happened after the snapshot: keys that were revoked count again, locked
    /// tenants are served, and a tenant that was shredded is restored
    #[arg(long)]
    as_it_was: bool,

    /// Print what would be restored, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl RestoreBackup {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let settings = settings(config, Some(self.data_dir.clone()))?;
        let (bar, progress) = progress_bar("restoring");
        if let Some(tenant) = self.tenant_id.clone() {
            let restore = RestoreTenant {
                tenant,
                new_id: self.new_id.clone(),
                snapshot: self.snapshot,
                at_ms: self.at,
                as_it_was: self.as_it_was,
                dry_run: self.dry_run,
            };
            let restored = restore_tenant::run(&settings, self.from, restore, progress);
            bar.finish_and_clear();
            return restore_tenant::answer(&restored?, self.dry_run, self.format);
        }
        let restored = block_on(async {
            stop_on_signals()?;
            let envelope = match self.verify {
                Proof::None => None,
                _ => Some(keys::connect(&settings, Purpose::Inspect).await?.envelope),
            };
            self.from.check_place(&Places::of(&settings))?;
            let repository = Repository::open(&self.from, &settings.backup_s3).await?;
            let restore = Restore {
                snapshot: self.snapshot,
                at_ms: self.at,
                proof: self.verify,
                as_it_was: self.as_it_was,
            };
            let chosen = restore.choose(repository, envelope).await?;
            match self.dry_run {
                true => Ok(chosen.plan),
                false => {
                    let dirs = Dirs {
                        data: settings.data_dir.clone(),
                        control: settings.control_data_dir.clone(),
                    };
                    Ok(chosen.restore(dirs, &settings.provider, progress).await?)
                }
            }
        });
        bar.finish_and_clear();
        let plan = restored?;
        let answer = match self.format {
            Format::Json => serde_json::to_string_pretty(&plan).map_err(std::io::Error::from)?,
            Format::Text => self.text(&plan),
        };
        output::answer(&answer)?;
        let left = [
            &plan.missing,
            &plan.without_keys,
            &plan.unproven,
            &plan.damaged,
            &plan.faults,
        ];
        Ok(match left.iter().all(|left| left.is_empty()) {
            true => CommandOutcome::Done,
            false => CommandOutcome::Problems,
        })
    }

    fn text(&self, plan: &Plan) -> String {
        let mut text = format!(
            "{} {} from {} into {}: {}, {}, from {} of {}.\n",
            if self.dry_run {
                "Would restore"
            } else {
                "Restored"
            },
            plan.shown(),
            plan.repository,
            self.data_dir.display(),
            pluralize(plan.tenants, "tenant"),
            shown(plan.bytes),
            pluralize(plan.objects, "object"),
            shown(plan.read_bytes),
        );
        if !plan.later.is_empty() {
            text.push_str(match plan.done_again {
                true => "Since then, by the newest audit log, and done again:\n",
                false => "Since then, by the newest audit log, and left out:\n",
            });
            for line in &plan.later {
                text.push_str(&format!("  {line}\n"));
            }
        }
        if !plan.again.is_empty() {
            text.push_str("Done again in the restored deployment:\n");
            for line in &plan.again {
                text.push_str(&format!("  {line}\n"));
            }
        }
        for (what, of) in [
            ("not in the snapshot", &plan.missing),
            (
                "no manifest in the repository: shredded, or damaged",
                &plan.without_keys,
            ),
            ("not proven, its key is not at hand", &plan.unproven),
        ] {
            for one in of {
                text.push_str(&format!("NOT restored or not proven: {one} ({what})\n"));
            }
        }
        for one in &plan.damaged {
            text.push_str(&format!("DAMAGED, and left out: {one}\n"));
        }
        if !plan.damaged.is_empty() {
            text.push_str(&format!(
                "The deployment misses them until each is restored from another snapshot, with `nimbus backup restore --from {} --data-dir {} \
                 --tenant-id <tenant> --snapshot <number>`, or deleted. `--verify chain` restores what is left of one whose objects are whole.\n",
                plan.repository,
                self.data_dir.display()
            ));
        }
        for fault in &plan.faults {
            text.push_str(&format!("NOT AS IT WAS WRITTEN, or not proven: {fault}\n"));
        }
        match self.verify {
            _ if self.dry_run => {}
            Proof::None => text.push_str(NOTHING_PROVEN),
            _ => text.push_str(&format!(
                "It stores nothing in {0} beside the deployment that it was restored from. Once that one is gone for good: `nimbus backup create \
                 --to {0} --take-over`.\n",
                plan.repository
            )),
        }
        text
    }
}

fn instant(text: &str) -> Result<i64, &'static str> {
    let refused = "it is no time in RFC 3339; write 2026-11-30T14:03:07Z, or …07.250+01:00";
    clock::ms_of(text).ok_or(refused)
}

const NOTHING_PROVEN: &str = "\
Nothing was proven, and the restoration is in no audit log: `nimbus encryption status --verify pages` proves it with the keys. Where the
snapshot is not the newest, start it with --accept-rolled-back-control.
";
