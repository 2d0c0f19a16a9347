//! How pinfold ends: with an exit code, or by a signal.

use crate::report::{MainEnd, Reason, exit_code_of_signal};
use crate::{Report, Signal};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// pinfold itself failed. The code is the same as that of timeout(1) and env(1).
pub const FAILED: u8 = 125;

/// A time limit was reached.
pub const TIMED_OUT: u8 = 124;

/// `--fail-on-leftovers` found leftovers, and the command itself had succeeded.
pub const LEFTOVERS: u8 = 123;

/// SIGKILL did not end every process of the job. This code takes precedence over all others.
pub const UNKILLABLE: u8 = 122;

/// How pinfold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(u8),
    /// By a signal, so that the caller sees the signal in pinfold's wait status. If the signal cannot end pinfold,
    /// because pinfold is PID 1, pinfold exits with 128 plus the number of the signal.
    Signal(Signal),
}

/// If one of these signals ended the command, pinfold ends by a signal too.
#[derive(Clone, Copy)]
pub enum EndsBy {
    None,
    /// SIGINT, so that a loop in the calling shell stops too. With `requested` (an interrupt requested the stop), any
    /// signal: pinfold then ends by SIGINT.
    Interrupt {
        requested: bool,
    },
    /// Each signal, as timeout(1) does.
    Any,
}

impl Exit {
    /// Returns how pinfold ends for a job that is over.
    pub fn of(report: &Report, ends_by: EndsBy) -> Self {
        let signal = match &report.main {
            // Only if the signal decided the exit code, and not a deadline or an option.
            Some(main @ MainEnd::Signalled { signal, .. }) if report.exit_code == main.exit_code() => {
                Signal::from_number(*signal)
            }
            _ => None,
        };
        match (signal, ends_by) {
            (Some(signal), EndsBy::Any) => Self::Signal(signal),
            (Some(signal), EndsBy::Interrupt { requested })
                if signal == Signal::INT || requested && report.reason == Reason::Stopped =>
            {
                Self::Signal(Signal::INT)
            }
            _ => Self::Code(report.exit_code),
        }
    }

    /// Returns how pinfold ends after it received this signal as a request.
    pub fn on_request(signal: Signal) -> Self {
        if signal == Signal::INT { Self::Signal(signal) } else { Self::Code(exit_code_of_signal(signal.number())) }
    }

    /// Ends pinfold by the signal, or returns the exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => {
                // pinfold itself must not dump core: the useful core dump is that of the command.
                let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
                crate::kernel::own_signals::end_by(signal);
                exit_code_of_signal(signal.number())
            }
        }
    }
}
