//! Messages for the user while the pool runs, and at its end.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::print_message;
use crate::pool::{Outcome, Status};
use crate::report::{MainEnd, Reason};

use super::jobs::Job;

/// Prints the progress (if standard error is a terminal), a line for each failure, and the summary.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

/// The number of jobs with each result.
#[derive(Debug, Default)]
pub struct Tally {
    pub succeeded: u64,
    pub failed: u64,
    /// Ended by a stop or by the deadline of the pool.
    pub ended: u64,
    pub never_started: u64,
    /// Skipped by `--resume`, because they succeeded in an earlier run.
    pub left_out: u64,
    /// Skipped by `--resume`, although they failed in an earlier run.
    pub failed_before: u64,
    /// Jobs that left processes that could not be ended, or directories that could not be removed.
    pub remains: u64,
}

impl Progress {
    pub fn new(jobs: u64, quiet: bool) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::with_draw_target(Some(jobs), ProgressDrawTarget::stderr_with_hz(10))
        };
        let template = "{bar:30} {pos}/{len}, {msg}, {elapsed} elapsed, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message("0 running, 0 failed");
        Self { bar, quiet }
    }

    /// Runs `write`, which writes to the terminal. The progress is hidden meanwhile.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.bar.is_hidden() { write() } else { self.bar.suspend(write) }
    }

    /// Reports a job that has ended.
    pub fn ended(&self, job: &Job, outcome: &Outcome, status: Status) {
        if self.quiet {
            return;
        }
        if !outcome.success() && outcome.attempts > 0 {
            let attempts = match outcome.attempts {
                1 => String::new(),
                attempts => format!(", {attempts} attempts"),
            };
            self.suspend(|| {
                print_message(&format!(
                    "line {}, {}: {}{attempts}",
                    job.line,
                    crate::report::text::printable(&outcome.report.name),
                    how(outcome)
                ))
            });
        }
        if !self.bar.is_hidden() {
            self.bar.set_position(status.done);
            self.bar.set_message(format!("{} running, {} failed", status.running, status.failed));
        }
    }

    pub fn print(&self, message: &str) {
        self.suspend(|| print_message(message));
    }

    /// Removes the progress from the terminal.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    pub fn finish(&self, tally: &Tally, begun: Instant) {
        self.clear();
        if self.quiet {
            return;
        }
        let Tally { succeeded, failed, ended, never_started, left_out, failed_before, remains } = tally;
        let mut text = format!("{succeeded} succeeded, {failed} failed");
        for (count, what) in [
            (ended, "ended early"),
            (never_started, "never started"),
            (left_out, "left out (done before)"),
            (failed_before, "failed before (--retry-failed runs them again)"),
            (remains, "with a process or directory that could not be ended or removed"),
        ] {
            if *count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        print_message(&format!("{text}, in {:.1} s", begun.elapsed().as_secs_f64()));
    }
}

fn how(outcome: &Outcome) -> String {
    let report = &outcome.report;
    match (report.reason, &report.main, &report.error) {
        (Reason::SpawnFailed, _, Some(error)) => error.clone(),
        (Reason::GuardLost, ..) => "the guard process was killed".into(),
        (Reason::Deadline, ..) => "its deadline was reached".into(),
        (Reason::Stopped, ..) => "stopped".into(),
        (Reason::Killed, ..) => "killed".into(),
        (_, Some(MainEnd::Exited(code)), _) => format!("exit code {code}"),
        (_, Some(MainEnd::Signalled { name, .. }), _) => format!("ended by {name}"),
        (reason, ..) => format!("{reason:?}"),
    }
}
