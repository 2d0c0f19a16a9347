//! Continues a stopped supervisor at a deadline. A job that may signal its supervisor can stop it (`kill -STOP -1`),
//! and a stopped supervisor does not notice a deadline. Therefore a POSIX timer makes the kernel send SIGCONT at the
//! deadline. SIGCONT continues a process even if all its threads are stopped (signal(7)). The timer does not wake the
//! process before the deadline. The signal repeats while the job exists, because the job can stop its supervisor again.
//!
//! This module has an effect only in a program that does nothing except supervise
//! ([`Guard::fork`](crate::Guard::fork)). A program that uses the library receives no signal from this module.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time between two signals.
const AGAIN: Duration = Duration::from_millis(250);

/// The number of timers, each of which expires [`AGAIN`] after the one before it. One timer is not enough: a SIGSTOP
/// that arrives before SIGCONT has been read discards the SIGCONT, and this also ends the repetition of that timer,
/// because the kernel sets the next expiration only when the signal is read (`posixtimer_rearm` in
/// kernel/time/posix-timers.c).
const TIMERS: usize = 4;

static ALLOWED: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(0);
static WAKES: Mutex<Wakes> = Mutex::new(Wakes { due: BTreeSet::new(), timers: [None; TIMERS], paused: false });

struct Wakes {
    due: BTreeSet<(Instant, u64)>,
    timers: [Option<i32>; TIMERS],
    /// Whether this process is stopped on purpose.
    paused: bool,
}

/// Allows timers to send SIGCONT to this process from now on.
pub(crate) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Makes the kernel send SIGCONT to this process at a given time, and every 250 ms after that, until this value is
/// dropped. For a program that has its own deadline for a job, because the job may have stopped the program. The
/// deadlines that pinfold itself enforces on a job already have such a timer.
///
/// This has no effect in a program that has not called [`Guard::fork`](crate::Guard::fork), nor while
/// [`suspend_by`](crate::kernel::own_signals::suspend_by) has stopped the program.
#[derive(Debug, Default)]
pub struct Wake(Option<(Instant, u64)>);

impl Wake {
    /// Starts the signals after [`AGAIN`]: for a job that is being ended.
    pub(crate) fn soon() -> Self {
        Self::at(Instant::now().checked_add(AGAIN))
    }

    /// Starts the signals at `time`. With `None`, no signal is sent.
    #[must_use]
    pub fn at(time: Option<Instant>) -> Self {
        let allowed = time.filter(|_| ALLOWED.load(Ordering::Relaxed));
        let own = allowed.map(|time| (time, NEXT.fetch_add(1, Ordering::Relaxed)));
        if let Some(own) = own {
            change(|due| _ = due.insert(own));
        }
        Self(own)
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            change(|due| _ = due.remove(&own));
        }
    }
}

/// Calls `suspend`, which stops this process on purpose, as Ctrl-Z does. Meanwhile no timer continues this process.
#[cfg(feature = "cli")]
pub(crate) fn paused(suspend: impl FnOnce()) {
    let pause = |paused| {
        let mut wakes = lock();
        wakes.paused = paused;
        wakes.set();
    };
    pause(true);
    suspend();
    pause(false);
}

fn lock() -> MutexGuard<'static, Wakes> {
    WAKES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change(change: impl FnOnce(&mut BTreeSet<(Instant, u64)>)) {
    let mut wakes = lock();
    let first = wakes.due.first().copied();
    change(&mut wakes.due);
    if wakes.due.first().copied() != first {
        wakes.set();
    }
}

impl Wakes {
    /// Sets the timers to the earliest time that is due. If the kernel refuses a timer (RLIMIT_SIGPENDING), the
    /// deadline is still kept unless a job stops this process.
    fn set(&mut self) {
        let first = self.due.first().map(|(first, _)| *first);
        self.set_to(first);
    }

    fn set_to(&mut self, first: Option<Instant>) {
        let first = first.filter(|_| !self.paused);
        // 0 would disarm the timer.
        let left = first.map(|first| first.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)));
        for (number, timer) in (0..).zip(&mut self.timers) {
            if timer.is_none() && first.is_some() {
                *timer = create();
            }
            let Some(timer) = *timer else { return };
            // SAFETY: all-zero is valid for plain data; this value disarms the timer.
            let mut setting: libc::itimerspec = unsafe { std::mem::zeroed() };
            if let Some(left) = left {
                setting.it_value = timespec(left.saturating_add(AGAIN * number));
                setting.it_interval = timespec(AGAIN * TIMERS as u32);
            }
            let none = std::ptr::null::<libc::itimerspec>();
            // SAFETY: the setting outlives the call, which returns no old setting.
            unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const setting, none) };
        }
    }
}

/// Sets all timers again after one of their signals has been read, so that [`TIMERS`] signals follow again.
#[cfg(feature = "cli")]
pub(crate) fn renew() {
    let mut wakes = lock();
    let soon = Instant::now().checked_add(AGAIN);
    // If a time has already passed, the next signal comes after `AGAIN`.
    if let (Some(soon), Some(&first)) = (soon, wakes.due.first())
        && first.0 < soon
    {
        wakes.set_to(Some(soon));
    }
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

fn create() -> Option<i32> {
    // SAFETY: all-zero is valid; both structures outlive the call (timer_create(2)).
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGCONT;
        let mut timer = 0_i32;
        let done = libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
        (done == 0).then_some(timer)
    }
}
