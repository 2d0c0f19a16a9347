//! What holds a job: cgroups, descendants, limits, and environments that lack some of these.

#[macro_use]
extern crate pinfold_test_macros;

#[path = "../support/mod.rs"]
mod support;

mod absence;
mod emigrants;
mod escapes;
mod fallback;
mod init_delegate;
mod injected;
mod judge;
mod limited_jobs;
mod limits;
mod live;
mod removal;
mod resources;
mod slice;
mod stopped;
mod subreaper;
mod surroundings;
mod unkillable;

fn main() -> std::process::ExitCode {
    support::harness::main()
}
