//! `--setsid`: the terminal is given up, so that the session of the command can have it.

#![allow(unsafe_code)]

use pinfold::Signal;

/// The signals that the kernel sends to the foreground process group when the leader of a session gives its terminal up
/// (TIOCNOTTY in ioctl_tty(2)). They are not for the command.
#[derive(Default)]
pub struct GivenUp(Vec<Signal>);

impl GivenUp {
    /// Gives the controlling terminal up where it is standard input. Signals have to be blocked.
    pub fn terminal() -> Self {
        // SAFETY: no argument; ENOTTY where standard input is not the controlling terminal.
        let for_the_session = unsafe { libc::ioctl(0, libc::TIOCNOTTY) == 0 && libc::getsid(0) == libc::getpid() };
        Self(if for_the_session { vec![Signal::HUP, Signal::CONT] } else { Vec::new() })
    }

    /// Whether this signal is one of them. Each comes once.
    pub fn took(&mut self, signal: Signal) -> bool {
        let at = self.0.iter().position(|&waiting| waiting == signal);
        at.map(|at| self.0.remove(at)).is_some()
    }
}
