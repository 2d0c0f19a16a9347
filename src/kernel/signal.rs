//! Signals by name and number (signal(7)).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::kernel::signal_set;

/// A signal that can be sent: 1 to 31, or a real-time signal up to 64 (signal(7)).
///
/// ```
/// use pinfold::Signal;
/// assert_eq!("SIGTERM".parse::<Signal>()?, Signal::TERM);
/// assert_eq!("int".parse::<Signal>()?.number(), 2);
/// assert_eq!(Signal::from_number(9), Some(Signal::KILL));
/// assert_eq!(Signal::HUP.to_string(), "SIGHUP");
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(i32);

macro_rules! named {
    ($($name:ident),*) => {
        /// The standard signals by name, without `SIG`.
        const NAMES: &[(&str, i32)] = &[$((
            // The constants have the prefix SIG (SIGTERM), the names do not (TERM).
            stringify!($name).split_at(3).1, libc::$name
        )),*];
    };
}

named!(
    SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE,
    SIGALRM, SIGTERM, SIGSTKFLT, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGXCPU, SIGXFSZ,
    SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGPWR, SIGSYS
);

/// The lowest and the highest real-time signal for programs: glibc and musl reserve those below 34 for themselves.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=signal_set::SIGNAL_MAX;

impl Signal {
    /// Hang-up.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// Interrupt from the terminal.
    pub const INT: Self = Self(libc::SIGINT);
    /// Quit from the terminal.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// A write to a pipe that has no reader.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// A timer has expired.
    pub const ALRM: Self = Self(libc::SIGALRM);
    /// A child has ended, stopped or continued.
    pub const CHLD: Self = Self(libc::SIGCHLD);
    /// Urgent data on a socket.
    pub const URG: Self = Self(libc::SIGURG);
    /// The size of the terminal's window has changed.
    pub const WINCH: Self = Self(libc::SIGWINCH);
    /// Kill; cannot be caught.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Terminate.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// Continue if stopped.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// Stop; cannot be caught.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// Stop from the terminal.
    pub const TSTP: Self = Self(libc::SIGTSTP);
    /// Stop: a background process read from the terminal.
    pub const TTIN: Self = Self(libc::SIGTTIN);
    /// Stop: a background process wrote to the terminal or changed it.
    pub const TTOU: Self = Self(libc::SIGTTOU);

    /// Returns the signal with this number, or `None` if Linux has no such signal.
    #[must_use]
    pub const fn from_number(number: i32) -> Option<Self> {
        if number >= 1 && number <= signal_set::SIGNAL_MAX { Some(Self(number)) } else { None }
    }

    /// Returns all signals, in ascending order.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (1..=signal_set::SIGNAL_MAX).map(Self)
    }

    /// Returns the number of the signal.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

/// Writes `SIGTERM`, `SIGRTMIN+3`, or only the number of a signal that has no name.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = NAMES.iter().find(|&&(_, number)| number == self.0) {
            return write!(f, "SIG{name}");
        }
        match self.0 - REAL_TIME.start() {
            0 => f.write_str("SIGRTMIN"),
            offset if offset > 0 => write!(f, "SIGRTMIN+{offset}"),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+3`, `RTMAX-1`.
impl FromStr for Signal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown =
            || Error::invalid("signal", text, "write a name like TERM or SIGINT, a number from 1 to 64, or RTMIN+3");
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().and_then(Self::from_number).ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let name = match name {
            "IOT" => "ABRT",
            "CLD" => "CHLD",
            "POLL" => "IO",
            other => other,
        };
        if let Some(&(_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Self(number));
        }
        let offset = |rest: &str, sign: char| match rest {
            "" => Some(0),
            rest => rest.strip_prefix(sign).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?.parse::<i32>().ok(),
        };
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            offset(rest, '+').and_then(|offset| REAL_TIME.start().checked_add(offset))
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            offset(rest, '-').and_then(|offset| REAL_TIME.end().checked_sub(offset))
        } else {
            None
        };
        number.filter(|number| REAL_TIME.contains(number)).map(Self).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_formatted_and_parsed_back() {
        for number in (1..=31).chain(REAL_TIME) {
            let signal = Signal(number);
            let name = signal.to_string();
            assert_eq!(name.parse::<Signal>().unwrap(), signal, "{name}");
            assert_eq!(name[3..].to_lowercase().parse::<Signal>().unwrap(), signal, "{name}");
            assert_eq!(number.to_string().parse::<Signal>().unwrap(), signal);
        }
    }

    #[test]
    fn invalid_signals_are_refused() {
        for text in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "FOO",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX+1",
            "RTMIN+",
            "RTMIN++1",
            "99999999999",
            "TERM ",
        ] {
            let error = text.parse::<Signal>().expect_err(text).to_string();
            assert!(error.contains("RTMIN+3"), "{error}");
        }
    }
}
