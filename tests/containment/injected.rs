//! A system call of pinfold fails at an unexpected place. Whichever call it is, nothing of the job is left, and pinfold
//! returns.
//!
//! Each turn lets the next call fail, until there is no further call. `PINFOLD_INJECTED=all` lets every call fail with
//! every errno; without it the test chooses some of the calls, different ones each time.

use crate::support::needs::{Need, need};
use crate::support::{Canary, PINFOLD, Ran, Run, Scratch, program};

/// One of this number of calls is chosen, unless all are.
const SOME: u64 = 7;

const ERRNOS: [i32; 5] = [libc::EMFILE, libc::ENOMEM, libc::EACCES, libc::ENOSPC, libc::EAGAIN];

/// Runs pinfold once, with call number `call` failing with `errno`; returns the result and the number of calls.
fn one(options: &[&str], call: u64, errno: i32) -> (Ran, u64) {
    let (count, report) = (Scratch::new("count"), Scratch::new("report"));
    let mut run = Run::bare([program("inject").as_os_str(), PINFOLD.as_ref()]);
    run.command().args([call.to_string(), errno.to_string()]).arg(count.path()).args([PINFOLD, "run", "--report"]);
    run.command().arg(report.path()).args(options).arg("--").arg(program("tree"));
    let ran = run.run();
    let calls = count.text().trim().parse().unwrap_or_else(|_| panic!("{ran:#?}"));
    let reported: serde_json::Value = serde_json::from_str(&report.text()).unwrap_or_default();
    if let Some(leaf) = reported["containment"]["cgroup"].as_str() {
        let excused = reported["not_removed"].as_array().is_some_and(|left| !left.is_empty());
        assert!(excused || !std::path::Path::new(leaf).exists(), "{leaf} is left: {reported:#}");
    }
    (ran, calls)
}

fn every_call(options: &[&str]) {
    let all = std::env::var_os("PINFOLD_INJECTED").is_some_and(|value| value == "all");
    let canary = Canary::new();
    let mut failed = Vec::new();
    let step = if all { 1 } else { SOME };
    let mut call = u64::from(std::process::id()) % step;
    loop {
        call += step;
        let turn = [ERRNOS[call as usize % ERRNOS.len()]];
        let errnos = if all { &ERRNOS[..] } else { &turn[..] };
        let mut more = false;
        for &errno in errnos {
            let (ran, calls) = one(options, call, errno);
            more |= calls >= call;
            if ran.elapsed.as_secs() >= 1 {
                println!("call {call}, errno {errno}: {} s, code {}: {}", ran.elapsed.as_secs(), ran.code, ran.stderr);
            }
            // Either the job ended at its deadline, or pinfold failed and reported that on standard error.
            let reported = ran.code == 124 || (125..=127).contains(&ran.code) && !ran.stderr.is_empty();
            if !reported || ran.stderr.contains("panicked") {
                failed.push(format!("call {call}, errno {errno}: {ran:#?}"));
            }
        }
        if !more {
            break;
        }
    }
    assert!(failed.is_empty(), "{} of {call} calls: {}", failed.len(), failed.join("\n"));
    println!("{call} calls, every {step} of them has failed");
    canary.assert_alive();
}

fn seccomp() -> Need {
    let (ran, _) = one(&["--timeout", "50ms"], 0, 0);
    need("seccomp", ran.code != 125 || !ran.stderr.contains("inject"), &ran.stderr)
}

#[test]
#[requires(cgroup, seccomp)]
fn in_a_cgroup() {
    every_call(&["--timeout", "60ms", "--grace", "20ms"]);
}

#[test]
#[requires(seccomp)]
fn without_a_cgroup() {
    every_call(&["--containment", "subreaper", "--timeout", "60ms", "--grace", "20ms"]);
}
