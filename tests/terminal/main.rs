//! Terminals and signals.

#[macro_use]
extern crate pinfold_test_macros;

#[path = "../support/mod.rs"]
mod support;

mod job_control;
mod keys;
mod pty;
mod received_signals;
mod signals;
mod typed_input;

fn main() -> std::process::ExitCode {
    support::harness::main()
}
