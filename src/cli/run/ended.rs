//! How a run ended.

use std::sync::Arc;

use crate::report::{MainEnd, Reason, exit_code_of_signal};
use crate::{Command, Report, Signal};

use super::args::Args;
use crate::cli::exit::{self, EndsBy, Exit, FAILED};

/// An exit code that replaces that of the job, because of an option of pinfold, and the reason.
pub struct ExitOverride {
    pub code: u8,
    pub why: String,
}

/// How a run ended.
pub enum Ended {
    Report {
        report: Arc<Report>,
        /// An interrupt (SIGINT) requested the stop. `false` where pinfold stopped the job because it was not ready.
        interrupted: bool,
    },
    /// The command could not be executed.
    NotStarted { report: Arc<Report> },
    /// A signal arrived before the command had been executed.
    Signalled { report: Arc<Report>, signal: Signal },
}

impl Ended {
    /// Makes the result of a job that is over. It adds two facts to the report: that the job was not ready, and that
    /// output was lost. Lost output turns a success into a failure.
    pub fn over(
        mut report: Arc<Report>,
        interrupted: bool,
        not_ready: Option<ExitOverride>,
        loss: Option<String>,
    ) -> Self {
        let interrupted = interrupted && not_ready.is_none();
        // If output was lost, pinfold fails, also if the job ended with 0 (after a stop too). An end by SIGPIPE is
        // replaced as well: pinfold closed the pipe because it could not forward the output, so the command did not end
        // by itself.
        let by_pipe = matches!(report.main, Some(MainEnd::Signalled { signal: libc::SIGPIPE, .. }));
        let by_us = report.exit_code == 0 || by_pipe && report.exit_code == exit_code_of_signal(libc::SIGPIPE);
        let code = if by_us { FAILED } else { report.exit_code };
        let loss = loss.map(|why| ExitOverride { code, why });
        let overrides: Vec<_> = [not_ready, loss].into_iter().flatten().collect();
        if let Some(first) = overrides.first() {
            let changed = Arc::make_mut(&mut report);
            changed.exit_code = first.code;
            let whys =
                changed.error.take().into_iter().chain(overrides.into_iter().map(|exit_override| exit_override.why));
            changed.error = Some(whys.collect::<Vec<_>>().join("; "));
        }
        Self::Report { report, interrupted }
    }

    pub fn not_started(command: &Command, error: &crate::Error) -> Self {
        Self::NotStarted { report: Arc::new(Report::of_failed_spawn(command, error)) }
    }

    pub fn signalled(args: &Args, command: &Command, signal: Signal) -> Self {
        let program = args.command[0].to_string_lossy().into_owned();
        let error = crate::Error::EndedEarly { program, reason: Reason::Stopped };
        let mut report = Report::of_failed_spawn(command, &error);
        report.error = Some(format!("{error}: {signal}"));
        report.exit_code = exit_code_of_signal(signal.number());
        Self::Signalled { report: Arc::new(report), signal }
    }

    pub fn report(&self) -> &Report {
        let (Self::Report { report, .. } | Self::NotStarted { report } | Self::Signalled { report, .. }) = self;
        report
    }

    /// Returns whether the command ended by itself. Then pinfold leaves the terminal's settings as the command left
    /// them.
    pub fn by_itself(&self) -> bool {
        let Self::Report { report, .. } = self else { return false };
        report.reason == Reason::Exited && matches!(report.main, Some(MainEnd::Exited(_))) && !report.killed
    }

    /// Returns how pinfold ends.
    pub fn exit(&self, args: &Args) -> Exit {
        match self {
            Self::Signalled { signal, .. } => Exit::on_request(*signal),
            Self::NotStarted { report } => Exit::Code(report.exit_code),
            Self::Report { report, .. } if report.unkillable.count > 0 => Exit::Code(exit::UNKILLABLE),
            Self::Report { report, .. }
                if report.exit_code == 0 && args.fail_on_leftovers && report.leftovers.count > 0 =>
            {
                Exit::Code(exit::LEFTOVERS)
            }
            Self::Report { report, interrupted } => Exit::of(report, EndsBy::Interrupt { requested: *interrupted }),
        }
    }
}
