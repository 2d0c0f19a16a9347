//! Writes to descriptors that pinfold received from its caller. They may be non-blocking. All processes that have the
//! same open file description share this property, so pinfold must not change it (open(2), O_NONBLOCK).

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::Signal;
use crate::kernel::inherited;
use crate::kernel::own_signals::SignalQueue;
pub(crate) use crate::output::write_all;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::thread;

/// Prints a text on standard output and flushes it. With an empty text, this only flushes what was printed before.
///
/// # Errors
/// Those of write(2), and `EBADF` if standard output was closed when pinfold started; Rust's `Stdout` ignores that
/// `EBADF`.
pub(crate) fn print(text: &str) -> io::Result<()> {
    if inherited::was_closed(1) && !text.is_empty() {
        return Err(Errno::BADF.into());
    }
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// How long a write waits while its reader does not read.
#[derive(Clone, Copy)]
pub enum WriteTimeout {
    /// Until pinfold receives SIGTERM, SIGINT, SIGHUP or SIGQUIT. The caller must have blocked these signals.
    UntilSignal,
    /// Until pinfold receives one of these signals, or until this time is over.
    AtMost(Duration),
}

/// Writes all bytes, and waits no longer than `timeout`. This is for the time after a job, to which the job's own time
/// limits do not apply.
///
/// # Errors
/// Those of [`write_all`]; `TimedOut` or `Interrupted`, with messages of their own, if the wait is over. In that case,
/// some of the bytes may have been written.
pub(crate) fn write_within(out: File, mut bytes: &[u8], timeout: WriteTimeout) -> io::Result<()> {
    // A pipe that is ready accepts this many bytes without blocking (pipe(7)). A regular file is always ready
    // (poll(2)).
    const PIPE_BUF: usize = 4096;
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    while !bytes.is_empty() && matches!(poll(&mut [PollFd::new(&out, PollFlags::OUT)], Some(&NOW)), Ok(1)) {
        match rustix::io::write(&out, &bytes[..bytes.len().min(PIPE_BUF)]) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    if bytes.is_empty() {
        return Ok(());
    }
    // The next write would block. A thread writes the rest; the thread ends with pinfold.
    let (sender, results) = mpsc::channel();
    let (rest, written) = (bytes.to_vec(), sender.clone());
    thread::start("to write to a slow reader", move || drop(written.send(Ok(write_all(out, &rest)))))
        .map_err(io::Error::other)?;
    let queue = SignalQueue::block_all().map_err(io::Error::other)?;
    thread::start("to wait for signals", move || {
        while let Ok(Some(received)) = queue.next(None) {
            if [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&received.signal) {
                let _ = sender.send(Err(received.signal));
            }
        }
    })
    .map_err(io::Error::other)?;
    let result = match timeout {
        WriteTimeout::UntilSignal => results.recv().map_err(|_| RecvTimeoutError::Disconnected),
        WriteTimeout::AtMost(time) => results.recv_timeout(time),
    };
    match result {
        Ok(Ok(written)) => written,
        Ok(Err(signal)) => Err(io::Error::new(
            io::ErrorKind::Interrupted,
            format!("{signal} arrived while pinfold waited for its reader"),
        )),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its reader does not read")),
    }
}
