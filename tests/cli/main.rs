//! The command from outside: what it accepts, prints and returns, and the programs that people run with it.

#[macro_use]
extern crate pinfold_test_macros;

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod control;
mod control_races;
mod denials;
mod differential;
mod doctor;
mod examples;
mod exec_sandbox;
mod exit_codes;
mod filters;
mod init;
mod init_names;
mod messages;
mod parent;
mod pipes;
mod private_tmp;
mod readiness;
mod readme;
mod real_programs;
mod relay;
mod report;
mod run;
mod run_output;
mod runner;
mod sandbox;
mod serve;
mod serve_ends;
mod serve_many;
mod serve_streams;
mod served;
#[cfg(feature = "services")]
mod services;
#[cfg(feature = "services")]
mod services_clients;
#[cfg(feature = "services")]
mod services_parts;
#[cfg(feature = "services")]
mod services_real;
mod size;
mod starts;
mod sweep;
mod timeout;
mod timeout_trees;
mod wanted;
#[cfg(feature = "watch")]
mod watch_bounds;
#[cfg(feature = "watch")]
mod watch_paths;
#[cfg(feature = "watch")]
mod watch_restarts;

fn main() -> std::process::ExitCode {
    support::harness::main()
}
