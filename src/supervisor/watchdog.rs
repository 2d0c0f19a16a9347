//! Continues a stopped guard. If a guard does not answer for a long time, a job may have stopped it (SIGSTOP), and the
//! code that waits for the answer would hang. So the watchdog then sends SIGCONT.
//!
//! The watchdog uses a timerfd(2), because setting it is one short system call. Setting a tokio timer would wake the
//! runtime each time, although the answer usually arrives long before the timer expires.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::pidfd;

/// How long an answer may take before the guard receives SIGCONT.
const ANSWER_BOUND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Watchdog {
    timer: Arc<AsyncFd<OwnedFd>>,
    /// The number of expected answers. The timer runs while there are any.
    expected: Mutex<usize>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Watchdog {
    /// Creates a watchdog for the guard of this pidfd.
    pub fn new(guard: Arc<AsyncFd<OwnedFd>>) -> Result<Self> {
        let failed = |errno| Error::system("timerfd_create", "to watch the guard", errno, short_of_descriptors(errno));
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(failed)?;
        let timer = crate::supervisor::watch::watched(timer, Interest::READABLE)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let timer = Arc::new(timer);
        let task = tokio::spawn(resume_when_late(guard, timer.clone()));
        Ok(Self { timer, expected: Mutex::new(0), task: Mutex::new(Some(task)) })
    }

    /// Records that an answer of the guard is expected, until the returned value is dropped.
    pub fn expect_answer(self: &Arc<Self>) -> ExpectedAnswer {
        self.count(|expected| expected + 1);
        ExpectedAnswer(self.clone())
    }

    /// Waits until the watchdog's task has closed its descriptors. Called when the guard is gone.
    pub async fn end(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *expected;
        *expected = change(before);
        let time = match (before, *expected) {
            (0, 1..) => ANSWER_BOUND,
            (1.., 0) => Duration::ZERO,
            _ => return,
        };
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: 0 };
        let time = Itimerspec { it_interval: time, it_value: time };
        // Every time that occurs here is valid, and 0 disarms the timer (timerfd_settime(2)).
        let _ = timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &time);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// An answer that the guard has not sent yet.
#[derive(Debug)]
pub(crate) struct ExpectedAnswer(Arc<Watchdog>);

impl Drop for ExpectedAnswer {
    fn drop(&mut self) {
        self.0.count(|expected| expected.saturating_sub(1));
    }
}

async fn resume_when_late(guard: Arc<AsyncFd<OwnedFd>>, timer: Arc<AsyncFd<OwnedFd>>) {
    while let Ok(mut ready) = timer.readable().await {
        // The read returns the number of expirations (timerfd_create(2)). It fails if the timer was set again meanwhile
        // and has not expired.
        if rustix::io::read(&*timer, &mut [0; 8]).is_ok() {
            resume(&guard);
        }
        ready.clear_ready();
    }
}

/// Continues a guard that may have been stopped. For a guard that is only busy, the signal is harmless.
pub(super) fn resume(guard: impl AsFd) {
    // An error means that the guard is gone. Other code notices and reports this.
    let _ = pidfd::send_signal(guard.as_fd(), libc::SIGCONT);
}
