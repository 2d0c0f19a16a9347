//! When a command's job is stopped, and how.

use std::time::Duration;

use super::Command;
use crate::signal::Signal;
use crate::stop::{Leftovers, SignalTo};

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

    /// Who gets the stop signal: every process by default.
    pub fn signal_to(&mut self, to: SignalTo) -> &mut Self {
        self.stop.signal_to = to;
        self
    }

    /// What happens to processes that are left when the main one has exited: they are stopped by default.
    pub fn leftovers(&mut self, leftovers: Leftovers) -> &mut Self {
        self.stop.leftovers = leftovers;
        self
    }

    /// How long to wait for processes that SIGKILL was sent to, before they are reported as unkillable: 10 s by default.
    pub fn kill_bound(&mut self, bound: Duration) -> &mut Self {
        self.stop.kill_bound = bound;
        self
    }
}
