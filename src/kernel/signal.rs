//! Signals by name and number, and a queue of the signals that this process receives.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::error::{Error, Result, short_of_descriptors};
pub use crate::kernel::wake::Wake;
use crate::kernel::{inherited, poll, signal_set, wake};

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
    pub fn all() -> impl Iterator<Item = Self> {
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

/// A signal that this process has received, and its sender.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Received {
    /// The signal.
    pub signal: Signal,
    /// Whether the kernel sent the signal (`si_code` SI_KERNEL). For SIGINT, SIGQUIT and SIGTSTP that means the
    /// terminal, which sends it to the whole foreground process group (sigaction(2)).
    pub from_kernel: bool,
    /// The process that sent the signal; 0 if it is not known.
    pub sender: u32,
}

impl Received {
    /// Returns a received signal, for tests of rules about signals.
    #[must_use]
    pub const fn new(signal: Signal, from_kernel: bool, sender: u32) -> Self {
        Self { signal, from_kernel, sender }
    }

    /// Returns whether the terminal sent the signal to its foreground process group, or only to the leader of its
    /// session (SIGHUP). That is so if the kernel sent the signal, and if it is one of the signals that a terminal
    /// sends. The kernel also sends SIGALRM for a timer (setitimer(2)), which exec keeps, but that signal reaches one
    /// process only.
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

/// A queue of every signal that can be blocked: the signals are not handled by this process but queued (signalfd(2)).
///
/// For programs that do nothing except supervise, such as the `pinfold` command: no signal can end such a program while
/// its job goes on. Signals that were ignored when the program was started stay ignored (nohup(1)). A program that uses
/// the library keeps its own signal handlers: the library uses no queue unless the program makes one.
///
/// ```no_run
/// use pinfold::signal::SignalQueue;
/// let queue = SignalQueue::block_all()?; // The first statement of `main`.
/// while let Some(received) = queue.next(Some(std::time::Duration::from_secs(60)))? {
///     println!("{} from process {}", received.signal, received.sender);
/// }
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Debug)]
pub struct SignalQueue {
    pub(crate) fd: OwnedFd,
    /// The queued signals, as a bit mask.
    queued: u64,
}

impl SignalQueue {
    /// Blocks all signals in the calling thread and queues them. Call it while the process has one thread, before
    /// [`Guard::fork`](crate::Guard::fork). Jobs still get the signal mask that this program was started with.
    ///
    /// # Errors
    /// The errno of signalfd(2): `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn block_all() -> Result<Self> {
        // The kernel queues a blocked signal even if it is ignored, so ignored signals are left out here.
        let queued = signal_set::ALL_SIGNALS & !signal_set::bit(libc::SIGCHLD) & !inherited::signals().ignored;
        // Before the mask is set: if this fails, the mask stays as it was.
        let fd = signal_set::signalfd(queued)
            .map_err(|errno| Error::system("signalfd", "all signals", errno, short_of_descriptors(errno)))?;
        signal_set::set_signal_mask(signal_set::ALL_SIGNALS);
        Ok(Self { fd, queued })
    }

    /// Queues these signals too: [`block_all`] leaves out SIGCHLD, and the signals that were ignored when the program
    /// was started.
    ///
    /// [`block_all`]: Self::block_all
    ///
    /// # Errors
    /// The errno of signalfd(2).
    pub fn queue_also<I: IntoIterator<Item = Signal>>(self, signals: I) -> Result<Self> {
        let queued = signals.into_iter().fold(self.queued, |set, signal| set | signal_set::bit(signal.number()));
        let fd = signal_set::signalfd(queued)
            .map_err(|errno| Error::system("signalfd", "more signals", errno, short_of_descriptors(errno)))?;
        Ok(Self { fd, queued })
    }

    /// Waits up to `patience` for the next signal, without a limit if that is `None`. Returns `None` if no signal came
    /// within that time.
    ///
    /// # Errors
    /// The errno of poll(2) or read(2).
    pub fn next(&self, patience: Option<Duration>) -> Result<Option<Received>> {
        let failed = |errno| Error::system("read", "the signal queue", errno, "");
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        loop {
            if let Some(info) = signal_set::read_signal(self.fd.as_fd()).map_err(failed)?
                && let Some(received) = received(&info)
            {
                return Ok(Some(received));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !poll::wait(&mut [PollFd::new(&self.fd, PollFlags::IN)], left).map_err(failed)? {
                return Ok(None);
            }
        }
    }
}

pub(crate) fn received(info: &libc::signalfd_siginfo) -> Option<Received> {
    let signal = Signal::from_number(info.ssi_signo as i32)?;
    if signal == Signal::CONT && info.ssi_code == libc::SI_TIMER {
        // pinfold's own timer ([`wake`]) sent it. It has already continued this process, so it is not reported.
        wake::renew();
        return None;
    }
    Some(Received { signal, from_kernel: info.ssi_code == libc::SI_KERNEL, sender: info.ssi_pid })
}

/// Returns whether this program was started with `signal` blocked, so that it would not have received the signal. (This
/// is the state at the first call of `pinfold::init`, or of the function that starts a guard.)
#[must_use]
pub fn was_blocked(signal: Signal) -> bool {
    inherited::signals().blocked & signal_set::bit(signal.number()) != 0
}

/// Ends this process by `signal`, as if the signal had never been caught, so that a calling shell sees that the signal
/// ended it.
///
/// Returns only if the signal's default action does not end the process.
pub fn end_by(signal: Signal) {
    signal_set::set_ignored(signal.number(), false);
    // Sent while the signal is blocked: if the same signal is already pending, it is still delivered only once.
    signal_set::raise(signal.number());
    signal_set::set_signal_mask(signal_set::ALL_SIGNALS & !signal_set::bit(signal.number()));
}

/// Stops this process by `signal` (SIGTSTP, SIGTTIN or SIGTTOU), as if the signal had never been caught, and returns
/// when this process is continued.
pub fn suspend_by(signal: Signal) {
    let mask = signal_set::signal_mask();
    let ignored = signal_set::is_ignored(signal.number());
    wake::paused(|| end_by(signal));
    signal_set::set_signal_mask(mask);
    signal_set::set_ignored(signal.number(), ignored);
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
