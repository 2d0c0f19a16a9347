//! A test runner. Each test is a program with a deadline, and several tests run at a time. A test that leaves processes
//! behind has failed.
//!
//!     cargo run --example test_runner -- [--jobs N] [--timeout SECONDS] [--retries N] PROGRAM...
//!
//! The runner prints the output of each attempt that has failed, and a line for each test that is slow. It exits with 0
//! if all tests have passed. If Ctrl-C ends the runner, pinfold ends all tests, and no process is left.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use pinfold::output::CaptureLimit;
use pinfold::pool::{Outcome, Shutdown, Task};
use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Pool, Stdio, Supervisor};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (mut jobs, mut timeout, mut retries) = (std::thread::available_parallelism()?.get(), 60.0, 0);
    let (mut programs, mut args) = (Vec::new(), std::env::args().skip(1));
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--jobs" => jobs = value()?.parse()?,
            "--timeout" => timeout = value()?.parse()?,
            "--retries" => retries = value()?.parse()?,
            _ => programs.push(arg),
        }
    }
    let timeout = Duration::try_from_secs_f64(timeout)?;
    let supervisor = Supervisor::start().await?;
    let pool = Pool::builder().workers(jobs).queue(programs.len()).timeout(timeout);
    let pool = pool.on_slow(timeout / 2, |task| line("SLOW", task.running.as_secs_f64(), &task.name));
    let pool = pool.start(&supervisor)?;
    let mut outcomes = pool.outcomes();
    for (number, program) in programs.iter().enumerate() {
        let mut command = Command::new(program);
        command.name(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.capture(CaptureLimit::ends(8 * 1024, 56 * 1024)).grace(Duration::from_secs(2));
        pool.submit(Task::new(command).retries(retries, Duration::ZERO).data(number)).await?;
    }
    pool.start_shutdown(Shutdown::Drain);
    let mut failed = Vec::new();
    while let Some(outcome) = outcomes.next_outcome().await {
        if !print(&outcome) {
            failed.extend(outcome.data::<usize>());
        }
    }
    supervisor.close().await;
    failed.sort_unstable(); // In the order of the arguments, not of the ends.
    failed.iter().for_each(|&number: &usize| println!("failed: {}", programs[number]));
    println!("{} passed, {} failed", programs.len() - failed.len(), failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(verdict: &str, seconds: f64, name: &str) {
    println!("{verdict:>13} [{seconds:>7.3} s] {name}");
}

/// Prints a line for a test, and the output of its failed attempts. Returns whether it has passed.
fn print(outcome: &Outcome) -> bool {
    let report = &outcome.report;
    let verdict = match (report.reason, &report.main) {
        _ if outcome.success() && !report.leftovers.is_empty() => "LEAKED",
        _ if outcome.success() && outcome.attempts > 1 => "FLAKY",
        _ if outcome.success() => "PASS",
        (Reason::Deadline, _) => "TIMEOUT",
        (Reason::Oom, _) => "OUT OF MEMORY",
        (_, Some(MainEnd::Signalled { .. })) => "CRASHED",
        _ => "FAIL",
    };
    line(verdict, report.phases.gone.unwrap_or_default(), &report.name);
    for leftover in &report.leftovers {
        println!("              left behind, and ended by pinfold: {leftover}");
    }
    let passed = matches!(verdict, "PASS" | "FLAKY");
    let mut outputs: Vec<_> = outcome.earlier.iter().map(|one| one.stdout.text() + &one.stderr.text()).collect();
    if !passed {
        outputs.push(outcome.stdout.text() + &outcome.stderr.text() + report.error.as_deref().unwrap_or_default());
    }
    outputs.iter().flat_map(|output| output.lines()).for_each(|line| println!("              | {line}"));
    passed
}
