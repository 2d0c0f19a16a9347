//! When a command's job is stopped, and how.

use std::time::Duration;

use crate::job::command::Command;
use crate::job::stop::{Leftovers, SignalTo};
use crate::kernel::signal::Signal;

impl Command {
    /// The deadline: stops the job this long after its spawn was ordered. None by default.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long after the stop signal the job is killed: 10 s by default.
    pub fn grace(&mut self, grace: Duration) -> &mut Self {
        self.stop.grace = grace;
        self
    }

    /// The stop signal: SIGTERM by default.
    pub fn stop_signal(&mut self, signal: Signal) -> &mut Self {
        self.stop.signal = signal;
        self
    }

    /// Which processes get the stop signal: every process by default.
    pub fn signal_to(&mut self, to: SignalTo) -> &mut Self {
        self.stop.signal_to = to;
        self
    }

    /// The settle time: how long processes may take to end by themselves after the main process has exited; 2 s by default.
    ///
    /// A filter has all of it: a process whose standard input is a pipe or a socket made inside the job, such as the `tee`
    /// of `exec > >(tee log)`, or that reads another pipe which no process of the job can write to any more. It ends when it
    /// has read everything. A process that runs on a CPU at that moment (state R or D) has all of it too, since it may be
    /// about to end. Any other process has a tenth of it, at least 0.1 s and at most 0.25 s (never more than the settle
    /// time). Processes that are still there after that are leftovers, and pinfold stops them. A job without leftovers loses
    /// no time. With zero, pinfold stops them at once. [`Leftovers::Wait`] does not use it.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("bash");
    /// command.args(["-c", "exec > >(gzip > log.gz); make"]).settle(std::time::Duration::from_secs(10));
    /// ```
    pub fn settle(&mut self, settle: Duration) -> &mut Self {
        self.stop.settle = settle;
        self
    }

    /// What happens to processes that are still there when the main process has exited: they are stopped by default.
    pub fn leftovers(&mut self, leftovers: Leftovers) -> &mut Self {
        self.stop.leftovers = leftovers;
        self
    }

    /// How long to wait for processes after SIGKILL, before they are reported as unkillable: 10 s by default.
    pub fn kill_bound(&mut self, bound: Duration) -> &mut Self {
        self.stop.kill_bound = bound;
        self
    }
}
