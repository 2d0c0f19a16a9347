//! A job that may signal its supervisor can stop it (`kill -STOP -1`), and a stopped supervisor sees no deadline. So the kernel
//! sends SIGCONT at the deadline, by a POSIX timer: that continues a process whose every thread is stopped (signal(7)), and it
//! costs no wake-up before. As long as the job is there, it comes again: the job can stop its supervisor again.
//!
//! Only in a program that does nothing else than supervise ([`Guard::fork`](crate::Guard::fork)): a library's host gets no
//! signal from here.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two, from the first on.
const AGAIN: Duration = Duration::from_millis(250);

/// A SIGSTOP that comes before the signal has been read discards it, and with it the timer's next times: the kernel sets those when
/// the signal is read (`posixtimer_rearm` in kernel/time/posix-timers.c). So there are some timers, each a bit later.
const TIMERS: usize = 4;

static ALLOWED: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(0);
static WAKES: Mutex<Wakes> = Mutex::new(Wakes { due: BTreeSet::new(), timers: [None; TIMERS], paused: false });

struct Wakes {
    due: BTreeSet<(Instant, u64)>,
    timers: [Option<i32>; TIMERS],
    /// This process is stopped on purpose.
    paused: bool,
}

/// From here on this process may be sent SIGCONT.
pub(crate) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// SIGCONT from the kernel to this process at a time, and every 250 ms after that, until this is dropped: for a program that has a
/// deadline of its own for a job, which may have stopped the program. Jobs' own deadlines have one.
///
/// It does nothing in a program that has not called [`Guard::fork`](crate::Guard::fork), and while
/// [`suspend_by`](crate::kernel::signal::suspend_by) has stopped it.
#[derive(Debug, Default)]
pub struct Wake(Option<(Instant, u64)>);

impl Wake {
    /// From soon on: the job is being ended.
    pub(crate) fn soon() -> Self {
        Self::at(Instant::now().checked_add(AGAIN))
    }

    /// At this time. `None` is never.
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

/// Does something in which this process is stopped on purpose, as by Ctrl-Z: then nothing continues it.
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
    /// Sets the timer to the first that is due. Where the kernel has none for us (RLIMIT_SIGPENDING), the deadline holds as long as
    /// nothing stops this process.
    fn set(&mut self) {
        let first = self.due.first().map(|(first, _)| *first);
        self.set_to(first);
    }

    fn set_to(&mut self, first: Option<Instant>) {
        let first = first.filter(|_| !self.paused);
        // 0 would disarm it.
        let left = first.map(|first| first.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)));
        for (number, timer) in (0..).zip(&mut self.timers) {
            if timer.is_none() && first.is_some() {
                *timer = create();
            }
            let Some(timer) = *timer else { return };
            // SAFETY: all-zero is valid for plain data: it disarms the timer.
            let mut setting: libc::itimerspec = unsafe { std::mem::zeroed() };
            if let Some(left) = left {
                setting.it_value = timespec(left.saturating_add(AGAIN * number));
                setting.it_interval = timespec(AGAIN * TIMERS as u32);
            }
            let none = std::ptr::null::<libc::itimerspec>();
            // SAFETY: the setting outlives the call, which gives no old one.
            unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const setting, none) };
        }
    }
}

/// One of the signals has been read: from here on there are as many again.
pub(crate) fn renew() {
    let mut wakes = lock();
    let soon = Instant::now().checked_add(AGAIN);
    // Those that are due already come again, a bit later.
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
