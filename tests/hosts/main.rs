//! Library hosts: big hosts, with many threads, many supervisors, forked copies, and killed hosts. The guard program is
//! the host's own executable, although its `main` does not call [`pinfold::init`]. This file has its own `main`, which
//! runs the cases.
//!
//! Each case starts this executable again as a host and observes it from outside. The process that runs the cases is
//! the subreaper of all orphans, so that "no child left" proves the end.

mod inside;
mod left_alone;
mod outside;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use inside::{
    big, closes_with_a_copy, closes_with_jobs, forks_itself, killed_guard, killed_guard_beside_another,
    many_supervisors, process_group, waits_with_a_job,
};
use left_alone::{left_alone, left_alone_with_unusual_signals};
use outside::{end_children, ends_well, killed_early, killed_host, killed_host_with_a_copy};
use support::{has_cgroup, program};

/// Within this time after a SIGKILL nothing may be left (promise 2).
const BOUND: Duration = Duration::from_secs(1);

/// Makes this executable a host. The name of a case follows.
const HOST: &str = "--be-the-host";

/// The name, the function that acts from outside, and the function that the host runs.
type Case = (&'static str, fn(), fn());

const CASES: [Case; 12] = [
    ("a_big_host_with_threads", ends_well, big),
    ("the_host_is_left_alone", ends_well, left_alone),
    ("a_host_with_unusual_signals_is_left_alone", ends_well, left_alone_with_unusual_signals),
    ("many_supervisors_in_one_process", ends_well, many_supervisors),
    ("a_job_that_signals_its_process_group", ends_well, process_group),
    ("a_killed_guard", ends_well, killed_guard),
    ("a_killed_guard_beside_another", ends_well, killed_guard_beside_another),
    ("a_host_that_closes_while_jobs_run", ends_well, closes_with_jobs),
    ("a_killed_host", killed_host, waits_with_a_job),
    ("a_host_killed_early", killed_early, waits_with_a_job),
    ("a_killed_host_with_a_forked_copy", killed_host_with_a_copy, forks_itself),
    ("a_host_that_closes_with_a_forked_copy", ends_well, closes_with_a_copy),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == HOST) {
        let (_, _, host) = CASES.iter().find(|(name, ..)| *name == args[1]).unwrap();
        return host();
    }
    run_cases(&args);
}

/// Reads the arguments as libtest does: filters, `--exact`, `--list`. It accepts and ignores everything else that
/// begins with a hyphen.
fn run_cases(args: &[String]) {
    // The program is built here, and not in a host that is killed while the compiler runs.
    program("tree");
    let flag = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-') && *arg != "terse").collect();
    let fits = |name: &str, filter: &str| if flag("--exact") { name == filter } else { name.contains(filter) };
    let chosen =
        |name: &str| !flag("--ignored") && (filters.is_empty() || filters.iter().any(|filter| fits(name, filter)));
    let chosen: Vec<&Case> = CASES.iter().filter(|(name, ..)| chosen(name)).collect();
    if flag("--list") {
        return chosen.iter().for_each(|(name, ..)| println!("{name}: test"));
    }
    // SAFETY: changes which process adopts our orphans, and the signals that a host ignores: a shell's background job
    // ignores some.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    println!("\nrunning {} tests", chosen.len());
    let begun = Instant::now();
    let usable = has_cgroup();
    let mut failed = 0;
    for (name, from_outside, _) in &chosen {
        *CASE.lock().unwrap() = name;
        let ok = !usable || std::panic::catch_unwind(from_outside).is_ok();
        if !ok {
            failed += 1;
            end_children();
        }
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
    }
    let (result, passed) = (if failed == 0 { "ok" } else { "FAILED" }, chosen.len() - failed);
    let (filtered, took) = (CASES.len() - chosen.len(), begun.elapsed().as_secs_f64());
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out; \
         finished in {took:.2}s\n"
    );
    std::process::exit(if failed == 0 { 0 } else { 101 });
}

/// The case that runs now.
pub static CASE: std::sync::Mutex<&str> = std::sync::Mutex::new("");
