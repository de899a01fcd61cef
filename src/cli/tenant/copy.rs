//! `nimbus tenant copy`: a tenant goes to another backend, or to another deployment.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use nimbus_manifests::TenantId;
use serde::Serialize;

use super::super::encryption::{documents_bar, stop_on_signals};
use super::super::output::{self, Format};
use super::super::{CliError, CommandOutcome, block_on};
use super::end::{End, Location, Place, PlaceError};
use crate::data_dir::subject;
use crate::envelope::{Event, EventKind, EventOutcome};
use crate::pluralize::pluralize;
use crate::runtime::Progress;
use crate::tenants::copy::{self, Copied, CopyTenantError, Source};

/// Copy a tenant to another backend, or to another deployment
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nimbus tenant copy --tenant-id demo --from this --to postgres.json --unencrypted
  nimbus tenant copy --tenant-id demo --from postgres.json --to this

A place is `this`, which is that of the settings of this command, or a file of
settings as --config takes it, which says all of it:
  {\"persistence\": {\"tenant_provider\": \"postgres\", \"postgres_url_file\": \"url\"}}

The source must be at rest. Files: stop the server. A database: lock the tenant
with `nimbus encryption lock`. Nothing of it is changed. The copy has the same
documents, journal, schemas, jobs, crons, deploys, access keys, numbers and
times. It becomes a tenant once all of it was read again and compared; a copy
that was cut short is none, and is begun again.")]
pub(super) struct Copy {
    /// The tenant; it keeps its id
    #[arg(long, value_name = "TENANT")]
    tenant_id: TenantId,

    /// Where it is: `this`, or a file of settings
    #[arg(long, value_name = "PLACE")]
    from: Place,

    /// Where it goes: the same
    #[arg(long, value_name = "PLACE")]
    to: Place,

    /// Copy a tenant that is encrypted to a place where Nimbus does not encrypt it
    #[arg(long)]
    unencrypted: bool,

    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What was done, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    tenant_id: String,
    from: String,
    to: String,
    #[serde(flatten)]
    copied: Copied,
}

impl Copy {
    pub(super) fn run(self, config: Option<&Path>) -> Result<CommandOutcome, CliError> {
        let (from, to) = (self.from.settings(config)?, self.to.settings(config)?);
        let places = [&from, &to].map(Location::of);
        if let (Location::Files(one), Location::Files(other)) = (&places[0], &places[1])
            && one == other
        {
            let place = places[0].to_string();
            return Err(PlaceError::Same { place }.into());
        }
        let (bar, progress) = documents_bar("copying");
        let copied = block_on(async {
            stop_on_signals()?;
            let from = End::open(&from).await?;
            let to = End::open(&to).await?;
            let copied = self.copy(&from, &to, &places, progress).await;
            to.close().await?;
            from.close().await?;
            copied
        });
        bar.finish_and_clear();
        let [from, to] = places.map(|place| place.to_string());
        let answer = Answer {
            tenant_id: self.tenant_id.to_string(),
            from,
            to,
            copied: copied?,
        };
        output::answer(&match self.format {
            Format::Json => serde_json::to_string_pretty(&answer).map_err(std::io::Error::from)?,
            Format::Text => text(&answer),
        })?;
        Ok(CommandOutcome::Done)
    }

    async fn copy(
        &self,
        from: &End,
        to: &End,
        places: &[Location; 2],
        progress: Progress,
    ) -> Result<Copied, CliError> {
        let tenant = &self.tenant_id;
        let leaves = from.encrypts.as_ref().filter(|_| to.encrypts.is_none());
        if leaves.is_some() && !self.unencrypted {
            return Err(PlaceError::Unencrypted {
                tenant: tenant.clone(),
                place: places[1].to_string(),
            }
            .into());
        }
        let source = Source {
            tenants: &*from.tenants,
            keys: Arc::clone(&from.keys),
            shared: from.shared,
        };
        let copying = copy::copy(source, &*to.tenants, tenant, progress);
        let Some(envelope) = leaves else {
            return Ok(copying.await?);
        };
        let event = Event::new(EventKind::Export, EventOutcome::Begun)
            .about(&subject(tenant))
            .saying(format!("a copy of the tenant to {}", places[1]));
        // Before any plaintext is written.
        envelope
            .record(event.clone())
            .await
            .map_err(CopyTenantError::from)?;
        let copied = copying.await;
        envelope
            .record(event.ended(&copied))
            .await
            .map_err(CopyTenantError::from)?;
        Ok(copied?)
    }
}

fn text(answer: &Answer) -> String {
    let Answer {
        tenant_id,
        from,
        to,
        copied,
    } = answer;
    format!(
        "Copied tenant {tenant_id} from {from} to {to}, and compared all of it:\n  \
         {}, {}, {}, {} of the journal, the last write is number {}\n  \
         {}, {}, {}, {}, {}\n\
         The source is as it was. The two do not follow each other, and the jobs and crons of both run: once the copy is in use, delete the tenant there.\n",
        pluralize(copied.tables, "table"),
        pluralize(copied.documents, "document"),
        pluralize(copied.schemas, "schema"),
        pluralize(copied.journal_records, "record"),
        copied.latest_sequence,
        pluralize(copied.generations, "deploy"),
        pluralize(copied.jobs, "job"),
        pluralize(copied.crons, "cron"),
        pluralize(copied.answers, "remembered request"),
        pluralize(copied.access_keys, "access key"),
    )
}
