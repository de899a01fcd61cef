//! The command line: one file a command. Each parses, calls the library, and prints.

mod auth;
mod backup;
mod doctor;
mod encryption;
mod local;
mod output;
mod remote;
mod start;
mod tenant;
mod token;
mod usage;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ContextKind;
use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::audit::{LogError, os_actor};
use crate::backup::BackupError;
use crate::config::keys::KeysError;
use crate::config::{ConfigError, Persistence, Settings, as_meant};
use crate::control::ControlError;
use crate::encryption::OperationError;
use crate::encryption::lock::LockTenantError;
use crate::encryption::rotate_kek::RotateKekError;
use crate::encryption::shred::ShredError;
use crate::encryption::status::StatusError;
use crate::process::{ControlSocketError, LockError, exit_now};
use crate::runtime::{act_as, log};
use crate::server::ServeError;
use crate::server::token::TokenError;
use crate::sqlcipher::OpenError;
use crate::tenants::StoreError;
use crate::tenants::copy::CopyTenantError;

/// A document server for many tenants, each in its own encrypted database.
#[derive(Debug, Parser)]
#[command(
    name = "nimbus",
    version,
    propagate_version = true,
    after_help = "Example: `nimbus start` makes a master key and an admin token, and listens on 127.0.0.1:8080."
)]
struct Cli {
    /// Settings as JSON: {"persistence": {"data_dir": …}}
    #[arg(long, env = "NIMBUS_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Start(Box<start::Start>),
    /// The admin token of a running server
    #[command(subcommand)]
    Token(token::Token),
    /// The local admin token file
    #[command(subcommand)]
    Auth(auth::Auth),
    /// How many identities each tenant had in each month
    Usage(usage::Usage),
    /// Look at, make, move and check what is encrypted
    Encryption(encryption::Encryption),
    /// Make, look at, prove and restore backups
    Backup(backup::Backup),
    /// Move tenants
    Tenant(tenant::Tenant),
    /// Look at keys, files and machine
    Doctor(doctor::DoctorCommand),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The data directory's lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The control file.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The tenants.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// SQLCipher.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The admin token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// What only `start` meets.
    #[error(transparent)]
    Start(#[from] start::StartError),
    /// The socket of a running server.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// A running server did not do what it was asked.
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    /// What only `usage` meets.
    #[error(transparent)]
    Usage(#[from] usage::UsageError),
    /// What only the `encryption` commands meet.
    #[error(transparent)]
    Encryption(#[from] encryption::EncryptionError),
    /// The data directory cannot be looked through.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] LogError),
    /// An export or a migration.
    #[error(transparent)]
    Operation(#[from] Box<OperationError>),
    /// A tenant that was not shredded.
    #[error(transparent)]
    Shred(#[from] ShredError),
    /// A tenant that was not locked, or not unlocked.
    #[error(transparent)]
    LockTenant(#[from] LockTenantError),
    /// A backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A tenant that was not copied.
    #[error(transparent)]
    CopyTenant(#[from] CopyTenantError),
    /// Places between which no tenant is copied.
    #[error(transparent)]
    Place(#[from] tenant::PlaceError),
    /// A rotation that was not begun.
    #[error(transparent)]
    RotateKek(#[from] RotateKekError),
    /// Standard output is gone, or another plain input or output failed.
    #[error("cannot write the answer")]
    Output(#[from] std::io::Error),
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Done.
    Done,
    /// Done, and it found problems.
    Problems,
    /// Done in part: what was not done was said.
    Failed,
}

/// Runs one command line to its exit code: 0 done, 1 failed, 2 wrong usage, 3 done and it found
/// problems.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = as_meant(Cli::command())
        .try_get_matches_from(&arguments)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; clap knows which stream and code each has.
            drop(error.print());
            let mut command = Cli::command();
            command.build();
            let start = command.find_subcommand("start");
            if let Some((flag, variable)) = start.and_then(|start| blamed(start, &error))
                && !arguments.iter().any(|given| begins_with(given, &flag))
            {
                note_variable(variable);
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let config = cli.config.as_deref();
    let serves = matches!(cli.command, Command::Start(_));
    // The server acts as itself, or as who sent the request.
    if !serves {
        act_as(&os_actor());
    }
    let result = match cli.command {
        Command::Start(command) => command.run(config),
        Command::Token(command) => command.run(config),
        Command::Auth(command) => command.run(),
        Command::Usage(command) => command.run(config),
        Command::Encryption(command) => command.run(config),
        Command::Backup(command) => command.run(config),
        Command::Tenant(command) => command.run(config),
        Command::Doctor(command) => command.run(config),
    };
    let code = match result {
        Ok(CommandOutcome::Done) => DONE,
        Ok(CommandOutcome::Problems) => PROBLEMS,
        Ok(CommandOutcome::Failed) => FAILED,
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => DONE,
        Err(error) => {
            output::error(&error);
            match error {
                CliError::Config(_) | CliError::Place(_) => USAGE,
                CliError::RotateKek(error) if error.is_usage() => USAGE,
                CliError::Operation(error) if error.is_usage() => USAGE,
                _ => FAILED,
            }
        }
    };
    log::flush();
    if serves {
        // Threads that hang are no reason to stay. The lock on the data goes with the process, and
        // so after all that may write.
        exit_now(code);
    }
    ExitCode::from(code)
}

/// The settings of a command that takes no server flags: environment and file, and the data
/// directory if the command names one.
fn settings(config: Option<&Path>, data_dir: Option<PathBuf>) -> Result<Settings, CliError> {
    let command = Persistence::augment_args(clap::Command::new("nimbus").no_binary_name(true));
    let mut command = as_meant(command);
    let mut said = command
        .try_get_matches_from_mut([""; 0])
        .and_then(|matches| Persistence::from_arg_matches(&matches))
        .unwrap_or_else(|error| {
            // Only the environment can be wrong here.
            drop(error.print());
            let blamed = blamed(&command, &error);
            note_variable(blamed.map_or(OsStr::new("NIMBUS_…"), |(_flag, variable)| variable));
            std::process::exit(i32::from(USAGE))
        });
    said.data_dir = data_dir.or(said.data_dir);
    Ok(Settings::check(said, config)?)
}

/// The flag that `error` is about, as `--flag`, and the variable that stands for it. clap speaks of
/// flags alone.
fn blamed<'a>(command: &'a clap::Command, error: &clap::Error) -> Option<(String, &'a OsStr)> {
    let said = error.get(ContextKind::InvalidArg)?.to_string();
    let arg = command
        .get_arguments()
        .find(|arg| said == arg.to_string())?;
    Some((format!("--{}", arg.get_long()?), arg.get_env()?))
}

fn begins_with(given: &OsStr, flag: &str) -> bool {
    given.to_str().is_some_and(|given| given.starts_with(flag))
}

fn note_variable(variable: &OsStr) {
    output::note(&format!(
        "The value stands in the environment, in {}.",
        variable.display()
    ));
}

/// Runs a future of a command that is over when it is.
fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const PROBLEMS: u8 = 3;
