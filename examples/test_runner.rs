//! A test runner. Each test is a program with a deadline, and several tests run at a time. A test that leaves processes
//! behind has failed.
//!
//!     cargo run --example test_runner -- [--jobs N] [--timeout SECONDS] [--retries N] PROGRAM...
//!
//! The runner prints the output of each test that has failed. It exits with 0 if all tests have passed. If Ctrl-C ends
//! the runner, pinfold ends all tests, and no process is left.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pinfold::output::CaptureLimit;
use pinfold::pool::{Outcome, Shutdown, Task};
use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Pool, Stdio, Supervisor};

struct Options {
    jobs: usize,
    timeout: Duration,
    retries: u32,
    programs: Vec<String>,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let jobs = std::thread::available_parallelism()?.get();
    let mut options = Options { jobs, timeout: Duration::from_secs(60), retries: 0, programs: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--jobs" => options.jobs = value()?.parse()?,
            "--timeout" => options.timeout = Duration::try_from_secs_f64(value()?.parse()?)?,
            "--retries" => options.retries = value()?.parse()?,
            _ => options.programs.push(arg),
        }
    }
    Ok(options)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = options()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed = runtime.block_on(run(&options))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(options: &Options) -> Result<usize, Box<dyn Error>> {
    let begun = Instant::now();
    let supervisor = Supervisor::start().await?;
    let pool = Pool::builder().workers(options.jobs).timeout(options.timeout).start(&supervisor)?;
    let mut outcomes = pool.outcomes();
    let submit = async {
        for program in &options.programs {
            let mut command = Command::new(program);
            command.name(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.capture(CaptureLimit::ends(8 * 1024, 56 * 1024)).grace(Duration::from_secs(2));
            pool.submit(Task::new(command).retries(options.retries, Duration::ZERO)).await?;
        }
        pool.start_shutdown(Shutdown::Drain);
        pinfold::Result::Ok(())
    };
    let collect = async {
        let mut failed = 0;
        while let Some(outcome) = outcomes.next_outcome().await {
            failed += usize::from(!print(&outcome));
        }
        failed
    };
    let (submitted, failed) = tokio::join!(submit, collect);
    submitted?;
    pool.shutdown(Shutdown::Drain).await;
    supervisor.close().await;
    println!("{} passed, {failed} failed, in {:.1} s", options.programs.len() - failed, begun.elapsed().as_secs_f64());
    Ok(failed)
}

/// Prints a line for a test, and its output if it has failed. Returns whether it has passed.
fn print(outcome: &Outcome) -> bool {
    let report = &outcome.report;
    let verdict = match (report.reason, &report.main) {
        (Reason::Exited, Some(MainEnd::Exited(0))) if report.leftovers.count > 0 => "LEAKED",
        (Reason::Exited, Some(MainEnd::Exited(0))) if outcome.attempts > 1 => "FLAKY",
        (Reason::Exited, Some(MainEnd::Exited(0))) => "PASS",
        (Reason::Deadline, _) => "TIMEOUT",
        (Reason::Oom, _) => "OUT OF MEMORY",
        (_, Some(MainEnd::Signalled { .. })) => "CRASHED",
        _ => "FAIL",
    };
    let seconds = report.phases.gone.unwrap_or_default();
    println!("{verdict:>13} [{seconds:>7.3} s] {}", report.name);
    for leftover in &report.leftovers.processes {
        println!("              left behind, and ended by pinfold: {leftover}");
    }
    let passed = matches!(verdict, "PASS" | "FLAKY");
    if !passed {
        let error = report.error.clone().unwrap_or_default();
        for line in [outcome.stdout.text(), outcome.stderr.text(), error].concat().lines() {
            println!("              | {line}");
        }
    }
    passed
}
