//! A pseudoterminal for a job (pty(7)): the job has one side as its terminal, the supervisor reads and writes the other.

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

/// A pseudoterminal to be made for a job ([`Command::pty`](crate::Command::pty)).
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
    /// So many rows and columns of characters, and the kernel's usual settings: lines can be edited, what is typed is echoed,
    /// Ctrl-C is SIGINT (termios(3)).
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Self { size, settings: None, echo: None }
    }

    /// The size and the settings of this terminal, as they are now.
    ///
    /// # Errors
    /// `ENOTTY` where it is no terminal.
    pub fn like(terminal: impl AsFd) -> Result<Self> {
        let failed = |errno| Error::system("read", "the settings of the terminal", errno, "");
        let size = tcgetwinsize(&terminal).map_err(failed)?;
        Ok(Self { size, settings: Some(tcgetattr(&terminal).map_err(failed)?), echo: None })
    }

    /// Whether what the job is given to read is echoed, as somebody who types wants it, and a program that reads the output
    /// does not.
    pub fn echo(mut self, echo: bool) -> Self {
        self.echo = Some(echo);
        self
    }

    /// The supervisor's side and the job's.
    pub(crate) fn open(&self, user: Option<&User>) -> Result<(OwnedFd, OwnedFd)> {
        let failed = |errno| {
            let advice = match errno {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                    "/dev/ptmx and a devpts file system at /dev/pts are needed"
                }
                Errno::NOSPC => "there are as many as /proc/sys/kernel/pty/max allows",
                errno => short_of_descriptors(errno),
            };
            Error::system("make", "a pseudoterminal", errno, advice)
        };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(failed)?;
        fcntl_setfl(&master, fcntl_getfl(&master).map_err(failed)? | OFlags::NONBLOCK).map_err(failed)?;
        unlockpt(&master).map_err(failed)?;
        // By the master, and not by name: this devpts may be mounted elsewhere (TIOCGPTPEER, Linux 4.13).
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
            // Programs open it by its name too, as that user.
            fchown(&slave, Some(Uid::from_raw(user.uid)), None).map_err(failed)?;
        }
        Ok((master, slave))
    }
}

/// What ends the input of who reads this terminal: once at the beginning of a line, twice behind something that is no line yet.
/// Nothing where keys mean nothing to it (termios(3), ICANON).
pub(crate) fn end_of_input(master: impl AsFd, in_line: bool) -> Vec<u8> {
    match tcgetattr(master) {
        Ok(settings) if settings.local_modes.contains(LocalModes::ICANON) => {
            vec![settings.special_codes[SpecialCodeIndex::VEOF]; 1 + usize::from(in_line)]
        }
        _ => Vec::new(),
    }
}
