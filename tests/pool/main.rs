//! Pools: of the library and of `pinfold pool`.

#[macro_use]
extern crate pinfold_test_macros;

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod ends;
mod input;
mod outcomes;
mod output;
mod results;
mod tasks;
mod users;

fn main() -> std::process::ExitCode {
    support::harness::main()
}
