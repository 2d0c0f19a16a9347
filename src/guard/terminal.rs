//! A terminal whose settings the supervisor has changed temporarily. If the supervisor is killed, the guard restores
//! them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Result;
use serde::{Deserialize, Serialize};

use crate::kernel::{process, syscall};

/// A terminal's settings, in serializable form: those of the kernel's `termios2` (ioctl_tty(2), TCGETS2), including
/// arbitrary speeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    modes: [u32; 4],
    line: u8,
    control_characters: Vec<u8>,
    speeds: [u32; 2],
    /// The supervisor's process group; `None` if it is from outside of the supervisor's PID namespace.
    group: Option<i32>,
}

impl Settings {
    /// Reads the current settings. Only the `pinfold` command does this, not the library.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    #[allow(unsafe_code)]
    pub fn of(terminal: impl AsFd) -> Result<Self> {
        // SAFETY: plain data that the call fills in. The descriptor is borrowed for the call.
        let now = unsafe {
            let mut now: libc::termios2 = std::mem::zeroed();
            if libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TCGETS2, &raw mut now) != 0 {
                return Err(syscall::last_errno());
            }
            now
        };
        Ok(Self {
            modes: [now.c_iflag, now.c_oflag, now.c_cflag, now.c_lflag],
            line: now.c_line,
            control_characters: now.c_cc.to_vec(),
            speeds: [now.c_ispeed, now.c_ospeed],
            group: process::own_process_group(),
        })
    }
}

/// A terminal whose settings are to be restored.
pub struct SavedTerminal {
    terminal: OwnedFd,
    settings: Settings,
}

impl SavedTerminal {
    pub fn new(terminal: OwnedFd, settings: Settings) -> Self {
        Self { terminal, settings }
    }

    /// Restores the settings, unless another process group has taken over the terminal meanwhile: a shell with job
    /// control makes its own settings. The kernel would send SIGTTOU to a background process that does this; the guard
    /// blocks this signal.
    #[allow(unsafe_code)]
    pub fn restore(&self) {
        let Settings { modes, line, control_characters, speeds, group } = &self.settings;
        // SAFETY: tcgetpgrp(3) has no obligations.
        let foreground = unsafe { libc::tcgetpgrp(self.terminal.as_raw_fd()) };
        if group.is_none_or(|group| group != foreground) {
            return;
        }
        // SAFETY: all-zero is valid for plain data. The call only reads it.
        unsafe {
            let mut settings: libc::termios2 = std::mem::zeroed();
            [settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag] = *modes;
            settings.c_line = *line;
            settings.c_cc.iter_mut().zip(control_characters).for_each(|(to, from)| *to = *from);
            [settings.c_ispeed, settings.c_ospeed] = *speeds;
            // A terminal that has hung up needs no settings: an error is ignored.
            libc::ioctl(self.terminal.as_raw_fd(), libc::TCSETS2, &raw const settings);
        }
    }
}
