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
    let supervisor = Supervisor::start().await?;
    let pool = Pool::builder().workers(options.jobs).queue(options.programs.len()).timeout(options.timeout);
    let pool = pool.on_slow(options.timeout / 2, |task| {
        println!("{:>13} [{:>7.3} s] {}", "SLOW", task.running.as_secs_f64(), task.name)
    });
    let pool = pool.start(&supervisor)?;
    let mut outcomes = pool.outcomes();
    for program in &options.programs {
        let mut command = Command::new(program);
        command.name(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.capture(CaptureLimit::ends(8 * 1024, 56 * 1024)).grace(Duration::from_secs(2));
        pool.submit(Task::new(command).retries(options.retries, Duration::ZERO)).await?;
    }
    pool.start_shutdown(Shutdown::Drain);
    let mut failed = 0;
    while let Some(outcome) = outcomes.next_outcome().await {
        failed += usize::from(!print(&outcome));
    }
    supervisor.close().await;
    println!("{} passed, {failed} failed", options.programs.len() - failed);
    Ok(failed)
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
    println!("{verdict:>13} [{:>7.3} s] {}", report.phases.gone.unwrap_or_default(), report.name);
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
