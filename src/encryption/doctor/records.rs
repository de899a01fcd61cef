//! Checks of the audit log and of the backups.

use super::{Check, Verdict, check, fine};
use crate::audit::{LogError, Verified};
use crate::backup::proofs::ProofStanding;
use crate::envelope::Trouble;
use crate::pluralize::pluralize;

pub(super) fn audit_log(audit: Result<Verified, LogError>) -> Check {
    let name = "audit-log";
    match audit {
        Ok(Verified {
            rolled_back: Some(said),
            ..
        }) => check(name, Verdict::Problem, said, Some(ROLLED_BACK)),
        Ok(verified) if verified.problems.is_empty() => {
            let from = match verified.base {
                0 => String::new(),
                base => format!(" from line {} on, as an operator accepted", base + 1),
            };
            fine(
                name,
                format!("whole{from}: {}", pluralize(verified.lines, "line")),
            )
        }
        Ok(verified) => check(
            name,
            Verdict::Problem,
            format!(
                "not whole: {}: {}",
                pluralize(verified.faults, "fault"),
                verified.problems[0].problem
            ),
            Some(
                "`nimbus encryption audit --verify` names them; once it is known how they came, `nimbus encryption audit --accept-broken` goes on \
                 from there, with the server stopped",
            ),
        ),
        Err(LogError::EncryptionOff) => fine(name, "there is none: encryption is off"),
        Err(LogError::NoControlFile { .. }) => {
            fine(name, "there is none yet: no server has run here")
        }
        Err(LogError::ControlLost(lost)) => check(
            name,
            Verdict::Problem,
            format!(
                "its end was in the control file, and {} is gone",
                lost.path.display()
            ),
            Some("put the control file back, as `nimbus encryption status` says"),
        ),
        Err(error) => check(
            name,
            Verdict::Problem,
            format!(
                "it cannot be verified: {}",
                crate::error_chain::error_chain(&error)
            ),
            Some(match &error {
                LogError::Io { .. } => {
                    "make the log and its directory readable and writable for this user"
                }
                LogError::Control(error) => match error.trouble() {
                    Trouble::KeyUnavailable | Trouble::KeyRevoked => {
                        "the log is verified with the key of the control file: make that available, then run `nimbus doctor` again"
                    }
                    _ => {
                        "the log's end is in the control file: put that right as `nimbus encryption status` says, then run `nimbus doctor` again"
                    }
                },
                _ => ROLLED_BACK,
            }),
        ),
    }
}

/// Whether tenants restore from the repository.
pub(super) fn backup_proofs(standing: Option<&ProofStanding>) -> Check {
    let name = "backup-proofs";
    let Some(standing) = standing else {
        return fine(
            name,
            "not asked for: --backup-verify-every restores each tenant once in a while",
        );
    };
    if !standing.failed.is_empty() {
        let found = format!(
            "not restored at the last try: {}",
            standing.failed.join("; ")
        );
        let remedy = "`nimbus backup verify --deep` tells more; a tenant that no snapshot holds yet needs one; one that is sound on the disk is stored as it is there by `nimbus backup create --read-all`";
        return check(name, Verdict::Problem, found, Some(remedy));
    }
    if !standing.late.is_empty() {
        let found = format!("not restored for long: {}", standing.late.join(", "));
        let remedy = "see nimbus_backup_proofs_failed_total, and the log of the server";
        return check(name, Verdict::Warning, found, Some(remedy));
    }
    let proven = pluralize(standing.proven, "tenant");
    let when = standing
        .times
        .as_ref()
        .map(|(oldest, newest)| format!(", between {oldest} and {newest}"));
    fine(
        name,
        format!("{proven} restored and proven{}", when.unwrap_or_default()),
    )
}

const ROLLED_BACK: &str = "put the newest control file and its manifest back; if there is none, `nimbus start --accept-rolled-back-control`";
