//! The supervisor's side of a job's terminal.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::io::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use super::output::Kept;
use crate::kernel::syscall;

/// A weak reference to the supervisor's side of a job's terminal. It does not keep the terminal open.
#[derive(Clone, Debug)]
pub(crate) struct WeakTerminal {
    pub fd: Weak<AsyncFd<OwnedFd>>,
    pub _kept: Kept,
}

impl WeakTerminal {
    pub fn resize(&self, rows: u16, columns: u16) -> rustix::io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&*self.open()?, size)
    }

    /// Returns the character that currently sends a signal: VINTR or VQUIT of termios(3). Returns `None` if the job has
    /// switched that off.
    pub fn signal_key(&self, key: SpecialCodeIndex) -> Option<u8> {
        // On a master, tcgetattr returns the settings of the other side (ioctl_tty(2)).
        let settings = tcgetattr(&*self.open().ok()?).ok()?;
        let code = settings.special_codes[key];
        (settings.local_modes.contains(LocalModes::ISIG) && code != 0).then_some(code)
    }

    /// Sends a signal to the foreground process group of the terminal.
    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) -> rustix::io::Result<()> {
        let master = self.open()?;
        // SAFETY: the argument of TIOCSIG is a number; the descriptor is open for the call.
        match unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSIG, signal) } {
            -1 => Err(syscall::last_errno()),
            _ => Ok(()),
        }
    }

    fn open(&self) -> rustix::io::Result<Arc<AsyncFd<OwnedFd>>> {
        self.fd.upgrade().ok_or(Errno::IO)
    }
}
