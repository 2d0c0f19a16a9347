//! A pseudoterminal for a job (pty(7)): the job uses one side as its terminal, the supervisor reads and writes the
//! other.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fchown, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::user::User;

/// The properties of the pseudoterminal that a job gets ([`Command::pty`](crate::Command::pty)).
///
/// ```
/// use pinfold::{Command, Pty};
/// let mut command = Command::new("top");
/// command.pty(Pty::new(24, 80));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Pty {
    size: Winsize,
    settings: Option<Termios>,
    echo: Option<bool>,
}

impl Pty {
    /// Returns a pseudoterminal with this number of rows and columns of characters, and with the kernel's default
    /// settings: lines can be edited, input is echoed, Ctrl-C sends SIGINT (termios(3)).
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Self { size, settings: None, echo: None }
    }

    /// Returns a pseudoterminal with the current size and settings of `terminal`.
    ///
    /// # Errors
    /// [`Error::System`] with `ENOTTY` if `terminal` is not a terminal.
    pub fn like(terminal: impl AsFd) -> Result<Self> {
        let failed = |errno| Error::system("read", "the settings of the terminal", errno, "");
        let size = tcgetwinsize(&terminal).map_err(failed)?;
        Ok(Self { size, settings: Some(tcgetattr(&terminal).map_err(failed)?), echo: None })
    }

    /// Sets whether the terminal echoes the input of the job. The echo is useful for a person at the terminal, but not
    /// for a program that reads the output.
    pub fn echo(mut self, echo: bool) -> Self {
        self.echo = Some(echo);
        self
    }

    /// Makes the pseudoterminal and returns both sides: the supervisor's, then the job's.
    pub(crate) fn open(&self, user: Option<&User>) -> Result<(OwnedFd, OwnedFd)> {
        let failed = |errno| {
            let advice = match errno {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                    "/dev/ptmx and a devpts file system at /dev/pts are needed"
                }
                Errno::NOSPC => "the number of pseudoterminals has reached /proc/sys/kernel/pty/max",
                errno => short_of_descriptors(errno),
            };
            Error::system("make", "a pseudoterminal", errno, advice)
        };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(failed)?;
        fcntl_setfl(&master, fcntl_getfl(&master).map_err(failed)? | OFlags::NONBLOCK).map_err(failed)?;
        unlockpt(&master).map_err(failed)?;
        // The job's side is opened through the master and not by name, because the name may belong to another devpts
        // mount (TIOCGPTPEER, Linux 4.13).
        let slave = ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
        tcsetwinsize(&slave, self.size).map_err(failed)?;
        let mut settings = match &self.settings {
            Some(settings) => settings.clone(),
            None => tcgetattr(&slave).map_err(failed)?,
        };
        if let Some(echo) = self.echo {
            settings.local_modes.set(LocalModes::ECHO, echo);
        }
        tcsetattr(&slave, OptionalActions::Now, &settings).map_err(failed)?;
        if let Some(user) = user {
            // The job's user becomes the owner of the terminal, because programs of the job also open it by its name.
            fchown(&slave, Some(Uid::from_raw(user.uid)), None).map_err(failed)?;
        }
        Ok((master, slave))
    }
}

/// Returns the bytes that end the input of a process that reads this terminal: the end-of-file character once at the
/// beginning of a line, twice after an incomplete line (`in_line`). Empty if the terminal does not interpret special
/// characters (termios(3), ICANON).
pub(crate) fn end_of_input(master: impl AsFd, in_line: bool) -> Vec<u8> {
    match tcgetattr(master) {
        Ok(settings) if settings.local_modes.contains(LocalModes::ICANON) => {
            vec![settings.special_codes[SpecialCodeIndex::VEOF]; 1 + usize::from(in_line)]
        }
        _ => Vec::new(),
    }
}
