//! The signals of the `pinfold` command itself: a queue of the signals that it receives, and functions with which it
//! ends or suspends itself by a signal.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::signal::Signal;
use crate::kernel::{inherited, poll, signal_set, wake};

/// A signal that this process has received, and its sender.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The signal.
    pub signal: Signal,
    /// Whether the kernel sent the signal (`si_code` SI_KERNEL). For SIGINT, SIGQUIT and SIGTSTP that means the
    /// terminal, which sends it to the whole foreground process group (sigaction(2)).
    pub from_kernel: bool,
    /// The process that sent the signal; 0 if it is not known.
    pub sender: u32,
    /// The value that came with the signal (sigqueue(3)).
    pub value: Option<i32>,
}

impl Received {
    /// Returns a received signal.
    #[must_use]
    pub const fn new(signal: Signal, from_kernel: bool, sender: u32) -> Self {
        Self { signal, from_kernel, sender, value: None }
    }

    /// Returns whether the terminal sent the signal: to its foreground process group, or, for SIGHUP, only to the
    /// leader of its session. It did if the kernel is the sender and a terminal can send this signal. The kernel is the
    /// sender of SIGALRM too (setitimer(2); exec keeps the timer), but that signal reaches one process only.
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
/// For the `pinfold` command: no signal can end it while its job goes on. Signals that were ignored when it was started
/// stay ignored (nohup(1)). The library itself makes no queue: its host keeps its own signal handlers.
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
        // This comes before the change of the mask, so that an error leaves the mask as it was.
        let fd = signal_set::signalfd(queued)
            .map_err(|errno| Error::system("signalfd", "all signals", errno, short_of_descriptors(errno)))?;
        signal_set::set_signal_mask(signal_set::ALL_SIGNALS);
        Ok(Self { fd, queued })
    }

    /// Queues further signals: [`block_all`] leaves out SIGCHLD, and the signals that were ignored when the program was
    /// started.
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

    /// Waits for the next signal, up to `timeout`; `None` waits without a limit. Returns `None` if no signal came
    /// within that time.
    ///
    /// # Errors
    /// The errno of poll(2) or read(2).
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<Received>> {
        let failed = |errno| Error::system("read", "the signal queue", errno, "");
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
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
        // pinfold's own timer ([`wake`]) sent this signal. The signal has already continued this process, so it is not
        // reported.
        wake::renew();
        return None;
    }
    let value = (info.ssi_code == libc::SI_QUEUE).then_some(info.ssi_int);
    Some(Received { signal, from_kernel: info.ssi_code == libc::SI_KERNEL, sender: info.ssi_pid, value })
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
    // The signal is still blocked here, so if the same signal is already pending, the kernel delivers it only once.
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
