//! The signal state that a job starts with, and the signal that it receives when its supervisor is gone.

use crate::job::command::Command;
use crate::kernel::signal::Signal;
use crate::kernel::signal_set;

impl Command {
    /// Sets signals that the job does not ignore at its start, even if this process was started with them ignored
    /// (execve(2) keeps ignored signals ignored). This is what `env --default-signal` does. Each call adds to the
    /// signals of earlier calls.
    pub fn default_signals<I: IntoIterator<Item = Signal>>(&mut self, signals: I) -> &mut Self {
        self.default_signals |= signals.into_iter().fold(0, |set, signal| set | signal_set::bit(signal.number()));
        self
    }

    /// Sets signals that are not blocked for the job at its start, even if this process was started with them blocked
    /// (execve(2) also keeps blocked signals blocked). Each call adds to the signals of earlier calls.
    pub fn unblocked_signals<I: IntoIterator<Item = Signal>>(&mut self, signals: I) -> &mut Self {
        self.unblocked_signals |= signals.into_iter().fold(0, |set, signal| set | signal_set::bit(signal.number()));
        self
    }

    /// Sets the signal that every process of the job receives, together with SIGCONT, when the supervisor is gone,
    /// killed or not. Processes that remain half a second later are killed. By default they are killed at once. (If the
    /// guard is killed, the main process receives SIGKILL in any case.)
    pub fn supervisor_death_signal(&mut self, signal: Signal) -> &mut Self {
        self.supervisor_death_signal = Some(signal);
        self
    }
}
