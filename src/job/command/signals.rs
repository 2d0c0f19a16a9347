//! The signal state that a job starts with, and the signal that it receives when its supervisor is gone.

use crate::job::command::Command;
use crate::kernel::signal::Signal;
use crate::kernel::signal_set;

impl Command {
    /// Sets signals for which the job starts with the default action, as `env --default-signal` does. Otherwise the job
    /// ignores each signal that was ignored when this process was started (execve(2) keeps ignored signals ignored).
    /// Each call adds to the signals of earlier calls.
    pub fn default_signals<I: IntoIterator<Item = Signal>>(&mut self, signals: I) -> &mut Self {
        self.default_signals |= signals.into_iter().fold(0, |set, signal| set | signal_set::bit(signal.number()));
        self
    }

    /// Sets signals that the job starts with unblocked. Otherwise the job blocks each signal that was blocked when this
    /// process was started (execve(2) also keeps blocked signals blocked). Each call adds to the signals of earlier
    /// calls.
    pub fn unblocked_signals<I: IntoIterator<Item = Signal>>(&mut self, signals: I) -> &mut Self {
        self.unblocked_signals |= signals.into_iter().fold(0, |set, signal| set | signal_set::bit(signal.number()));
        self
    }

    /// Sets the signal that every process of the job receives, together with SIGCONT, when the supervisor has ended, in
    /// any way. Processes that remain half a second later are killed. By default all processes are killed at once. (If
    /// the guard is killed, the main process receives SIGKILL in any case.)
    pub fn supervisor_death_signal(&mut self, signal: Signal) -> &mut Self {
        self.supervisor_death_signal = Some(signal);
        self
    }
}
