//! Library hosts: big hosts, with many threads, many supervisors, forked copies, and killed hosts. The guard program is
//! the host's own executable, although its `main` does not call [`pinfold::init`].
//!
//! Each test starts this executable again as a host and observes it from outside. The process of the test is the
//! subreaper of all orphans, so that "no child left" proves the end.

#[macro_use]
extern crate pinfold_test_macros;

mod inside;
mod left_alone;
mod outside;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use inside::{
    big, closes_with_a_copy, closes_with_jobs, forks_itself, killed_guard, killed_guard_beside_another,
    many_supervisors, process_group, waits_with_a_job,
};
use left_alone::{left_alone, left_alone_with_unusual_signals};
use outside::{end_children, ends_well, killed_early, killed_host, killed_host_with_a_copy};
use support::needs::{Need, need};
use support::program;

/// Within this time after a SIGKILL nothing may be left (promise 2).
const BOUND: Duration = Duration::from_secs(1);

/// Makes this executable a host. The name of a test follows.
const HOST: &str = "--be-the-host";

/// Makes a test of each case: what it needs, its name, the function that acts from outside, and the function that the
/// host runs.
macro_rules! cases {
    ($($(#[$needs:meta])* $name:ident: $from_outside:path, $host:path;)*) => {
        $(
            #[test]
            #[requires(cgroup)]
            $(#[$needs])*
            fn $name() {
                observe($from_outside);
            }
        )*

        fn be_the_host(name: &str) {
            match name {
                $(stringify!($name) => $host(),)*
                _ => panic!("no host has the name {name}"),
            }
        }
    };
}

cases! {
    #[requires(memory)]
    a_big_host_with_threads: ends_well, big;
    the_host_is_left_alone: ends_well, left_alone;
    a_host_with_unusual_signals_is_left_alone: ends_well, left_alone_with_unusual_signals;
    many_supervisors_in_one_process: ends_well, many_supervisors;
    a_job_that_signals_its_process_group: ends_well, process_group;
    a_killed_guard: ends_well, killed_guard;
    a_killed_guard_beside_another: ends_well, killed_guard_beside_another;
    a_host_that_closes_while_jobs_run: ends_well, closes_with_jobs;
    a_killed_host: killed_host, waits_with_a_job;
    a_host_killed_early: killed_early, waits_with_a_job;
    a_killed_host_with_a_forked_copy: killed_host_with_a_copy, forks_itself;
    a_host_that_closes_with_a_forked_copy: ends_well, closes_with_a_copy;
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, flag, name] = &words[..]
        && flag == HOST
    {
        be_the_host(name);
        return ExitCode::SUCCESS;
    }
    support::harness::one_at_a_time()
}

/// Runs the part of a test that is outside the host.
fn observe(from_outside: fn()) {
    // The program is built here, and not in a host that is killed while the compiler runs.
    program("tree");
    // SAFETY: changes which process adopts our orphans, and the signals that a host ignores: a shell's background job
    // ignores some.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    if let Err(panic) = std::panic::catch_unwind(from_outside) {
        end_children();
        std::panic::resume_unwind(panic);
    }
}

/// The memory of the big host, in bytes.
const SIZE: usize = 2 << 30;

/// Memory for the big host.
fn memory() -> Need {
    let available = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let available: usize = available.unwrap().parse().unwrap();
    need("memory for a big host", available > 2 * SIZE / 1024, "less than 4 GiB are free")
}
