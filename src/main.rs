//! The `nimbus` binary: parses, calls the library, and maps the result to an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: nimbus::process::WipingAllocator = nimbus::process::WipingAllocator;

fn main() -> ExitCode {
    // First of all, before any key is read.
    let _hardening = nimbus::process::harden();
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    nimbus::cli::run(std::env::args_os())
}
