//! What a start says to its operator.

use std::net::SocketAddr;
use std::path::Path;

use crate::audit::ControlLost;
use crate::cli::output::{self, Format};
use crate::config::Settings;
use crate::pluralize::pluralize;
use crate::process::notify;

/// Says once, loudly, that a key was made; and at every start without one, that there is none.
pub(super) fn announce_keys(made: Option<&Path>, settings: &Settings) {
    if let Some(key) = made {
        output::note(&format!(
            "\n*** A new master key was made: {key}\n\
             *** It opens everything in {data}. Back it up now, apart from the data:\n\
             *** without it the data cannot be read by anyone, ever again.\n",
            key = key.display(),
            data = settings.data_dir.display(),
        ));
    }
    if settings.provider == crate::config::ProviderChoice::Off {
        tracing::warn!(
            "--encryption-key-provider none: everything in {} is stored in PLAINTEXT",
            settings.data_dir.display()
        );
    }
}

/// Says where the server listens, and that it is ready.
pub(super) fn announce_address(address: SocketAddr, format: Format) {
    match format {
        Format::Text => output::note(&format!("nimbus listening on {address}")),
        Format::Json => tracing::info!(%address, "nimbus listening on {address}"),
    }
    notify("READY=1");
}

/// Says, whatever the log's level, that this deployment has forgotten what its control file knew.
pub(super) fn announce_new_control(lost: &ControlLost, locked: usize, is_elsewhere: bool) {
    let path = lost.path.display();
    if is_elsewhere {
        tracing::error!(
            "the control file {path} was gone, and a new one was made. What it had counted of usage is gone; tenants, access keys and locks are in the database"
        );
        return;
    }
    match lost.log {
        true => tracing::error!(
            locked,
            "the control file {path} was gone, and a new one was made. {} by the audit log that was beside it. All access keys are gone: make \
             new ones. If you have a backup of the control file, stop the server and put it back (docs/runbook.md)",
            match locked {
                0 => "No tenant was locked".to_owned(),
                some => format!("{} locked again", pluralize(some, "tenant")),
            }
        ),
        false => tracing::error!(
            "there was no control file {path} and no audit log, and there are tenants: a new control file was made. If the tenants were just brought \
             here, nothing is missing. If not: whichever were locked are served now, their access keys are gone, and deletions that were under way \
             are not finished. If you have a backup of the control file, stop the server and put it back (docs/runbook.md)"
        ),
    }
}
