//! Programs that use the library.

#[macro_use]
extern crate pinfold_test_macros;

#[path = "../support/mod.rs"]
mod support;

mod embedding;
mod events;
mod guard_start;
mod host;
mod host_changes;
mod output;
mod passed;
mod process_names;
#[cfg(feature = "services")]
mod services;

fn main() -> std::process::ExitCode {
    support::harness::main()
}
