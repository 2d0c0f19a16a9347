//! How a run ended, and the exit code that tells it.

use std::sync::Arc;

use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Report, Signal};

use super::args::Args;
use crate::cli::FAILED;

/// SIGKILL did not end all of the job, whatever else became of it.
const UNKILLABLE: u8 = 122;

/// `--fail-on-leftovers` found some, and the command itself had succeeded.
const LEFTOVERS: u8 = 123;

/// It was not ready in time.
pub const TOO_LATE: u8 = 124;

/// What an option of ours says of a job, whatever the job itself says.
pub struct Verdict {
    pub code: u8,
    pub why: String,
}

/// What has become of a run.
pub enum Ended {
    Report {
        report: Arc<Report>,
        /// An interrupt asked for a stop, and nothing else has ended the job.
        interrupted: bool,
    },
    /// The command could not be executed.
    NotStarted { report: Arc<Report> },
    /// A signal came before the command had been executed.
    Signalled { report: Arc<Report>, signal: Signal },
}

impl Ended {
    /// A job that is over. Its report tells also what it does not know: that the job was not ready, and what was wrong with
    /// the output, which makes a success none.
    pub fn over(
        mut report: Arc<Report>,
        interrupted: bool,
        not_ready: Option<Verdict>,
        trouble: Option<String>,
    ) -> Self {
        let interrupted = interrupted && not_ready.is_none();
        // A job that was stopped may have ended with 0 too. And a pipe that pinfold closed, since it could not pass on what came
        // out of it, is no end of the command's own.
        let by_pipe = matches!(report.main, Some(MainEnd::Signalled { signal: libc::SIGPIPE, .. }));
        let by_us = report.exit_code == 0 || by_pipe && i32::from(report.exit_code) == 128 + libc::SIGPIPE;
        let code = if by_us { FAILED } else { report.exit_code };
        let trouble = trouble.map(|why| Verdict { code, why });
        let verdicts: Vec<_> = [not_ready, trouble].into_iter().flatten().collect();
        if let Some(first) = verdicts.first() {
            let changed = Arc::make_mut(&mut report);
            changed.exit_code = first.code;
            let whys = changed.error.take().into_iter().chain(verdicts.into_iter().map(|verdict| verdict.why));
            changed.error = Some(whys.collect::<Vec<_>>().join("; "));
        }
        Self::Report { report, interrupted }
    }

    pub fn not_started(command: &Command, error: &pinfold::Error) -> Self {
        Self::NotStarted { report: Arc::new(Report::of_failed_spawn(command, error)) }
    }

    pub fn signalled(args: &Args, command: &Command, signal: Signal) -> Self {
        let program = args.command[0].to_string_lossy().into_owned();
        let error = pinfold::Error::EndedEarly { program, reason: Reason::Stopped };
        let mut report = Report::of_failed_spawn(command, &error);
        report.error = Some(format!("{error}: {signal}"));
        report.exit_code = u8::try_from(128 + signal.number()).unwrap_or(u8::MAX);
        Self::Signalled { report: Arc::new(report), signal }
    }

    pub fn report(&self) -> &Report {
        let (Self::Report { report, .. } | Self::NotStarted { report } | Self::Signalled { report, .. }) = self;
        report
    }

    /// Whether the command ended as it wanted to: then the terminal is as it wanted to leave it.
    pub fn by_itself(&self) -> bool {
        let Self::Report { report, .. } = self else { return false };
        report.reason == Reason::Exited && matches!(report.main, Some(MainEnd::Exited(_))) && !report.killed
    }

    /// Whether pinfold is to end by SIGINT.
    pub fn by_interrupt(&self) -> bool {
        match self {
            Self::NotStarted { .. } => false,
            Self::Signalled { signal, .. } => *signal == Signal::INT,
            Self::Report { report, interrupted } => match report.main {
                // Where it is its end that counts: no deadline, no option.
                Some(MainEnd::Signalled { signal, .. })
                    if report.unkillable.count == 0 && i32::from(report.exit_code) == 128 + signal =>
                {
                    signal == Signal::INT.number() || *interrupted && report.reason == Reason::Stopped
                }
                _ => false,
            },
        }
    }

    pub fn exit_code(&self, args: &Args) -> u8 {
        let report = self.report();
        match self {
            _ if report.unkillable.count > 0 => UNKILLABLE,
            _ if report.exit_code == 0 && args.fail_on_leftovers && report.leftovers.count > 0 => LEFTOVERS,
            _ => report.exit_code,
        }
    }
}
