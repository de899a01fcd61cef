//! The measurements of `docs/benchmarks.md`: `cargo bench` measures all of them, `cargo bench --
//! documents` those of one part. With `--gib`, the large tenant that is copied whole has a
//! gibibyte, and so have those that are backed up; with `--million`, the one that is read over HTTP
//! has a million documents.
//!
//! Both sides of a ratio are measured in turn, in one run and one directory, and a ratio is the
//! median of the ratios of neighbouring measurements: what else the machine does falls on both.
//! Nothing here fails for being slow; the table says what was missed. Files lie in `TMPDIR`.
#![expect(
    clippy::disallowed_methods,
    reason = "measurements start threads and tasks of their own, and copy files by hand"
)]
#![expect(clippy::print_stdout, reason = "a benchmark's report is its output")]

mod active_tenants;
mod backup;
mod backup_tenants;
mod bare;
mod clients;
mod copies;
mod creating;
mod documents;
mod http;
mod keys;
mod kms;
mod leases;
mod many_tenants;
mod open_tenants;
mod opening;
mod point_reads;
mod queries;
mod reads;
mod report;
mod setup;
mod shipping;
mod slow_clients;
mod system_fields;

use std::process::ExitCode;

fn main() -> ExitCode {
    // cargo adds `--bench`; `--gib` is for `copies`.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    if let Some(unknown) = chosen
        .iter()
        .find(|name| !PARTS.iter().any(|(part, _)| part == name))
    {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        println!(
            "no part is called {unknown:?}; there are: {}",
            names.join(", ")
        );
        return ExitCode::from(2);
    }
    println!("{}", setup::machine());
    for &(name, part) in PARTS {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            println!("\n{}", report::table(name, &part()));
        }
    }
    ExitCode::SUCCESS
}

type Part = fn() -> Vec<report::Measurement>;

const PARTS: &[(&str, Part)] = &[
    ("documents", documents::run),
    ("queries", queries::run),
    ("system-fields", system_fields::run),
    ("clients", clients::run),
    ("point-reads", point_reads::run),
    ("reads", reads::run),
    ("opening", opening::run),
    ("open-tenants", open_tenants::run),
    ("active-tenants", active_tenants::run),
    ("creating", creating::run),
    ("many-tenants", many_tenants::run),
    ("rotate-kek", keys::rewrapping),
    ("keys", keys::run),
    ("leases", leases::run),
    ("slow-clients", slow_clients::run),
    ("backup", backup::run),
    ("shipping", shipping::run),
    ("backup-tenants", backup_tenants::run),
];
