//! A CI executor: it runs the steps of a build one after another, and prints the log of each step while it runs. Each
//! step has a deadline, and leaves no processes behind.
//!
//!     cargo run --example ci_executor -- REPOSITORY ARTEFACT...
//!
//! The executor clones REPOSITORY, then configures, builds and tests it. A line `cancel` on standard input is the
//! cancel button. If a test leaves a daemon behind, its step fails. The executor copies the artefacts into the current
//! directory.

use std::error::Error;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pinfold::output::OutputStream;
use pinfold::report::Reason;
use pinfold::{Command, JobHandle, Report, Stdio, Supervisor};
use tokio::sync::watch;

const STEPS: [(&str, &str); 3] =
    [("configure", "[ ! -x configure ] || ./configure"), ("build", "make"), ("test", "make test")];

/// A directory that is removed at the end of the build.
struct Workspace(PathBuf);

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let repository = args.next().ok_or("usage: ci_executor REPOSITORY ARTEFACT...")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let passed = runtime.block_on(build(&repository, args.collect()))?;
    std::process::exit(if passed { 0 } else { 1 })
}

async fn build(repository: &str, artefacts: Vec<String>) -> Result<bool, Box<dyn Error>> {
    let supervisor = Supervisor::start().await?;
    let (cancel, cancelled) = watch::channel(false);
    std::thread::spawn(move || {
        let button = std::io::stdin().lock().lines().map_while(Result::ok).find(|line| line == "cancel");
        if button.is_some() {
            cancel.send_replace(true);
        }
        std::mem::forget(cancel); // If standard input ends without `cancel`, the build continues.
    });
    let workspace = Workspace(std::env::temp_dir().join(format!("ci-{}", std::process::id())));
    let mut clone = Command::new("git");
    clone.args(["clone", "--quiet", "--depth", "1"]).arg(repository).arg(&workspace.0);
    let mut passed = step(&supervisor, "clone", clone, cancelled.clone()).await?;
    for (name, script) in STEPS {
        if passed {
            let mut command = Command::new("sh");
            command.args(["-ec", script]).current_dir(&workspace.0).env("CI", "true");
            passed = step(&supervisor, name, command, cancelled.clone()).await?;
        }
    }
    for artefact in artefacts.iter().filter(|_| passed) {
        std::fs::copy(workspace.0.join(artefact), Path::new(artefact).file_name().ok_or("an artefact is a file")?)?;
    }
    supervisor.close().await;
    Ok(passed)
}

/// Runs a step and returns whether it has passed: exit code 0, within the deadline, and no leftovers.
async fn step(
    supervisor: &Supervisor,
    name: &str,
    mut command: Command,
    mut cancelled: watch::Receiver<bool>,
) -> Result<bool, Box<dyn Error>> {
    command.name(name).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.timeout(Duration::from_secs(1200)).idle_timeout(Duration::from_secs(300));
    let mut job = supervisor.spawn(&command).await?;
    let button: JobHandle = job.handle();
    let watching = tokio::spawn(async move {
        if cancelled.wait_for(|cancelled| *cancelled).await.is_ok() {
            button.start_stop().unwrap();
        }
    });
    let (out, err) = (job.stdout.take().ok_or("piped")?, job.stderr.take().ok_or("piped")?);
    let (report, ..) = tokio::join!(job.wait(), log(name, out), log(name, err));
    watching.abort();
    let report: &Report = &*report?;
    for leftover in &report.leftovers {
        println!("[{name}] left behind, and ended by pinfold: {}", leftover.command_line);
    }
    let passed = report.success() && report.leftovers.is_empty();
    let how = match report.reason {
        _ if passed => "passed".to_owned(),
        Reason::Exited => format!("failed, exit code {}", report.exit_code),
        reason => format!("failed, {reason:?}"),
    };
    println!("[{name}] {how} after {:.1} s", report.phases.gone.unwrap_or_default());
    Ok(passed)
}

/// Prints the log line by line, as the step writes it.
async fn log(name: &str, stream: OutputStream) {
    let mut lines = stream.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        println!("[{name}] {}", line.text());
    }
}
