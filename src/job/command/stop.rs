//! Settings of a command for when and how its job is stopped.

use std::time::Duration;

use crate::job::command::Command;
use crate::job::stop::{Leftovers, SignalTo};
use crate::kernel::signal::Signal;

impl Command {
    /// Sets the deadline: pinfold stops the job this long after its spawn was requested. None by default. The
    /// report then has the reason [`Deadline`](crate::report::Reason::Deadline) and the exit code 124.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the grace period: how long after the stop signal pinfold kills the job. 10 s by default.
    pub fn grace(&mut self, grace: Duration) -> &mut Self {
        self.stop.grace = grace;
        self
    }

    /// Sets the stop signal. SIGTERM by default.
    pub fn stop_signal(&mut self, signal: Signal) -> &mut Self {
        self.stop.signal = signal;
        self
    }

    /// Sets which processes receive the stop signal. Every process by default.
    pub fn signal_to(&mut self, to: SignalTo) -> &mut Self {
        self.stop.signal_to = to;
        self
    }

    /// Sets the settle time: how long processes may take to end by themselves after the main process has exited. 2 s by
    /// default.
    ///
    /// A filter has all of it: a process whose standard input is a pipe or a socket made inside the job, such as the
    /// `tee` of `exec > >(tee log)`, or that reads another pipe which no process of the job can write to any more. A
    /// filter ends when it has read everything. A process that runs on a CPU at that moment (state R or D) has all of
    /// it too, since it may be about to end. Any other process has a tenth of it, at least 0.1 s and at most 0.25 s
    /// (never more than the settle time). Processes that remain after that are leftovers, and pinfold stops them. A job
    /// without leftovers loses no time. With a settle time of zero, pinfold stops them at once. [`Leftovers::Wait`]
    /// does not use the settle time.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("bash");
    /// command.args(["-c", "exec > >(gzip > log.gz); make"]).settle(std::time::Duration::from_secs(10));
    /// ```
    pub fn settle(&mut self, settle: Duration) -> &mut Self {
        self.stop.settle = settle;
        self
    }

    /// Sets what happens to processes that remain when the main process has exited. pinfold stops them by default.
    pub fn leftovers(&mut self, leftovers: Leftovers) -> &mut Self {
        self.stop.leftovers = leftovers;
        self
    }

    /// Sets how long pinfold waits for processes after SIGKILL, before it reports them as unkillable. 10 s by default.
    pub fn kill_bound(&mut self, bound: Duration) -> &mut Self {
        self.stop.kill_bound = bound;
        self
    }
}
