//! `--setsid`: this process gives up its controlling terminal, so that the session of the command can acquire it.

#![allow(unsafe_code)]

use crate::Signal;

/// The signals that the kernel sends to the foreground process group when the leader of a session gives up its terminal
/// (TIOCNOTTY in ioctl_tty(2)). init does not send them to the command.
#[derive(Default)]
pub struct HangupSignals(Vec<Signal>);

impl HangupSignals {
    /// Gives up the controlling terminal if it is standard input, and returns the signals that the kernel then sends.
    /// The caller must have blocked all signals.
    pub fn give_up_terminal() -> Self {
        // SAFETY: TIOCNOTTY has no argument. It fails with ENOTTY if standard input is not the controlling terminal.
        let for_the_session = unsafe { libc::ioctl(0, libc::TIOCNOTTY) == 0 && libc::getsid(0) == libc::getpid() };
        Self(if for_the_session { vec![Signal::HUP, Signal::CONT] } else { Vec::new() })
    }

    /// Returns these signals.
    pub fn signals(self) -> Vec<Signal> {
        self.0
    }

    /// Removes a signal that has arrived, because the kernel sends each of them once. Returns whether it was one of
    /// these signals.
    pub fn remove(&mut self, signal: Signal) -> bool {
        let at = self.0.iter().position(|&waiting| waiting == signal);
        at.map(|at| self.0.remove(at)).is_some()
    }
}
