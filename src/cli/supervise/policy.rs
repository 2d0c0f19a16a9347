//! The differences between the subcommands that supervise one job, as data.

use std::time::Duration;

use crate::Signal;

use crate::cli::terminal::Terminal;

/// The differences between the subcommands, in addition to the [`Rules`](crate::cli::signals::Rules).
pub struct Policy<'a> {
    /// The controlling terminal, if the subcommand has opened it.
    pub terminal: Option<&'a Terminal>,
    pub recipients: Recipients,
    /// pinfold handles a signal from a process of the job as any other signal. Otherwise, if the job is in pinfold's
    /// group, pinfold assumes that the process sent the signal to its group, as `kill 0` does, so the job has received
    /// it already.
    pub accepts_job_signals: bool,
    /// If no main process can receive a signal (it is not executed yet, or has ended), a stop request is for pinfold:
    /// pinfold gives up the start, or kills the remaining processes.
    pub acts_without_main: bool,
    /// pinfold stops itself when the terminal has stopped the main process. If this is `false`, pinfold stops only
    /// after it has received SIGTSTP itself.
    pub stops_with_main: bool,
    /// pinfold stops itself by SIGSTOP after it has passed on one of these signals.
    pub stops_after: Vec<Signal>,
    /// Signals for the subcommand itself. The loop returns them: [`Event::OwnSignal`](super::Event::OwnSignal).
    pub own_signals: Vec<Signal>,
    /// The signal at the deadline ([`Supervision::set_deadline`](super::Supervision::set_deadline)); `None` if the user
    /// chose a number that is not a signal.
    pub deadline_signal: Option<Signal>,
    /// The time from the first signal that the job receives until SIGKILL.
    pub kill_after: Option<Duration>,
    /// The loop calls this function before each step, for a message.
    pub announce: &'a dyn Fn(Step),
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Self {
            terminal: None,
            recipients: Recipients::Main,
            accepts_job_signals: false,
            acts_without_main: false,
            stops_with_main: true,
            stops_after: Vec::new(),
            own_signals: Vec::new(),
            deadline_signal: None,
            kill_after: None,
            announce: &|_| {},
        }
    }
}

/// Which processes receive a signal that pinfold passes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Recipients {
    Main,
    /// The main process, and the processes of the job in its process group.
    Group,
    /// The same, as if pinfold were in that group too, as the timeout(1) of coreutils is: SIGKILL ends pinfold, SIGSTOP
    /// stops it, and it ignores each other signal that it has sent. SIGCONT follows each signal.
    OwnGroup,
}

/// A step about which a subcommand may print a message.
#[derive(Clone, Copy)]
pub enum Step {
    Stop(Signal),
    Kill(Signal),
    /// The terminal has interrupted the job. The number counts the interrupts within the last two seconds.
    Interrupt(Signal, usize),
    /// The job receives `sent`, or no signal. The first signal is the one that pinfold received, if it received one.
    Send(Option<Signal>, Option<Signal>),
}
