//! How a run ended, and the exit code that tells it.

use std::sync::Arc;

use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Report, Signal};

use super::args::Args;

/// SIGKILL did not end all of the job, whatever else became of it.
const UNKILLABLE: u8 = 122;

/// `--fail-on-leftovers` found some, and the command itself had succeeded.
const LEFTOVERS: u8 = 123;

/// It was not ready in time.
pub const TOO_LATE: u8 = 124;

/// What has become of a run.
pub enum Ended {
    Report {
        report: Arc<Report>,
        /// An interrupt asked for a stop.
        interrupted: bool,
        /// Of the options about its output: what makes a success none.
        code: Option<u8>,
    },
    /// The command could not be executed.
    NotStarted { report: Arc<Report> },
    /// A signal came before the command had been executed.
    Signalled { report: Arc<Report>, signal: Signal },
}

impl Ended {
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
            Self::Report { report, interrupted, .. } => match report.main {
                Some(MainEnd::Signalled { signal, .. }) if report.reason != Reason::Deadline => {
                    signal == Signal::INT.number() || *interrupted && report.reason == Reason::Stopped
                }
                _ => false,
            },
        }
    }

    pub fn exit_code(&self, args: &Args) -> u8 {
        let report = self.report();
        match self {
            Self::Report { code: Some(code), .. } if *code == TOO_LATE || report.success() => *code,
            _ if report.unkillable.count > 0 => UNKILLABLE,
            _ if report.exit_code == 0 && args.fail_on_leftovers && report.leftovers.count > 0 => LEFTOVERS,
            _ => report.exit_code,
        }
    }
}
