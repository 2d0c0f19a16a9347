//! Signals by name and number, and a queue of the signals that are sent to this process.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::error::{Error, Result, short_of_descriptors};
pub use crate::kernel::wake::Wake;
use crate::kernel::{inherited, sys, wake};

/// A signal that can be sent: 1 to 31, or a real-time one up to 64 (signal(7)).
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
            // The constants are called SIGTERM, names are TERM.
            stringify!($name).split_at(3).1, libc::$name
        )),*];
    };
}

named!(
    SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE,
    SIGALRM, SIGTERM, SIGSTKFLT, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGXCPU, SIGXFSZ,
    SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGPWR, SIGSYS
);

/// Lowest and highest real-time signal for programs: glibc and musl keep those below 34 for themselves.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=sys::SIGNAL_MAX;

impl Signal {
    /// Hang-up.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// Interrupt from the terminal.
    pub const INT: Self = Self(libc::SIGINT);
    /// Quit from the terminal.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// A write to a pipe that has no reader.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// A timer's end.
    pub const ALRM: Self = Self(libc::SIGALRM);
    /// A child has ended, stopped or gone on.
    pub const CHLD: Self = Self(libc::SIGCHLD);
    /// Urgent data on a socket.
    pub const URG: Self = Self(libc::SIGURG);
    /// The terminal's window has another size.
    pub const WINCH: Self = Self(libc::SIGWINCH);
    /// The signal that can't be caught.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Terminate.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// Continue if stopped.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// Stop, can't be caught.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// Stop from the terminal.
    pub const TSTP: Self = Self(libc::SIGTSTP);
    /// Stop: a background process read from the terminal.
    pub const TTIN: Self = Self(libc::SIGTTIN);
    /// Stop: a background process wrote to the terminal or changed it.
    pub const TTOU: Self = Self(libc::SIGTTOU);

    /// The signal with this number, or `None` where Linux has none.
    #[must_use]
    pub const fn from_number(number: i32) -> Option<Self> {
        if number >= 1 && number <= sys::SIGNAL_MAX { Some(Self(number)) } else { None }
    }

    /// All that there are, in their order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=sys::SIGNAL_MAX).map(Self)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

/// `SIGTERM`, `SIGRTMIN+3`, or the bare number of one that has no name.
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

/// `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+3`, `RTMAX-1`.
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

/// A signal that was sent to this process, and by whom.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Received {
    /// Which one.
    pub signal: Signal,
    /// The kernel sent it (`si_code` SI_KERNEL): for SIGINT, SIGQUIT and SIGTSTP that is the terminal, which sends
    /// it to the whole foreground process group (sigaction(2)).
    pub from_kernel: bool,
    /// The process that sent it, 0 where that is not known.
    pub sender: u32,
}

impl Received {
    /// For tests of rules about signals.
    #[must_use]
    pub const fn new(signal: Signal, from_kernel: bool, sender: u32) -> Self {
        Self { signal, from_kernel, sender }
    }

    /// Whether the terminal sent it to its foreground process group, or to the leader of its session alone (SIGHUP): the
    /// kernel did, and it is one of the signals that a terminal sends. SIGALRM of a timer (setitimer(2)), which exec keeps, is
    /// also the kernel's, but reaches one process only.
    #[must_use]
    pub fn is_from_terminal(&self) -> bool {
        let sent = [
            Signal::INT,
            Signal::QUIT,
            Signal::HUP,
            Signal::CONT,
            Signal::TSTP,
            Signal::TTIN,
            Signal::TTOU,
            Signal::WINCH,
        ];
        self.from_kernel && sent.contains(&self.signal)
    }
}

/// Every signal that can be blocked, taken from this process's own handling and queued instead (signalfd(2)).
///
/// For programs that do nothing else than supervise, as the `pinfold` command does: no signal can end such a program
/// and leave its job. Signals that were ignored when the program was started stay ignored (nohup(1)). A library's host keeps its handlers: nothing here is used unless it asks.
///
/// ```no_run
/// use pinfold::signal::SignalQueue;
/// let queue = SignalQueue::block_all()?; // The first in `main`.
/// while let Some(received) = queue.next(Some(std::time::Duration::from_secs(60)))? {
///     println!("{} from process {}", received.signal, received.sender);
/// }
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Debug)]
pub struct SignalQueue {
    pub(crate) fd: OwnedFd,
    /// As a bit mask.
    queued: u64,
}

impl SignalQueue {
    /// Blocks all signals in the calling thread and queues them. Call it while there is one thread, before
    /// [`Guard::fork`](crate::Guard::fork); jobs still get the mask that this program was started with.
    ///
    /// # Errors
    /// The errno of signalfd(2): `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn block_all() -> Result<Self> {
        // A blocked signal is queued even where it is ignored.
        let queued = sys::ALL_SIGNALS & !sys::bit(libc::SIGCHLD) & !inherited::signals().ignored;
        // First: where that fails, the mask stays.
        let fd = sys::signalfd(queued)
            .map_err(|errno| Error::system("signalfd", "all signals", errno, short_of_descriptors(errno)))?;
        sys::set_signal_mask(sys::ALL_SIGNALS);
        Ok(Self { fd, queued })
    }

    /// Queues these too: signals that were ignored when the program was started, and SIGCHLD, which [`block_all`] leaves out.
    ///
    /// [`block_all`]: Self::block_all
    ///
    /// # Errors
    /// The errno of signalfd(2).
    pub fn queue_also<I: IntoIterator<Item = Signal>>(self, signals: I) -> Result<Self> {
        let queued = signals.into_iter().fold(self.queued, |set, signal| set | sys::bit(signal.number()));
        let fd = sys::signalfd(queued)
            .map_err(|errno| Error::system("signalfd", "more signals", errno, short_of_descriptors(errno)))?;
        Ok(Self { fd, queued })
    }

    /// The next signal, waited for up to `patience`, for ever where that is `None`; `None` when it is over.
    ///
    /// # Errors
    /// The errno of poll(2) or read(2).
    pub fn next(&self, patience: Option<Duration>) -> Result<Option<Received>> {
        let failed = |errno| Error::system("read", "the signal queue", errno, "");
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        loop {
            if let Some(info) = sys::read_signal(self.fd.as_fd()).map_err(failed)?
                && let Some(received) = received(&info)
            {
                return Ok(Some(received));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(sys::timespec);
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

pub(crate) fn received(info: &libc::signalfd_siginfo) -> Option<Received> {
    let signal = Signal::from_number(info.ssi_signo as i32)?;
    if signal == Signal::CONT && info.ssi_code == libc::SI_TIMER {
        // Our own ([`wake`]): it has done its work.
        wake::renew();
        return None;
    }
    Some(Received { signal, from_kernel: info.ssi_code == libc::SI_KERNEL, sender: info.ssi_pid })
}

/// Whether this program was started with `signal` blocked: it would not have seen it. (As at the first call of
/// `pinfold::init`, or of what starts a guard.)
#[must_use]
pub fn was_blocked(signal: Signal) -> bool {
    inherited::signals().blocked & sys::bit(signal.number()) != 0
}

/// Ends this process by `signal`, as if it had never been caught, so that a calling shell sees that.
///
/// Comes back only where the signal's default action is not to end the process.
pub fn end_by(signal: Signal) {
    sys::set_ignored(signal.number(), false);
    // Sent while it is blocked: together with one that waits already it comes once.
    sys::raise(signal.number());
    sys::set_signal_mask(sys::ALL_SIGNALS & !sys::bit(signal.number()));
}

/// Stops this process by `signal` (SIGTSTP, SIGTTIN or SIGTTOU), as if it had never been caught, and comes back when it
/// is continued.
pub fn suspend_by(signal: Signal) {
    let mask = sys::signal_mask();
    let ignored = sys::is_ignored(signal.number());
    wake::paused(|| end_by(signal));
    sys::set_signal_mask(mask);
    sys::set_ignored(signal.number(), ignored);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_goes_through_its_own_name() {
        for number in (1..=31).chain(REAL_TIME) {
            let signal = Signal(number);
            let name = signal.to_string();
            assert_eq!(name.parse::<Signal>().unwrap(), signal, "{name}");
            assert_eq!(name[3..].to_lowercase().parse::<Signal>().unwrap(), signal, "{name}");
            assert_eq!(number.to_string().parse::<Signal>().unwrap(), signal);
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
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
