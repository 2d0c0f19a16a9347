//! The settings of a command for how its job is stopped.

use std::time::Duration;

use crate::job::settle;
use crate::kernel::signal::Signal;

/// The processes that receive the stop signal.
///
/// ```
/// let mut command = pinfold::Command::new("make");
/// command.stop_signal(pinfold::Signal::INT).signal_to(pinfold::SignalTo::Main);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignalTo {
    /// Every process of the job.
    #[default]
    All,
    /// The main process only, as a shell's `kill` would.
    Main,
}

/// What happens to processes that are still there when the main process has exited.
///
/// ```
/// let mut command = pinfold::Command::new("make");
/// command.leftovers(pinfold::Leftovers::Wait);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Leftovers {
    /// pinfold waits for the settle time ([`Command::settle`](crate::Command::settle)), in which they can end by
    /// themselves. Then it stops them, and kills them after the grace period.
    #[default]
    Kill,
    /// pinfold waits for them, without a settle time. The deadline applies to them too.
    Wait,
}

/// How a job is stopped: the stop signal, a grace period, then kill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopPolicy {
    pub signal: Signal,
    pub signal_to: SignalTo,
    pub grace: Duration,
    pub leftovers: Leftovers,
    /// How long processes may take to end by themselves after the main process has exited.
    pub settle: Duration,
    /// How long to wait for processes after SIGKILL.
    pub kill_bound: Duration,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self {
            signal: Signal::TERM,
            signal_to: SignalTo::All,
            grace: Duration::from_secs(10),
            leftovers: Leftovers::Kill,
            settle: settle::DEFAULT,
            kill_bound: Duration::from_secs(10),
        }
    }
}
