//! Waits until a descriptor is ready (poll(2)).

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::{Errno, Result};

/// Waits until one of `fds` is ready, for at most `time`; `None` waits without a limit. Returns whether one of them is
/// ready. A signal does not end the wait.
///
/// # Errors
/// The errno of poll(2), except `EINTR`.
pub fn wait(fds: &mut [PollFd<'_>], time: Option<Duration>) -> Result<bool> {
    let until = time.and_then(|time| Instant::now().checked_add(time));
    let mut left = time;
    loop {
        match poll(fds, left.map(timespec).as_ref()) {
            Err(Errno::INTR) => left = until.map(|until| until.saturating_duration_since(Instant::now())),
            ready => return ready.map(|ready| ready > 0),
        }
    }
}

/// Converts a timeout to the kernel's form. A timeout that is too long for it becomes the longest possible one.
pub fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
