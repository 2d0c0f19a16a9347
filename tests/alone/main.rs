//! Tests that run one at a time: they measure times and wake-ups, and one is the subreaper of all orphans.

#[macro_use]
extern crate pinfold_test_macros;

#[path = "../support/mod.rs"]
mod support;

mod after_the_return;
mod faults;
mod idle;
mod races;

fn main() -> std::process::ExitCode {
    support::harness::one_at_a_time()
}
