//! Signals that a job starts with, and the one that it gets when its supervisor is gone.

use crate::job::command::Command;
use crate::kernel::signal::Signal;
use crate::kernel::sys;

impl Command {
    /// Signals that the job does not ignore at its start, even where this process was started with them ignored (execve(2)
    /// hands that down). As `env --default-signal`; added to those given before.
    pub fn default_signals<I: IntoIterator<Item = Signal>>(&mut self, signals: I) -> &mut Self {
        self.default_signals |= signals.into_iter().fold(0, |set, signal| set | sys::bit(signal.number()));
        self
    }

    /// Signals that are not blocked for the job at its start, even where this process was started with them blocked
    /// (execve(2) hands that down too). Added to those given before.
    pub fn unblocked_signals<I: IntoIterator<Item = Signal>>(&mut self, signals: I) -> &mut Self {
        self.unblocked_signals |= signals.into_iter().fold(0, |set, signal| set | sys::bit(signal.number()));
        self
    }

    /// When the supervisor is gone, killed or not, every process of the job gets this signal and SIGCONT, and what is there
    /// half a second later is killed. By default it is killed at once. (When it is the guard that is killed, the main
    /// process gets SIGKILL in any case.)
    pub fn supervisor_death_signal(&mut self, signal: Signal) -> &mut Self {
        self.supervisor_death_signal = Some(signal);
        self
    }
}
