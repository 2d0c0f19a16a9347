//! Settings of a command for when and how its job is stopped.

use std::time::Duration;

use crate::job::command::Command;
use crate::job::stop::{Leftovers, SignalTo};
use crate::kernel::signal::Signal;

impl Command {
    /// Sets the deadline: pinfold stops the job this long after its spawn was requested, and the report then has the
    /// reason [`Deadline`](crate::report::Reason::Deadline) and the exit code 124. There is no deadline by default.
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

    /// Sets which processes receive the stop signal: by default every process.
    pub fn signal_to(&mut self, to: SignalTo) -> &mut Self {
        self.stop.signal_to = to;
        self
    }

    /// Sets the settle time: how long processes may take to end by themselves after the main process has exited. 2 s by
    /// default.
    ///
    /// A filter has all of this time. A filter is a process whose standard input is a pipe or a socket that was made
    /// inside the job, such as the `tee` of `exec > >(tee log)`, or a process that reads another pipe to which no
    /// process of the job can write any more. A filter ends when it has read everything. Any other process has a tenth
    /// of the time: at least 0.1 s and at most 0.25 s, but never more than the settle time. If it runs on a CPU (state
    /// R or D) when its time is over, it has the rest of the settle time too, because it may be about to end. Processes
    /// that remain after their time are leftovers, and pinfold stops them. A job without leftovers loses no time. With
    /// a settle time of zero, pinfold stops all remaining processes at once. [`Leftovers::Wait`] does not use the
    /// settle time.
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
